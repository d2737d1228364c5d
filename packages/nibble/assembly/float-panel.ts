/**
 * linearFloat of one row straight from the stored panel, 32 channels at once (float class): dense f32, bf16, f16, and
 * integer codes. v2. Inner dimension in order, as everywhere; 16-bit weights are summed by even and odd channels and
 * interleaved at the end.
 */
import { scratch } from "./control";
import { byte0, byte1, byte2, byte3 } from "./decode";
import { finiteHalf, madd } from "./math";
import { GROUP_BYTES, groupSize, groups, isZeroConst, k } from "./weight";

// @ts-ignore: decorator
@inline
function storePair(y: usize, even: v128, odd: v128): void {
  v128.store(y, i32x4.shuffle(even, odd, 0, 4, 1, 5));
  v128.store(y, i32x4.shuffle(even, odd, 2, 6, 3, 7), 16);
}

/** y[32] = x . panel, panel f32 [k][32]. */
export function densePanel32(panel: usize, x: usize, y: usize): void {
  let a0 = f32x4.splat(0);
  let a1 = f32x4.splat(0);
  let a2 = f32x4.splat(0);
  let a3 = f32x4.splat(0);
  let a4 = f32x4.splat(0);
  let a5 = f32x4.splat(0);
  let a6 = f32x4.splat(0);
  let a7 = f32x4.splat(0);
  for (let left = k; left > 0; left--) {
    const v = v128.load32_splat(x);
    a0 = madd(v128.load(panel), v, a0);
    a1 = madd(v128.load(panel, 16), v, a1);
    a2 = madd(v128.load(panel, 32), v, a2);
    a3 = madd(v128.load(panel, 48), v, a3);
    a4 = madd(v128.load(panel, 64), v, a4);
    a5 = madd(v128.load(panel, 80), v, a5);
    a6 = madd(v128.load(panel, 96), v, a6);
    a7 = madd(v128.load(panel, 112), v, a7);
    x += 4;
    panel += 128;
  }
  v128.store(y, a0);
  v128.store(y, a1, 16);
  v128.store(y, a2, 32);
  v128.store(y, a3, 48);
  v128.store(y, a4, 64);
  v128.store(y, a5, 80);
  v128.store(y, a6, 96);
  v128.store(y, a7, 112);
}

/** f32 of the low (even) or high (odd) 16-bit halves of each lane. f16 must be finite. */
// @ts-ignore: decorator
@inline
function evenHalf(v: v128, bf16: bool): v128 {
  return bf16 ? i32x4.shl(v, 16) : finiteHalf(i32x4.shl(v, 16));
}
// @ts-ignore: decorator
@inline
function oddHalf(v: v128, bf16: bool): v128 {
  return bf16 ? v128.and(v, i32x4.splat(0xffff0000)) : finiteHalf(v);
}
/** y[32] = x . panel, panel of 16-bit floats [k][32]. sizeof<T> 2: bf16, 1: f16. */
// @ts-ignore: decorator
@inline
function densePanel16<T>(panel: usize, x: usize, y: usize): void {
  let a0 = f32x4.splat(0);
  let a1 = f32x4.splat(0);
  let a2 = f32x4.splat(0);
  let a3 = f32x4.splat(0);
  let a4 = f32x4.splat(0);
  let a5 = f32x4.splat(0);
  let a6 = f32x4.splat(0);
  let a7 = f32x4.splat(0);
  for (let left = k; left > 0; left--) {
    const s = v128.load32_splat(x);
    let v = v128.load(panel);
    a0 = madd(evenHalf(v, sizeof<T>() == 2), s, a0);
    a1 = madd(oddHalf(v, sizeof<T>() == 2), s, a1);
    v = v128.load(panel, 16);
    a2 = madd(evenHalf(v, sizeof<T>() == 2), s, a2);
    a3 = madd(oddHalf(v, sizeof<T>() == 2), s, a3);
    v = v128.load(panel, 32);
    a4 = madd(evenHalf(v, sizeof<T>() == 2), s, a4);
    a5 = madd(oddHalf(v, sizeof<T>() == 2), s, a5);
    v = v128.load(panel, 48);
    a6 = madd(evenHalf(v, sizeof<T>() == 2), s, a6);
    a7 = madd(oddHalf(v, sizeof<T>() == 2), s, a7);
    x += 4;
    panel += 64;
  }
  storePair(y, a0, a1);
  storePair(y + 32, a2, a3);
  storePair(y + 64, a4, a5);
  storePair(y + 96, a6, a7);
}

