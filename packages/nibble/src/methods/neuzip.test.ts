import { describe, expect, it } from "vitest";
import { gaussian, relativeError, solveContext } from "../../test/support/solver.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { roundFloat } from "../encodings/stored-floats.js";
import { exactType, neuzip } from "./neuzip.js";

async function solve(w: Float32Array, n: number, k: number, options: object = {}) {
  return neuzip.solve(
    w.slice(),
    { n, k, path: "w" },
    null,
    neuzip.options.parse(options),
    solveContext(),
  );
}
const bf16 = (w: Float32Array) => w.map((x) => roundFloat(x, "bf16"));
const f16 = (w: Float32Array) => w.map((x) => roundFloat(x, "f16"));

describe("neuzip", () => {
  it("is exact, and stores the narrowest type that is", async () => {
    const w = gaussian(64 * 256, 1, 0.02);
    for (const [values, type] of [
      [bf16(w), "bf16"],
      [f16(w), "f16"],
      [w, "f32"],
      [new Float32Array(64 * 256), "bf16"],
    ] as const) {
      expect(exactType(values)).toBe(type);
      const { tensor, notes } = await solve(values, 64, 256);
      expect(decode(tensor)).toEqual(values);
      expect(notes).toEqual([`stored as ${type}`]);
    }
  });

  it("takes about 10.6 bits for bf16, 13.6 for f16; 6.6, 4.6 and 3.6 when cut", async () => {
    const w = gaussian(512 * 512, 2, 0.02);
    const bits = async (values: Float32Array, o: object = {}) =>
      bitsPerWeight((await solve(values, 512, 512, o)).tensor);
    expect(await bits(bf16(w))).toBeCloseTo(10.55, 1);
    expect(await bits(f16(w))).toBeCloseTo(13.55, 1);
    for (const [precision, expected] of [
      [7, 10.55],
      [3, 6.55],
      [1, 4.55],
      [0, 3.55],
    ] as const) {
      expect(Math.abs((await bits(w, { precision })) - expected)).toBeLessThan(0.06);
    }
    expect(await bits(w, { precision: 0, normalizer: 64 })).toBeLessThan(3.75);
  });

  it("errs less with more bits; a normalizer helps the largest weights", async () => {
    const w = gaussian(64 * 256, 3, 0.02);
    const error = async (o: object) =>
      relativeError(decode((await solve(w, 64, 256, o)).tensor), w);
    const errors = [
      await error({ precision: 0 }),
      await error({ precision: 1 }),
      await error({ precision: 3 }),
      await error({ precision: 7 }),
    ];
    expect([...errors].sort((a, b) => b - a)).toEqual(errors);
    expect(errors[3]).toBeLessThan(2 ** -18);
  });

  it("rows can be readable on their own, for little more", async () => {
    const w = bf16(gaussian(64 * 576, 4, 0.02));
    const whole = bitsPerWeight((await solve(w, 64, 576)).tensor);
    const { tensor } = await solve(w, 64, 576, { chunk: "row" });
    expect(decode(tensor)).toEqual(w);
    expect(bitsPerWeight(tensor) - whole).toBeLessThan(0.2);
  });

  it("says when lossy storage rounds to bf16 first; a normalizer needs cut mantissas", async () => {
    expect((await solve(gaussian(64, 5), 1, 64, { precision: 7 })).notes).toEqual([
      "rounded to bf16 first",
    ]);
    expect(() => neuzip.options.parse({ normalizer: 64 })).toThrow(/precision 3, 1 or 0/);
  });
});
