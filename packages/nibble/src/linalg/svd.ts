/**
 * Singular value decomposition by one-sided Jacobi rotations (Hestenes 1958), f64: slow for large matrices, but small
 * singular values come out with full relative accuracy.
 */
import { NumericError } from "../core/errors.js";

export interface Svd {
  /** Descending, [rank] with rank = min(rows, cols). */
  values: Float64Array;
  /** [rank, rows]; row i is the left singular vector of values[i] (zeros where the value is 0). */
  left: Float64Array;
  /** [rank, cols]; row i is the right singular vector of values[i]. */
  right: Float64Array;
}

const MAX_SWEEPS = 60;

/**
 * A [rows, cols] = sum over i of values[i] * left[i] right[i]^T. A is not changed.
 * @throws NumericError for values that are not finite, or without convergence.
 */
export function svd(a: Float64Array, rows: number, cols: number): Svd {
  for (const x of a) {
    if (!Number.isFinite(x))
      throw new NumericError("svd: the matrix holds a value that is not finite");
  }
  if (rows < cols) {
    const transposed = new Float64Array(a.length);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < cols; j++) transposed[j * rows + i] = a[i * cols + j];
    }
    const { values, left, right } = svd(transposed, cols, rows);
    return { values, left: right, right: left };
  }
  // Rows of `u` are the columns of A; rotations make them orthogonal, their lengths become the singular values.
  const u = new Float64Array(cols * rows);
  const v = new Float64Array(cols * cols);
  for (let j = 0; j < cols; j++) {
    for (let i = 0; i < rows; i++) u[j * rows + i] = a[i * cols + j];
    v[j * cols + j] = 1;
  }
  orthogonalize(u, v, rows, cols);
  const norms = Float64Array.from({ length: cols }, (_, j) =>
    Math.sqrt(dot(u, j * rows, u, j * rows, rows)),
  );
  const rank = Array.from(norms.keys()).sort((i, j) => norms[j] - norms[i]);
  const left = new Float64Array(cols * rows);
  const right = new Float64Array(cols * cols);
  for (const [to, from] of rank.entries()) {
    const norm = norms[from];
    for (let i = 0; i < rows; i++) left[to * rows + i] = norm > 0 ? u[from * rows + i] / norm : 0;
    right.set(v.subarray(from * cols, (from + 1) * cols), to * cols);
  }
  return { values: Float64Array.from(rank, (i) => norms[i]), left, right };
}

function orthogonalize(u: Float64Array, v: Float64Array, rows: number, cols: number): void {
  const tolerance = Number.EPSILON * Math.sqrt(rows);
  for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
    let rotated = false;
    for (let p = 0; p < cols; p++) {
      for (let q = p + 1; q < cols; q++) {
        const pp = dot(u, p * rows, u, p * rows, rows);
        const qq = dot(u, q * rows, u, q * rows, rows);
        const pq = dot(u, p * rows, u, q * rows, rows);
        if (pq === 0 || Math.abs(pq) <= tolerance * Math.sqrt(pp * qq)) continue;
        rotated = true;
        const zeta = (qq - pp) / (2 * pq);
        const t = (zeta >= 0 ? 1 : -1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const c = 1 / Math.hypot(1, t);
        rotate(u, p * rows, q * rows, rows, c, c * t);
        rotate(v, p * cols, q * cols, cols, c, c * t);
      }
    }
    if (!rotated) return;
  }
  throw new NumericError("svd: no convergence");
}

function dot(a: Float64Array, i: number, b: Float64Array, j: number, n: number): number {
  let sum = 0;
  for (let t = 0; t < n; t++) sum += a[i + t] * b[j + t];
  return sum;
}

function rotate(x: Float64Array, p: number, q: number, n: number, c: number, s: number): void {
  for (let t = 0; t < n; t++) {
    const a = x[p + t];
    const b = x[q + t];
    x[p + t] = c * a - s * b;
    x[q + t] = s * a + c * b;
  }
}
