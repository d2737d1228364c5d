/**
 * rmsnorm, quantize and the two fused ops (exact class; docs/engine.md, section 5). A fused op runs the same row
 * functions over a row in scratch, so it equals its two halves bit for bit.
 */
import { operand, operandF, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { rowAt } from "./elementwise";
import { hadamardRow } from "./hadamard";
import { clamp4, fold16, ROUND_BITS, roundBits } from "./math";
import {
  HADAMARD_QUANTIZE_BLOCKS, HADAMARD_QUANTIZE_INNER, HADAMARD_QUANTIZE_MATRIX_AT, HADAMARD_QUANTIZE_NORM_F,
  HADAMARD_QUANTIZE_ORDER_K, HADAMARD_QUANTIZE_ORDER_M, HADAMARD_QUANTIZE_POST_SIGN_AT,
  HADAMARD_QUANTIZE_PRE_SIGN_AT, HADAMARD_QUANTIZE_TRANSPOSE,
  DEQUANTIZE_CODES_AT, DEQUANTIZE_DST_AT, DEQUANTIZE_GROUP_SIZE, DEQUANTIZE_LD_CODES, DEQUANTIZE_LD_DST,
  DEQUANTIZE_SCALE_AT, DEQUANTIZE_WIDTH, DEQUANTIZE_ZERO_AT,
  QUANTIZE_BITS, QUANTIZE_CLIP_F, QUANTIZE_CODES_AT, QUANTIZE_GROUP_SIZE, QUANTIZE_LD_CODES, QUANTIZE_LD_SRC,
  QUANTIZE_SCALE_AT, QUANTIZE_SRC_AT, QUANTIZE_SUM_AT, QUANTIZE_SYMMETRIC, QUANTIZE_WIDTH, QUANTIZE_ZERO_AT,
  RMSNORM_DST_AT, RMSNORM_EPSILON_F, RMSNORM_GAIN_AT, RMSNORM_LD_DST, RMSNORM_LD_SRC, RMSNORM_QUANTIZE_EPSILON_F,
  RMSNORM_QUANTIZE_GAIN_AT, RMSNORM_SRC_AT, RMSNORM_WIDTH,
  ROUND_FLOAT_DST_AT, ROUND_FLOAT_LARGEST_F, ROUND_FLOAT_LD_DST, ROUND_FLOAT_LD_SRC, ROUND_FLOAT_MANTISSA,
  ROUND_FLOAT_MIN_EXPONENT, ROUND_FLOAT_SRC_AT, ROUND_FLOAT_WIDTH,
} from "./ops";

/** lane16 sum of squares of `width` floats. `pad` is 64 bytes of private memory for a ragged tail. */
export function sumOfSquares(src: usize, width: i32, pad: usize): f32 {
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  const end = src + (<usize>(width & ~15) << 2);
  for (; src < end; src += 64) {
    const x0 = v128.load(src);
    const x1 = v128.load(src, 16);
    const x2 = v128.load(src, 32);
    const x3 = v128.load(src, 48);
    a = f32x4.add(a, f32x4.mul(x0, x0));
    b = f32x4.add(b, f32x4.mul(x1, x1));
    c = f32x4.add(c, f32x4.mul(x2, x2));
    d = f32x4.add(d, f32x4.mul(x3, x3));
  }
  const tail = width & 15;
  if (tail != 0) {
    memory.fill(pad, 0, 64);
    memory.copy(pad, src, <usize>tail << 2);
    const x0 = v128.load(pad);
    const x1 = v128.load(pad, 16);
    const x2 = v128.load(pad, 32);
    const x3 = v128.load(pad, 48);
    a = f32x4.add(a, f32x4.mul(x0, x0));
    b = f32x4.add(b, f32x4.mul(x1, x1));
    c = f32x4.add(c, f32x4.mul(x2, x2));
    d = f32x4.add(d, f32x4.mul(x3, x3));
  }
  return fold16(a, b, c, d);
}

/** dst = src / rms(src) * gain (gain 0 = none). dst may be src. Uses 64 bytes at `pad`. */
export function rmsnormRow(src: usize, dst: usize, width: i32, gain: usize, epsilon: f32, pad: usize): void {
  const r: f32 = <f32>1 / sqrt<f32>(sumOfSquares(src, width, pad) / <f32>width + epsilon);
  const factor = f32x4.splat(r);
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = <usize>i << 2;
    let y = f32x4.mul(v128.load(src + at), factor);
    if (gain != 0) y = f32x4.mul(y, v128.load(gain + at));
    v128.store(dst + at, y);
  }
  for (; i < width; i++) {
    const at = <usize>i << 2;
    let y = load<f32>(src + at) * r;
    if (gain != 0) y *= load<f32>(gain + at);
    store<f32>(dst + at, y);
  }
}

