import { describe, expect, it } from "vitest";
import { gaussian, relativeError, solveContext, studentT } from "../../test/support/solver.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { float } from "./float.js";
import { rtn } from "./rtn.js";

async function solve(w: Float32Array, n: number, k: number, options: object = {}) {
  const { tensor } = await float.solve(
    w.slice(),
    { n, k, path: "w" },
    null,
    float.options.parse(options),
    solveContext(),
  );
  return tensor;
}

describe("float", () => {
  it("e3m2 on Gaussian rows: relative error about 0.0026 with any row length, 6 + 16 / K bits", async () => {
    for (const k of [128, 1024]) {
      const w = gaussian(32 * k, 1);
      const tensor = await solve(w, 32, k, { scaleType: "f32" });
      expect(relativeError(decode(tensor), w)).toBeGreaterThan(0.0024);
      expect(relativeError(decode(tensor), w)).toBeLessThan(0.0029);
    }
    expect(bitsPerWeight(await solve(gaussian(4 * 576), 4, 576))).toBeCloseTo(6 + 16 / 576, 9);
  });

  it("loses less than 6-bit integers in rows with outliers", async () => {
    const w = studentT(16 * 512, 2);
    for (let r = 0; r < 16; r++) w[r * 512 + 7] = 60;
    const { tensor } = await rtn.solve(
      w.slice(),
      { n: 16, k: 512, path: "w" },
      null,
      rtn.options.parse({ bits: 6 }),
      solveContext(),
    );
    const small = (d: Float32Array) =>
      relativeError(
        d.map((x, i) => (Math.abs(w[i] as number) < 50 ? x : (w[i] as number))),
        w,
      );
    expect(small(decode(await solve(w, 16, 512)))).toBeLessThan(0.5 * small(decode(tensor)));
  });

  it("more bits, less error; the largest weight is kept", async () => {
    const w = gaussian(8 * 256, 3);
    const errors: number[] = [];
    for (const format of ["e2m1", "e2m2", "e2m3", "e4m3"]) {
      const decoded = decode(await solve(w, 8, 256, { format, scaleType: "f32" }));
      errors.push(relativeError(decoded, w));
      for (let r = 0; r < 8; r++) {
        const row = w.subarray(r * 256, (r + 1) * 256);
        const at = row.reduce(
          (best, x, i) => (Math.abs(x) > Math.abs(row[best] as number) ? i : best),
          0,
        );
        expect(Math.abs((decoded[r * 256 + at] as number) / (row[at] as number) - 1)).toBeLessThan(
          1e-6,
        );
      }
    }
    expect([...errors].sort((a, b) => b - a)).toEqual(errors);
  });

  it("rounding what was rounded changes nothing", async () => {
    for (const format of ["e3m2", "e2m3", "e2m2", "e2m1", "e4m3", "e5m2"]) {
      const once = decode(await solve(studentT(4 * 96, 4), 4, 96, { format }));
      expect(decode(await solve(once, 4, 96, { format }))).toEqual(once);
    }
  });

  it("the scale by search has no larger squared error", async () => {
    const w = studentT(16 * 128, 5);
    for (const format of ["e2m1", "e3m2", "e5m2"]) {
      const plain = relativeError(decode(await solve(w, 16, 128, { format })), w);
      expect(
        relativeError(decode(await solve(w, 16, 128, { format, scale: "mse" })), w),
      ).toBeLessThanOrEqual(plain);
    }
  });

  it("a scale that f16 cannot hold is refused with the way out", async () => {
    const w = new Float32Array(16).fill(1e7);
    await expect(solve(w, 1, 16)).rejects.toThrow(/w: a scale of .* does not fit in f16/);
    expect(decode(await solve(w, 1, 16, { scaleType: "f32" }))).toEqual(w);
  });
});
