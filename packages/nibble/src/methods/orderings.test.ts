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

const float = (format: string): [string, object] => ["float", { format }];
it("small floats, one scale a row: fine mantissas win on Gaussian rows, wide exponents with outliers", async () => {
  await expectOrder(gaussian(n * k, 25), [
    float("e2m3"),
    float("e3m2"),
    float("e2m2"),
    float("e2m1"),
  ]);
  // One weight a row that is 100 times the rest: integers and short exponents leave the rest few steps.
  const w = gaussian(n * k, 26);
  for (let row = 0; row < n; row++) w[row * k + 7] = 100;
  const rest = async (id: string, options: object) => {
    const method = methods.get(id) as SolverMethod<unknown>;
    const parsed = method.options.parse(options);
    const solved = await method.solve(w.slice(), { n, k, path: "w" }, null, parsed, solveContext());
    const inner = (x: Float32Array) => x.filter((_, i) => i % k !== 7);
    return relativeError(inner(decode(solved.tensor)), inner(w));
  };
  const e3m2 = await rest("float", { format: "e3m2" });
  const e2m3 = await rest("float", { format: "e2m3" });
  const int6 = await rest("rtn", { bits: 6, groupSize: "channel", sym: "narrow" });
  expect(e3m2).toBeLessThan(e2m3);
  expect(e2m3).toBeLessThan(int6);
});

it("double quantization of scales costs less than half a percent of the error", async () => {
  const w = gaussian(n * k, 27);
  const plain = await errorOf("nf4", { scale: "f32" }, w);
  const double = await errorOf("nf4", { scale: "dq8" }, w);
  expect(Math.abs(double / plain - 1)).toBeLessThan(0.005);
  expect(plain).toBeLessThan(await errorOf("nf4", { groupSize: 128, scale: "f32" }, w));
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
