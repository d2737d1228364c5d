/**
 * gram and inverseFactor in f64 (float class).
 *
 * gram: blocks of 16 x 16 entries over threads; both sides of a block are packed to f64, the 2 x 8 tile continues each sum
 * in row order from what G holds, so the result does not depend on how rows are cut into runs.
 *
 * inverseFactor: H = R R^T with R upper triangular, blocks of 64 columns from the last to the first (diagonal block, rows
 * above it, trailing update), then U = R^-1 row by row; U^T U = inverse(H).
 */
import { operand, place, scratch, shareOf, thread, threads } from "./control";
import { rowAt } from "./elementwise";
import { madd64 } from "./math";
import {
  GRAM_GRAM_AT, GRAM_LD_SRC, GRAM_SRC_AT, GRAM_WIDTH, INVERSE_FACTOR_FACTOR_AT, INVERSE_FACTOR_HESSIAN_AT,
  INVERSE_FACTOR_SIZE, INVERSE_FACTOR_STATUS_AT,
} from "./ops";

// ---- gram -----------------------------------------------------------------------------------------------------------

const ROWS: i32 = 256;
const SIDE: i32 = 16;

/** Columns column..column + 16 of rows m0..m1 as f64 [row][16]; columns beyond width are 0. */
function pack(src: usize, ld: i32, m0: i32, m1: i32, column: i32, width: i32, out: usize): void {
  const count = min<i32>(SIDE, width - column);
  for (let m = m0; m < m1; m++) {
    const row = rowAt(src, m, ld) + ((<usize>column) << 2);
    if (count == SIDE) {
      for (let i: usize = 0; i < 16; i += 2) {
        v128.store(out + (i << 3), f64x2.promote_low_f32x4(v128.load64_zero(row + (i << 2))));
      }
    } else {
      for (let i: usize = 0; i < 16; i++) {
        store<f64>(out + (i << 3), i < <usize>count ? <f64>load<f32>(row + (i << 2)) : 0);
      }
    }
    out += 128;
  }
}

/** acc[2][8] += a[row][0..2]^T b[row][0..8] over `rows` rows; 128 bytes from row to row on both sides and in acc. */
function gramTile(a: usize, b: usize, rows: i32, acc: usize): void {
  let s0 = v128.load(acc);
  let s1 = v128.load(acc, 16);
  let s2 = v128.load(acc, 32);
  let s3 = v128.load(acc, 48);
  let t0 = v128.load(acc, 128);
  let t1 = v128.load(acc, 144);
  let t2 = v128.load(acc, 160);
  let t3 = v128.load(acc, 176);
  for (; rows > 0; rows--) {
    const x = v128.load64_splat(a);
    const y = v128.load64_splat(a, 8);
    let w = v128.load(b);
    s0 = madd64(w, x, s0);
    t0 = madd64(w, y, t0);
    w = v128.load(b, 16);
    s1 = madd64(w, x, s1);
    t1 = madd64(w, y, t1);
    w = v128.load(b, 32);
    s2 = madd64(w, x, s2);
    t2 = madd64(w, y, t2);
    w = v128.load(b, 48);
    s3 = madd64(w, x, s3);
    t3 = madd64(w, y, t3);
    a += 128;
    b += 128;
  }
  v128.store(acc, s0);
  v128.store(acc, s1, 16);
  v128.store(acc, s2, 32);
  v128.store(acc, s3, 48);
  v128.store(acc, t0, 128);
  v128.store(acc, t1, 144);
  v128.store(acc, t2, 160);
  v128.store(acc, t3, 176);
}

/** Copies the entries j >= i of a block between G and the dense 16 x 16 `block`. */
function moveBlock(g: usize, width: i32, i0: i32, j0: i32, block: usize, toBlock: bool): void {
  for (let i = i0; i < min<i32>(i0 + SIDE, width); i++) {
    for (let j = max<i32>(j0, i); j < min<i32>(j0 + SIDE, width); j++) {
      const at = g + ((<usize>i * <usize>width + <usize>j) << 3);
      const inside = block + ((<usize>((i - i0) * SIDE + (j - j0))) << 3);
      if (toBlock) store<f64>(inside, load<f64>(at));
      else store<f64>(at, load<f64>(inside));
    }
  }
}

