/**
 * Ops that move or combine rows element by element: add, siluMul, columns, mixHeads, gatherRows, scatterAddRows.
 * All exact class. Rows are split over threads, or columns where rows of the target may repeat.
 */
import { fail, operand, operandF, place, placeOrZero, shareOf, thread, threads } from "./control";
import { silu4 } from "./math";
import {
  ADD_ALPHA_F, ADD_DST_AT, ADD_LD_DST, ADD_LD_SRC, ADD_SRC_AT, ADD_WIDTH,
  COLUMNS_DST_AT, COLUMNS_LD_DST, COLUMNS_LD_SRC, COLUMNS_PERM_AT, COLUMNS_SCALE_AT, COLUMNS_SRC_AT, COLUMNS_WIDTH,
  GATHER_ROWS_DST_AT, GATHER_ROWS_INDEX_AT, GATHER_ROWS_LD_DST, GATHER_ROWS_LD_SRC, GATHER_ROWS_SRC_AT,
  GATHER_ROWS_WIDTH,
  MIX_HEADS_COUNT, MIX_HEADS_DST_AT, MIX_HEADS_INNER, MIX_HEADS_LD_DST, MIX_HEADS_LD_SRC, MIX_HEADS_MATRIX_AT,
  MIX_HEADS_SRC_AT,
  SCATTER_ADD_ROWS_DST_AT, SCATTER_ADD_ROWS_INDEX_AT, SCATTER_ADD_ROWS_LD_DST, SCATTER_ADD_ROWS_LD_SRC,
  SCATTER_ADD_ROWS_SRC_AT, SCATTER_ADD_ROWS_WEIGHT_AT, SCATTER_ADD_ROWS_WIDTH,
  SILU_MUL_DST_AT, SILU_MUL_GATE_AT, SILU_MUL_LD_DST, SILU_MUL_LD_GATE, SILU_MUL_LD_UP, SILU_MUL_UP_AT,
  SILU_MUL_WIDTH,
} from "./ops";

/** Address of row m of an f32 buffer with `ld` floats a row. */
// @ts-ignore: decorator
@inline
export function rowAt(base: usize, m: i32, ld: i32): usize {
  return base + (<usize>m * <usize>ld << 2);
}

/** One row: dst += alpha * src, or dst += src. */
export function addRow(dst: usize, src: usize, width: i32, alpha: f32): void {
  let i = 0;
  if (alpha == 1) {
    for (; i + 4 <= width; i += 4) {
      const at = <usize>i << 2;
      v128.store(dst + at, f32x4.add(v128.load(dst + at), v128.load(src + at)));
    }
    for (; i < width; i++) {
      const at = <usize>i << 2;
      store<f32>(dst + at, load<f32>(dst + at) + load<f32>(src + at));
    }
    return;
  }
  const a = f32x4.splat(alpha);
  for (; i + 4 <= width; i += 4) {
    const at = <usize>i << 2;
    v128.store(dst + at, f32x4.add(v128.load(dst + at), f32x4.mul(a, v128.load(src + at))));
  }
  for (; i < width; i++) {
    const at = <usize>i << 2;
    store<f32>(dst + at, load<f32>(dst + at) + alpha * load<f32>(src + at));
  }
}

/** Work of row ops: whole rows when there are enough of them, else 16-float column blocks. Calls are per row. */
// @ts-ignore: decorator
@inline
function columnFrom(width: i32, t: i32): i32 {
  const blocks = (width + 15) >> 4;
  const from = shareOf(blocks, t) << 4;
  return from < width ? from : width;
}

export function add(pc: usize, rows: i32): void {
  const src = place(pc, ADD_SRC_AT);
  const dst = place(pc, ADD_DST_AT);
  const from = columnFrom(operand(pc, ADD_WIDTH), thread);
  const to = columnFrom(operand(pc, ADD_WIDTH), thread + 1);
  for (let m = 0; m < rows; m++) {
    addRow(
      rowAt(dst, m, operand(pc, ADD_LD_DST)) + (<usize>from << 2),
      rowAt(src, m, operand(pc, ADD_LD_SRC)) + (<usize>from << 2),
      to - from,
      operandF(pc, ADD_ALPHA_F),
    );
  }
}

export function siluMul(pc: usize, rows: i32): void {
  const from = columnFrom(operand(pc, SILU_MUL_WIDTH), thread);
  const to = columnFrom(operand(pc, SILU_MUL_WIDTH), thread + 1);
  for (let m = 0; m < rows; m++) {
    const gate = rowAt(place(pc, SILU_MUL_GATE_AT), m, operand(pc, SILU_MUL_LD_GATE));
    const up = rowAt(place(pc, SILU_MUL_UP_AT), m, operand(pc, SILU_MUL_LD_UP));
    const dst = rowAt(place(pc, SILU_MUL_DST_AT), m, operand(pc, SILU_MUL_LD_DST));
    let i = from;
    for (; i + 4 <= to; i += 4) {
      const at = <usize>i << 2;
      v128.store(dst + at, f32x4.mul(silu4(v128.load(gate + at)), v128.load(up + at)));
    }
    for (; i < to; i++) {
      const at = <usize>i << 2;
      store<f32>(dst + at, f32x4.extract_lane(silu4(v128.load32_splat(gate + at)), 0) * load<f32>(up + at));
    }
  }
}

