/**
 * linearFloat (F1): f32 activations with any weight; and gemm. Float class: the inner dimension runs in order, products may
 * fuse. v1: 2 x 16 tile over a half-panel decoded to [columns][16] f32 in scratch, per group when the weight has groups.
 */
import { operand, operandF, place, scratch, shareOf, thread } from "./control";
import { decodeHalf, SIGN_ALL, SIGN_NEGATIVE, SIGN_POSITIVE } from "./decode";
import { rowAt } from "./elementwise";
import { codesPanel4, codesPanel8, densePanel32, densePanelBf16, densePanelF16, expandPanel } from "./float-panel";
import { madd } from "./math";
import {
  GEMM_ALPHA_F, GEMM_A_AT, GEMM_A_SKIP, GEMM_BETA_F, GEMM_B_AT, GEMM_B_SKIP, GEMM_COLS, GEMM_C_AT, GEMM_C_SKIP,
  GEMM_INNER, GEMM_LDA, GEMM_LDB, GEMM_LDC, GEMM_TRANS_A, GEMM_TRANS_B, KIND_BF16, KIND_F32, KIND_GINT,
  LINEAR_FLOAT_DST_AT, LINEAR_FLOAT_EPILOGUE, LINEAR_FLOAT_LD_DST, LINEAR_FLOAT_LD_SRC, LINEAR_FLOAT_SRC_AT,
  LINEAR_FLOAT_WEIGHT_W,
} from "./ops";
import {
  GROUP_BYTES, bits, denseAt, finishHalf, groupSize, groups, groupValues4, k, kPad, kind, negativeScaleAt, openTarget,
  openWeight, panels, prepareFloatGroups, scaleAt, scaleHalf, seg1, seg2, seg4, seg8,
} from "./weight";

/**
 * acc[2][16] += x0, x1 (count floats each, `step` bytes apart) times panel [count][16]; sums continue in order from what acc
 * holds.
 */
export function floatTile2(
  panel: usize, x0: usize, x1: usize, step: usize, count: i32, acc0: usize, acc1: usize,
): void {
  let a0 = v128.load(acc0);
  let a1 = v128.load(acc0, 16);
  let a2 = v128.load(acc0, 32);
  let a3 = v128.load(acc0, 48);
  let b0 = v128.load(acc1);
  let b1 = v128.load(acc1, 16);
  let b2 = v128.load(acc1, 32);
  let b3 = v128.load(acc1, 48);
  for (; count > 0; count--) {
    const x = v128.load32_splat(x0);
    const y = v128.load32_splat(x1);
    let w = v128.load(panel);
    a0 = madd(w, x, a0);
    b0 = madd(w, y, b0);
    w = v128.load(panel, 16);
    a1 = madd(w, x, a1);
    b1 = madd(w, y, b1);
    w = v128.load(panel, 32);
    a2 = madd(w, x, a2);
    b2 = madd(w, y, b2);
    w = v128.load(panel, 48);
    a3 = madd(w, x, a3);
    b3 = madd(w, y, b3);
    panel += 64;
    x0 += step;
    x1 += step;
  }
  v128.store(acc0, a0);
  v128.store(acc0, a1, 16);
  v128.store(acc0, a2, 32);
  v128.store(acc0, a3, 48);
  v128.store(acc1, b0);
  v128.store(acc1, b1, 16);
  v128.store(acc1, b2, 32);
  v128.store(acc1, b3, 48);
}

/** The same for one row. */
export function floatTile1(panel: usize, x0: usize, count: i32, acc: usize): void {
  let a0 = v128.load(acc);
  let a1 = v128.load(acc, 16);
  let a2 = v128.load(acc, 32);
  let a3 = v128.load(acc, 48);
  for (; count > 0; count--) {
    const x = v128.load32_splat(x0);
    a0 = madd(v128.load(panel), x, a0);
    a1 = madd(v128.load(panel, 16), x, a1);
    a2 = madd(v128.load(panel, 32), x, a2);
    a3 = madd(v128.load(panel, 48), x, a3);
    panel += 64;
    x0 += 4;
  }
  v128.store(acc, a0);
  v128.store(acc, a1, 16);
  v128.store(acc, a2, 32);
  v128.store(acc, a3, 48);
}