export function gram(pc: usize, rows: i32): void {
  const src = place(pc, GRAM_SRC_AT);
  const ld = operand(pc, GRAM_LD_SRC);
  const width = operand(pc, GRAM_WIDTH);
  const g = place(pc, GRAM_GRAM_AT);
  const blocks = (width + SIDE - 1) / SIDE;
  const block = scratch;
  const a = block + SIDE * SIDE * 8;
  const b = a + ROWS * SIDE * 8;
  for (let m0 = 0; m0 < rows; m0 += ROWS) {
    const m1 = min<i32>(m0 + ROWS, rows);
    for (let jb = thread; jb < blocks; jb += threads) {
      // Column block jb has jb + 1 blocks above the diagonal; dealing columns in turn balances the threads.
      pack(src, ld, m0, m1, jb * SIDE, width, b);
      for (let ib = 0; ib <= jb; ib++) {
        if (ib != jb) pack(src, ld, m0, m1, ib * SIDE, width, a);
        const left = ib == jb ? b : a;
        memory.fill(block, 0, SIDE * SIDE * 8);
        moveBlock(g, width, ib * SIDE, jb * SIDE, block, true);
        for (let i: usize = 0; i < 16; i += 2) {
          gramTile(left + (i << 3), b, m1 - m0, block + (i << 7));
          gramTile(left + (i << 3), b + 64, m1 - m0, block + (i << 7) + 64);
        }
        moveBlock(g, width, ib * SIDE, jb * SIDE, block, false);
      }
    }
  }
}

// ---- inverseFactor --------------------------------------------------------------------------------------------------

const BLOCK: i32 = 64;

// @ts-ignore: decorator
@inline
function row64(h: usize, i: i32, n: i32): usize {
  return h + ((<usize>i * <usize>n) << 3);
}

// @ts-ignore: decorator
@inline
function sum2(v: v128): f64 {
  return f64x2.extract_lane(v, 0) + f64x2.extract_lane(v, 1);
}

/** Dot product of two rows of `count` f64. */
function dot64(a: usize, b: usize, count: i32): f64 {
  let s = f64x2.splat(0);
  let t = s;
  for (; count >= 4; count -= 4) {
    s = madd64(v128.load(a), v128.load(b), s);
    t = madd64(v128.load(a, 16), v128.load(b, 16), t);
    a += 32;
    b += 32;
  }
  let sum = sum2(f64x2.add(s, t));
  for (; count > 0; count--) {
    sum += load<f64>(a) * load<f64>(b);
    a += 8;
    b += 8;
  }
  return sum;
}

/** Factors the diagonal block j0..j1. Returns 0, or 1 + the column whose pivot is not positive. */
function factorDiagonal(h: usize, n: i32, j0: i32, j1: i32): i32 {
  for (let j = j1 - 1; j >= j0; j--) {
    const rowJ = row64(h, j, n);
    const right = ((<usize>j) << 3) + 8;
    const count = j1 - 1 - j;
    const pivot = load<f64>(rowJ + right - 8) - dot64(rowJ + right, rowJ + right, count);
    if (!(pivot > 0 && pivot < Infinity)) return 1 + j;
    const root = sqrt<f64>(pivot);
    store<f64>(rowJ + right - 8, root);
    for (let i = j0; i < j; i++) {
      const rowI = row64(h, i, n);
      const value = load<f64>(rowI + right - 8) - dot64(rowI + right, rowJ + right, count);
      store<f64>(rowI + right - 8, value / root);
    }
  }
  return 0;
}

/** Row i above the block: R[i, j0..j1] from H[i, j0..j1] and the factored diagonal block. */
function solveRow(h: usize, n: i32, i: i32, j0: i32, j1: i32): void {
  const rowI = row64(h, i, n);
  for (let j = j1 - 1; j >= j0; j--) {
    const rowJ = row64(h, j, n);
    const right = ((<usize>j) << 3) + 8;
    const value = load<f64>(rowI + right - 8) - dot64(rowI + right, rowJ + right, j1 - 1 - j);
    store<f64>(rowI + right - 8, value / load<f64>(rowJ + right - 8));
  }
}