export function columns(pc: usize, rows: i32): void {
  const width = operand(pc, COLUMNS_WIDTH);
  const perm = placeOrZero(pc, COLUMNS_PERM_AT);
  const scale = placeOrZero(pc, COLUMNS_SCALE_AT);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const src = rowAt(place(pc, COLUMNS_SRC_AT), m, operand(pc, COLUMNS_LD_SRC));
    const dst = rowAt(place(pc, COLUMNS_DST_AT), m, operand(pc, COLUMNS_LD_DST));
    for (let i = 0; i < width; i++) {
      const at = <usize>i << 2;
      let from = at;
      if (perm != 0) {
        const column = load<u32>(perm + at);
        if (column >= <u32>width) {
          fail();
          return;
        }
        from = <usize>column << 2;
      }
      let value = load<f32>(src + from);
      if (scale != 0) value *= load<f32>(scale + at);
      store<f32>(dst + at, value);
    }
  }
}

/** dst[h] = sum over j of M[h][j] * src[j]; the first product is taken as it is. */
export function mixHeads(pc: usize, rows: i32): void {
  const count = operand(pc, MIX_HEADS_COUNT);
  const inner = operand(pc, MIX_HEADS_INNER);
  const matrix = place(pc, MIX_HEADS_MATRIX_AT);
  const items = rows * count;
  const end = shareOf(items, thread + 1);
  for (let item = shareOf(items, thread); item < end; item++) {
    const m = item / count;
    const h = item % count;
    const src = rowAt(place(pc, MIX_HEADS_SRC_AT), m, operand(pc, MIX_HEADS_LD_SRC));
    const dst = rowAt(rowAt(place(pc, MIX_HEADS_DST_AT), m, operand(pc, MIX_HEADS_LD_DST)), h, inner);
    const row = rowAt(matrix, h, count);
    const stride = <usize>inner << 2;
    let l = 0;
    for (; l + 4 <= inner; l += 4) {
      let from = src + (<usize>l << 2);
      let sum = f32x4.mul(v128.load32_splat(row), v128.load(from));
      for (let j = 1; j < count; j++) {
        from += stride;
        sum = f32x4.add(sum, f32x4.mul(v128.load32_splat(row + (<usize>j << 2)), v128.load(from)));
      }
      v128.store(dst + (<usize>l << 2), sum);
    }
    for (; l < inner; l++) {
      let from = src + (<usize>l << 2);
      let sum = load<f32>(row) * load<f32>(from);
      for (let j = 1; j < count; j++) {
        from += stride;
        sum += load<f32>(row + (<usize>j << 2)) * load<f32>(from);
      }
      store<f32>(dst + (<usize>l << 2), sum);
    }
  }
}

/** dst[i] = src[index[i]]. */
export function gatherRows(pc: usize, rows: i32, maxRows: i32): void {
  const index = place(pc, GATHER_ROWS_INDEX_AT);
  const end = shareOf(rows, thread + 1);
  for (let i = shareOf(rows, thread); i < end; i++) {
    const row = load<u32>(index + (<usize>i << 2));
    if (row >= <u32>maxRows) {
      fail();
      return;
    }
    memory.copy(
      rowAt(place(pc, GATHER_ROWS_DST_AT), i, operand(pc, GATHER_ROWS_LD_DST)),
      rowAt(place(pc, GATHER_ROWS_SRC_AT), <i32>row, operand(pc, GATHER_ROWS_LD_SRC)),
      <usize>operand(pc, GATHER_ROWS_WIDTH) << 2,
    );
  }
}

/** dst[index[i]] += weight[i] * src[i], in rising i. Split over columns: two rows may have one target. */
export function scatterAddRows(pc: usize, rows: i32, maxRows: i32): void {
  const index = place(pc, SCATTER_ADD_ROWS_INDEX_AT);
  const weight = placeOrZero(pc, SCATTER_ADD_ROWS_WEIGHT_AT);
  const from = columnFrom(operand(pc, SCATTER_ADD_ROWS_WIDTH), thread);
  const to = columnFrom(operand(pc, SCATTER_ADD_ROWS_WIDTH), thread + 1);
  for (let i = 0; i < rows; i++) {
    const row = load<u32>(index + (<usize>i << 2));
    if (row >= <u32>maxRows) {
      fail();
      return;
    }
    addRow(
      rowAt(place(pc, SCATTER_ADD_ROWS_DST_AT), <i32>row, operand(pc, SCATTER_ADD_ROWS_LD_DST)) + (<usize>from << 2),
      rowAt(place(pc, SCATTER_ADD_ROWS_SRC_AT), i, operand(pc, SCATTER_ADD_ROWS_LD_SRC)) + (<usize>from << 2),
      to - from,
      weight == 0 ? 1 : load<f32>(weight + (<usize>i << 2)),
    );
  }
}
