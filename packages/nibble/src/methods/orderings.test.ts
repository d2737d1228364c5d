/** Which format errs less on the same weights, as the specifications order them: everything here is deterministic. */
import { expect, it } from "vitest";
import { gaussian, relativeError, solveContext, studentT } from "../../test/support/solver.js";
import { decode } from "../encodings/quant-tensor.js";
import type { SolverMethod } from "./contract.js";
import { methods } from "./index.js";

const [n, k] = [64, 512];

/** Relative squared weight error of a method that needs no data. */
async function errorOf(id: string, options: object, w: Float32Array): Promise<number> {
  const method = methods.get(id) as SolverMethod<unknown>;
  const parsed = method.options.parse(options);
  const solved = await method.solve(w.slice(), { n, k, path: "w" }, null, parsed, solveContext());
  return relativeError(decode(solved.tensor), w);
}

/** Expects every error to be below the next one. */
async function expectOrder(w: Float32Array, rows: [string, object][]): Promise<void> {
  const errors: number[] = [];
  for (const [id, options] of rows) errors.push(await errorOf(id, options, w));
  for (let i = 1; i < errors.length; i++) {
    const names = [rows[i - 1], rows[i]].map((row) => JSON.stringify(row)).join(" < ");
    expect(errors[i - 1], names).toBeLessThan(errors[i] as number);
  }
}

const g = { groupSize: 128 };
const gints = (bits: number, more: object = {}) => ({ ...g, bits, sym: false, ...more });

it("4 bits on Gaussian groups: two scales < NF4 < integers < FP4 < symmetric integers", async () => {
  await expectOrder(gaussian(n * k, 21), [
    ["float", { format: "e3m2" }],
    ["afpq", { ...g, table: "nf4" }],
    ["nf4", { ...g, scale: "f32" }],
    ["rtn", gints(4)],
    ["afpq", { ...g, table: "fp4", twoScale: false }],
    ["rtn", gints(4, { sym: "narrow" })],
  ]);
});

it("3 bits on Gaussian groups: two scales < NF3 < integers < FP3", async () => {
  await expectOrder(gaussian(n * k, 22), [
    ["afpq", { ...g, table: "nf3" }],
    ["afpq", { ...g, table: "nf3", twoScale: false }],
    ["rtn", gints(3)],
    ["afpq", { ...g, table: "fp3", twoScale: false }],
  ]);
});

it("each bit more, and smaller groups, lower the error of integers", async () => {
  const w = studentT(n * k, 23);
  await expectOrder(
    w,
    [8, 7, 6, 5, 4, 3, 2].map((bits): [string, object] => ["rtn", gints(bits)]),
  );
  await expectOrder(
    w,
    [32, 64, 128, "channel"].map((groupSize): [string, object] => ["rtn", gints(4, { groupSize })]),
  );
});

it("heavy tails, one scale a row: outliers kept apart < range search < plain rounding", async () => {
  await expectOrder(studentT(n * k, 24), [
    ["easyquant", {}],
    ["rtn", { bits: 4, groupSize: "channel", sym: "narrow", clip: "mse" }],
    ["rtn", { bits: 4, groupSize: "channel", sym: "narrow" }],
  ]);
});
