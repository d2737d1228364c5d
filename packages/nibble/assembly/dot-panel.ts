/**
 * Integer GEMV over one panel (32 channels) of one segment. v3: a block of 32 k at a time, quarter by quarter (a quarter is
 * 4 channels x 4 k bytes), codes unpacked in registers, sums in memory (`gather`); the last block of a group finishes it.
 *
 * relaxed: `i16x8.relaxed_dot_i8x16_i7x16_s`, codes as the 7-bit operand, eight products of at most 2 * 15 * 128 per
 * 16-bit lane = 30720, then widened. 8-bit codes are two nibble planes. (The i32 form of the instruction is miscompiled
 * by the baseline compiler of V8 11.3 and is not used anywhere.)
 * simd: `i32x4.dot_i16x8_s`. A 16-bit lane of packed codes holds the bytes of k and k + 1; after shift and mask lane pairs
 * are (k, k + 2) and (k + 1, k + 3), so x is prepared as 16-bit pairs in that order (`preparePairs`): no horizontal sums.
 */
import { rowScale, rowSum, rowZero } from "./activations";
import { scratch } from "./control";
import {
  GROUP_BYTES, ZERO_FOLDED, ZERO_SHORT, asymmetric, centered, finishDirect, finishQuarter, groupSize, groups, isDirect, k,
  scaleHalf, scalesOf, setAll, startDirect, startOf, zeroMode, zerosOf,
} from "./weight";

/** Place in scratch of the integer sums of a panel, 128 bytes. */
export const SUMS: usize = 128;

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

// ---- simd: the same sums over 16 k (number `half` of the 32), as eight pairs of activations fill the registers -------

/** Two products per lane: codes at bits `shift` of each 16-bit lane. */
// @ts-ignore: decorator
@inline
function pairs(v: v128, shift: i32, m: v128, x: v128): v128 {
  return i32x4.dot_i16x8_s(shift == 0 ? v128.and(v, m) : v128.and(i16x8.shr_u(v, shift), m), x);
}

// @ts-ignore: decorator
@inline
function step4(v: v128, m: v128, x0: v128, x1: v128, x2: v128, x3: v128): v128 {
  return i32x4.add(
    i32x4.add(pairs(v, 0, m, x0), pairs(v, 8, m, x1)),
    i32x4.add(pairs(v, 4, m, x2), i32x4.dot_i16x8_s(i16x8.shr_u(v, 12), x3)),
  );
}

// @ts-ignore: decorator
@inline
function simdHalf4(
  w: usize, half: i32, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  w += <usize>half << 8;
  return i32x4.add(step4(v128.load(w), m, x0, x1, x2, x3), step4(v128.load(w, 128), m, x4, x5, x6, x7));
}

// @ts-ignore: decorator
@inline
function step8(v: v128, m: v128, x0: v128, x1: v128): v128 {
  return i32x4.add(pairs(v, 0, m, x0), i32x4.dot_i16x8_s(i16x8.shr_u(v, 8), x1));
}

// @ts-ignore: decorator
@inline
function simdHalf8(
  w: usize, half: i32, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  w += <usize>half << 9;
  return i32x4.add(
    i32x4.add(step8(v128.load(w), m, x0, x1), step8(v128.load(w, 128), m, x2, x3)),
    i32x4.add(step8(v128.load(w, 256), m, x4, x5), step8(v128.load(w, 384), m, x6, x7)),
  );
}

/** Eight pairs whose shifts are those of 1-bit or, with `width` 2, 2-bit codes, from bit `from` on. */
// @ts-ignore: decorator
@inline
function step1(
  v: v128, from: i32, width: i32, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  return i32x4.add(
    i32x4.add(
      i32x4.add(pairs(v, from, m, x0), pairs(v, from + 8, m, x1)),
      i32x4.add(pairs(v, from + width, m, x2), pairs(v, from + width + 8, m, x3)),
    ),
    i32x4.add(
      i32x4.add(pairs(v, from + 2 * width, m, x4), pairs(v, from + 2 * width + 8, m, x5)),
      i32x4.add(pairs(v, from + 3 * width, m, x6), pairs(v, from + 3 * width + 8, m, x7)),
    ),
  );
}

// ---- panels ---------------------------------------------------------------------------------------------------------

/** Sums of the four channels at w over 32 columns (relaxed), or 16 (simd). sizeof<W> stands for the width of the segment. */
// @ts-ignore: decorator
@inline
function quarter<W>(
  w: usize, half: i32, m: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) {
    if (sizeof<W>() == 8) return quarter8(w, m, x0, x1, x2, x3, x4, x5, x6, x7);
    if (sizeof<W>() == 4) return quarter4(w, m, x0, x1, x2, x3, x4, x5, x6, x7);
    if (sizeof<W>() == 2) return quarter2(w, m, x0, x1, x2, x3, x4, x5, x6, x7);
    return quarter1(w, m, x0, x1, x2, x3, x4, x5, x6, x7);
  }
  if (sizeof<W>() == 8) return simdHalf8(w, half, m, x0, x1, x2, x3, x4, x5, x6, x7);
  if (sizeof<W>() == 4) return simdHalf4(w, half, m, x0, x1, x2, x3, x4, x5, x6, x7);
  if (sizeof<W>() == 2) return step1(v128.load(w + (<usize>half << 7)), 0, 2, m, x0, x1, x2, x3, x4, x5, x6, x7);
  return step1(v128.load(w), half << 2, 1, m, x0, x1, x2, x3, x4, x5, x6, x7);
}