export function densePanelBf16(panel: usize, x: usize, y: usize): void {
  densePanel16<i16>(panel, x, y);
}
export function densePanelF16(panel: usize, x: usize, y: usize): void {
  densePanel16<i8>(panel, x, y);
}

/** Four columns of four channels: acc += (c - z) x, columns in order. `codes` are bytes [channel][column]. */
// @ts-ignore: decorator
@inline
function quad(codes: v128, z: v128, acc: v128, x0: v128, x1: v128, x2: v128, x3: v128): v128 {
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(byte0(codes)), z), x0, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(byte1(codes)), z), x1, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(byte2(codes)), z), x2, acc);
  return madd(f32x4.sub(f32x4.convert_i32x4_s(byte3(codes)), z), x3, acc);
}

/** Eight columns of 4-bit codes. */
// @ts-ignore: decorator
@inline
function nibbles(
  v: v128, z: v128, acc: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  const m = i8x16.splat(15);
  acc = quad(v128.and(v, m), z, acc, x0, x1, x2, x3);
  return quad(v128.and(i16x8.shr_u(v, 4), m), z, acc, x4, x5, x6, x7);
}

/**
 * y[32] = grouped panel of 32 channels of integer codes; k and the groups are multiples of 8. `parameters` of both halves:
 * scale and, at +64, zero point, both f32, GROUP_BYTES a group. sizeof<W> is the width of the only segment, 8 or 4.
 *
 * Sums stay in memory (the first 128 bytes of scratch): V8 issues all loads up to the next store first, and with eight sums in
 * registers it would load all weights of a step and spill them. The store after each quarter prevents that.
 */