/** H[i, j], H[i, j + 1], H[i + 1, j], H[i + 1, j + 1] -= dots over the block's columns. */
function trailing2(h: usize, n: i32, i: i32, j: i32, j0: i32, count: i32): void {
  const skip = (<usize>j0) << 3;
  const stride = (<usize>n) << 3;
  let a = row64(h, i, n) + skip;
  let b = row64(h, j, n) + skip;
  let s0 = f64x2.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  for (let c = count; c >= 2; c -= 2) {
    const a0 = v128.load(a);
    const a1 = v128.load(a + stride);
    const b0 = v128.load(b);
    const b1 = v128.load(b + stride);
    s0 = madd64(a0, b0, s0);
    s1 = madd64(a0, b1, s1);
    s2 = madd64(a1, b0, s2);
    s3 = madd64(a1, b1, s3);
    a += 16;
    b += 16;
  }
  let d0 = sum2(s0);
  let d1 = sum2(s1);
  let d2 = sum2(s2);
  let d3 = sum2(s3);
  if ((count & 1) != 0) {
    d0 += load<f64>(a) * load<f64>(b);
    d1 += load<f64>(a) * load<f64>(b + stride);
    d2 += load<f64>(a + stride) * load<f64>(b);
    d3 += load<f64>(a + stride) * load<f64>(b + stride);
  }
  const to = row64(h, i, n) + ((<usize>j) << 3);
  store<f64>(to, load<f64>(to) - d0);
  store<f64>(to, load<f64>(to, 8) - d1, 8);
  // Below the diagonal (i + 1 > j) nothing is read later.
  store<f64>(to + stride, load<f64>(to + stride) - d2);
  store<f64>(to + stride, load<f64>(to + stride, 8) - d3, 8);
}

function trailing1(h: usize, n: i32, i: i32, j: i32, j0: i32, count: i32): void {
  const skip = (<usize>j0) << 3;
  const to = row64(h, i, n) + ((<usize>j) << 3);
  store<f64>(to, load<f64>(to) - dot64(row64(h, i, n) + skip, row64(h, j, n) + skip, count));
}

/** Rows i, i + 1 (when `two`) of the trailing update, columns i..j0. */
function trailingRows(h: usize, n: i32, i: i32, two: bool, j0: i32, count: i32): void {
  let j = i;
  if (two) {
    for (; j + 2 <= j0; j += 2) trailing2(h, n, i, j, j0, count);
    for (; j < j0; j++) {
      trailing1(h, n, i, j, j0, count);
      trailing1(h, n, i + 1, j, j0, count);
    }
  } else {
    for (; j < j0; j++) trailing1(h, n, i, j, j0, count);
  }
}

/** Rows i..i + count of U = R^-1 as f32, by elimination from the left in scratch: x R = unit row. */
function invertRows(h: usize, n: i32, i: i32, count: i32, factor: usize): void {
  const stride = (<usize>n) << 3;
  memory.fill(scratch, 0, <usize>count * stride);
  for (let r = 0; r < count; r++) store<f64>(row64(scratch, r, n) + ((<usize>(i + r)) << 3), 1);
  for (let k = i; k < n; k += 4) {
    const k1 = min<i32>(k + 4, n);
    for (let r = 0; r < count; r++) {
      const x = row64(scratch, r, n);
      for (let c = k; c < k1; c++) {
        const rowC = row64(h, c, n);
        const value = load<f64>(x + ((<usize>c) << 3)) / load<f64>(rowC + ((<usize>c) << 3));
        store<f64>(x + ((<usize>c) << 3), value);
        for (let j = c + 1; j < k1; j++) {
          const at = (<usize>j) << 3;
          store<f64>(x + at, load<f64>(x + at) - value * load<f64>(rowC + at));
        }
      }
    }
    if (k1 < n) eliminate(h, n, k, k1, count);
  }
  for (let r = 0; r < count; r++) {
    const x = row64(scratch, r, n);
    const to = rowAt(factor, i + r, n);
    for (let j = i + r; j < n; j++) store<f32>(to + ((<usize>j) << 2), <f32>load<f64>(x + ((<usize>j) << 3)));
  }
}

