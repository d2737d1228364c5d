/**
 * The column sweep of GPTQ (arXiv:2210.17323): columns are quantized one after another, and the error of each is spread over
 * the columns that follow by the factor U of the inverse Hessian. What a column is quantized to is the caller's business,
 * so every per-column quantizer (integers, tables, binary) can sit inside. Rows do not depend on each other.
 */
import type { EngineLinalg } from "./engine-linalg.js";

export interface SweepOptions {
  /** Columns updated eagerly; the columns behind them get one matrix product per block. */
  blockSize: number;
  /** Blocks also end at multiples of it (0: never), so that no group starts inside a block. */
  alignment: number;
  /** Called before a block of columns [from, to) is swept; w then holds all updates of the blocks before it. */
  onBlock(from: number, to: number): void;
  /**
   * Quantizes column `column` of rows [rowFrom, rowTo): `values[i]` belongs to row rowFrom + i and is replaced by the value
   * that its code stands for.
   */
  quantizeColumn(column: number, rowFrom: number, rowTo: number, values: Float64Array): void;
}

/**
 * Columns of a block that are gathered one by one; those behind them in the block get a product on the kernels, which run
 * many times as fast as the loops here.
 */
const COLUMN_TILE = 32;
/** Rows handled together: their errors and U stay in the second-level cache. */
const ROW_TILE = 64;

/**
 * Sweeps w f32 [n, k] (destroyed) with upper U f32 [k, k], inverse(H) = U^T U.
 * @returns the sum over all entries of (w - q)^2 / U_cc^2: the squared output error under H
 */
export async function sweep(
  w: Float32Array,
  n: number,
  k: number,
  u: Float32Array,
  options: SweepOptions,
  linalg: EngineLinalg,
): Promise<number> {
  const { blockSize, alignment } = options;
  let loss = 0;
  for (let from = 0; from < k; ) {
    let to = Math.min(from + blockSize, k);
    if (alignment > 0) to = Math.min(to, from - (from % alignment) + alignment);
    options.onBlock(from, to);
    const width = to - from;
    const errors = new Float32Array(n * width);
    // Spreads the errors of columns [first, last) over the columns [last, end).
    const spread = async (first: number, last: number, end: number) => {
      if (last === end) return;
      await linalg.gemm({
        rows: n,
        cols: end - last,
        inner: last - first,
        a: { data: errors, offset: first - from, stride: width },
        b: { data: u, offset: first * k + last, stride: k },
        c: { data: w, offset: last, stride: k },
        alpha: -1,
        beta: 1,
      });
    };
    for (let first = from; first < to; first += COLUMN_TILE) {
      const last = Math.min(first + COLUMN_TILE, to);
      loss += sweepTile(w, n, k, u, first, last, errors.subarray(first - from), width, options);
      await spread(first, last, to);
    }
    await spread(from, to, k);
    from = to;
  }
  return loss;
}

/**
 * One tile of columns; `errors` has rows of `stride` elements. A column's value is gathered when its turn comes: w_c - sum over i < c of e_i U_ic, which is what eager updates
 * would have left there, without storing them. Four rows share the loads of U.
 */
function sweepTile(
  w: Float32Array,
  n: number,
  k: number,
  u: Float32Array,
  from: number,
  to: number,
  errors: Float32Array,
  stride: number,
  options: SweepOptions,
): number {
  const width = to - from;
  // Transposed tile of U, so that a column's coefficients are contiguous.
  const ut = new Float64Array(width * width);
  for (let c = 0; c < width; c++) {
    for (let i = 0; i <= c; i++) ut[c * width + i] = u[(from + i) * k + from + c];
  }
  const e = new Float64Array(ROW_TILE * width);
  const values = new Float64Array(ROW_TILE);
  const before = new Float64Array(ROW_TILE);
  let loss = 0;
  for (let rowFrom = 0; rowFrom < n; rowFrom += ROW_TILE) {
    const rows = Math.min(ROW_TILE, n - rowFrom);
    for (let c = 0; c < width; c++) {
      gather(w, rowFrom * k + from + c, k, rows, e, width, ut, c, values);
      before.set(values);
      options.quantizeColumn(from + c, rowFrom, rowFrom + rows, values);
      const inverse = 1 / ut[c * width + c];
      for (let r = 0; r < rows; r++) {
        const error = (before[r] - values[r]) * inverse;
        e[r * width + c] = error;
        loss += error * error;
      }
    }
    for (let r = 0; r < rows; r++) {
      const at = (rowFrom + r) * stride;
      for (let i = 0; i < width; i++) errors[at + i] = e[r * width + i];
    }
  }
  return loss;
}

/** values[r] = w[wAt + r k] - sum over i < c of e[r][i] ut[c][i]. */
function gather(
  w: Float32Array,
  wAt: number,
  k: number,
  rows: number,
  e: Float64Array,
  width: number,
  ut: Float64Array,
  c: number,
  values: Float64Array,
): void {
  const row = c * width;
  let r = 0;
  for (; r + 4 <= rows; r += 4) {
    const a = r * width;
    const b = a + width;
    const d = b + width;
    const f = d + width;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let i = 0; i < c; i++) {
      const x = ut[row + i];
      s0 += e[a + i] * x;
      s1 += e[b + i] * x;
      s2 += e[d + i] * x;
      s3 += e[f + i] * x;
    }
    values[r] = w[wAt + r * k] - s0;
    values[r + 1] = w[wAt + (r + 1) * k] - s1;
    values[r + 2] = w[wAt + (r + 2) * k] - s2;
    values[r + 3] = w[wAt + (r + 3) * k] - s3;
  }
  for (; r < rows; r++) {
    let s = 0;
    for (let i = 0; i < c; i++) s += e[r * width + i] * ut[row + i];
    values[r] = w[wAt + r * k] - s;
  }
}
