/**
 * Block-diagonal Kronecker Hadamard of one row (exact class): kron(A_k, S_m) (x) I_inner per block, S_m by butterflies.
 * A butterfly at distance h works on runs of h * inner contiguous floats, so stages are vectors except for runs of 1 and 2.
 */
import { operand, operandF, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { rowAt } from "./elementwise";
import {
  HADAMARD_BLOCKS, HADAMARD_DST_AT, HADAMARD_INNER, HADAMARD_LD_DST, HADAMARD_LD_SRC, HADAMARD_MATRIX_AT,
  HADAMARD_NORM_F, HADAMARD_ORDER_K, HADAMARD_ORDER_M, HADAMARD_POST_SIGN_AT, HADAMARD_PRE_SIGN_AT, HADAMARD_SRC_AT,
  HADAMARD_TRANSPOSE,
} from "./ops";

/** (a, b) -> (a + b, a - b) over a row for pairs `run` floats apart. width is a multiple of 2 * run. */
function butterflies(x: usize, width: i32, run: i32): void {
  const end = x + (<usize>width << 2);
  if (run == 1 && (width & 3) == 0) {
    const sign = i32x4(0, 0x80000000, 0, 0x80000000);
    for (; x < end; x += 16) {
      const v = v128.load(x);
      const a = i32x4.shuffle(v, v, 0, 0, 2, 2);
      const b = v128.xor(i32x4.shuffle(v, v, 1, 1, 3, 3), sign);
      v128.store(x, f32x4.add(a, b));
    }
    return;
  }
  if (run == 2) {
    const sign = i32x4(0, 0, 0x80000000, 0x80000000);
    for (; x < end; x += 16) {
      const v = v128.load(x);
      const a = i32x4.shuffle(v, v, 0, 1, 0, 1);
      const b = v128.xor(i32x4.shuffle(v, v, 2, 3, 2, 3), sign);
      v128.store(x, f32x4.add(a, b));
    }
    return;
  }
  const step = <usize>run << 2;
  for (; x < end; x += step) {
    const stop = x + step;
    if ((run & 3) == 0) {
      for (; x < stop; x += 16) {
        const a = v128.load(x);
        const b = v128.load(x + step);
        v128.store(x, f32x4.add(a, b));
        v128.store(x + step, f32x4.sub(a, b));
      }
    } else {
      for (; x < stop; x += 4) {
        const a = load<f32>(x);
        const b = load<f32>(x + step);
        store<f32>(x, a + b);
        store<f32>(x + step, a - b);
      }
    }
  }
}

/** Two stages at once: butterflies at distance run, then 2 * run; run a multiple of 4, width of 4 * run. */
function butterflies2(x: usize, width: i32, run: i32): void {
  const end = x + (<usize>width << 2);
  const step = <usize>run << 2;
  for (; x < end; x += 3 * step) {
    const stop = x + step;
    for (; x < stop; x += 16) {
      const a = v128.load(x);
      const b = v128.load(x + step);
      const c = v128.load(x + 2 * step);
      const d = v128.load(x + 3 * step);
      const s = f32x4.add(a, b);
      const t = f32x4.sub(a, b);
      const u = f32x4.add(c, d);
      const v = f32x4.sub(c, d);
      v128.store(x, f32x4.add(s, u));
      v128.store(x + step, f32x4.add(t, v));
      v128.store(x + 2 * step, f32x4.sub(s, u));
      v128.store(x + 3 * step, f32x4.sub(t, v));
    }
  }
}

/** Unnormalized Sylvester Hadamard of order m over j, in place on `width` floats; exact order of docs/engine.md. */
export function sylvester(x: usize, width: i32, m: i32, inner: i32): void {
  let h = 1;
  while (h < m) {
    const run = h * inner;
    if ((run & 3) == 0 && 2 * h < m) {
      butterflies2(x, width, run);
      h <<= 2;
    } else {
      butterflies(x, width, run);
      h <<= 1;
    }
  }
}

/** dst = src * factor element by element. */
export function scaleBy(dst: usize, src: usize, factors: usize, width: i32): void {
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = <usize>i << 2;
    v128.store(dst + at, f32x4.mul(v128.load(src + at), v128.load(factors + at)));
  }
  for (; i < width; i++) {
    const at = <usize>i << 2;
    store<f32>(dst + at, load<f32>(src + at) * load<f32>(factors + at));
  }
}

/** dst *= factor. */
export function scaleAll(dst: usize, width: i32, factor: f32): void {
  const f = f32x4.splat(factor);
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = <usize>i << 2;
    v128.store(dst + at, f32x4.mul(v128.load(dst + at), f));
  }
  for (; i < width; i++) {
    const at = <usize>i << 2;
    store<f32>(dst + at, load<f32>(dst + at) * factor);
  }
}