// @ts-ignore: decorator
@inline
function clear16(at: usize): void {
  const zero = i32x4.splat(0);
  v128.store(at, zero);
  v128.store(at, zero, 16);
  v128.store(at, zero, 32);
  v128.store(at, zero, 48);
}

/** y[16] (+)= acc * scale of group g; `first` overwrites. */
function scaleInto(acc: usize, y: usize, scale: usize, p: i32, half: i32, g: i32, first: bool): void {
  for (let q = 0; q < 4; q++) {
    const at = <usize>q << 4;
    let value = v128.load(acc + at);
    if (scale != 0) value = f32x4.mul(value, groupValues4(scale, scaleHalf, p, g, (half << 4) + (q << 2)));
    if (!first) value = f32x4.add(v128.load(y + at), value);
    v128.store(y + at, value);
  }
}

const ACC: usize = 0;
const Y: usize = 128;
const PANEL: usize = 256; // Y holds 32 floats

/** Columns decoded at a time; the sums of several blocks continue in order. */
const BLOCK: i32 = 256;

/**
 * One row of one half: decodes block by block, so that decoded weights never leave the first-level cache.
 * `pass` 0 is all entries (or those >= 0), 1 the negative ones.
 */
function halfRow(x: usize, p: i32, half: i32): void {
  const acc = scratch + ACC;
  const y = scratch + Y;
  const passes = negativeScaleAt != 0 ? 2 : 1;
  const dense = kind <= KIND_BF16;
  for (let g = 0; g < groups; g++) {
    for (let pass = 0; pass < passes; pass++) {
      const sign = passes == 1 ? SIGN_ALL : pass == 0 ? SIGN_POSITIVE : SIGN_NEGATIVE;
      const stop = min<i32>((g + 1) * groupSize, k);
      clear16(acc);
      for (let from = g * groupSize; from < stop; from += BLOCK) {
        const to = min<i32>(from + BLOCK, stop);
        decodeHalf(p, half, from, to, sign, scratch + PANEL);
        floatTile1(scratch + PANEL, x + (<usize>from << 2), to - from, acc);
      }
      const scale: usize = dense ? <usize>0 : pass == 0 ? scaleAt : negativeScaleAt;
      scaleInto(acc, y, scale, p, half, g, g == 0 && pass == 0);
    }
  }
}

/** All rows of one half, two by two, from its decoded panel. */
function halfRows(src: usize, ld: i32, rows: i32, p: i32, half: i32): void {
  const acc0 = scratch + ACC;
  const acc1 = acc0 + 64;
  const y0 = scratch + Y;
  const y1 = y0 + 64;
  const passes = negativeScaleAt != 0 ? 2 : 1;
  const dense = kind <= KIND_BF16;
  const plane = <usize>k << 6;
  decodeHalf(p, half, 0, k, passes == 1 ? SIGN_ALL : SIGN_POSITIVE, scratch + PANEL);
  if (passes == 2) decodeHalf(p, half, 0, k, SIGN_NEGATIVE, scratch + PANEL + plane);
  for (let m = 0; m < rows; m += 2) {
    const paired = m + 1 < rows;
    const x0 = rowAt(src, m, ld);
    const x1 = paired ? rowAt(src, m + 1, ld) : x0;
    for (let g = 0; g < groups; g++) {
      const from = g * groupSize;
      const count = min<i32>(groupSize, k - from);
      const skip = <usize>from << 2;
      for (let pass = 0; pass < passes; pass++) {
        const panel = scratch + PANEL + (pass == 0 ? 0 : plane) + (<usize>from << 6);
        const scale: usize = dense ? <usize>0 : pass == 0 ? scaleAt : negativeScaleAt;
        clear16(acc0);
        clear16(acc1);
        floatTile2(panel, x0 + skip, x1 + skip, 4, count, acc0, acc1);
        scaleInto(acc0, y0, scale, p, half, g, g == 0 && pass == 0);
        if (paired) scaleInto(acc1, y1, scale, p, half, g, g == 0 && pass == 0);
      }
    }
    finishHalf(y0, p, half, m);
    if (paired) finishHalf(y1, p, half, m + 1);
  }
}