// @ts-ignore: decorator
@inline
function codesPanel<W>(w: usize, x: usize, y: usize, parameters: usize): void {
  let second = parameters + <usize>groups * GROUP_BYTES;
  const acc = scratch;
  let column = 0;
  for (let g = 0; g < groups; g++) {
    clear32(acc);
    const stop = min<i32>((g + 1) * groupSize, k);
    while (column < stop) {
      const x0 = v128.load32_splat(x);
      const x1 = v128.load32_splat(x, 4);
      const x2 = v128.load32_splat(x, 8);
      const x3 = v128.load32_splat(x, 12);
      if (sizeof<W>() == 8) {
        v128.store(acc, quad(v128.load(w), v128.load(parameters, 64), v128.load(acc), x0, x1, x2, x3));
        v128.store(acc, quad(v128.load(w, 16), v128.load(parameters, 80), v128.load(acc, 16), x0, x1, x2, x3), 16);
        v128.store(acc, quad(v128.load(w, 32), v128.load(parameters, 96), v128.load(acc, 32), x0, x1, x2, x3), 32);
        v128.store(acc, quad(v128.load(w, 48), v128.load(parameters, 112), v128.load(acc, 48), x0, x1, x2, x3), 48);
        v128.store(acc, quad(v128.load(w, 64), v128.load(second, 64), v128.load(acc, 64), x0, x1, x2, x3), 64);
        v128.store(acc, quad(v128.load(w, 80), v128.load(second, 80), v128.load(acc, 80), x0, x1, x2, x3), 80);
        v128.store(acc, quad(v128.load(w, 96), v128.load(second, 96), v128.load(acc, 96), x0, x1, x2, x3), 96);
        v128.store(acc, quad(v128.load(w, 112), v128.load(second, 112), v128.load(acc, 112), x0, x1, x2, x3), 112);
        column += 4;
        x += 16;
      } else {
        const x4 = v128.load32_splat(x, 16);
        const x5 = v128.load32_splat(x, 20);
        const x6 = v128.load32_splat(x, 24);
        const x7 = v128.load32_splat(x, 28);
        v128.store(acc, nibbles(v128.load(w), v128.load(parameters, 64), v128.load(acc), x0, x1, x2, x3, x4, x5, x6, x7));
        v128.store(acc, nibbles(v128.load(w, 16), v128.load(parameters, 80), v128.load(acc, 16), x0, x1, x2, x3, x4, x5, x6, x7), 16);
        v128.store(acc, nibbles(v128.load(w, 32), v128.load(parameters, 96), v128.load(acc, 32), x0, x1, x2, x3, x4, x5, x6, x7), 32);
        v128.store(acc, nibbles(v128.load(w, 48), v128.load(parameters, 112), v128.load(acc, 48), x0, x1, x2, x3, x4, x5, x6, x7), 48);
        v128.store(acc, nibbles(v128.load(w, 64), v128.load(second, 64), v128.load(acc, 64), x0, x1, x2, x3, x4, x5, x6, x7), 64);
        v128.store(acc, nibbles(v128.load(w, 80), v128.load(second, 80), v128.load(acc, 80), x0, x1, x2, x3, x4, x5, x6, x7), 80);
        v128.store(acc, nibbles(v128.load(w, 96), v128.load(second, 96), v128.load(acc, 96), x0, x1, x2, x3, x4, x5, x6, x7), 96);
        v128.store(acc, nibbles(v128.load(w, 112), v128.load(second, 112), v128.load(acc, 112), x0, x1, x2, x3, x4, x5, x6, x7), 112);
        column += 8;
        x += 32;
      }
      w += 128;
    }
    const begin = g == 0;
    scaleInto(y, v128.load(acc), parameters, begin);
    scaleInto(y + 16, v128.load(acc, 16), parameters + 16, begin);
    scaleInto(y + 32, v128.load(acc, 32), parameters + 32, begin);
    scaleInto(y + 48, v128.load(acc, 48), parameters + 48, begin);
    scaleInto(y + 64, v128.load(acc, 64), second, begin);
    scaleInto(y + 80, v128.load(acc, 80), second + 16, begin);
    scaleInto(y + 96, v128.load(acc, 96), second + 32, begin);
    scaleInto(y + 112, v128.load(acc, 112), second + 48, begin);
    parameters += GROUP_BYTES;
    second += GROUP_BYTES;
  }
}

/** Swizzle that puts byte t (0..3) of each lane into its top byte, zeros below. */
// @ts-ignore: decorator
@inline
function topOf(t: i32): v128 {
  return i32x4(0x00808080 + (t << 24), 0x04808080 + (t << 24), 0x08808080 + (t << 24), 0x0c808080 + (t << 24));
}

/** Byte t of each lane of v in its top byte. `places` is topOf(t), where one instruction takes it from a variable. */
// @ts-ignore: decorator
@inline
function top(v: v128, t: i32, places: v128): v128 {
  return ASC_FEATURE_RELAXED_SIMD ? i8x16.relaxed_swizzle(v, places) : i8x16.swizzle(v, topOf(t));
}

