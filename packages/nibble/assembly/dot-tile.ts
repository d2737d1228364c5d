/**
 * Integer GEMM for more than one row: a half-panel (16 channels) is unpacked once into thread scratch and then serves all
 * rows, two at a time (2 x 16 tile). v1.
 *
 * relaxed panel: [kPad / 4][16 channels][4 k] bytes; 7- and 8-bit codes become two nibble panels. A 16-bit lane gains two products
 * of at most maxCode * 128 per four columns, which bounds how many may be summed before widening (`safeSteps`).
 * Loops are not unrolled: V8 issues all loads of a block first, and a longer block spills its sums.
 * simd panel: [kPad / 4][2 pairs][16 channels][2 k] 16-bit, pairs (k, k + 2) and (k + 1, k + 3), as in dot-panel.ts.
 */
import { rowScale, rowSum, rowZero } from "./activations";
import {
  GROUP_BYTES, ZERO_AS_FLOAT, ZERO_FOLDED, ZERO_SHORT, asymmetric, bits, centered, finishQuarter, groupSize, groups, k, kPad,
  seg1, seg2, seg4, seg8, shift1, shift2, startOf, startQuarter, zeroMode,
} from "./weight";

/** Bytes of the unpacked form of four columns of 16 channels. */
// @ts-ignore: decorator
@inline
export function quadBytes(): usize {
  return ASC_FEATURE_RELAXED_SIMD ? 64 : 128;
}

/** Whether the tile reads codes as two nibble planes: wider ones would overflow 16 bits after one or two products. */
export function twoPlanes(): bool {
  return ASC_FEATURE_RELAXED_SIMD && bits >= 7;
}

/**
 * Four-column steps whose products fit a 16-bit lane (two products a step), for codes up to 2^codeBits - 1 and |x| up to
 * `largest`; at least 2, as callers keep codeBits at 6 or below.
 */
export function safeSteps(codeBits: i32, largest: i32): i32 {
  const steps = 32767 / (((1 << codeBits) - 1) * 2 * max<i32>(largest, 1));
  return min<i32>(steps, 64);
}

/** The same for the open weight. */
export function tileSteps(largest: i32): i32 {
  return safeSteps(twoPlanes() ? 4 : bits, largest);
}

// @ts-ignore: decorator
@inline
function put(to: usize, codes: v128, shift: i32, first: bool): void {
  if (first) v128.store(to, codes);
  else v128.store(to, v128.or(v128.load(to), i16x8.shl(codes, shift)));
}

/**
 * One segment of 16 channels, `stride` bytes from step to step (64 bytes each). sizeof<W> is its width; only a first
 * segment overwrites, others are or-ed on top.
 */
// @ts-ignore: decorator
@inline
function unpackSegment<W>(from: usize, stride: usize, columns: i32, panel: usize, shift: i32, first: bool): void {
  const perStep = <usize>8 / sizeof<W>();
  const steps = (<usize>columns / 4) / perStep;
  const mask = ASC_FEATURE_RELAXED_SIMD
    ? i8x16.splat(sizeof<W>() == 8 ? 15 : sizeof<W>() == 4 ? 15 : sizeof<W>() == 2 ? 3 : 1)
    : i16x8.splat(sizeof<W>() == 8 ? 255 : sizeof<W>() == 4 ? 15 : sizeof<W>() == 2 ? 3 : 1);
  for (let s: usize = 0; s < steps; s++) {
    for (let q: usize = 0; q < 64; q += 16) {
      let v = v128.load(from + q);
      let to = panel + q;
      for (let t: usize = 0; t < perStep; t++) {
        if (ASC_FEATURE_RELAXED_SIMD) {
          put(to, v128.and(v, mask), shift, first);
        } else {
          put(to, v128.and(v, mask), shift, first);
          put(to + 64, v128.and(i16x8.shr_u(v, 8), mask), shift, first);
        }
        v = i16x8.shr_u(v, <i32>sizeof<W>());
        to += quadBytes();
      }
    }
    from += stride;
    panel += quadBytes() * perStep;
  }
}

/** Nibble planes of 8-bit codes: low at panel, high at panel + columns * 16. Relaxed only. */
function unpackNibbles(from: usize, stride: usize, columns: i32, panel: usize): void {
  const mask = i8x16.splat(15);
  const high = panel + (<usize>columns << 4);
  const end = <usize>columns << 4;
  for (let at: usize = 0; at < end; at += 64) {
    for (let q = at; q < at + 64; q += 16) {
      const v = v128.load(from + (q - at));
      v128.store(panel + q, v128.and(v, mask));
      v128.store(high + q, v128.and(i16x8.shr_u(v, 4), mask));
    }
    from += stride;
  }
}