/** v with its sign bits flipped where `flip` has them: exact multiplication by +-1. */
// @ts-ignore: decorator
@inline
function signed(v: v128, flip: v128): v128 {
  return v128.xor(v, flip);
}

/** Steps 3 and 4: out_i = (sum over j of A[i][j] v_j) * norm over k runs of `run` floats per block. */
function mixFactor(
  x: usize, blocks: i32, k: i32, run: i32, matrix: usize, transpose: bool, norm: f32, work: usize,
): void {
  // Sign bits of A, row by row.
  const flips = work;
  for (let i = 0; i < k; i++) {
    for (let j = 0; j < k; j++) {
      const from = transpose ? j * k + i : i * k + j;
      store<u32>(flips + ((<usize>(i * k + j)) << 2), load<i8>(matrix + from) < 0 ? 0x80000000 : 0);
    }
  }
  const out = work + ((<usize>((k * k + 15) & ~15)) << 2);
  const stride = (<usize>run) << 2;
  const norm4 = f32x4.splat(norm);
  for (let b = 0; b < blocks; b++) {
    const block = rowAt(x, b, k * run);
    for (let i = 0; i < k; i++) {
      const row = rowAt(flips, i, k);
      const rowEnd = row + ((<usize>k) << 2);
      const to = out + <usize>i * stride;
      let e = 0;
      for (; e + 16 <= run; e += 16) {
        let from = block + ((<usize>e) << 2);
        let f = v128.load32_splat(row);
        let s0 = signed(v128.load(from), f);
        let s1 = signed(v128.load(from, 16), f);
        let s2 = signed(v128.load(from, 32), f);
        let s3 = signed(v128.load(from, 48), f);
        for (let j = row + 4; j < rowEnd; j += 4) {
          from += stride;
          f = v128.load32_splat(j);
          s0 = f32x4.add(s0, signed(v128.load(from), f));
          s1 = f32x4.add(s1, signed(v128.load(from, 16), f));
          s2 = f32x4.add(s2, signed(v128.load(from, 32), f));
          s3 = f32x4.add(s3, signed(v128.load(from, 48), f));
        }
        const at = to + ((<usize>e) << 2);
        v128.store(at, f32x4.mul(s0, norm4));
        v128.store(at, f32x4.mul(s1, norm4), 16);
        v128.store(at, f32x4.mul(s2, norm4), 32);
        v128.store(at, f32x4.mul(s3, norm4), 48);
      }
      for (; e < run; e++) {
        let from = block + ((<usize>e) << 2);
        let sum = reinterpret<f32>(load<u32>(from) ^ load<u32>(row));
        for (let j = row + 4; j < rowEnd; j += 4) {
          from += stride;
          sum += reinterpret<f32>(load<u32>(from) ^ load<u32>(j));
        }
        store<f32>(to + ((<usize>e) << 2), sum * norm);
      }
    }
    memory.copy(block, out, (<usize>(k * run)) << 2);
  }
}

/** The whole op for one row. dst may be src. `work` holds k * k + k * m * inner floats when k > 1. */
export function hadamardRow(
  src: usize, dst: usize, blocks: i32, k: i32, m: i32, inner: i32, matrix: usize, transpose: bool,
  preSign: usize, postSign: usize, norm: f32, work: usize,
): void {
  const width = blocks * k * m * inner;
  if (preSign != 0) scaleBy(dst, src, preSign, width);
  else if (dst != src) memory.copy(dst, src, <usize>width << 2);
  sylvester(dst, width, m, inner);
  if (k > 1) mixFactor(dst, blocks, k, m * inner, matrix, transpose, norm, work);
  else scaleAll(dst, width, norm);
  if (postSign != 0) scaleBy(dst, dst, postSign, width);
}

export function hadamard(pc: usize, rows: i32): void {
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    hadamardRow(
      rowAt(place(pc, HADAMARD_SRC_AT), m, operand(pc, HADAMARD_LD_SRC)),
      rowAt(place(pc, HADAMARD_DST_AT), m, operand(pc, HADAMARD_LD_DST)),
      operand(pc, HADAMARD_BLOCKS),
      operand(pc, HADAMARD_ORDER_K),
      operand(pc, HADAMARD_ORDER_M),
      operand(pc, HADAMARD_INNER),
      place(pc, HADAMARD_MATRIX_AT),
      operand(pc, HADAMARD_TRANSPOSE) != 0,
      placeOrZero(pc, HADAMARD_PRE_SIGN_AT),
      placeOrZero(pc, HADAMARD_POST_SIGN_AT),
      operandF(pc, HADAMARD_NORM_F),
      scratch,
    );
  }
}