/** Four columns of four channels: acc += 2^24 (c - 128) x. A flipped top bit makes the code less 128 a signed top byte. */
// @ts-ignore: decorator
@inline
function quadMiddle(
  codes: v128, acc: v128, flip: v128, t0: v128, t1: v128, t2: v128, t3: v128, x0: v128, x1: v128, x2: v128, x3: v128,
): v128 {
  const c = v128.xor(codes, flip);
  acc = madd(f32x4.convert_i32x4_s(top(c, 0, t0)), x0, acc);
  acc = madd(f32x4.convert_i32x4_s(top(c, 1, t1)), x1, acc);
  acc = madd(f32x4.convert_i32x4_s(top(c, 2, t2)), x2, acc);
  return madd(f32x4.convert_i32x4_s(top(c, 3, t3)), x3, acc);
}

/**
 * codesPanel of 8-bit codes whose zero point is 128 everywhere, the same bits with a quarter fewer instructions: sums are
 * 2^24 times as large until the group ends (exact, as long as they stay below 2^104).
 */
function codesMiddle8(w: usize, x: usize, y: usize, parameters: usize): void {
  let second = parameters + <usize>groups * GROUP_BYTES;
  const acc = scratch;
  // V8 builds constants anew in each round of a loop; what was loaded it keeps.
  v128.store(acc, topOf(0));
  v128.store(acc, topOf(1), 16);
  v128.store(acc, topOf(2), 32);
  v128.store(acc, topOf(3), 48);
  v128.store(acc, i8x16.splat(-128), 64);
  const t0 = v128.load(acc);
  const t1 = v128.load(acc, 16);
  const t2 = v128.load(acc, 32);
  const t3 = v128.load(acc, 48);
  const flip = v128.load(acc, 64);
  const down = f32x4.splat(5.9604644775390625e-8); // 2^-24
  for (let g = 0; g < groups; g++) {
    clear32(acc);
    for (let left = min<i32>(groupSize, k - g * groupSize); left > 0; left -= 4) {
      const x0 = v128.load32_splat(x);
      const x1 = v128.load32_splat(x, 4);
      const x2 = v128.load32_splat(x, 8);
      const x3 = v128.load32_splat(x, 12);
      v128.store(acc, quadMiddle(v128.load(w), v128.load(acc), flip, t0, t1, t2, t3, x0, x1, x2, x3));
      v128.store(acc, quadMiddle(v128.load(w, 16), v128.load(acc, 16), flip, t0, t1, t2, t3, x0, x1, x2, x3), 16);
      v128.store(acc, quadMiddle(v128.load(w, 32), v128.load(acc, 32), flip, t0, t1, t2, t3, x0, x1, x2, x3), 32);
      v128.store(acc, quadMiddle(v128.load(w, 48), v128.load(acc, 48), flip, t0, t1, t2, t3, x0, x1, x2, x3), 48);
      v128.store(acc, quadMiddle(v128.load(w, 64), v128.load(acc, 64), flip, t0, t1, t2, t3, x0, x1, x2, x3), 64);
      v128.store(acc, quadMiddle(v128.load(w, 80), v128.load(acc, 80), flip, t0, t1, t2, t3, x0, x1, x2, x3), 80);
      v128.store(acc, quadMiddle(v128.load(w, 96), v128.load(acc, 96), flip, t0, t1, t2, t3, x0, x1, x2, x3), 96);
      v128.store(acc, quadMiddle(v128.load(w, 112), v128.load(acc, 112), flip, t0, t1, t2, t3, x0, x1, x2, x3), 112);
      x += 16;
      w += 128;
    }
    const begin = g == 0;
    scaleInto(y, f32x4.mul(v128.load(acc), down), parameters, begin);
    scaleInto(y + 16, f32x4.mul(v128.load(acc, 16), down), parameters + 16, begin);
    scaleInto(y + 32, f32x4.mul(v128.load(acc, 32), down), parameters + 32, begin);
    scaleInto(y + 48, f32x4.mul(v128.load(acc, 48), down), parameters + 48, begin);
    scaleInto(y + 64, f32x4.mul(v128.load(acc, 64), down), second, begin);
    scaleInto(y + 80, f32x4.mul(v128.load(acc, 80), down), second + 16, begin);
    scaleInto(y + 96, f32x4.mul(v128.load(acc, 96), down), second + 32, begin);
    scaleInto(y + 112, f32x4.mul(v128.load(acc, 112), down), second + 48, begin);
    parameters += GROUP_BYTES;
    second += GROUP_BYTES;
  }
}