/** Eight columns of four channels: two quads of bytes (relaxed), four of 16-bit pairs (simd). */
// @ts-ignore: decorator
@inline
function unpackStep4(v: v128, panel: usize): void {
  if (ASC_FEATURE_RELAXED_SIMD) {
    const mask = i8x16.splat(15);
    v128.store(panel, v128.and(v, mask));
    v128.store(panel, v128.and(i16x8.shr_u(v, 4), mask), 64);
  } else {
    const mask = i16x8.splat(15);
    v128.store(panel, v128.and(v, mask));
    v128.store(panel, v128.and(i16x8.shr_u(v, 8), mask), 64);
    v128.store(panel, v128.and(i16x8.shr_u(v, 4), mask), 128);
    v128.store(panel, i16x8.shr_u(v, 12), 192);
  }
}

function unpackKeys4(from: usize, columns: i32, panel: usize): void {
  for (; columns > 0; columns -= 8) {
    unpackStep4(v128.load(from), panel);
    unpackStep4(v128.load(from, 16), panel + 16);
    unpackStep4(v128.load(from, 32), panel + 32);
    unpackStep4(v128.load(from, 48), panel + 48);
    from += 64;
    panel += 2 * quadBytes();
  }
}

/** 16 channels (positions) of plain 4- or 8-bit codes, steps of 64 contiguous bytes: a key half-panel of the cache. */
export function unpackKeys(from: usize, columns: i32, wide: bool, panel: usize): void {
  if (!wide) unpackKeys4(from, columns, panel);
  else if (ASC_FEATURE_RELAXED_SIMD) unpackNibbles(from, 64, columns, panel);
  else unpackSegment<i64>(from, 64, columns, panel, 0, true);
}

/** Unpacks half `half` of panel p, all segments combined. */
export function unpackHalf(p: i32, half: i32, panel: usize): void {
  const skip = <usize>half << 6;
  const columns = <usize>p * <usize>kPad << 2;
  if (seg8 != 0) {
    if (ASC_FEATURE_RELAXED_SIMD) unpackNibbles(seg8 + columns * 8 + skip, 128, kPad, panel);
    else unpackSegment<i64>(seg8 + columns * 8 + skip, 128, kPad, panel, 0, true);
    return;
  }
  if (bits == 4) {
    let from = seg4 + columns * 4 + skip;
    for (let left = kPad; left > 0; left -= 8) {
      unpackStep4(v128.load(from), panel);
      unpackStep4(v128.load(from, 16), panel + 16);
      unpackStep4(v128.load(from, 32), panel + 32);
      unpackStep4(v128.load(from, 48), panel + 48);
      from += 128;
      panel += 2 * quadBytes();
    }
    return;
  }
  if (ASC_FEATURE_RELAXED_SIMD && bits == 7) {
    const high = panel + ((<usize>kPad) << 4);
    unpackSegment<i32>(seg4 + columns * 4 + skip, 128, kPad, panel, 0, true);
    unpackSegment<i16>(seg2 + columns * 2 + skip, 128, kPad, high, 0, true);
    unpackSegment<i8>(seg1 + columns + skip, 128, kPad, high, 2, false);
    return;
  }
  let first = true;
  if (seg4 != 0) {
    unpackSegment<i32>(seg4 + columns * 4 + skip, 128, kPad, panel, 0, true);
    first = false;
  }
  if (seg2 != 0) {
    unpackSegment<i16>(seg2 + columns * 2 + skip, 128, kPad, panel, shift2, first);
    first = false;
  }
  if (seg1 != 0) unpackSegment<i8>(seg1 + columns + skip, 128, kPad, panel, shift1, first);
}

// @ts-ignore: decorator
@inline
function dot8(x: v128, codes: v128): v128 {
  return v128.relaxed_dot<i16>(x, codes);
}

// @ts-ignore: decorator
@inline
function pairDot(codes: v128, x: v128): v128 {
  return i32x4.dot_i16x8_s(codes, x);
}

// @ts-ignore: decorator
@inline
function addTo(acc: usize, value: v128, shift: i32): void {
  v128.store(acc, i32x4.add(v128.load(acc), i32x4.shl(value, shift)));
}

