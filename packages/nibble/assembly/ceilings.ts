/**
 * What WebAssembly reaches at most on this machine, for benches: sums of products in a tile of registers, and reading.
 * Every result depends on all of the work, and operands come from memory, so that no compiler drops or hoists any of it.
 */
import { madd } from "./math";

/** One accumulator's step of the integer dot product that the kernels of this binary use; 32 or 16 operations. */
// @ts-ignore: decorator
@inline
function dot(sum: v128, x: v128, w: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.add(sum, i16x8.relaxed_dot_i8x16_i7x16_s(x, w));
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, w));
}

// @ts-ignore: decorator
@inline
function step(float: bool, sum: v128, x: v128, w: v128): v128 {
  return float ? madd(x, w, sum) : dot(sum, x, w);
}

/** `steps` times eight accumulators over 4 KiB at `at`. */
// @ts-ignore: decorator
@inline
function tile(float: bool, at: usize, steps: i32): i32 {
  let s0 = v128.splat<i32>(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let s4 = s0;
  let s5 = s0;
  let s6 = s0;
  let s7 = s0;
  const w0 = v128.load(at);
  const w1 = v128.load(at, 16);
  const w2 = v128.load(at, 32);
  const w3 = v128.load(at, 48);
  for (let i = 0; i < steps; i++) {
    const from = at + (<usize>(i & 127) << 5);
    const x = v128.load(from);
    s0 = step(float, s0, x, w0);
    s1 = step(float, s1, x, w1);
    s2 = step(float, s2, x, w2);
    s3 = step(float, s3, x, w3);
    const y = v128.load(from, 16);
    s4 = step(float, s4, y, w0);
    s5 = step(float, s5, y, w1);
    s6 = step(float, s6, y, w2);
    s7 = step(float, s7, y, w3);
  }
  const low = v128.xor(v128.xor(s0, s1), v128.xor(s2, s3));
  return i32x4.extract_lane(v128.xor(low, v128.xor(v128.xor(s4, s5), v128.xor(s6, s7))), 0);
}

/** `steps` steps of eight integer dot products; `dotOperations` operations each. */
export function ceilingDot(at: usize, steps: i32): i32 {
  return tile(false, at, steps);
}

/** `steps` steps of eight multiply-adds of four floats. */
export function ceilingFma(at: usize, steps: i32): i32 {
  return tile(true, at, steps);
}

/** Reads `steps` times 128 bytes from `at` on. */
export function ceilingRead(at: usize, steps: i32): i32 {
  let a = v128.splat<i32>(0);
  let b = a;
  let c = a;
  let d = a;
  for (let i = 0; i < steps; i++) {
    a = v128.or(a, v128.or(v128.load(at), v128.load(at, 64)));
    b = v128.or(b, v128.or(v128.load(at, 16), v128.load(at, 80)));
    c = v128.or(c, v128.or(v128.load(at, 32), v128.load(at, 96)));
    d = v128.or(d, v128.or(v128.load(at, 48), v128.load(at, 112)));
    at += 128;
  }
  return i32x4.extract_lane(v128.or(v128.or(a, b), v128.or(c, d)), 0);
}

/** Operations (multiply and add counted apart) of one integer dot product step. */
export function dotOperations(): i32 {
  return ASC_FEATURE_RELAXED_SIMD ? 32 : 16;
}