/** x[k1..] -= x[k..k1] R[k..k1, k1..] for the rows in scratch; k1 = k + 4. */
function eliminate(h: usize, n: i32, k: i32, k1: i32, count: i32): void {
  const stride = (<usize>n) << 3;
  const r0 = row64(h, k, n);
  const r1 = r0 + stride;
  const r2 = r1 + stride;
  const r3 = r2 + stride;
  const end = stride;
  const begin = (<usize>k1) << 3;
  const at = (<usize>k) << 3;
  for (let r = 0; r < count; r += 2) {
    const x = row64(scratch, r, n);
    // An odd last row is handled with a neighbour of weight 0.
    const two = r + 1 < count;
    const y = two ? x + stride : x;
    const f0 = f64x2.splat(-load<f64>(x + at));
    const f1 = f64x2.splat(-load<f64>(x + at, 8));
    const f2 = f64x2.splat(-load<f64>(x + at, 16));
    const f3 = f64x2.splat(-load<f64>(x + at, 24));
    const g0 = f64x2.splat(two ? -load<f64>(y + at) : 0);
    const g1 = f64x2.splat(two ? -load<f64>(y + at, 8) : 0);
    const g2 = f64x2.splat(two ? -load<f64>(y + at, 16) : 0);
    const g3 = f64x2.splat(two ? -load<f64>(y + at, 24) : 0);
    let j = begin;
    for (; j + 16 <= end; j += 16) {
      const a = v128.load(r0 + j);
      const b = v128.load(r1 + j);
      const c = v128.load(r2 + j);
      const d = v128.load(r3 + j);
      let s = madd64(a, f0, v128.load(x + j));
      s = madd64(b, f1, s);
      s = madd64(c, f2, s);
      v128.store(x + j, madd64(d, f3, s));
      if (two) {
        s = madd64(a, g0, v128.load(y + j));
        s = madd64(b, g1, s);
        s = madd64(c, g2, s);
        v128.store(y + j, madd64(d, g3, s));
      }
    }
    for (; j < end; j += 8) {
      for (let c: usize = 0; c < 4; c++) {
        const w = load<f64>(r0 + c * stride + j);
        store<f64>(x + j, load<f64>(x + j) - load<f64>(x + at + (c << 3)) * w);
        if (two) store<f64>(y + j, load<f64>(y + j) - load<f64>(y + at + (c << 3)) * w);
      }
    }
  }
}

/** Three phases for each block of columns (diagonal, rows above it, trailing update), then the inversion. */
export function inverseFactorPhases(pc: usize): i32 {
  return 3 * ((operand(pc, INVERSE_FACTOR_SIZE) + BLOCK - 1) / BLOCK) + 1;
}

export function inverseFactor(pc: usize, phase: i32): void {
  const n = operand(pc, INVERSE_FACTOR_SIZE);
  const h = place(pc, INVERSE_FACTOR_HESSIAN_AT);
  const status = place(pc, INVERSE_FACTOR_STATUS_AT);
  if (phase == 0) {
    if (thread == 0) store<i32>(status, 0);
  } else if (load<i32>(status) != 0) {
    return;
  }
  const j1 = n - (phase / 3) * BLOCK;
  if (j1 <= 0) {
    // Each block of rows passes over all of R: as many rows as scratch holds, up to 16.
    const rows = max<i32>(1, min<i32>(16, (384 * 1024) / (n << 3)));
    const factor = place(pc, INVERSE_FACTOR_FACTOR_AT);
    for (let i = thread * rows; i < n; i += threads * rows) invertRows(h, n, i, min<i32>(rows, n - i), factor);
    return;
  }
  const j0 = max<i32>(0, j1 - BLOCK);
  if (phase % 3 == 0) {
    if (thread == 0) {
      const failed = factorDiagonal(h, n, j0, j1);
      if (failed != 0) store<i32>(status, failed);
    }
  } else if (phase % 3 == 1) {
    const end = shareOf(j0, thread + 1);
    for (let i = shareOf(j0, thread); i < end; i++) solveRow(h, n, i, j0, j1);
  } else {
    // Row i has j0 - i columns to update; dealing pairs of rows in turn balances the tickets.
    for (let i = thread << 1; i < j0; i += threads << 1) trailingRows(h, n, i, i + 1 < j0, j0, j1 - j0);
  }
}