// @ts-ignore: decorator
@inline
function largestLane(v: v128): f32 {
  const w = f32x4.pmax(v, i32x4.shuffle(v, v, 2, 3, 0, 1));
  return f32x4.extract_lane(f32x4.pmax(w, i32x4.shuffle(w, w, 1, 0, 3, 2)), 0);
}

/** Largest |x| of a range. */
export function absMax(src: usize, count: i32): f32 {
  let a = f32x4.splat(0);
  let b = a;
  let left = count;
  for (; left >= 8; left -= 8) {
    a = f32x4.pmax(a, f32x4.abs(v128.load(src)));
    b = f32x4.pmax(b, f32x4.abs(v128.load(src, 16)));
    src += 32;
  }
  for (; left > 0; left--) {
    a = f32x4.pmax(a, f32x4.abs(v128.load32_splat(src)));
    src += 4;
  }
  return largestLane(f32x4.pmax(a, b));
}

/** Smallest (sign 1) or, negated, largest (sign -1) value of a range and `start`. */
export function signedMin(src: usize, count: i32, sign: f32, start: f32): f32 {
  const s = f32x4.splat(-sign);
  let a = f32x4.splat(-start);
  let b = a;
  let left = count;
  for (; left >= 8; left -= 8) {
    a = f32x4.pmax(a, f32x4.mul(s, v128.load(src)));
    b = f32x4.pmax(b, f32x4.mul(s, v128.load(src, 16)));
    src += 32;
  }
  for (; left > 0; left--) {
    a = f32x4.pmax(a, f32x4.mul(s, v128.load32_splat(src)));
    src += 4;
  }
  return -largestLane(f32x4.pmax(a, b));
}

/** Scales below the smallest normal f32 become 1: their reciprocal would overflow. */
const MIN_SCALE: f32 = 1.1754943508222875e-38;

/** Scale of a range into `scale`; its zero point (before the shift of 8-bit codes) is returned, 0 when symmetric. */
function scaleOf(src: usize, count: i32, bits: i32, symmetric: bool, clip: f32, scale: usize): f32 {
  let s: f32;
  if (symmetric) {
    s = (clip * absMax(src, count)) / <f32>((1 << (bits - 1)) - 1);
    store<f32>(scale, s >= MIN_SCALE ? s : 1);
    return 0;
  }
  const lo = clip * signedMin(src, count, 1, 0);
  const hi = clip * -signedMin(src, count, -1, 0);
  s = (hi - lo) / <f32>((1 << bits) - 1);
  if (!(s >= MIN_SCALE)) s = 1;
  store<f32>(scale, s);
  return nearest<f32>(-lo * (<f32>1 / s));
}

/** Codes of `count` values: clamp(rne(x * inv) + z, low, high) + shift. Returns their sum. */
function codesOf(
  src: usize, count: i32, codes: usize, inv: f32, z: f32, low: f32, high: f32, shift: i32,
): i32 {
  const inv4 = f32x4.splat(inv);
  // Limits are integers, so limiting before rounding and adding z gives the same codes.
  const low4 = f32x4.splat(low - z);
  const high4 = f32x4.splat(high - z);
  const offset = i32x4.splat(<i32>z + shift - ROUND_BITS);
  let sum4 = i32x4.splat(0);
  let i = 0;
  for (; i + 16 <= count; i += 16) {
    const x = src + (<usize>i << 2);
    const q0 = i32x4.add(offset, roundBits(clamp4(f32x4.mul(v128.load(x), inv4), low4, high4)));
    const q1 = i32x4.add(offset, roundBits(clamp4(f32x4.mul(v128.load(x, 16), inv4), low4, high4)));
    const q2 = i32x4.add(offset, roundBits(clamp4(f32x4.mul(v128.load(x, 32), inv4), low4, high4)));
    const q3 = i32x4.add(offset, roundBits(clamp4(f32x4.mul(v128.load(x, 48), inv4), low4, high4)));
    sum4 = i32x4.add(sum4, i32x4.add(i32x4.add(q0, q1), i32x4.add(q2, q3)));
    v128.store(
      codes + i,
      i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(q0, q1), i16x8.narrow_i32x4_s(q2, q3)),
    );
  }
  let sum =
    i32x4.extract_lane(sum4, 0) + i32x4.extract_lane(sum4, 1) +
    i32x4.extract_lane(sum4, 2) + i32x4.extract_lane(sum4, 3);
  for (; i < count; i++) {
    const x = v128.load32_splat(src + (<usize>i << 2));
    const code = i32x4.extract_lane(i32x4.add(offset, roundBits(clamp4(f32x4.mul(x, inv4), low4, high4))), 0);
    store<i8>(codes + i, <i8>code);
    sum += code;
  }
  return sum;
}

