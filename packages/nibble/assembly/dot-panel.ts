/**
 * Integer GEMV over one panel (32 channels) of one segment. v2: a block of 32 k at a time, quarter by quarter (a quarter is
 * 4 channels x 4 k bytes), codes unpacked in registers; groups are finished from registers.
 *
 * relaxed: `i16x8.relaxed_dot_i8x16_i7x16_s`, codes as the 7-bit operand, eight products of at most 2 * 15 * 128 per
 * 16-bit lane = 30720, then widened. 8-bit codes are two nibble planes. (The i32 form of the instruction is miscompiled
 * by the baseline compiler of V8 11.3 and is not used anywhere.)
 * simd: `i32x4.dot_i16x8_s`. A 16-bit lane of packed codes holds the bytes of k and k + 1; after shift and mask lane pairs
 * are (k, k + 2) and (k + 1, k + 3), so x is prepared as 16-bit pairs in that order (`preparePairs`): no horizontal sums.
 */
import { rowScale, rowSum, rowZero } from "./activations";
import {
  GROUP_BYTES, ZERO_FOLDED, ZERO_SHORT, asymmetric, centered, finishDirect, finishQuarter, groupSize, groups, isDirect, k, scaleHalf,
  startOf, zeroMode,
} from "./weight";

/** simd only: s8 codes -> i16 in the order k, k + 2, k + 1, k + 3 per four columns. */
export function preparePairs(codes: usize, out: usize, columns: i32): void {
  for (let i = 0; i < columns; i += 16) {
    const v = v128.load(codes + i);
    const low = i16x8.extend_low_i8x16_s(v);
    const high = i16x8.extend_high_i8x16_s(v);
    const to = out + (<usize>i << 1);
    v128.store(to, i16x8.shuffle(low, low, 0, 2, 1, 3, 4, 6, 5, 7));
    v128.store(to, i16x8.shuffle(high, high, 0, 2, 1, 3, 4, 6, 5, 7), 16);
  }
}

// @ts-ignore: decorator
@inline
function dot8(x: v128, codes: v128): v128 {
  return v128.relaxed_dot<i16>(x, codes);
}

// @ts-ignore: decorator
@inline
function widen(a: v128): v128 {
  return i32x4.extadd_pairwise_i16x8_s(a);
}

// ---- relaxed: sums of 4 channels over 32 k; x0..x7 are 4 activations each, splat -----------------------------------

// @ts-ignore: decorator
@inline
function quarter4(
  w: usize, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  const a = v128.load(w);
  const b = v128.load(w, 128);
  const c = v128.load(w, 256);
  const d = v128.load(w, 384);
  let s = i16x8.add(dot8(x0, v128.and(a, m)), dot8(x1, v128.and(i16x8.shr_u(a, 4), m)));
  s = i16x8.add(s, i16x8.add(dot8(x2, v128.and(b, m)), dot8(x3, v128.and(i16x8.shr_u(b, 4), m))));
  s = i16x8.add(s, i16x8.add(dot8(x4, v128.and(c, m)), dot8(x5, v128.and(i16x8.shr_u(c, 4), m))));
  s = i16x8.add(s, i16x8.add(dot8(x6, v128.and(d, m)), dot8(x7, v128.and(i16x8.shr_u(d, 4), m))));
  return widen(s);
}