/** One row of a panel by a direct kernel. False when the encoding has none. */
function panelRow(x: usize, p: i32): bool {
  const y = scratch + Y;
  if (kind <= KIND_BF16) {
    const at = denseAt + <usize>p * <usize>k * (kind == KIND_F32 ? 128 : 64);
    if (kind == KIND_F32) densePanel32(at, x, y);
    else if (kind == KIND_BF16) densePanelBf16(at, x, y);
    else densePanelF16(at, x, y);
    return true;
  }
  if (kind != KIND_GINT || (k & 7) != 0) return false;
  const parameters = scratch + PANEL;
  const expanded = parameters + 2 * <usize>groups * GROUP_BYTES;
  prepareFloatGroups(p, 0, parameters);
  prepareFloatGroups(p, 1, parameters + <usize>groups * GROUP_BYTES);
  const at = (<usize>p * <usize>kPad) << 2;
  if (bits == 8) codesPanel8(seg8 + (at << 3), x, y, parameters);
  else if (bits == 4) codesPanel4(seg4 + (at << 2), x, y, parameters);
  else {
    expandPanel(
      seg4 == 0 ? 0 : seg4 + (at << 2), seg2 == 0 ? 0 : seg2 + (at << 1), seg1 == 0 ? 0 : seg1 + at, kPad, expanded,
    );
    codesPanel8(expanded, x, y, parameters);
  }
  return true;
}

export function linearFloat(pc: usize, program: usize, rows: i32): void {
  openWeight(program, operand(pc, LINEAR_FLOAT_WEIGHT_W));
  openTarget(place(pc, LINEAR_FLOAT_DST_AT), operand(pc, LINEAR_FLOAT_LD_DST), operand(pc, LINEAR_FLOAT_EPILOGUE));
  const src = place(pc, LINEAR_FLOAT_SRC_AT);
  const ld = operand(pc, LINEAR_FLOAT_LD_SRC);
  const end = shareOf(panels, thread + 1);
  for (let p = shareOf(panels, thread); p < end; p++) {
    if (rows == 1 && panelRow(src, p)) {
      finishHalf(scratch + Y, p, 0, 0);
      finishHalf(scratch + Y + 64, p, 1, 0);
      continue;
    }
    for (let half = 0; half < 2; half++) {
      if (rows == 1) {
        halfRow(src, p, half);
        finishHalf(scratch + Y, p, half, 0);
      } else {
        halfRows(src, ld, rows, p, half);
      }
    }
  }
}

// ---- gemm -----------------------------------------------------------------------------------------------------------

/** Rows of C and inner columns that one packed block of B serves. */
const ROW_BLOCK: i32 = 64;
const INNER_BLOCK: i32 = 512;

/** Rows m..m + 16 of A^T (stored [inner, rows]) as [inner][16], missing rows 0. */
function packA(a: usize, lda: i32, from: i32, to: i32, m: i32, rows: i32, out: usize): void {
  packB(a, lda, false, from, to, m, rows, out);
}