/**
 * acc0[16] and acc1[16] (i32) += (codes . x) << shift for two rows over `steps` steps of four columns. relaxed: x0, x1 are
 * s8 codes and `safe` steps may be summed in 16 bits; simd: prepared pairs.
 */
export function tile2(
  panel: usize, x0: usize, x1: usize, steps: i32, safe: i32, acc0: usize, acc1: usize, shift: i32,
): void {
  let s0 = i32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let t0 = s0;
  let t1 = s0;
  let t2 = s0;
  let t3 = s0;
  if (ASC_FEATURE_RELAXED_SIMD) {
    while (steps > 0) {
      let count = min<i32>(safe, steps);
      steps -= count;
      let x = v128.load32_splat(x0);
      let y = v128.load32_splat(x1);
      let w = v128.load(panel);
      let a0 = dot8(x, w);
      let b0 = dot8(y, w);
      w = v128.load(panel, 16);
      let a1 = dot8(x, w);
      let b1 = dot8(y, w);
      w = v128.load(panel, 32);
      let a2 = dot8(x, w);
      let b2 = dot8(y, w);
      w = v128.load(panel, 48);
      let a3 = dot8(x, w);
      let b3 = dot8(y, w);
      x0 += 4;
      x1 += 4;
      panel += 64;
      while (--count > 0) {
        x = v128.load32_splat(x0);
        y = v128.load32_splat(x1);
        w = v128.load(panel);
        a0 = i16x8.add(a0, dot8(x, w));
        b0 = i16x8.add(b0, dot8(y, w));
        w = v128.load(panel, 16);
        a1 = i16x8.add(a1, dot8(x, w));
        b1 = i16x8.add(b1, dot8(y, w));
        w = v128.load(panel, 32);
        a2 = i16x8.add(a2, dot8(x, w));
        b2 = i16x8.add(b2, dot8(y, w));
        w = v128.load(panel, 48);
        a3 = i16x8.add(a3, dot8(x, w));
        b3 = i16x8.add(b3, dot8(y, w));
        x0 += 4;
        x1 += 4;
        panel += 64;
      }
      s0 = i32x4.add(s0, i32x4.extadd_pairwise_i16x8_s(a0));
      s1 = i32x4.add(s1, i32x4.extadd_pairwise_i16x8_s(a1));
      s2 = i32x4.add(s2, i32x4.extadd_pairwise_i16x8_s(a2));
      s3 = i32x4.add(s3, i32x4.extadd_pairwise_i16x8_s(a3));
      t0 = i32x4.add(t0, i32x4.extadd_pairwise_i16x8_s(b0));
      t1 = i32x4.add(t1, i32x4.extadd_pairwise_i16x8_s(b1));
      t2 = i32x4.add(t2, i32x4.extadd_pairwise_i16x8_s(b2));
      t3 = i32x4.add(t3, i32x4.extadd_pairwise_i16x8_s(b3));
    }
  } else {
    for (; steps > 0; steps--) {
      let x = v128.load32_splat(x0);
      let y = v128.load32_splat(x1);
      let w = v128.load(panel);
      s0 = i32x4.add(s0, pairDot(w, x));
      t0 = i32x4.add(t0, pairDot(w, y));
      w = v128.load(panel, 16);
      s1 = i32x4.add(s1, pairDot(w, x));
      t1 = i32x4.add(t1, pairDot(w, y));
      w = v128.load(panel, 32);
      s2 = i32x4.add(s2, pairDot(w, x));
      t2 = i32x4.add(t2, pairDot(w, y));
      w = v128.load(panel, 48);
      s3 = i32x4.add(s3, pairDot(w, x));
      t3 = i32x4.add(t3, pairDot(w, y));
      x = v128.load32_splat(x0, 4);
      y = v128.load32_splat(x1, 4);
      w = v128.load(panel, 64);
      s0 = i32x4.add(s0, pairDot(w, x));
      t0 = i32x4.add(t0, pairDot(w, y));
      w = v128.load(panel, 80);
      s1 = i32x4.add(s1, pairDot(w, x));
      t1 = i32x4.add(t1, pairDot(w, y));
      w = v128.load(panel, 96);
      s2 = i32x4.add(s2, pairDot(w, x));
      t2 = i32x4.add(t2, pairDot(w, y));
      w = v128.load(panel, 112);
      s3 = i32x4.add(s3, pairDot(w, x));
      t3 = i32x4.add(t3, pairDot(w, y));
      x0 += 8;
      x1 += 8;
      panel += 128;
    }
  }
  addTo(acc0, s0, shift);
  addTo(acc0 + 16, s1, shift);
  addTo(acc0 + 32, s2, shift);
  addTo(acc0 + 48, s3, shift);
  addTo(acc1, t0, shift);
  addTo(acc1 + 16, t1, shift);
  addTo(acc1 + 32, t2, shift);
  addTo(acc1 + 48, t3, shift);
}

