/**
 * linearFloat of one row straight from the stored panel, 32 channels at once (float class): dense f32, bf16, f16, and plain
 * 4-bit codes. v1. Inner dimension in order, as everywhere; 16-bit weights are summed by even and odd channels and
 * interleaved at the end.
 */
import { madd } from "./math";
import { GROUP_BYTES, groupSize, groups, k } from "./weight";

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
  return bf16 ? i32x4.shl(v, 16) : finite(i32x4.shl(v, 16));
}
// @ts-ignore: decorator
@inline
function oddHalf(v: v128, bf16: bool): v128 {
  return bf16 ? v128.and(v, i32x4.splat(0xffff0000)) : finite(v);
}
// @ts-ignore: decorator
@inline
function finite(v: v128): v128 {
  return f32x4.mul(v128.and(i32x4.shr_s(v, 3), i32x4.splat(0x8fffe000)), f32x4.splat(5.192296858534828e33));
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

/** Eight columns of four channels of 4-bit codes, in order. */
// @ts-ignore: decorator
@inline
function codes8(
  w: usize, z: v128, acc: v128, x0: v128, x1: v128, x2: v128, x3: v128, x4: v128, x5: v128, x6: v128, x7: v128,
): v128 {
  const m = i32x4.splat(15);
  const v = v128.load(w);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(v, m)), z), x0, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 8), m)), z), x1, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 16), m)), z), x2, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 24), m)), z), x3, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 4), m)), z), x4, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 12), m)), z), x5, acc);
  acc = madd(f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 20), m)), z), x6, acc);
  return madd(f32x4.sub(f32x4.convert_i32x4_s(i32x4.shr_u(v, 28)), z), x7, acc);
}

/**
 * y[32] = grouped 4-bit panel of 32 channels; k and the groups are multiples of 8. `parameters` of both halves: scale and, at
 * +64, zero point, both f32, GROUP_BYTES a group.
 */
export function codesPanel4(panel: usize, x: usize, y: usize, parameters: usize): void {
  let second = parameters + <usize>groups * GROUP_BYTES;
  for (let g = 0; g < groups; g++) {
    let a0 = f32x4.splat(0);
    let a1 = f32x4.splat(0);
    let a2 = f32x4.splat(0);
    let a3 = f32x4.splat(0);
    let a4 = f32x4.splat(0);
    let a5 = f32x4.splat(0);
    let a6 = f32x4.splat(0);
    let a7 = f32x4.splat(0);
    const z0 = v128.load(parameters, 64);
    const z1 = v128.load(parameters, 80);
    const z2 = v128.load(parameters, 96);
    const z3 = v128.load(parameters, 112);
    const z4 = v128.load(second, 64);
    const z5 = v128.load(second, 80);
    const z6 = v128.load(second, 96);
    const z7 = v128.load(second, 112);
    for (let left = min<i32>(groupSize, k - g * groupSize); left > 0; left -= 8) {
      const x0 = v128.load32_splat(x);
      const x1 = v128.load32_splat(x, 4);
      const x2 = v128.load32_splat(x, 8);
      const x3 = v128.load32_splat(x, 12);
      const x4 = v128.load32_splat(x, 16);
      const x5 = v128.load32_splat(x, 20);
      const x6 = v128.load32_splat(x, 24);
      const x7 = v128.load32_splat(x, 28);
      a0 = codes8(panel, z0, a0, x0, x1, x2, x3, x4, x5, x6, x7);
      a1 = codes8(panel + 16, z1, a1, x0, x1, x2, x3, x4, x5, x6, x7);
      a2 = codes8(panel + 32, z2, a2, x0, x1, x2, x3, x4, x5, x6, x7);
      a3 = codes8(panel + 48, z3, a3, x0, x1, x2, x3, x4, x5, x6, x7);
      a4 = codes8(panel + 64, z4, a4, x0, x1, x2, x3, x4, x5, x6, x7);
      a5 = codes8(panel + 80, z5, a5, x0, x1, x2, x3, x4, x5, x6, x7);
      a6 = codes8(panel + 96, z6, a6, x0, x1, x2, x3, x4, x5, x6, x7);
      a7 = codes8(panel + 112, z7, a7, x0, x1, x2, x3, x4, x5, x6, x7);
      x += 32;
      panel += 128;
    }
    const begin = g == 0;
    scaleInto(y, a0, parameters, begin);
    scaleInto(y + 16, a1, parameters + 16, begin);
    scaleInto(y + 32, a2, parameters + 32, begin);
    scaleInto(y + 48, a3, parameters + 48, begin);
    scaleInto(y + 64, a4, second, begin);
    scaleInto(y + 80, a5, second + 16, begin);
    scaleInto(y + 96, a6, second + 32, begin);
    scaleInto(y + 112, a7, second + 48, begin);
    parameters += GROUP_BYTES;
    second += GROUP_BYTES;
  }
}

// @ts-ignore: decorator
@inline
function scaleInto(y: usize, acc: v128, scale: usize, first: bool): void {
  const value = f32x4.mul(acc, v128.load(scale));
  v128.store(y, first ? value : f32x4.add(v128.load(y), value));
}
