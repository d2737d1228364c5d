/**
 * The two dense routines solvers lean on, behind an interface so that they can run on a kernel engine
 * (`observers/kernel-linalg.ts`) or in plain TypeScript (here). Both are deterministic; they may differ in rounding.
 */
import { NumericError } from "../core/errors.js";

/** A row-major matrix inside a larger array: element (i, j) is data[offset + i * stride + j]. */
export interface MatrixView {
  data: Float32Array;
  offset: number;
  stride: number;
}

export interface GemmCall {
  rows: number;
  cols: number;
  inner: number;
  /** [rows, inner], or [inner, rows] with transA. */
  a: MatrixView;
  transA?: boolean;
  /** [inner, cols], or [cols, inner] with transB. */
  b: MatrixView;
  transB?: boolean;
  /** [rows, cols], changed in place. */
  c: MatrixView;
  /** Default 1. */
  alpha?: number;
  /** Default 0: C is overwritten and may hold anything. */
  beta?: number;
}

export interface EngineLinalg {
  /** Who computes, for the report: "reference", "wasm-simd", "avx2" … */
  readonly name: string;
  /** C = beta C + alpha A B in f32. */
  gemm(call: GemmCall): Promise<void>;
  /**
   * Upper triangular U f32 [n, n] with inverse(H) = U^T U (f64 inside). H f64 [n, n] symmetric positive definite; only its
   * upper triangle is read, and its contents are destroyed.
   * @throws NumericError code "not-positive-definite" naming the column where the factor breaks down.
   */
  inverseFactor(h: Float64Array, n: number): Promise<Float32Array>;
}

/** Error of both implementations of inverseFactor. */
export function notPositiveDefinite(column: number): NumericError {
  return new NumericError(
    `the matrix is not positive definite (factor breaks down at column ${column})`,
    { hint: "Raise percDamp, or use more calibration text." },
    "not-positive-definite",
  );
}

/** Plain TypeScript. Sums in f64, results rounded to f32. */
export const referenceLinalg: EngineLinalg = {
  name: "reference",
  async gemm(call) {
    gemmReference(call);
  },
  async inverseFactor(h, n) {
    return inverseFactorReference(h, n);
  },
};

function gemmReference(call: GemmCall): void {
  const { rows, cols, inner, a, b, c, alpha = 1, beta = 0, transA = false, transB = false } = call;
  const sums = new Float64Array(cols);
  for (let i = 0; i < rows; i++) {
    sums.fill(0);
    for (let k = 0; k < inner; k++) {
      const x = a.data[a.offset + (transA ? k * a.stride + i : i * a.stride + k)];
      if (transB) {
        for (let j = 0; j < cols; j++) sums[j] += x * b.data[b.offset + j * b.stride + k];
      } else {
        const row = b.offset + k * b.stride;
        for (let j = 0; j < cols; j++) sums[j] += x * b.data[row + j];
      }
    }
    const out = c.offset + i * c.stride;
    for (let j = 0; j < cols; j++) {
      c.data[out + j] = (beta === 0 ? 0 : beta * c.data[out + j]) + alpha * sums[j];
    }
  }
}

/**
 * H = R R^T with R upper triangular (Cholesky from the last column to the first), then U = R^-1: U is upper and
 * U^T U = R^-T R^-1 = H^-1. R overwrites the upper triangle of H; both loops run along rows.
 */
function inverseFactorReference(h: Float64Array, n: number): Float32Array {
  for (let j = n - 1; j >= 0; j--) {
    const rowJ = j * n;
    let pivot = h[rowJ + j];
    for (let k = j + 1; k < n; k++) pivot -= h[rowJ + k] * h[rowJ + k];
    if (!(pivot > 0) || pivot === Number.POSITIVE_INFINITY) throw notPositiveDefinite(j);
    const root = Math.sqrt(pivot);
    h[rowJ + j] = root;
    for (let i = 0; i < j; i++) {
      const rowI = i * n;
      let s0 = 0;
      let s1 = 0;
      let k = j + 1;
      for (; k + 1 < n; k += 2) {
        s0 += h[rowI + k] * h[rowJ + k];
        s1 += h[rowI + k + 1] * h[rowJ + k + 1];
      }
      if (k < n) s0 += h[rowI + k] * h[rowJ + k];
      h[rowI + j] = (h[rowI + j] - (s0 + s1)) / root;
    }
  }
  const u = new Float32Array(n * n);
  const row = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    row.fill(0);
    row[i] = 1;
    for (let k = i; k < n; k++) {
      const x = row[k] / h[k * n + k];
      row[k] = x;
      for (let j = k + 1; j < n; j++) row[j] -= x * h[k * n + j];
    }
    for (let j = i; j < n; j++) u[i * n + j] = row[j];
  }
  return u;
}