/** The same for one row. */
export function tile1(panel: usize, x0: usize, steps: i32, safe: i32, acc0: usize, shift: i32): void {
  let s0 = i32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  if (ASC_FEATURE_RELAXED_SIMD) {
    while (steps > 0) {
      let count = min<i32>(safe, steps);
      steps -= count;
      let x = v128.load32_splat(x0);
      let a0 = dot8(x, v128.load(panel));
      let a1 = dot8(x, v128.load(panel, 16));
      let a2 = dot8(x, v128.load(panel, 32));
      let a3 = dot8(x, v128.load(panel, 48));
      x0 += 4;
      panel += 64;
      while (--count > 0) {
        x = v128.load32_splat(x0);
        a0 = i16x8.add(a0, dot8(x, v128.load(panel)));
        a1 = i16x8.add(a1, dot8(x, v128.load(panel, 16)));
        a2 = i16x8.add(a2, dot8(x, v128.load(panel, 32)));
        a3 = i16x8.add(a3, dot8(x, v128.load(panel, 48)));
        x0 += 4;
        panel += 64;
      }
      s0 = i32x4.add(s0, i32x4.extadd_pairwise_i16x8_s(a0));
      s1 = i32x4.add(s1, i32x4.extadd_pairwise_i16x8_s(a1));
      s2 = i32x4.add(s2, i32x4.extadd_pairwise_i16x8_s(a2));
      s3 = i32x4.add(s3, i32x4.extadd_pairwise_i16x8_s(a3));
    }
  } else {
    for (; steps > 0; steps--) {
      let x = v128.load32_splat(x0);
      s0 = i32x4.add(s0, pairDot(v128.load(panel), x));
      s1 = i32x4.add(s1, pairDot(v128.load(panel, 16), x));
      s2 = i32x4.add(s2, pairDot(v128.load(panel, 32), x));
      s3 = i32x4.add(s3, pairDot(v128.load(panel, 48), x));
      x = v128.load32_splat(x0, 4);
      s0 = i32x4.add(s0, pairDot(v128.load(panel, 64), x));
      s1 = i32x4.add(s1, pairDot(v128.load(panel, 80), x));
      s2 = i32x4.add(s2, pairDot(v128.load(panel, 96), x));
      s3 = i32x4.add(s3, pairDot(v128.load(panel, 112), x));
      x0 += 8;
      panel += 128;
    }
  }
  addTo(acc0, s0, shift);
  addTo(acc0 + 16, s1, shift);
  addTo(acc0 + 32, s2, shift);
  addTo(acc0 + 48, s3, shift);
}

/** Groups are added to -0, which leaves every first group as it is, its sign of zero included. */
// @ts-ignore: decorator
@inline
function clearSums(y: usize): void {
  const none = f32x4.splat(-0.0);
  v128.store(y, none);
  v128.store(y, none, 16);
  v128.store(y, none, 32);
  v128.store(y, none, 48);
}

/**
 * All groups of a half-panel for two rows m and m + 1: y (16 f32 each) from prepared activations and group parameters.
 * mode, shifted, highPlane: zeroMode, asymmetric, twoPlanes(); constants make a loop without branches of the usual weights.
 */
