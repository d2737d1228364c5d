import { describe, expect, it } from "vitest";
import { gaussian, relativeError, solveContext, studentT } from "../../test/support/solver.js";
import { decode } from "../encodings/quant-tensor.js";
import { fitHqq, type HqqOptions, hqq, shrink } from "./hqq.js";

const options = (o: object = {}): HqqOptions => hqq.options.parse(o);

async function solve(w: Float32Array, n: number, k: number, o: object = {}) {
  return (await hqq.solve(w.slice(), { n, k, path: "w" }, null, options(o), solveContext())).tensor;
}

describe("hqq", () => {
  it("shrink with p = 1 is soft thresholding by 1 / beta; 0 stays 0", () => {
    for (const x of [-2, -0.1, 0.05, 0.3, 7]) {
      expect(shrink(x, 1, 10)).toBeCloseTo(Math.sign(x) * Math.max(Math.abs(x) - 0.1, 0), 12);
    }
    expect(shrink(0, 0.7, 10)).toBe(0);
  });

  it("0 iterations are rounding on the range of each group with a float zero", async () => {
    const w = studentT(4 * 64, 1);
    const decoded = decode(await solve(w, 4, 64, { iters: 0, scaleType: "f32" }));
    for (let r = 0; r < 4; r++) {
      const row = w.subarray(r * 64, (r + 1) * 64);
      const low = Math.min(...row);
      const scale = (Math.max(...row) - low) / 15;
      row.forEach((x, c) => {
        const expected = low + scale * Math.round((x - low) / scale);
        expect(Math.abs((decoded[r * 64 + c] as number) - expected)).toBeLessThan(1e-5);
      });
    }
  });

  it("reproduces a group that lies on an affine grid", async () => {
    const w = Float32Array.from({ length: 128 }, (_, i) => -0.375 + 0.0625 * ((i * 7) % 16));
    expect(relativeError(decode(await solve(w, 2, 64)), w)).toBeLessThan(1e-12);
  });

  it("student-t(4), 3 bits: the mean error falls by about 4 % in 20 iterations and never rises before the stop", () => {
    const falls: number[] = [];
    for (let seed = 0; seed < 6; seed++) {
      const { errors } = fitHqq(studentT(64 * 64, seed), 64, 64, options({ bits: 3 }));
      const best = Math.min(...errors);
      falls.push(1 - best / (errors[0] as number));
      const before = errors.slice(0, -1);
      expect([...before].sort((a, b) => b - a)).toEqual(before);
    }
    const mean = falls.reduce((a, b) => a + b, 0) / falls.length;
    expect(mean).toBeGreaterThan(0.03);
    expect(mean).toBeLessThan(0.06);
  });

  it("lowers the 0.7-norm of heavy tails; matrices of small weights hardly move from their mean", async () => {
    const w = studentT(32 * 64, 9);
    const norm = (d: Float32Array) =>
      d.reduce((sum, x, i) => sum + Math.abs(x - (w[i] as number)) ** 0.7, 0);
    const plain = norm(decode(await solve(w, 32, 64, { bits: 3, iters: 0 })));
    expect(norm(decode(await solve(w, 32, 64, { bits: 3 })))).toBeLessThan(plain);
  });

  it("works on channels, ragged groups and whole matrices", async () => {
    const w = gaussian(6 * 100, 2, 0.03);
    for (const groupSize of ["channel", "tensor", 64]) {
      expect(relativeError(decode(await solve(w, 6, 100, { groupSize })), w)).toBeLessThan(0.03);
    }
  });

  it("kappa and earlyStop change the number of iterations", () => {
    const w = studentT(32 * 64, 3);
    expect(fitHqq(w, 32, 64, options({ earlyStop: false, iters: 30 })).errors.length).toBe(30);
    const other = fitHqq(w, 32, 64, options({ kappa: 1.01, bits: 3 })).errors;
    expect(other).not.toEqual(fitHqq(w, 32, 64, options({ bits: 3 })).errors);
  });
});