// @ts-ignore: decorator
@inline
function quarter8(
  w: usize, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  let v = v128.load(w);
  let low = dot8(x0, v128.and(v, m));
  let high = dot8(x0, v128.and(i16x8.shr_u(v, 4), m));
  v = v128.load(w, 128);
  low = i16x8.add(low, dot8(x1, v128.and(v, m)));
  high = i16x8.add(high, dot8(x1, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 256);
  low = i16x8.add(low, dot8(x2, v128.and(v, m)));
  high = i16x8.add(high, dot8(x2, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 384);
  low = i16x8.add(low, dot8(x3, v128.and(v, m)));
  high = i16x8.add(high, dot8(x3, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 512);
  low = i16x8.add(low, dot8(x4, v128.and(v, m)));
  high = i16x8.add(high, dot8(x4, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 640);
  low = i16x8.add(low, dot8(x5, v128.and(v, m)));
  high = i16x8.add(high, dot8(x5, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 768);
  low = i16x8.add(low, dot8(x6, v128.and(v, m)));
  high = i16x8.add(high, dot8(x6, v128.and(i16x8.shr_u(v, 4), m)));
  v = v128.load(w, 896);
  low = i16x8.add(low, dot8(x7, v128.and(v, m)));
  high = i16x8.add(high, dot8(x7, v128.and(i16x8.shr_u(v, 4), m)));
  return i32x4.add(widen(low), i32x4.shl(widen(high), 4));
}

// @ts-ignore: decorator
@inline
function quarter2(
  w: usize, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  const a = v128.load(w);
  const b = v128.load(w, 128);
  let s = i16x8.add(dot8(x0, v128.and(a, m)), dot8(x1, v128.and(i16x8.shr_u(a, 2), m)));
  s = i16x8.add(s, i16x8.add(dot8(x2, v128.and(i16x8.shr_u(a, 4), m)), dot8(x3, v128.and(i16x8.shr_u(a, 6), m))));
  s = i16x8.add(s, i16x8.add(dot8(x4, v128.and(b, m)), dot8(x5, v128.and(i16x8.shr_u(b, 2), m))));
  s = i16x8.add(s, i16x8.add(dot8(x6, v128.and(i16x8.shr_u(b, 4), m)), dot8(x7, v128.and(i16x8.shr_u(b, 6), m))));
  return widen(s);
}

// @ts-ignore: decorator
@inline
function quarter1(
  w: usize, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  const a = v128.load(w);
  let s = i16x8.add(dot8(x0, v128.and(a, m)), dot8(x1, v128.and(i16x8.shr_u(a, 1), m)));
  s = i16x8.add(s, i16x8.add(dot8(x2, v128.and(i16x8.shr_u(a, 2), m)), dot8(x3, v128.and(i16x8.shr_u(a, 3), m))));
  s = i16x8.add(s, i16x8.add(dot8(x4, v128.and(i16x8.shr_u(a, 4), m)), dot8(x5, v128.and(i16x8.shr_u(a, 5), m))));
  s = i16x8.add(s, i16x8.add(dot8(x6, v128.and(i16x8.shr_u(a, 6), m)), dot8(x7, v128.and(i16x8.shr_u(a, 7), m))));
  return widen(s);
}

// ---- simd: the same sums; x points at the prepared pairs of the 32 k ------------------------------------------------

/** Two products per lane: codes at bits `shift` of each 16-bit lane, activation pair number `pair`. */
// @ts-ignore: decorator
@inline
function pairs(v: v128, shift: i32, m: v128, x: usize, pair: usize): v128 {
  const codes = shift == 0 ? v128.and(v, m) : v128.and(i16x8.shr_u(v, shift), m);
  return i32x4.dot_i16x8_s(codes, v128.load32_splat(x + (pair << 2)));
}

// @ts-ignore: decorator
@inline
function step4(v: v128, m: v128, x: usize): v128 {
  return i32x4.add(
    i32x4.add(pairs(v, 0, m, x, 0), pairs(v, 8, m, x, 1)),
    i32x4.add(pairs(v, 4, m, x, 2), i32x4.dot_i16x8_s(i16x8.shr_u(v, 12), v128.load32_splat(x, 12))),
  );
}

// @ts-ignore: decorator
@inline
function simdQuarter4(w: usize, m: v128, x: usize): v128 {
  return i32x4.add(
    i32x4.add(step4(v128.load(w), m, x), step4(v128.load(w, 128), m, x + 16)),
    i32x4.add(step4(v128.load(w, 256), m, x + 32), step4(v128.load(w, 384), m, x + 48)),
  );
}

// @ts-ignore: decorator
@inline
function step8(v: v128, m: v128, x: usize): v128 {
  return i32x4.add(pairs(v, 0, m, x, 0), i32x4.dot_i16x8_s(i16x8.shr_u(v, 8), v128.load32_splat(x, 4)));
}

// @ts-ignore: decorator
@inline
function simdQuarter8(w: usize, m: v128, x: usize): v128 {
  return i32x4.add(
    i32x4.add(
      i32x4.add(step8(v128.load(w), m, x), step8(v128.load(w, 128), m, x + 8)),
      i32x4.add(step8(v128.load(w, 256), m, x + 16), step8(v128.load(w, 384), m, x + 24)),
    ),
    i32x4.add(
      i32x4.add(step8(v128.load(w, 512), m, x + 32), step8(v128.load(w, 640), m, x + 40)),
      i32x4.add(step8(v128.load(w, 768), m, x + 48), step8(v128.load(w, 896), m, x + 56)),
    ),
  );
}

// @ts-ignore: decorator
@inline
function step2(v: v128, m: v128, x: usize): v128 {
  return i32x4.add(
    i32x4.add(
      i32x4.add(pairs(v, 0, m, x, 0), pairs(v, 8, m, x, 1)),
      i32x4.add(pairs(v, 2, m, x, 2), pairs(v, 10, m, x, 3)),
    ),
    i32x4.add(
      i32x4.add(pairs(v, 4, m, x, 4), pairs(v, 12, m, x, 5)),
      i32x4.add(pairs(v, 6, m, x, 6), pairs(v, 14, m, x, 7)),
    ),
  );
}

// @ts-ignore: decorator
@inline
function simdQuarter2(w: usize, m: v128, x: usize): v128 {
  return i32x4.add(step2(v128.load(w), m, x), step2(v128.load(w, 128), m, x + 32));
}

// @ts-ignore: decorator
@inline
function simdQuarter1(w: usize, m: v128, x: usize): v128 {
  const v = v128.load(w);
  return i32x4.add(
    i32x4.add(
      i32x4.add(
        i32x4.add(pairs(v, 0, m, x, 0), pairs(v, 8, m, x, 1)),
        i32x4.add(pairs(v, 1, m, x, 2), pairs(v, 9, m, x, 3)),
      ),
      i32x4.add(
        i32x4.add(pairs(v, 2, m, x, 4), pairs(v, 10, m, x, 5)),
        i32x4.add(pairs(v, 3, m, x, 6), pairs(v, 11, m, x, 7)),
      ),
    ),
    i32x4.add(
      i32x4.add(
        i32x4.add(pairs(v, 4, m, x, 8), pairs(v, 12, m, x, 9)),
        i32x4.add(pairs(v, 5, m, x, 10), pairs(v, 13, m, x, 11)),
      ),
      i32x4.add(
        i32x4.add(pairs(v, 6, m, x, 12), pairs(v, 14, m, x, 13)),
        i32x4.add(pairs(v, 7, m, x, 14), pairs(v, 15, m, x, 15)),
      ),
    ),
  );
}

/**
 * All groups of one panel of one segment. x: s8 codes (relaxed) or prepared pairs (simd) of the row.
 * `fused`: the segment is the whole code; y[32] gets the finished groups (weight.ts), `parameters` those of both halves.
 * direct, mode, half: isDirect(), zeroMode, scaleHalf; constants make a
 * loop without branches of the usual weights. Else y is an array of i32 sums [group][32], to which (sums << shift) is added (`first`: which they become).
 */
// @ts-ignore: decorator
@inline
function panelGroups<W>(
  w: usize, x: usize, y: usize, fused: bool, shift: i32, first: bool, parameters: usize, p: i32, direct: bool, mode: i32,
  half: bool,
): void {
  const shifted = asymmetric;
  const width = sizeof<W>() == 1 ? 1 : sizeof<W>() == 2 ? 2 : sizeof<W>() == 4 ? 4 : 8;
  let second = parameters + <usize>groups * GROUP_BYTES;
  for (let g = 0; g < groups; g++) {
    const sum = rowSum(0, g);
    const za = direct ? 0 : rowZero(0, g);
    let s0 = fused && mode == ZERO_FOLDED ? startOf(sum) : i32x4.splat(0);
    let s1 = s0;
    let s2 = s0;
    let s3 = s0;
    let s4 = s0;
    let s5 = s0;
    let s6 = s0;
    let s7 = s0;
    let blocks = (min<i32>(groupSize, k - g * groupSize) + 31) >> 5;
    if (ASC_FEATURE_RELAXED_SIMD) {
      const m = i8x16.splat(width == 1 ? 1 : width == 2 ? 3 : 15);
      for (; blocks > 0; blocks--) {
        const x0 = v128.load32_splat(x);
        const x1 = v128.load32_splat(x, 4);
        const x2 = v128.load32_splat(x, 8);
        const x3 = v128.load32_splat(x, 12);
        const x4 = v128.load32_splat(x, 16);
        const x5 = v128.load32_splat(x, 20);
        const x6 = v128.load32_splat(x, 24);
        const x7 = v128.load32_splat(x, 28);
        if (sizeof<W>() == 4) {
          s0 = i32x4.add(s0, quarter4(w, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s1 = i32x4.add(s1, quarter4(w + 16, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s2 = i32x4.add(s2, quarter4(w + 32, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s3 = i32x4.add(s3, quarter4(w + 48, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s4 = i32x4.add(s4, quarter4(w + 64, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s5 = i32x4.add(s5, quarter4(w + 80, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s6 = i32x4.add(s6, quarter4(w + 96, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s7 = i32x4.add(s7, quarter4(w + 112, m, x0, x1, x2, x3, x4, x5, x6, x7));
          w += 512;
        } else if (sizeof<W>() == 8) {
          s0 = i32x4.add(s0, quarter8(w, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s1 = i32x4.add(s1, quarter8(w + 16, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s2 = i32x4.add(s2, quarter8(w + 32, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s3 = i32x4.add(s3, quarter8(w + 48, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s4 = i32x4.add(s4, quarter8(w + 64, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s5 = i32x4.add(s5, quarter8(w + 80, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s6 = i32x4.add(s6, quarter8(w + 96, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s7 = i32x4.add(s7, quarter8(w + 112, m, x0, x1, x2, x3, x4, x5, x6, x7));
          w += 1024;
        } else if (sizeof<W>() == 2) {
          s0 = i32x4.add(s0, quarter2(w, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s1 = i32x4.add(s1, quarter2(w + 16, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s2 = i32x4.add(s2, quarter2(w + 32, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s3 = i32x4.add(s3, quarter2(w + 48, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s4 = i32x4.add(s4, quarter2(w + 64, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s5 = i32x4.add(s5, quarter2(w + 80, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s6 = i32x4.add(s6, quarter2(w + 96, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s7 = i32x4.add(s7, quarter2(w + 112, m, x0, x1, x2, x3, x4, x5, x6, x7));
          w += 256;
        } else {
          s0 = i32x4.add(s0, quarter1(w, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s1 = i32x4.add(s1, quarter1(w + 16, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s2 = i32x4.add(s2, quarter1(w + 32, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s3 = i32x4.add(s3, quarter1(w + 48, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s4 = i32x4.add(s4, quarter1(w + 64, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s5 = i32x4.add(s5, quarter1(w + 80, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s6 = i32x4.add(s6, quarter1(w + 96, m, x0, x1, x2, x3, x4, x5, x6, x7));
          s7 = i32x4.add(s7, quarter1(w + 112, m, x0, x1, x2, x3, x4, x5, x6, x7));
          w += 128;
        }
        x += 32;
      }
    } else {
      const m = i16x8.splat(width == 1 ? 1 : width == 2 ? 3 : width == 4 ? 15 : 255);
      for (; blocks > 0; blocks--) {
        if (sizeof<W>() == 4) {
          s0 = i32x4.add(s0, simdQuarter4(w, m, x));
          s1 = i32x4.add(s1, simdQuarter4(w + 16, m, x));
          s2 = i32x4.add(s2, simdQuarter4(w + 32, m, x));
          s3 = i32x4.add(s3, simdQuarter4(w + 48, m, x));
          s4 = i32x4.add(s4, simdQuarter4(w + 64, m, x));
          s5 = i32x4.add(s5, simdQuarter4(w + 80, m, x));
          s6 = i32x4.add(s6, simdQuarter4(w + 96, m, x));
          s7 = i32x4.add(s7, simdQuarter4(w + 112, m, x));
          w += 512;
        } else if (sizeof<W>() == 8) {
          s0 = i32x4.add(s0, simdQuarter8(w, m, x));
          s1 = i32x4.add(s1, simdQuarter8(w + 16, m, x));
          s2 = i32x4.add(s2, simdQuarter8(w + 32, m, x));
          s3 = i32x4.add(s3, simdQuarter8(w + 48, m, x));
          s4 = i32x4.add(s4, simdQuarter8(w + 64, m, x));
          s5 = i32x4.add(s5, simdQuarter8(w + 80, m, x));
          s6 = i32x4.add(s6, simdQuarter8(w + 96, m, x));
          s7 = i32x4.add(s7, simdQuarter8(w + 112, m, x));
          w += 1024;
        } else if (sizeof<W>() == 2) {
          s0 = i32x4.add(s0, simdQuarter2(w, m, x));
          s1 = i32x4.add(s1, simdQuarter2(w + 16, m, x));
          s2 = i32x4.add(s2, simdQuarter2(w + 32, m, x));
          s3 = i32x4.add(s3, simdQuarter2(w + 48, m, x));
          s4 = i32x4.add(s4, simdQuarter2(w + 64, m, x));
          s5 = i32x4.add(s5, simdQuarter2(w + 80, m, x));
          s6 = i32x4.add(s6, simdQuarter2(w + 96, m, x));
          s7 = i32x4.add(s7, simdQuarter2(w + 112, m, x));
          w += 256;
        } else {
          s0 = i32x4.add(s0, simdQuarter1(w, m, x));
          s1 = i32x4.add(s1, simdQuarter1(w + 16, m, x));
          s2 = i32x4.add(s2, simdQuarter1(w + 32, m, x));
          s3 = i32x4.add(s3, simdQuarter1(w + 48, m, x));
          s4 = i32x4.add(s4, simdQuarter1(w + 64, m, x));
          s5 = i32x4.add(s5, simdQuarter1(w + 80, m, x));
          s6 = i32x4.add(s6, simdQuarter1(w + 96, m, x));
          s7 = i32x4.add(s7, simdQuarter1(w + 112, m, x));
          w += 128;
        }
        x += 64;
      }
    }
    if (fused && direct) {
      const scale = f32x4.splat(rowScale(0, g));
      const total = i32x4.splat(sum);
      const begin = g == 0;
      const entry = (<usize>p * <usize>groups + <usize>g) << 5;
      finishDirect(s0, s1, entry, 0, scale, total, y, begin, mode, half);
      finishDirect(s2, s3, entry, 8, scale, total, y, begin, mode, half);
      finishDirect(s4, s5, entry, 16, scale, total, y, begin, mode, half);
      finishDirect(s6, s7, entry, 24, scale, total, y, begin, mode, half);
    } else if (fused) {
      const scale = f32x4.splat(rowScale(0, g));
      const total = i32x4.splat(centered(sum, za, g));
      const zero = i32x4.splat(za);
      const begin = g == 0;
      finishQuarter(s0, parameters + 0, scale, total, zero, y + 0, begin, mode, shifted);
      finishQuarter(s1, parameters + 16, scale, total, zero, y + 16, begin, mode, shifted);
      finishQuarter(s2, parameters + 32, scale, total, zero, y + 32, begin, mode, shifted);
      finishQuarter(s3, parameters + 48, scale, total, zero, y + 48, begin, mode, shifted);
      finishQuarter(s4, second + 0, scale, total, zero, y + 64, begin, mode, shifted);
      finishQuarter(s5, second + 16, scale, total, zero, y + 80, begin, mode, shifted);
      finishQuarter(s6, second + 32, scale, total, zero, y + 96, begin, mode, shifted);
      finishQuarter(s7, second + 48, scale, total, zero, y + 112, begin, mode, shifted);
      parameters += GROUP_BYTES;
      second += GROUP_BYTES;
    } else {
      keep(y + 0, s0, shift, first);
      keep(y + 16, s1, shift, first);
      keep(y + 32, s2, shift, first);
      keep(y + 48, s3, shift, first);
      keep(y + 64, s4, shift, first);
      keep(y + 80, s5, shift, first);
      keep(y + 96, s6, shift, first);
      keep(y + 112, s7, shift, first);
      y += 128;
    }
  }
}

// @ts-ignore: decorator
@inline
function keep(acc: usize, sums: v128, shift: i32, first: bool): void {
  const value = i32x4.shl(sums, shift);
  v128.store(acc, first ? value : i32x4.add(v128.load(acc), value));
}

// The type argument stands for the width of the segment: sizeof 8, 4, 2, 1.
export function panel8(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panelGroups<i64>(w, x, y, true, 0, true, parameters, p, isDirect(), zeroMode, scaleHalf);
}
export function panel4(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  if (isDirect() && zeroMode == ZERO_SHORT && scaleHalf) panelGroups<i32>(w, x, y, true, 0, true, parameters, p, true, ZERO_SHORT, true);
  else panelGroups<i32>(w, x, y, true, 0, true, parameters, p, isDirect(), zeroMode, scaleHalf);
}
export function panel2(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panelGroups<i16>(w, x, y, true, 0, true, parameters, p, isDirect(), zeroMode, scaleHalf);
}
export function panel1(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panelGroups<i8>(w, x, y, true, 0, true, parameters, p, isDirect(), zeroMode, scaleHalf);
}
export function part4(w: usize, x: usize, acc: usize): void {
  panelGroups<i32>(w, x, acc, false, 0, true, 0, 0, isDirect(), zeroMode, scaleHalf);
}
export function part2(w: usize, x: usize, acc: usize, shift: i32, first: bool): void {
  panelGroups<i16>(w, x, acc, false, shift, first, 0, 0, isDirect(), zeroMode, scaleHalf);
}
export function part1(w: usize, x: usize, acc: usize, shift: i32): void {
  panelGroups<i8>(w, x, acc, false, shift, false, 0, 0, isDirect(), zeroMode, scaleHalf);
}