// @ts-ignore: decorator
@inline
function groups2(
  panel: usize, x0: usize, x1: usize, y0: usize, y1: usize, m: i32, parameters: usize, safe: i32, mode: i32, shifted: bool,
  highPlane: bool,
): void {
  // Sums of one plane can start from their zero points.
  const early = !highPlane && !shifted && mode != ZERO_AS_FLOAT;
  const rest = early ? ZERO_FOLDED : mode;
  clearSums(y0);
  clearSums(y1);
  for (let g = 0; g < groups; g++) {
    const from = g * groupSize;
    const columns = (min<i32>(groupSize, k - from) + 31) & ~31;
    const skip = ASC_FEATURE_RELAXED_SIMD ? <usize>from : (<usize>from) << 1;
    const begin = panel + ((<usize>from) >> 2) * quadBytes();
    const sum0 = rowSum(m, g);
    let s0 = early ? startQuarter(parameters, sum0, mode) : i32x4.splat(0);
    let s1 = early ? startQuarter(parameters + 16, sum0, mode) : i32x4.splat(0);
    let s2 = early ? startQuarter(parameters + 32, sum0, mode) : i32x4.splat(0);
    let s3 = early ? startQuarter(parameters + 48, sum0, mode) : i32x4.splat(0);
    const sum1 = rowSum(m + 1, g);
    let t0 = early ? startQuarter(parameters, sum1, mode) : i32x4.splat(0);
    let t1 = early ? startQuarter(parameters + 16, sum1, mode) : i32x4.splat(0);
    let t2 = early ? startQuarter(parameters + 32, sum1, mode) : i32x4.splat(0);
    let t3 = early ? startQuarter(parameters + 48, sum1, mode) : i32x4.splat(0);
    // Two planes: the high nibbles first, shifted when the low ones follow.
    for (let plane = highPlane ? 1 : 0; plane >= 0; plane--) {
      let w = begin + (plane == 0 ? 0 : (<usize>kPad) << 4);
      let p0 = x0 + skip;
      let p1 = x1 + skip;
      if (ASC_FEATURE_RELAXED_SIMD) {
        let steps = columns >> 2;
        while (steps > 0) {
          let count = min<i32>(safe, steps);
          steps -= count;
          let x = v128.load32_splat(p0);
          let y = v128.load32_splat(p1);
          let c = v128.load(w);
          let a0 = dot8(x, c);
          let b0 = dot8(y, c);
          c = v128.load(w, 16);
          let a1 = dot8(x, c);
          let b1 = dot8(y, c);
          c = v128.load(w, 32);
          let a2 = dot8(x, c);
          let b2 = dot8(y, c);
          c = v128.load(w, 48);
          let a3 = dot8(x, c);
          let b3 = dot8(y, c);
          p0 += 4;
          p1 += 4;
          w += 64;
          while (--count > 0) {
            x = v128.load32_splat(p0);
            y = v128.load32_splat(p1);
            c = v128.load(w);
            a0 = i16x8.add(a0, dot8(x, c));
            b0 = i16x8.add(b0, dot8(y, c));
            c = v128.load(w, 16);
            a1 = i16x8.add(a1, dot8(x, c));
            b1 = i16x8.add(b1, dot8(y, c));
            c = v128.load(w, 32);
            a2 = i16x8.add(a2, dot8(x, c));
            b2 = i16x8.add(b2, dot8(y, c));
            c = v128.load(w, 48);
            a3 = i16x8.add(a3, dot8(x, c));
            b3 = i16x8.add(b3, dot8(y, c));
            p0 += 4;
            p1 += 4;
            w += 64;
          }
          s0 = i32x4.add(s0, i32x4.extadd_pairwise_i16x8_s(a0));
          s1 = i32x4.add(s1, i32x4.extadd_pairwise_i16x8_s(a1));
          s2 = i32x4.add(s2, i32x4.extadd_pairwise_i16x8_s(a2));
          s3 = i32x4.add(s3, i32x4.extadd_pairwise_i16x8_s(a3));
          t0 = i32x4.add(t0, i32x4.extadd_pairwise_i16x8_s(b0));
          t1 = i32x4.add(t1, i32x4.extadd_pairwise_i16x8_s(b1));
          t2 = i32x4.add(t2, i32x4.extadd_pairwise_i16x8_s(b2));
          t3 = i32x4.add(t3, i32x4.extadd_pairwise_i16x8_s(b3));
        }
      } else {
        for (let steps = columns >> 2; steps > 0; steps--) {
          let x = v128.load32_splat(p0);
          let y = v128.load32_splat(p1);
          let c = v128.load(w);
          s0 = i32x4.add(s0, i32x4.dot_i16x8_s(c, x));
          t0 = i32x4.add(t0, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 16);
          s1 = i32x4.add(s1, i32x4.dot_i16x8_s(c, x));
          t1 = i32x4.add(t1, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 32);
          s2 = i32x4.add(s2, i32x4.dot_i16x8_s(c, x));
          t2 = i32x4.add(t2, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 48);
          s3 = i32x4.add(s3, i32x4.dot_i16x8_s(c, x));
          t3 = i32x4.add(t3, i32x4.dot_i16x8_s(c, y));
          x = v128.load32_splat(p0, 4);
          y = v128.load32_splat(p1, 4);
          c = v128.load(w, 64);
          s0 = i32x4.add(s0, i32x4.dot_i16x8_s(c, x));
          t0 = i32x4.add(t0, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 80);
          s1 = i32x4.add(s1, i32x4.dot_i16x8_s(c, x));
          t1 = i32x4.add(t1, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 96);
          s2 = i32x4.add(s2, i32x4.dot_i16x8_s(c, x));
          t2 = i32x4.add(t2, i32x4.dot_i16x8_s(c, y));
          c = v128.load(w, 112);
          s3 = i32x4.add(s3, i32x4.dot_i16x8_s(c, x));
          t3 = i32x4.add(t3, i32x4.dot_i16x8_s(c, y));
          p0 += 8;
          p1 += 8;
          w += 128;
        }
      }
      if (plane == 1) {
        s0 = i32x4.shl(s0, 4);
        s1 = i32x4.shl(s1, 4);
        s2 = i32x4.shl(s2, 4);
        s3 = i32x4.shl(s3, 4);
        t0 = i32x4.shl(t0, 4);
        t1 = i32x4.shl(t1, 4);
        t2 = i32x4.shl(t2, 4);
        t3 = i32x4.shl(t3, 4);
      }
    }
    const scale0 = f32x4.splat(rowScale(m, g));
    const scale1 = f32x4.splat(rowScale(m + 1, g));
    if (!early && mode == ZERO_FOLDED) {
      const start0 = startOf(sum0);
      s0 = i32x4.add(s0, start0);
      s1 = i32x4.add(s1, start0);
      s2 = i32x4.add(s2, start0);
      s3 = i32x4.add(s3, start0);
      const start1 = startOf(sum1);
      t0 = i32x4.add(t0, start1);
      t1 = i32x4.add(t1, start1);
      t2 = i32x4.add(t2, start1);
      t3 = i32x4.add(t3, start1);
    }
    const za0 = shifted ? rowZero(m, g) : 0;
    const za1 = shifted ? rowZero(m + 1, g) : 0;
    const total0 = i32x4.splat(shifted ? centered(sum0, za0, g) : sum0);
    const total1 = i32x4.splat(shifted ? centered(sum1, za1, g) : sum1);
    const zero0 = i32x4.splat(za0);
    const zero1 = i32x4.splat(za1);
    finishQuarter(s0, parameters + 0, scale0, total0, zero0, y0 + 0, false, rest, shifted);
    finishQuarter(t0, parameters + 0, scale1, total1, zero1, y1 + 0, false, rest, shifted);
    finishQuarter(s1, parameters + 16, scale0, total0, zero0, y0 + 16, false, rest, shifted);
    finishQuarter(t1, parameters + 16, scale1, total1, zero1, y1 + 16, false, rest, shifted);
    finishQuarter(s2, parameters + 32, scale0, total0, zero0, y0 + 32, false, rest, shifted);
    finishQuarter(t2, parameters + 32, scale1, total1, zero1, y1 + 32, false, rest, shifted);
    finishQuarter(s3, parameters + 48, scale0, total0, zero0, y0 + 48, false, rest, shifted);
    finishQuarter(t3, parameters + 48, scale1, total1, zero1, y1 + 48, false, rest, shifted);
    parameters += GROUP_BYTES;
  }
}