/**
 * One row of `quantize`. `mode` is the op's operand `symmetric`: bit 0 symmetric, bit 1 one scale for the whole row.
 * groupSize 0 = one group. zeros 0 = symmetric. Does not pad the codes.
 */
export function quantizeRow(
  src: usize, width: i32, codes: usize, scales: usize, sums: usize, zeros: usize,
  bits: i32, mode: i32, groupSize: i32, clip: f32,
): void {
  const symmetric = (mode & 1) != 0;
  const whole = (mode & 2) != 0;
  const size = groupSize == 0 ? width : groupSize;
  const half = 1 << (bits - 1);
  const low: f32 = symmetric ? <f32>-half : 0;
  const high: f32 = symmetric ? <f32>(half - 1) : <f32>(half + half - 1);
  const shift = !symmetric && bits == 8 ? -128 : 0;
  let z: f32 = 0;
  let g = 0;
  for (let from = 0; from < width; from += size) {
    const count = min<i32>(size, width - from);
    const x = src + (<usize>from << 2);
    if (!whole || from == 0) {
      z = scaleOf(x, whole ? width : count, bits, symmetric, clip, scales + (<usize>g << 2));
      if (!symmetric) store<i32>(zeros + (<usize>g << 2), <i32>z + shift);
    }
    const inv = <f32>1 / load<f32>(scales + (whole ? 0 : <usize>g << 2));
    store<i32>(sums + (<usize>g << 2), codesOf(x, count, codes + from, inv, z, low, high, shift));
    g++;
  }
}

/** Outputs of the `quantize` family for row m; the operands stand at the same offsets in all three ops. */
function quantizeInto(pc: usize, m: i32, x: usize): void {
  const width = operand(pc, QUANTIZE_WIDTH);
  const groupSize = operand(pc, QUANTIZE_GROUP_SIZE);
  const groups = groupSize == 0 ? 1 : (width + groupSize - 1) / groupSize;
  const mode = operand(pc, QUANTIZE_SYMMETRIC);
  const scales = (mode & 2) != 0 ? 1 : groups;
  const codes = place(pc, QUANTIZE_CODES_AT) + <usize>m * <usize>operand(pc, QUANTIZE_LD_CODES);
  quantizeRow(
    x,
    width,
    codes,
    rowAt(place(pc, QUANTIZE_SCALE_AT), m, scales),
    rowAt(place(pc, QUANTIZE_SUM_AT), m, groups),
    rowAt(place(pc, QUANTIZE_ZERO_AT), m, scales),
    operand(pc, QUANTIZE_BITS),
    mode,
    groupSize,
    operandF(pc, QUANTIZE_CLIP_F),
  );
  for (let i = width; (i & 31) != 0; i++) store<i8>(codes + i, 0);
}

export function quantize(pc: usize, rows: i32): void {
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    quantizeInto(pc, m, rowAt(place(pc, QUANTIZE_SRC_AT), m, operand(pc, QUANTIZE_LD_SRC)));
  }
}

export function rmsnorm(pc: usize, rows: i32): void {
  const gain = placeOrZero(pc, RMSNORM_GAIN_AT);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    rmsnormRow(
      rowAt(place(pc, RMSNORM_SRC_AT), m, operand(pc, RMSNORM_LD_SRC)),
      rowAt(place(pc, RMSNORM_DST_AT), m, operand(pc, RMSNORM_LD_DST)),
      operand(pc, RMSNORM_WIDTH),
      gain,
      operandF(pc, RMSNORM_EPSILON_F),
      scratch,
    );
  }
}