/** The bits of one code in each byte (relaxed) or 16-bit lane (simd). */
// @ts-ignore: decorator
@inline
function codeMask<W>(): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i8x16.splat(sizeof<W>() == 1 ? 1 : sizeof<W>() == 2 ? 3 : 15);
  return i16x8.splat(sizeof<W>() == 1 ? 1 : sizeof<W>() == 2 ? 3 : sizeof<W>() == 4 ? 15 : 255);
}

/** Bytes of 32 columns of 32 channels. */
// @ts-ignore: decorator
@inline
function blockBytes<W>(): usize {
  return sizeof<W>() << 7;
}

/** Bytes of 32 activations, or of their pairs. */
// @ts-ignore: decorator
@inline
function blockInputs(): usize {
  return ASC_FEATURE_RELAXED_SIMD ? 32 : 64;
}

// @ts-ignore: decorator
@inline
function blocksOf(g: i32): i32 {
  return (min<i32>(groupSize, k - g * groupSize) + 31) >> 5;
}

/**
 * Sums stay in memory: V8 issues all loads up to the next store first, and with eight sums in registers it would load 32
 * vectors of weights and spill them. A store after each quarter keeps its four loads, eight activations and mask in registers.
 */
// @ts-ignore: decorator
@inline
function gather(acc: usize, sums: v128): void {
  v128.store(acc, i32x4.add(sums, v128.load(acc)));
}