/** B[from..to, column..column + 16] -> [inner][16], missing columns 0. */
function packB(b: usize, ldb: i32, trans: bool, from: i32, to: i32, column: i32, cols: i32, out: usize): void {
  const count = min<i32>(16, cols - column);
  if (!trans && count == 16) {
    for (let i = from; i < to; i++) {
      const at = rowAt(b, i, ldb) + (<usize>column << 2);
      v128.store(out, v128.load(at));
      v128.store(out, v128.load(at, 16), 16);
      v128.store(out, v128.load(at, 32), 32);
      v128.store(out, v128.load(at, 48), 48);
      out += 64;
    }
    return;
  }
  if (count < 16) memory.fill(out, 0, <usize>(to - from) << 6);
  for (let j = 0; j < count; j++) {
    let at = out + (<usize>j << 2);
    let src = trans ? rowAt(b, column + j, ldb) + (<usize>from << 2) : rowAt(b, from, ldb) + (<usize>(column + j) << 2);
    const step: usize = trans ? 4 : <usize>ldb << 2;
    for (let i = from; i < to; i++) {
      store<f32>(at, load<f32>(src));
      at += 64;
      src += step;
    }
  }
}

/** C = beta C + alpha (A B). Blocks of 64 rows x 16 columns over threads; sums of a block continue over inner blocks. */
export function gemm(pc: usize, rows: i32): void {
  const cols = operand(pc, GEMM_COLS);
  const inner = operand(pc, GEMM_INNER);
  const a = place(pc, GEMM_A_AT) + (<usize>operand(pc, GEMM_A_SKIP) << 2);
  const b = place(pc, GEMM_B_AT) + (<usize>operand(pc, GEMM_B_SKIP) << 2);
  const c = place(pc, GEMM_C_AT) + (<usize>operand(pc, GEMM_C_SKIP) << 2);
  const lda = operand(pc, GEMM_LDA);
  const ldb = operand(pc, GEMM_LDB);
  const ldc = operand(pc, GEMM_LDC);
  const transA = operand(pc, GEMM_TRANS_A) != 0;
  const transB = operand(pc, GEMM_TRANS_B) != 0;
  const alpha = operandF(pc, GEMM_ALPHA_F);
  const beta = operandF(pc, GEMM_BETA_F);
  const sums = scratch;
  const packedA = sums + (<usize>ROW_BLOCK << 6);
  const panel = packedA + <usize>INNER_BLOCK * 64;
  const columnBlocks = (cols + 15) >> 4;
  const items = ((rows + ROW_BLOCK - 1) / ROW_BLOCK) * columnBlocks;
  const end = shareOf(items, thread + 1);
  for (let item = shareOf(items, thread); item < end; item++) {
    const m0 = (item / columnBlocks) * ROW_BLOCK;
    const m1 = min<i32>(m0 + ROW_BLOCK, rows);
    const column = (item % columnBlocks) << 4;
    memory.fill(sums, 0, <usize>ROW_BLOCK << 6);
    for (let from = 0; from < inner; from += INNER_BLOCK) {
      const to = min<i32>(from + INNER_BLOCK, inner);
      packB(b, ldb, transB, from, to, column, cols, panel);
      for (let m = m0; m < m1; m += 2) {
        const acc = sums + (<usize>(m - m0) << 6);
        // An odd last row is computed twice, into the unused next row of sums.
        const next = m + 1 < m1 ? m + 1 : m;
        if (transA) {
          if (((m - m0) & 15) == 0) packA(a, lda, from, to, m, m1, packedA);
          const x = packedA + (<usize>((m - m0) & 15) << 2);
          floatTile2(panel, x, next == m ? x : x + 4, 64, to - from, acc, acc + 64);
        } else {
          const skip = <usize>from << 2;
          floatTile2(panel, rowAt(a, m, lda) + skip, rowAt(a, next, lda) + skip, 4, to - from, acc, acc + 64);
        }
      }
    }
    const count = min<i32>(16, cols - column);
    for (let m = m0; m < m1; m++) {
      const to = rowAt(c, m, ldc) + (<usize>column << 2);
      const from = sums + (<usize>(m - m0) << 6);
      for (let j: usize = 0; j < <usize>count << 2; j += 4) {
        let value = alpha * load<f32>(from + j);
        if (beta != 0) value = beta * load<f32>(to + j) + value;
        store<f32>(to + j, value);
      }
    }
  }
}
