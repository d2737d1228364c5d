/** QR decomposition by Householder reflections, f64, and random orthogonal matrices. */
import { NumericError } from "../core/errors.js";
import type { Philox } from "../core/rng.js";

export interface Qr {
  /** [rows, cols] with orthonormal columns. */
  q: Float64Array;
  /** [cols, cols] upper triangular with a diagonal >= 0. */
  r: Float64Array;
}

/**
 * Thin QR of A [rows, cols], rows >= cols, with the signs fixed so that the diagonal of R is not negative (which makes it
 * unique for full rank). A is not changed.
 * @throws NumericError for rows < cols and for values that are not finite.
 */
export function qr(a: Float64Array, rows: number, cols: number): Qr {
  if (rows < cols) throw new NumericError(`QR needs rows >= cols, not ${rows} x ${cols}`);
  // Column-major copy: reflections run along columns.
  const work = Array.from({ length: cols }, (_, j) =>
    Float64Array.from({ length: rows }, (_, i) => a[i * cols + j]),
  );
  const reflectors: Float64Array[] = [];
  const r = new Float64Array(cols * cols);
  for (let j = 0; j < cols; j++) {
    const column = work[j];
    let norm = 0;
    for (let i = j; i < rows; i++) norm = Math.hypot(norm, column[i]);
    if (!Number.isFinite(norm)) throw new NumericError(`QR: column ${j} is not finite`);
    const v = column.slice(j);
    const diagonal = v[0] > 0 ? -norm : norm;
    v[0] -= diagonal;
    normalize(v);
    reflectors.push(v);
    for (let t = j + 1; t < cols; t++) reflect(work[t], v, j);
    for (let i = 0; i < j; i++) r[i * cols + j] = column[i];
    r[j * cols + j] = diagonal;
  }
  const q = new Float64Array(rows * cols);
  for (let j = 0; j < cols; j++) {
    const column = new Float64Array(rows);
    column[j] = 1;
    for (let t = cols - 1; t >= 0; t--) reflect(column, reflectors[t], t);
    const sign = r[j * cols + j] < 0 ? -1 : 1;
    for (let i = 0; i < rows; i++) q[i * cols + j] = sign * column[i];
    for (let t = j; t < cols; t++) r[j * cols + t] *= sign;
  }
  return { q, r };
}

/** Scales v to length 1; a zero vector stays zero (the reflection is then the identity). */
function normalize(v: Float64Array): void {
  let norm = 0;
  for (const x of v) norm = Math.hypot(norm, x);
  if (norm > 0) for (let i = 0; i < v.length; i++) v[i] /= norm;
}

/** x[from..] -= 2 v (v . x[from..]) */
function reflect(x: Float64Array, v: Float64Array, from: number): void {
  let dot = 0;
  for (let i = 0; i < v.length; i++) dot += v[i] * x[from + i];
  const twice = 2 * dot;
  for (let i = 0; i < v.length; i++) x[from + i] -= twice * v[i];
}

/** A uniformly (Haar) distributed orthogonal matrix [n, n]: QR of a Gaussian matrix with fixed signs (Mezzadri 2007). */
export function randomOrthogonal(n: number, rng: Philox): Float64Array {
  return qr(rng.normals(n * n), n, n).q;
}
