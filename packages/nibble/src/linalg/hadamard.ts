/**
 * Hadamard transforms of any admissible size (QuaRot, arXiv:2404.00456). H_n = kron(A_k, S_m) / sqrt(n) with n = k m,
 * S_m Sylvester (m a power of two), A_k the smallest order that `hadamard-matrices.ts` knows: element (i, j) of a
 * vector is at i * m + j. H is orthogonal and for k > 1 not symmetric, so forward and transpose differ.
 */
import { ModelError } from "../core/errors.js";
import { hadamardSigns } from "./hadamard-matrices.js";

export interface HadamardOrder {
  n: number;
  /** Order of the dense factor, 1 for powers of two. */
  k: number;
  /** Order of the Sylvester factor. */
  m: number;
  /** A_k, [k, k] of +-1, row-major. Shared: do not change it. */
  signs: Int8Array;
}

/** The factors of H_n, smallest admissible k first, or null when there is none (odd n > 1, n = 2 mod 4, unknown orders). */
export function hadamardOrder(n: number): HadamardOrder | null {
  if (!Number.isSafeInteger(n) || n < 1) return null;
  let k = n;
  while (k % 2 === 0) k /= 2;
  for (; k <= n; k *= 2) {
    const signs = hadamardSigns(k);
    if (signs) return { n, k, m: n / k, signs };
    if (n % (2 * k) !== 0) return null;
  }
  return null;
}

/** As `hadamardOrder`. @throws ModelError code "no-hadamard" that says which block size would do. */
export function requireHadamardOrder(n: number, place?: string): HadamardOrder {
  const order = hadamardOrder(n);
  if (order) return order;
  const block = largestPowerOfTwo(n);
  throw new ModelError(
    `there is no Hadamard matrix of order ${n}`,
    {
      hint:
        block >= 4
          ? `Use a block Hadamard: blockSize ${block} divides ${n}.`
          : "Use mode: random, or leave this rotation out.",
      ...(place === undefined ? {} : { place }),
    },
    "no-hadamard",
  );
}

/** The largest power of two that divides n. */
export function largestPowerOfTwo(n: number): number {
  let power = 1;
  while (n % (2 * power) === 0) power *= 2;
  return power;
}

export interface TransformLayout {
  /** Number of vectors before the transformed axis (rows, or rows x blocks). */
  outer: number;
  /** Number of interleaved vectors: 1 when the axis is the last one. */
  inner?: number;
  transpose?: boolean;
}

/**
 * Transforms x [outer, n, inner] along its middle axis by normalized H_n (H_n^T with `transpose`), in place. Computed in
 * f64 for both array types; an f32 array is rounded once. A block-diagonal transform is one with a larger `outer`.
 */
export function applyHadamard(
  x: Float64Array | Float32Array,
  order: HadamardOrder,
  layout: TransformLayout,
): void {
  const { outer, inner = 1, transpose = false } = layout;
  const size = order.n * inner;
  const work = new Float64Array(size);
  const copy = order.k > 1 ? new Float64Array(size) : work;
  const factors = order.k > 1 ? denseFactors(order, transpose) : null;
  const norm = 1 / Math.sqrt(order.n);
  for (let o = 0; o < outer; o++) {
    const start = o * size;
    for (let i = 0; i < size; i++) work[i] = x[start + i];
    sylvester(work, order.m, inner);
    if (factors) denseStep(work, copy, factors, order.k, order.m * inner);
    for (let i = 0; i < size; i++) x[start + i] = copy[i] * norm;
  }
}

