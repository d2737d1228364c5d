/**
 * Shared numerics of docs/engine.md, section 3. "exact" functions use one IEEE operation per step in the written
 * order, so that every backend gets the same bits; `madd` alone may fuse and is for the float ops.
 */

/** a * b + c. Fused in the relaxed binary: only for ops of the float class. */
// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.relaxed_madd<f32>(a, b, c);
  return f32x4.add(c, f32x4.mul(a, b));
}

/** The same for two f64. */
// @ts-ignore: decorator
@inline
export function madd64(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.relaxed_madd<f64>(a, b, c);
  return f64x2.add(c, f64x2.mul(a, b));
}

/** Bits of 1.5 * 2^23, see roundBits. */
export const ROUND_BITS: i32 = 0x4b400000;

/**
 * x + 1.5 * 2^23: the sum is x rounded half to even, and its bits less ROUND_BITS are that integer. For |x| < 2^22. On x86
 * this replaces the long sequences that `nearest` and the saturating conversion take.
 */
// @ts-ignore: decorator
@inline
export function roundBits(x: v128): v128 {
  return f32x4.add(x, f32x4.splat(12582912));
}

/** x limited to low..high by two instructions; f32x4.min and max take eight each for the sake of NaN and -0. */
// @ts-ignore: decorator
@inline
export function clamp4(x: v128, low: v128, high: v128): v128 {
  return f32x4.pmin(high, f32x4.pmax(low, x));
}

/** exp of four f32; exact class. Inlined where a loop takes several at once: its constants are then loaded once. */
// @ts-ignore: decorator
@inline
export function exp4(input: v128): v128 {
  const one = f32x4.splat(1);
  const x = f32x4.pmin(input, f32x4.splat(88));
  const t = roundBits(f32x4.mul(x, f32x4.splat(1.44269504)));
  const n = f32x4.sub(t, f32x4.splat(12582912));
  let r = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.sub(r, f32x4.mul(n, f32x4.splat(-2.1219444e-4)));
  let p = f32x4.splat(1.98756915e-4);
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  const y = f32x4.add(f32x4.add(f32x4.mul(p, f32x4.mul(r, r)), r), one);
  // The low bits of t are n: shifted into the exponent field they make 2^n.
  const power = i32x4.add(i32x4.shl(t, 23), i32x4.splat(127 << 23));
  return v128.andnot(f32x4.mul(y, power), f32x4.lt(input, f32x4.splat(-87)));
}

/** exp of one f32, the same bits as a lane of exp4. */
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}

/** g / (1 + exp(-g)). */
// @ts-ignore: decorator
@inline
export function silu4(g: v128): v128 {
  return f32x4.div(g, f32x4.add(f32x4.splat(1), exp4(f32x4.neg(g))));
}

/** Sum of 16 lanes held in four vectors: folds by 8, 4, 2, 1. */
// @ts-ignore: decorator
@inline
export function fold16(a: v128, b: v128, c: v128, d: v128): f32 {
  const s = f32x4.add(f32x4.add(a, c), f32x4.add(b, d));
  return (
    f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 2) +
    (f32x4.extract_lane(s, 1) + f32x4.extract_lane(s, 3))
  );
}

/** Exact value of an f16. */
export function halfToFloat(h: u32): f32 {
  const sign = (h & 0x8000) << 16;
  const bits = (h & 0x7fff) << 13;
  if ((h & 0x7c00) == 0x7c00) return reinterpret<f32>(sign | 0x7f800000 | bits);
  // 2^112 moves the exponent bias from 15 to 127; exact for subnormals too.
  const magnitude = reinterpret<f32>(bits) * 5.192296858534828e33;
  return reinterpret<f32>(reinterpret<u32>(magnitude) | sign);
}

/** Four f16 at `at`, as f32. Exact; infinities and NaNs included. */
// @ts-ignore: decorator
@inline
export function loadHalf4(at: usize): v128 {
  return widenHalf4(i32x4.extend_low_i16x8_u(v128.load64_zero(at)));
}

/** Four f16, one in the low half of each i32 lane, as f32. */
// @ts-ignore: decorator
@inline
export function widenHalf4(h: v128): v128 {
  const sign = i32x4.shl(v128.and(h, i32x4.splat(0x8000)), 16);
  const bits = i32x4.shl(v128.and(h, i32x4.splat(0x7fff)), 13);
  const normal = i32x4.add(bits, i32x4.splat(0x38000000));
  // Subnormals: 2^-14 * (1 + m) - 2^-14 is exact and never touches a subnormal f32 (those cost microcode on x86).
  const tiny = f32x4.sub(i32x4.add(bits, i32x4.splat(0x38800000)), f32x4.splat(6.103515625e-5));
  const huge = i32x4.add(normal, i32x4.splat(0x38000000));
  let value = v128.bitselect(tiny, normal, i32x4.lt_u(bits, i32x4.splat(0x00800000)));
  value = v128.bitselect(huge, value, i32x4.ge_u(bits, i32x4.splat(0x0f800000)));
  return v128.or(value, sign);
}

/**
 * Four finite f16, in the high halves of i32 lanes, as f32: shifting keeps the sign, 2^112 moves the bias. Exact,
 * subnormals included (slow on x86, but rare). What stands in the low halves is masked away.
 */
// @ts-ignore: decorator
@inline
export function finiteHalf(h: v128): v128 {
  return f32x4.mul(v128.and(i32x4.shr_s(h, 3), i32x4.splat(0x8fffe000)), f32x4.splat(5.192296858534828e33));
}

/** Four finite f16 at `at` as f32. */
// @ts-ignore: decorator
@inline
export function loadFiniteHalf4(at: usize): v128 {
  return finiteHalf(i32x4.shl(i32x4.extend_low_i16x8_u(v128.load64_zero(at)), 16));
}

/** Nearest f16, ties to even, as its 16 bits. */
export function floatToHalf(x: f32): u32 {
  const bits = reinterpret<u32>(x);
  const sign = (bits >> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Adding 0.5 leaves the units of 2^-24 in the last bits, rounded to nearest even.
    return sign | (reinterpret<u32>(reinterpret<f32>(magnitude) + 0.5) - 0x3f000000);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
}