export function rmsnormQuantize(pc: usize, rows: i32): void {
  const gain = placeOrZero(pc, RMSNORM_QUANTIZE_GAIN_AT);
  const y = scratch + 64;
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const x = rowAt(place(pc, QUANTIZE_SRC_AT), m, operand(pc, QUANTIZE_LD_SRC));
    rmsnormRow(x, y, operand(pc, QUANTIZE_WIDTH), gain, operandF(pc, RMSNORM_QUANTIZE_EPSILON_F), scratch);
    quantizeInto(pc, m, y);
  }
}

export function hadamardQuantize(pc: usize, rows: i32): void {
  const width = operand(pc, QUANTIZE_WIDTH);
  const y = scratch;
  const work = scratch + (<usize>((width + 15) & ~15) << 2);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    hadamardRow(
      rowAt(place(pc, QUANTIZE_SRC_AT), m, operand(pc, QUANTIZE_LD_SRC)),
      y,
      operand(pc, HADAMARD_QUANTIZE_BLOCKS),
      operand(pc, HADAMARD_QUANTIZE_ORDER_K),
      operand(pc, HADAMARD_QUANTIZE_ORDER_M),
      operand(pc, HADAMARD_QUANTIZE_INNER),
      place(pc, HADAMARD_QUANTIZE_MATRIX_AT),
      operand(pc, HADAMARD_QUANTIZE_TRANSPOSE) != 0,
      placeOrZero(pc, HADAMARD_QUANTIZE_PRE_SIGN_AT),
      placeOrZero(pc, HADAMARD_QUANTIZE_POST_SIGN_AT),
      operandF(pc, HADAMARD_QUANTIZE_NORM_F),
      work,
    );
    quantizeInto(pc, m, y);
  }
}

/** dst = scale * (code - zero) per group. */
export function dequantize(pc: usize, rows: i32): void {
  const width = operand(pc, DEQUANTIZE_WIDTH);
  const zeros = placeOrZero(pc, DEQUANTIZE_ZERO_AT);
  const groupSize = operand(pc, DEQUANTIZE_GROUP_SIZE);
  const size = groupSize > 0 ? groupSize : width;
  const groups = (width + size - 1) / size;
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const codes = place(pc, DEQUANTIZE_CODES_AT) + <usize>m * <usize>operand(pc, DEQUANTIZE_LD_CODES);
    const dst = rowAt(place(pc, DEQUANTIZE_DST_AT), m, operand(pc, DEQUANTIZE_LD_DST));
    for (let g = 0; g < groups; g++) {
      const entry = <usize>(m * groups + g) << 2;
      const scale = load<f32>(place(pc, DEQUANTIZE_SCALE_AT) + entry);
      const zero = zeros == 0 ? 0 : load<i32>(zeros + entry);
      const stop = min<i32>((g + 1) * size, width);
      for (let i = g * size; i < stop; i++) {
        store<f32>(dst + (<usize>i << 2), scale * <f32>(<i32>load<i8>(codes + i) - zero));
      }
    }
  }
}

/** Rows rounded to small floats with one scale a row. */
export function roundFloat(pc: usize, rows: i32): void {
  const width = operand(pc, ROUND_FLOAT_WIDTH);
  const mantissa = operand(pc, ROUND_FLOAT_MANTISSA);
  const least = operand(pc, ROUND_FLOAT_MIN_EXPONENT);
  const largest = operandF(pc, ROUND_FLOAT_LARGEST_F);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const src = rowAt(place(pc, ROUND_FLOAT_SRC_AT), m, operand(pc, ROUND_FLOAT_LD_SRC));
    const dst = rowAt(place(pc, ROUND_FLOAT_DST_AT), m, operand(pc, ROUND_FLOAT_LD_DST));
    let most: f32 = 0;
    for (let i = 0; i < width; i++) most = max<f32>(most, abs<f32>(load<f32>(src + (<usize>i << 2))));
    let scale: f32 = most / largest;
    if (!(scale >= reinterpret<f32>(0x00800000))) scale = 1;
    const inverse: f32 = 1 / scale;
    for (let i = 0; i < width; i++) {
      const at = <usize>i << 2;
      const t = max<f32>(min<f32>(load<f32>(src + at) * inverse, largest), -largest);
      const exponent = max<i32>(((reinterpret<i32>(t) >> 23) & 255) - 127, least);
      const up = reinterpret<f32>((127 + mantissa - exponent) << 23);
      const step = reinterpret<f32>((127 + exponent - mantissa) << 23);
      const value = max<f32>(min<f32>(nearest<f32>(t * up) * step, largest), -largest);
      store<f32>(dst + at, value * scale + 0); // no negative zero
    }
  }
}