/** Unnormalized butterflies along m of x [.., m, inner]. The first two passes of contiguous vectors are one. */
function sylvester(x: Float64Array, m: number, inner: number): void {
  let h = inner;
  const span = m * inner;
  if (inner === 1 && m >= 4) {
    for (let i = 0; i < x.length; i += 4) {
      const a = x[i] + x[i + 1];
      const b = x[i] - x[i + 1];
      const c = x[i + 2] + x[i + 3];
      const d = x[i + 2] - x[i + 3];
      x[i] = a + c;
      x[i + 1] = b + d;
      x[i + 2] = a - c;
      x[i + 3] = b - d;
    }
    h = 4;
  }
  for (; h < span; h *= 2) {
    for (let base = 0; base < x.length; base += 2 * h) {
      for (let i = base; i < base + h; i++) {
        const a = x[i];
        const b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
  }
}

/** A_k, or its transpose, as f64 factors. */
function denseFactors({ k, signs }: HadamardOrder, transpose: boolean): Float64Array {
  return Float64Array.from({ length: k * k }, (_, at) =>
    transpose ? signs[(at % k) * k + Math.floor(at / k)] : signs[at],
  );
}

/**
 * out_i = sum over j of factors[i][j] x_j for k vectors of `width` elements. Four outputs (k is a multiple of 4) times two
 * elements stay in registers.
 */
function denseStep(
  x: Float64Array,
  out: Float64Array,
  factors: Float64Array,
  k: number,
  width: number,
): void {
  for (let i = 0; i < k; i += 4) {
    const r0 = i * k;
    const r1 = r0 + k;
    const r2 = r1 + k;
    const r3 = r2 + k;
    const to = i * width;
    for (let l = 0; l < width; l += 2) {
      const second = l + 1 < width ? 1 : 0;
      let a0 = 0;
      let a1 = 0;
      let a2 = 0;
      let a3 = 0;
      let b0 = 0;
      let b1 = 0;
      let b2 = 0;
      let b3 = 0;
      for (let j = 0, at = l; j < k; j++, at += width) {
        const a = x[at];
        const b = x[at + second];
        const f0 = factors[r0 + j];
        const f1 = factors[r1 + j];
        const f2 = factors[r2 + j];
        const f3 = factors[r3 + j];
        a0 += f0 * a;
        a1 += f1 * a;
        a2 += f2 * a;
        a3 += f3 * a;
        b0 += f0 * b;
        b1 += f1 * b;
        b2 += f2 * b;
        b3 += f3 * b;
      }
      // A last odd element is computed twice and stored twice.
      out[to + l] = a0;
      out[to + width + l] = a1;
      out[to + 2 * width + l] = a2;
      out[to + 3 * width + l] = a3;
      out[to + l + second] = b0;
      out[to + width + l + second] = b1;
      out[to + 2 * width + l + second] = b2;
      out[to + 3 * width + l + second] = b3;
    }
  }
}

/** Dense normalized H_n, f64 [n, n] row-major. */
export function hadamardMatrix(order: HadamardOrder): Float64Array {
  const { n } = order;
  const h = new Float64Array(n * n);
  for (let i = 0; i < n; i++) h[i * n + i] = 1;
  // Rows of the identity become columns of H, so transform along the first axis.
  applyHadamard(h, order, { outer: 1, inner: n });
  return h;
}

/**
 * x [outer, count, inner] <- (M (x) I_inner) x with M f64 [count, count]: head mixing (inner = head_dim) and dense
 * rotations (inner = 1). In place; sums in f64.
 */
export function applyMatrix(
  x: Float64Array | Float32Array,
  matrix: Float64Array,
  count: number,
  layout: Omit<TransformLayout, "transpose">,
): void {
  const { outer, inner = 1 } = layout;
  const size = count * inner;
  const out = new Float64Array(size);
  for (let o = 0; o < outer; o++) {
    const start = o * size;
    out.fill(0);
    for (let i = 0; i < count; i++) {
      if (inner === 1) {
        let sum = 0;
        for (let j = 0; j < count; j++) sum += matrix[i * count + j] * x[start + j];
        out[i] = sum;
        continue;
      }
      for (let j = 0; j < count; j++) {
        const f = matrix[i * count + j];
        const from = start + j * inner;
        for (let l = 0; l < inner; l++) out[i * inner + l] += f * x[from + l];
      }
    }
    for (let i = 0; i < size; i++) x[start + i] = out[i];
  }
}