export function codesPanel8(at: usize, x: usize, y: usize, parameters: usize): void {
  if (isZeroConst(128)) codesMiddle8(at, x, y, parameters);
  else codesPanel<i64>(at, x, y, parameters);
}
export function codesPanel4(at: usize, x: usize, y: usize, parameters: usize): void {
  codesPanel<i32>(at, x, y, parameters);
}

/** Quad t (a constant, 0..7) of a block of 32 columns as bytes; places are those of the block, 0 = absent. */
// @ts-ignore: decorator
@inline
function expandQuad(at4: usize, at2: usize, at1: usize, t: i32, out: usize): void {
  let c = i32x4.splat(0);
  if (at4 != 0) {
    const v = v128.load(at4 + ((<usize>(t >> 1)) << 7));
    c = v128.and((t & 1) == 0 ? v : i16x8.shr_u(v, 4), i8x16.splat(15));
  }
  if (at2 != 0) {
    const v = v128.load(at2 + ((<usize>(t >> 2)) << 7));
    // Above a 4-bit segment the codes belong at bit 4, else at bit 0.
    const codes = v128.and((t & 3) == 0 ? v : i16x8.shr_u(v, (t & 3) << 1), i8x16.splat(3));
    c = at4 != 0 ? v128.or(c, i16x8.shl(codes, 4)) : codes;
  }
  if (at1 != 0) {
    const v = v128.load(at1);
    let codes = v128.and(t == 0 ? v : i16x8.shr_u(v, t), i8x16.splat(1));
    if (at4 != 0) codes = i16x8.shl(codes, 4);
    if (at2 != 0) codes = i16x8.shl(codes, 2);
    c = v128.or(c, codes);
  }
  v128.store(out + ((<usize>t) << 7), c);
}

/** A panel of codes of any width as if it had been stored with 8 bits: kPad * 32 bytes at out. */
export function expandPanel(at4: usize, at2: usize, at1: usize, columns: i32, out: usize): void {
  for (let left = columns; left > 0; left -= 32) {
    for (let q: usize = 0; q < 128; q += 16) {
      const w4: usize = at4 == 0 ? <usize>0 : at4 + q;
      const w2: usize = at2 == 0 ? <usize>0 : at2 + q;
      const w1: usize = at1 == 0 ? <usize>0 : at1 + q;
      expandQuad(w4, w2, w1, 0, out + q);
      expandQuad(w4, w2, w1, 1, out + q);
      expandQuad(w4, w2, w1, 2, out + q);
      expandQuad(w4, w2, w1, 3, out + q);
      expandQuad(w4, w2, w1, 4, out + q);
      expandQuad(w4, w2, w1, 5, out + q);
      expandQuad(w4, w2, w1, 6, out + q);
      expandQuad(w4, w2, w1, 7, out + q);
    }
    if (at4 != 0) at4 += 512;
    if (at2 != 0) at2 += 256;
    if (at1 != 0) at1 += 128;
    out += 1024;
  }
}

// @ts-ignore: decorator
@inline
function clear32(at: usize): void {
  const none = f32x4.splat(0);
  v128.store(at, none);
  v128.store(at, none, 16);
  v128.store(at, none, 32);
  v128.store(at, none, 48);
  v128.store(at, none, 64);
  v128.store(at, none, 80);
  v128.store(at, none, 96);
  v128.store(at, none, 112);
}

// @ts-ignore: decorator
@inline
function scaleInto(y: usize, acc: v128, scale: usize, first: bool): void {
  const value = f32x4.mul(acc, v128.load(scale));
  v128.store(y, first ? value : f32x4.add(v128.load(y), value));
}