export function tileGroups2(panel: usize, x0: usize, x1: usize, y0: usize, y1: usize, m: i32, parameters: usize, safe: i32): void {
  const plain = !asymmetric && !twoPlanes();
  if (plain && zeroMode == ZERO_SHORT) groups2(panel, x0, x1, y0, y1, m, parameters, safe, ZERO_SHORT, false, false);
  else if (plain && zeroMode == ZERO_FOLDED) groups2(panel, x0, x1, y0, y1, m, parameters, safe, ZERO_FOLDED, false, false);
  else groups2(panel, x0, x1, y0, y1, m, parameters, safe, zeroMode, asymmetric, twoPlanes());
}

/** All groups of a half-panel for one row: y (16 f32 each) from prepared activations and group parameters. */
export function tileGroups1(panel: usize, x0: usize, y0: usize, m: i32, parameters: usize, safe: i32): void {
  const highPlane = twoPlanes();
  const mode = zeroMode;
  const shifted = asymmetric;
  for (let g = 0; g < groups; g++) {
    const from = g * groupSize;
    const columns = (min<i32>(groupSize, k - from) + 31) & ~31;
    const skip = ASC_FEATURE_RELAXED_SIMD ? <usize>from : (<usize>from) << 1;
    const begin = panel + ((<usize>from) >> 2) * quadBytes();
    const sum0 = rowSum(m, g);
    const start0 = startOf(sum0);
    let s0 = i32x4.splat(0);
    let s1 = i32x4.splat(0);
    let s2 = i32x4.splat(0);
    let s3 = i32x4.splat(0);
    // Two planes: the high nibbles first, shifted when the low ones follow.
    for (let plane = highPlane ? 1 : 0; plane >= 0; plane--) {
      let w = begin + (plane == 0 ? 0 : (<usize>kPad) << 4);
      let p0 = x0 + skip;
      if (ASC_FEATURE_RELAXED_SIMD) {
        let steps = columns >> 2;
        while (steps > 0) {
          let count = min<i32>(safe, steps);
          steps -= count;
          let x = v128.load32_splat(p0);
          let c = v128.load(w);
          let a0 = dot8(x, c);
          c = v128.load(w, 16);
          let a1 = dot8(x, c);
          c = v128.load(w, 32);
          let a2 = dot8(x, c);
          c = v128.load(w, 48);
          let a3 = dot8(x, c);
          p0 += 4;
          w += 64;
          while (--count > 0) {
            x = v128.load32_splat(p0);
            c = v128.load(w);
            a0 = i16x8.add(a0, dot8(x, c));
            c = v128.load(w, 16);
            a1 = i16x8.add(a1, dot8(x, c));
            c = v128.load(w, 32);
            a2 = i16x8.add(a2, dot8(x, c));
            c = v128.load(w, 48);
            a3 = i16x8.add(a3, dot8(x, c));
            p0 += 4;
            w += 64;
          }
          s0 = i32x4.add(s0, i32x4.extadd_pairwise_i16x8_s(a0));
          s1 = i32x4.add(s1, i32x4.extadd_pairwise_i16x8_s(a1));
          s2 = i32x4.add(s2, i32x4.extadd_pairwise_i16x8_s(a2));
          s3 = i32x4.add(s3, i32x4.extadd_pairwise_i16x8_s(a3));
        }
      } else {
        for (let steps = columns >> 2; steps > 0; steps--) {
          let x = v128.load32_splat(p0);
          let c = v128.load(w);
          s0 = i32x4.add(s0, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 16);
          s1 = i32x4.add(s1, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 32);
          s2 = i32x4.add(s2, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 48);
          s3 = i32x4.add(s3, i32x4.dot_i16x8_s(c, x));
          x = v128.load32_splat(p0, 4);
          c = v128.load(w, 64);
          s0 = i32x4.add(s0, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 80);
          s1 = i32x4.add(s1, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 96);
          s2 = i32x4.add(s2, i32x4.dot_i16x8_s(c, x));
          c = v128.load(w, 112);
          s3 = i32x4.add(s3, i32x4.dot_i16x8_s(c, x));
          p0 += 8;
          w += 128;
        }
      }
      if (plane == 1) {
        s0 = i32x4.shl(s0, 4);
        s1 = i32x4.shl(s1, 4);
        s2 = i32x4.shl(s2, 4);
        s3 = i32x4.shl(s3, 4);
      }
    }
    const first = g == 0;
    const za0 = rowZero(m, g);
    const scale0 = f32x4.splat(rowScale(m, g));
    const total0 = i32x4.splat(centered(sum0, za0, g));
    finishQuarter(i32x4.add(s0, start0), parameters + 0, scale0, total0, i32x4.splat(za0), y0 + 0, first, mode, shifted);
    finishQuarter(i32x4.add(s1, start0), parameters + 16, scale0, total0, i32x4.splat(za0), y0 + 16, first, mode, shifted);
    finishQuarter(i32x4.add(s2, start0), parameters + 32, scale0, total0, i32x4.splat(za0), y0 + 32, first, mode, shifted);
    finishQuarter(i32x4.add(s3, start0), parameters + 48, scale0, total0, i32x4.splat(za0), y0 + 48, first, mode, shifted);
    parameters += GROUP_BYTES;
  }
}
