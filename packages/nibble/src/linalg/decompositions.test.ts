import { describe, expect, it } from "vitest";
import { NumericError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { cholesky, choleskySolve } from "./cholesky.js";
import { eigh } from "./eigh.js";
import { referenceLinalg } from "./engine-linalg.js";
import { qr, randomOrthogonal } from "./qr.js";
import { svd } from "./svd.js";

type Matrix = Float64Array;
const at = (a: ArrayLike<number>, i: number) => a[i] as number;

/** A [m, k] times B [k, n]; transB: B is [n, k]. */
function multiply(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  m: number,
  k: number,
  n: number,
  transB = false,
): Matrix {
  const c = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      for (let t = 0; t < k; t++) {
        c[i * n + j] = at(c, i * n + j) + at(a, i * k + t) * at(b, transB ? j * k + t : t * n + j);
      }
    }
  }
  return c;
}
const transposed = (a: ArrayLike<number>, m: number, n: number) =>
  Float64Array.from({ length: m * n }, (_, i) => at(a, (i % m) * n + Math.floor(i / m)));
function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let max = 0;
  for (let i = 0; i < a.length; i++) max = Math.max(max, Math.abs(at(a, i) - at(b, i)));
  return max;
}
const identity = (n: number) =>
  Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
function spd(n: number, seed: number): Matrix {
  const x = new Philox(seed).normals(2 * n * n);
  return multiply(transposed(x, 2 * n, n), x, n, 2 * n, n);
}

describe("cholesky", () => {
  it("A = L L^T and solves", () => {
    const n = 23;
    const a = spd(n, 1);
    const l = cholesky(a, n);
    expect(maxDifference(multiply(l, l, n, n, n, true), a)).toBeLessThan(1e-12 * n * n);
    const x = new Philox(2).normals(n);
    expect(maxDifference(choleskySolve(l, n, multiply(a, x, n, n, 1)), x)).toBeLessThan(1e-10);
  });
  it("refuses an indefinite matrix and NaN", () => {
    expect(() => cholesky(Float64Array.of(1, 2, 2, 1), 2)).toThrow(/column 1/);
    expect(() => cholesky(Float64Array.of(Number.NaN), 1)).toThrow(NumericError);
  });
});

describe("referenceLinalg", () => {
  it("inverseFactor: U upper, U^T U = H^-1 within 1e-4", async () => {
    for (const n of [1, 2, 17, 64]) {
      const h = spd(n, n);
      const u = await referenceLinalg.inverseFactor(Float64Array.from(h), n);
      for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) expect(u[i * n + j]).toBe(0);
      const inverse = multiply(transposed(u, n, n), u, n, n, n);
      expect(maxDifference(multiply(inverse, h, n, n, n), identity(n))).toBeLessThan(1e-4);
    }
  });
  it("inverseFactor names the failing column", async () => {
    await expect(referenceLinalg.inverseFactor(Float64Array.of(1, 2, 2, 1), 2)).rejects.toThrow(
      expect.objectContaining({ code: "not-positive-definite" }),
    );
  });
  it("gemm: all transposes, views, alpha and beta", async () => {
    const [rows, cols, inner] = [5, 7, 6];
    const a = Float32Array.from(new Philox(1).normals(rows * inner));
    const b = Float32Array.from(new Philox(2).normals(inner * cols));
    const expected = multiply(a, b, rows, inner, cols);
    for (const transA of [false, true]) {
      for (const transB of [false, true]) {
        const c = new Float32Array(3 + rows * 9).fill(2);
        const left = transA ? Float32Array.from(transposed(a, rows, inner)) : a;
        const right = transB ? Float32Array.from(transposed(b, inner, cols)) : b;
        await referenceLinalg.gemm({
          rows,
          cols,
          inner,
          a: { data: left, offset: 0, stride: transA ? rows : inner },
          b: { data: right, offset: 0, stride: transB ? inner : cols },
          c: { data: c, offset: 3, stride: 9 },
          transA,
          transB,
          alpha: -2,
          beta: 0.5,
        });
        for (let i = 0; i < rows; i++) {
          for (let j = 0; j < cols; j++) {
            expect(c[3 + i * 9 + j]).toBeCloseTo(1 - 2 * at(expected, i * cols + j), 4);
          }
          expect(c[3 + i * 9 + cols]).toBe(2);
        }
      }
    }
  });
});

