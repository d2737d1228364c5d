/**
 * Eigenvalues and eigenvectors of symmetric matrices, f64: Householder reduction to tridiagonal form, then QL with implicit
 * Wilkinson shifts (Golub and Van Loan, "Matrix Computations", section 8.3).
 */
import { NumericError } from "../core/errors.js";

export interface Eigen {
  /** Ascending. */
  values: Float64Array;
  /** [n, n]; row i is the unit eigenvector of values[i]. */
  vectors: Float64Array;
}

const MAX_ITERATIONS = 60;

/**
 * Decomposes symmetric A [n, n] (not changed; the lower triangle is read).
 * @throws NumericError for values that are not finite, or when QL does not converge.
 */
export function eigh(a: Float64Array, n: number): Eigen {
  for (const x of a) {
    if (!Number.isFinite(x))
      throw new NumericError("eigh: the matrix holds a value that is not finite");
  }
  const w = Float64Array.from(a);
  const diagonal = new Float64Array(n);
  const off = new Float64Array(n);
  const q = tridiagonalize(w, n, diagonal, off);
  implicitQl(diagonal, off, q, n);
  const rank = Array.from(diagonal.keys()).sort((i, j) => diagonal[i] - diagonal[j]);
  const vectors = new Float64Array(n * n);
  for (const [to, from] of rank.entries()) {
    vectors.set(q.subarray(from * n, (from + 1) * n), to * n);
  }
  return { values: Float64Array.from(rank, (i) => diagonal[i]), vectors };
}

/**
 * A = Q^T T Q with T tridiagonal: `diagonal`, and off[i] = T[i + 1][i]. Returns Q, rows orthonormal. Destroys A.
 * The reflections run from the last row up, as in the textbook's mirrored form.
 */
function tridiagonalize(
  a: Float64Array,
  n: number,
  diagonal: Float64Array,
  off: Float64Array,
): Float64Array {
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) a[j * n + i] = a[i * n + j];
  const q = new Float64Array(n * n);
  for (let i = 0; i < n; i++) q[i * n + i] = 1;
  const p = new Float64Array(n);
  for (let k = 0; k + 2 < n; k++) {
    // Reflect column k below the diagonal onto its first entry.
    const v = new Float64Array(n);
    let norm = 0;
    for (let i = k + 1; i < n; i++) {
      v[i] = a[i * n + k];
      norm = Math.hypot(norm, v[i]);
    }
    if (norm === 0) continue;
    v[k + 1] += v[k + 1] > 0 ? norm : -norm;
    let squared = 0;
    for (let i = k + 1; i < n; i++) squared += v[i] * v[i];
    const beta = 2 / squared;
    // A <- (I - beta v v^T) A (I - beta v v^T) as a rank-2 update.
    let vp = 0;
    for (let i = k; i < n; i++) {
      let sum = 0;
      for (let j = k + 1; j < n; j++) sum += a[i * n + j] * v[j];
      p[i] = beta * sum;
      vp += v[i] * p[i];
    }
    const half = (beta * vp) / 2;
    for (let i = k; i < n; i++) p[i] -= half * v[i];
    for (let i = k; i < n; i++) {
      for (let j = k; j < n; j++) a[i * n + j] -= v[i] * p[j] + p[i] * v[j];
    }
    // Q <- (I - beta v v^T) Q
    p.fill(0);
    const dots = p;
    for (let i = k + 1; i < n; i++) {
      for (let j = 0; j < n; j++) dots[j] += v[i] * q[i * n + j];
    }
    for (let i = k + 1; i < n; i++) {
      const f = beta * v[i];
      for (let j = 0; j < n; j++) q[i * n + j] -= f * dots[j];
    }
  }
  for (let i = 0; i < n; i++) diagonal[i] = a[i * n + i];
  for (let i = 0; i + 1 < n; i++) off[i] = a[(i + 1) * n + i];
  return q;
}

/** Diagonalizes the tridiagonal matrix in place and applies the same rotations to the rows of q. */
function implicitQl(d: Float64Array, e: Float64Array, q: Float64Array, n: number): void {
  for (let l = 0; l < n; l++) {
    for (let iteration = 0; ; iteration++) {
      let m = l;
      while (m + 1 < n) {
        const scale = Math.abs(d[m]) + Math.abs(d[m + 1]);
        if (Math.abs(e[m]) <= Number.EPSILON * scale || e[m] === 0) break;
        m++;
      }
      if (m === l) break;
      if (iteration === MAX_ITERATIONS) {
        throw new NumericError(`eigh: eigenvalue ${l} did not converge`);
      }
      const shift = (d[l + 1] - d[l]) / (2 * e[l]);
      const root = Math.hypot(shift, 1);
      let g = d[m] - d[l] + e[l] / (shift + (shift >= 0 ? root : -root));
      let s = 1;
      let c = 1;
      let p = 0;
      let i = m - 1;
      for (; i >= l; i--) {
        const f = s * e[i];
        const b = c * e[i];
        const r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        const t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        const upper = i * n;
        const lower = upper + n;
        for (let j = 0; j < n; j++) {
          const x = q[lower + j];
          const y = q[upper + j];
          q[lower + j] = s * y + c * x;
          q[upper + j] = c * y - s * x;
        }
      }
      if (i >= l) continue; // the loop broke off: start again with the smaller block
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
}