/** acc[32] (i32) += sums of a block of 32 columns, or of one half of it (simd). */
// @ts-ignore: decorator
@inline
function gatherStep<W>(w: usize, x: usize, half: i32, acc: usize): void {
  const m = codeMask<W>();
  const x0 = v128.load32_splat(x);
  const x1 = v128.load32_splat(x, 4);
  const x2 = v128.load32_splat(x, 8);
  const x3 = v128.load32_splat(x, 12);
  const x4 = v128.load32_splat(x, 16);
  const x5 = v128.load32_splat(x, 20);
  const x6 = v128.load32_splat(x, 24);
  const x7 = v128.load32_splat(x, 28);
  gather(acc, quarter<W>(w, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 16, quarter<W>(w + 16, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 32, quarter<W>(w + 32, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 48, quarter<W>(w + 48, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 64, quarter<W>(w + 64, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 80, quarter<W>(w + 80, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 96, quarter<W>(w + 96, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 112, quarter<W>(w + 112, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
}

/** acc[32] (i32) += sums of a block of 32 columns. */
function gatherBlock<W>(w: usize, x: usize, acc: usize): void {
  gatherStep<W>(w, x, 0, acc);
  if (!ASC_FEATURE_RELAXED_SIMD) gatherStep<W>(w, x + 32, 1, acc);
}

/** The same for the last block of a group, which it finishes: the arithmetic of one quarter fills the waits of the other. */
// @ts-ignore: decorator
@inline
function finishBlock<W>(
  w: usize, x: usize, acc: usize, scales: usize, scale: v128, y: usize, halfScales: bool,
): void {
  const half = ASC_FEATURE_RELAXED_SIMD ? 0 : 1;
  if (!ASC_FEATURE_RELAXED_SIMD) {
    gatherStep<W>(w, x, 0, acc);
    x += 32;
  }
  const m = codeMask<W>();
  const x0 = v128.load32_splat(x);
  const x1 = v128.load32_splat(x, 4);
  const x2 = v128.load32_splat(x, 8);
  const x3 = v128.load32_splat(x, 12);
  const x4 = v128.load32_splat(x, 16);
  const x5 = v128.load32_splat(x, 20);
  const x6 = v128.load32_splat(x, 24);
  const x7 = v128.load32_splat(x, 28);
  gather(acc, quarter<W>(w, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 16, quarter<W>(w + 16, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  finishDirect(acc, scales, 0, scale, y, halfScales);
  gather(acc + 32, quarter<W>(w + 32, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 48, quarter<W>(w + 48, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  finishDirect(acc, scales, 8, scale, y, halfScales);
  gather(acc + 64, quarter<W>(w + 64, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 80, quarter<W>(w + 80, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  finishDirect(acc, scales, 16, scale, y, halfScales);
  gather(acc + 96, quarter<W>(w + 96, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  gather(acc + 112, quarter<W>(w + 112, half, m, x0, x1, x2, x3, x4, x5, x6, x7));
  finishDirect(acc, scales, 24, scale, y, halfScales);
}

/**
 * y[32] = the finished groups of one panel of a weight of one segment; isDirect() holds. x: s8 codes (relaxed) or prepared pairs
 * (simd) of the row. mode, half: zeroMode, scaleHalf; constants make a loop without branches of the usual weights.
 */
// @ts-ignore: decorator
@inline
function panelDirect<W>(w: usize, x: usize, y: usize, p: i32, mode: i32, half: bool): void {
  const acc = scratch + SUMS;
  let scales = scalesOf(p, half);
  let zeros = zerosOf(p);
  setAll(y, f32x4.splat(-0.0));
  for (let g = 0; g < groups; g++) {
    startDirect(acc, zeros, rowSum(0, g), mode);
    for (let left = blocksOf(g) - 1; left > 0; left--) {
      // The usual width without a call.
      if (ASC_FEATURE_RELAXED_SIMD && sizeof<W>() == 4) gatherStep<W>(w, x, 0, acc);
      else gatherBlock<W>(w, x, acc);
      w += blockBytes<W>();
      x += blockInputs();
    }
    finishBlock<W>(w, x, acc, scales, f32x4.splat(rowScale(0, g)), y, half);
    scales += half ? 64 : 128;
    zeros += 32;
    w += blockBytes<W>();
    x += blockInputs();
  }
}

/** The same for asymmetric activations or zero points in floating point. `parameters` are those of both halves (weight.ts). */
// @ts-ignore: decorator
@inline
function panelPrepared<W>(w: usize, x: usize, y: usize, parameters: usize): void {
  const acc = scratch + SUMS;
  const mode = zeroMode;
  const shifted = asymmetric;
  let second = parameters + <usize>groups * GROUP_BYTES;
  for (let g = 0; g < groups; g++) {
    const sum = rowSum(0, g);
    const za = rowZero(0, g);
    setAll(acc, mode == ZERO_FOLDED ? startOf(sum) : i32x4.splat(0));
    for (let left = blocksOf(g); left > 0; left--) {
      gatherBlock<W>(w, x, acc);
      w += blockBytes<W>();
      x += blockInputs();
    }
    const scale = f32x4.splat(rowScale(0, g));
    const total = i32x4.splat(centered(sum, za, g));
    const zero = i32x4.splat(za);
    for (let at: usize = 0; at < 64; at += 16) {
      finishQuarter(v128.load(acc + at), parameters + at, scale, total, zero, y + at, g == 0, mode, shifted);
      finishQuarter(v128.load(acc + at, 64), second + at, scale, total, zero, y + at + 64, g == 0, mode, shifted);
    }
    parameters += GROUP_BYTES;
    second += GROUP_BYTES;
  }
}

/** One segment of a code of several: adds (sums << shift) to the i32 sums [group][32] at acc, or with `first` stores them. */
// @ts-ignore: decorator
@inline
function panelPart<W>(w: usize, x: usize, acc: usize, shift: i32, first: bool): void {
  const own = scratch + SUMS;
  for (let g = 0; g < groups; g++) {
    setAll(own, i32x4.splat(0));
    for (let left = blocksOf(g); left > 0; left--) {
      gatherBlock<W>(w, x, own);
      w += blockBytes<W>();
      x += blockInputs();
    }
    for (let at: usize = 0; at < 128; at += 16) {
      const value = i32x4.shl(v128.load(own + at), shift);
      v128.store(acc + at, first ? value : i32x4.add(v128.load(acc + at), value));
    }
    acc += 128;
  }
}

// @ts-ignore: decorator
@inline
function panel<W>(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  if (isDirect()) panelDirect<W>(w, x, y, p, zeroMode, scaleHalf);
  else panelPrepared<W>(w, x, y, parameters);
}

// The type argument stands for the width of the segment: sizeof 8, 4, 2, 1.
export function panel8(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panel<i64>(w, x, y, parameters, p);
}
export function panel4(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  if (isDirect() && zeroMode == ZERO_SHORT && scaleHalf) panelDirect<i32>(w, x, y, p, ZERO_SHORT, true);
  else panel<i32>(w, x, y, parameters, p);
}
export function panel2(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panel<i16>(w, x, y, parameters, p);
}
export function panel1(w: usize, x: usize, y: usize, parameters: usize, p: i32): void {
  panel<i8>(w, x, y, parameters, p);
}
export function part4(w: usize, x: usize, acc: usize): void {
  panelPart<i32>(w, x, acc, 0, true);
}
export function part2(w: usize, x: usize, acc: usize, shift: i32, first: bool): void {
  panelPart<i16>(w, x, acc, shift, first);
}
export function part1(w: usize, x: usize, acc: usize, shift: i32): void {
  panelPart<i8>(w, x, acc, shift, false);
}