describe("qr", () => {
  it("A = Q R, Q orthonormal, R upper with diagonal >= 0", () => {
    const [m, n] = [14, 9];
    const a = new Philox(3).normals(m * n);
    const { q, r } = qr(a, m, n);
    expect(maxDifference(multiply(q, r, m, n, n), a)).toBeLessThan(1e-13 * m);
    expect(maxDifference(multiply(transposed(q, m, n), q, n, m, n), identity(n))).toBeLessThan(
      1e-13,
    );
    for (let i = 0; i < n; i++) {
      expect(at(r, i * n + i)).toBeGreaterThan(0);
      for (let j = 0; j < i; j++) expect(r[i * n + j]).toBe(0);
    }
  });
  it("survives a zero column; refuses wide and infinite matrices", () => {
    const { q } = qr(Float64Array.of(0, 1, 0, 2, 0, 3), 3, 2);
    expect(maxDifference(multiply(transposed(q, 3, 2), q, 2, 3, 2), identity(2))).toBeLessThan(
      1e-14,
    );
    expect(() => qr(new Float64Array(2), 1, 2)).toThrow(NumericError);
    expect(() => qr(Float64Array.of(Number.POSITIVE_INFINITY), 1, 1)).toThrow(NumericError);
  });
  it("random orthogonal matrices are orthogonal and follow the seed", () => {
    const n = 40;
    const q = randomOrthogonal(n, new Philox(1));
    expect(maxDifference(multiply(q, q, n, n, n, true), identity(n))).toBeLessThan(1e-13);
    expect(randomOrthogonal(n, new Philox(1))).toEqual(q);
    expect(randomOrthogonal(n, new Philox(2))).not.toEqual(q);
  });
});

describe("eigh", () => {
  it.each([1, 2, 3, 10, 41])("n = %i: V A V^T diagonal, V orthogonal, values ascending", (n) => {
    const a = spd(n, 50 + n);
    const { values, vectors } = eigh(a, n);
    const scale = at(values, n - 1);
    expect(maxDifference(multiply(vectors, vectors, n, n, n, true), identity(n))).toBeLessThan(
      1e-12,
    );
    const image = multiply(vectors, a, n, n, n);
    for (let i = 0; i < n; i++) {
      if (i > 0) expect(at(values, i)).toBeGreaterThanOrEqual(at(values, i - 1));
      for (let j = 0; j < n; j++) {
        const expected = at(values, i) * at(vectors, i * n + j);
        expect(Math.abs(at(image, i * n + j) - expected)).toBeLessThan(1e-13 * n * scale);
      }
    }
  });
  it("handles repeated and zero eigenvalues", () => {
    expect([...eigh(new Float64Array(9), 3).values]).toEqual([0, 0, 0]);
    const ones = new Float64Array(16).fill(1);
    expect(maxDifference(eigh(ones, 4).values, [0, 0, 0, 4])).toBeLessThan(1e-14);
  });
  it("refuses NaN", () => {
    expect(() => eigh(Float64Array.of(Number.NaN), 1)).toThrow(NumericError);
  });
});

describe("svd", () => {
  it.each([
    [12, 7],
    [7, 12],
    [9, 9],
  ])("%i x %i: A = sum of s u v^T, vectors orthonormal", (m, n) => {
    const a = new Philox(m * n).normals(m * n);
    const { values, left, right } = svd(a, m, n);
    const r = Math.min(m, n);
    const scaled = left.map((x, i) => x * at(values, Math.floor(i / m)));
    expect(maxDifference(multiply(transposed(scaled, r, m), right, m, r, n), a)).toBeLessThan(
      1e-12,
    );
    expect(maxDifference(multiply(left, left, r, m, r, true), identity(r))).toBeLessThan(1e-12);
    expect(maxDifference(multiply(right, right, r, n, r, true), identity(r))).toBeLessThan(1e-12);
    for (let i = 1; i < r; i++) expect(at(values, i)).toBeLessThanOrEqual(at(values, i - 1));
  });
  it("keeps small singular values to full relative accuracy", () => {
    const { values } = svd(Float64Array.of(1e8, 0, 0, 1e-8), 2, 2);
    expect([...values]).toEqual([1e8, 1e-8]);
  });
  it("rank 1 gives one value; refuses infinities", () => {
    const { values } = svd(Float64Array.of(1, 2, 2, 4), 2, 2);
    expect(maxDifference(values, [5, 0])).toBeLessThan(1e-14);
    expect(() => svd(Float64Array.of(Number.POSITIVE_INFINITY), 1, 1)).toThrow(NumericError);
  });
});
