import { describe, expect, it } from "vitest";
import {
  activations,
  gaussian,
  outputError,
  relativeError,
  solveContext,
  statsOf,
  studentT,
} from "../../test/support/solver.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import { decode } from "../encodings/quant-tensor.js";
import { namedTable } from "../encodings/tables.js";
import type { Lut, QuantTensor } from "../encodings/types.js";
import { afpq } from "./afpq.js";

async function solve(w: Float32Array, n: number, k: number, options: object, x?: Float64Array) {
  const o = afpq.options.parse(options);
  const stats = x ? statsOf(x, k) : null;
  const { tensor } = await afpq.solve(w.slice(), { n, k, path: "w" }, stats, o, solveContext());
  return tensor as QuantTensor & { main: Lut };
}

describe("afpq", () => {
  const w = gaussian(96 * 1024, 5);
  it.each([
    ["nf4", 0.00913, 0.0085],
    ["fp4", 0.01185, 0.0112],
    ["nf3", 0.044, 0.0391],
    ["fp3", 0.057, 0.0513],
  ])(
    "%s on Gaussian rows, groups of 128: one scale %f, two scales %f (3 %%)",
    async (table, one, two) => {
      const error = async (twoScale: boolean) =>
        relativeError(decode(await solve(w, 96, 1024, { table, twoScale, scaleType: "f32" })), w);
      expect(Math.abs((await error(false)) / one - 1)).toBeLessThan(0.03);
      expect(Math.abs((await error(true)) / two - 1)).toBeLessThan(0.03);
    },
  );

  it("mirrored weights give mirrored values and swapped scales (odd tables)", async () => {
    const v = studentT(4 * 128, 1);
    for (const table of ["fp4", "fp3"]) {
      const a = await solve(v, 4, 128, { table });
      const b = await solve(
        v.map((x) => -x),
        4,
        128,
        { table },
      );
      expect(decode(b)).toEqual(decode(a).map((x) => (x === 0 ? 0 : -x)));
      expect(b.main.scale?.data).toEqual(a.main.scaleNegative?.data);
      expect(b.main.scaleNegative?.data).toEqual(a.main.scale?.data);
    }
  });

  it("a group of positive weights keeps its maximum and does not use the other side", async () => {
    const v = gaussian(64, 2).map((x) => Math.abs(x) + 0.25);
    v[9] = 4;
    const tensor = await solve(v, 1, 64, { table: "nf4" });
    expect(decode(tensor)[9]).toBe(4);
    expect(tensor.main.scaleNegative?.data[0]).toBe(1);
    expect(decode(tensor).every((x) => x >= 0)).toBe(true);
  });

  it("a negative weight never becomes positive", async () => {
    const v = studentT(512, 3);
    for (const table of ["nf4", "nf3", "fp4", "fp3"]) {
      for (const [i, x] of decode(await solve(v, 4, 128, { table })).entries()) {
        expect(x * (v[i] as number)).toBeGreaterThanOrEqual(0);
      }
    }
  });

  it("dot = (s+ + s-)/2 sum v x + (s+ - s-)/2 sum |v| x (1e-6)", async () => {
    const v = studentT(128, 4);
    const x = gaussian(128, 6);
    const tensor = await solve(v, 1, 128, {});
    const { values } = namedTable("nf4");
    const codes = unpackCodes(tensor.main.codes);
    const plus = tensor.main.scale?.data[0] as number;
    const minus = tensor.main.scaleNegative?.data[0] as number;
    let direct = 0;
    let signed = 0;
    let absolute = 0;
    let size = 0;
    decode(tensor).forEach((d, i) => {
      const t = values[codes[i] as number] as number;
      direct += d * (x[i] as number);
      signed += t * (x[i] as number);
      absolute += Math.abs(t) * (x[i] as number);
      size += Math.abs(d * (x[i] as number));
    });
    const identity = ((plus + minus) / 2) * signed + ((plus - minus) / 2) * absolute;
    expect(Math.abs(identity - direct)).toBeLessThan(1e-6 * size);
  });

  it("the range search lowers the 2.4-norm of the error", async () => {
    const v = studentT(32 * 128, 7);
    const norm = (t: QuantTensor) =>
      decode(t).reduce((sum, d, i) => sum + Math.abs(d - (v[i] as number)) ** 2.4, 0);
    for (const twoScale of [true, false]) {
      const plain = norm(await solve(v, 32, 128, { table: "nf3", twoScale }));
      expect(norm(await solve(v, 32, 128, { table: "nf3", twoScale, clip: "mse" }))).toBeLessThan(
        plain,
      );
    }
  });

  it.each(["channel", 64])(
    "solver gptq has a smaller output error than rtn (groups: %s)",
    async (groupSize) => {
      const [n, k] = [24, 160];
      const v = studentT(n * k, 8);
      const x = activations(300, k, 8);
      for (const table of ["nf4", "nf3", "fp4"]) {
        const rtn = await solve(v, n, k, { table, groupSize }, x);
        const gptq = await solve(v, n, k, { table, groupSize, solver: "gptq" }, x);
        expect(outputError(gptq, v, x)).toBeLessThan(0.8 * outputError(rtn, v, x));
      }
    },
  );

  it("solver gptq without statistics is refused by name", async () => {
    await expect(solve(studentT(64, 1), 1, 64, { solver: "gptq" })).rejects.toThrow(
      /w: solver: gptq needs/,
    );
  });
});
