/**
 * The weight descriptor of the running instruction, and what happens to a finished half-panel of 16 outputs:
 * group scale and zero point (linearInt), bias, epilogue. Kept in globals of this instance: one descriptor at a time.
 */
import { rowAt } from "./elementwise";
import { finiteHalf, loadFiniteHalf4, silu4 } from "./math";
import {
  EPILOGUE_ADD, EPILOGUE_SWIGLU, H_WEIGHTS_START, KIND_BF16, SCALAR_F16, WEIGHT_WORDS,
  W_BIAS_AT, W_BITS, W_CODE_SUM_AT, W_DENSE_AT, W_GROUPS, W_GROUP_SIZE, W_K, W_KIND, W_K_PAD, W_N,
  W_NEGATIVE_SCALE_AT, W_PANELS, W_SCALE_AT, W_SCALE_TYPE, W_SEG1_AT, W_SEG2_AT, W_SEG4_AT, W_SEG8_AT, W_TABLE_AT,
  W_TABLE_SCOPE, W_ZERO_AT, W_ZERO_CONST_F, W_ZERO_KIND, ZERO_CONST, ZERO_FLOAT, ZERO_INT,
} from "./ops";

export let kind: i32 = 0;
export let n: i32 = 0;
export let k: i32 = 0;
export let kPad: i32 = 0;
export let panels: i32 = 0;
export let bits: i32 = 0;
export let groups: i32 = 0;
/** Columns of a group; k when there is one group. */
export let groupSize: i32 = 0;
export let scaleAt: usize = 0;
export let scaleHalf: bool = false;
/** ZERO_CONST only for an integer; a const that is no integer counts as ZERO_FLOAT with zeroAt = 0. */
export let zeroKind: i32 = 0;
export let zeroConst: f32 = 0;
export let zeroAt: usize = 0;
export let codeSumAt: usize = 0;
export let biasAt: usize = 0;
export let denseAt: usize = 0;
export let tableAt: usize = 0;
export let tableScope: i32 = 0;
export let negativeScaleAt: usize = 0;
/** Segments of width 8, 4, 2, 1; 0 = absent. The shift is that of the segment's codes inside the full code. */
export let seg8: usize = 0;
export let seg4: usize = 0;
export let seg2: usize = 0;
export let seg1: usize = 0;
export let shift2: i32 = 0;
export let shift1: i32 = 0;
export let dst: usize = 0;
export let ldDst: i32 = 0;
export let epilogue: i32 = 0;

// @ts-ignore: decorator
@inline
function field(w: usize, i: i32): i32 {
  return load<i32>(w + (<usize>i << 2));
}

function lines(w: usize, i: i32): usize {
  const line = field(w, i);
  return line < 0 ? 0 : (<usize>line) << 6;
}

export function openWeight(program: usize, index: i32): void {
  const w = program + ((<usize>(load<i32>(program + (<usize>H_WEIGHTS_START << 2)) + index * WEIGHT_WORDS)) << 2);
  kind = field(w, W_KIND);
  n = field(w, W_N);
  k = field(w, W_K);
  kPad = field(w, W_K_PAD);
  panels = field(w, W_PANELS);
  bits = field(w, W_BITS);
  groups = field(w, W_GROUPS);
  groupSize = field(w, W_GROUP_SIZE);
  if (groupSize == 0) groupSize = k;
  scaleAt = lines(w, W_SCALE_AT);
  scaleHalf = field(w, W_SCALE_TYPE) == SCALAR_F16;
  zeroKind = field(w, W_ZERO_KIND);
  zeroConst = load<f32>(w + (<usize>W_ZERO_CONST_F << 2));
  zeroAt = lines(w, W_ZERO_AT);
  if (zeroKind == ZERO_CONST) {
    zeroAt = 0;
    if (zeroConst != nearest<f32>(zeroConst)) zeroKind = ZERO_FLOAT;
  }
  codeSumAt = lines(w, W_CODE_SUM_AT);
  biasAt = lines(w, W_BIAS_AT);
  denseAt = lines(w, W_DENSE_AT);
  tableAt = lines(w, W_TABLE_AT);
  tableScope = field(w, W_TABLE_SCOPE);
  negativeScaleAt = lines(w, W_NEGATIVE_SCALE_AT);
  const dense = kind <= KIND_BF16;
  if (dense) {
    // One group without a scale; the fields of coded kinds mean nothing.
    groups = 1;
    groupSize = k;
    negativeScaleAt = 0;
    bits = 0;
  }
  seg8 = bits == 8 ? lines(w, W_SEG8_AT) : 0;
  seg4 = (bits & 4) != 0 ? lines(w, W_SEG4_AT) : 0;
  seg2 = (bits & 2) != 0 ? lines(w, W_SEG2_AT) : 0;
  seg1 = (bits & 1) != 0 ? lines(w, W_SEG1_AT) : 0;
  shift2 = seg4 != 0 ? 4 : 0;
  shift1 = shift2 + (seg2 != 0 ? 2 : 0);
}

export function openTarget(at: usize, ld: i32, how: i32): void {
  dst = at;
  ldDst = ld;
  epilogue = how;
}

/** Four scale-like values of group g from channel `channel` (0..31, a multiple of 4) of panel p. */
// @ts-ignore: decorator
@inline
export function groupValues4(base: usize, half: bool, p: i32, g: i32, channel: i32): v128 {
  const index = (<usize>p * <usize>groups + <usize>g) * 32 + <usize>channel;
  return half ? loadFiniteHalf4(base + (index << 1)) : v128.load(base + (index << 2));
}

/** Whether every zero point of the open weight is `value`. */
export function isZeroConst(value: f32): bool {
  return zeroKind == ZERO_CONST && zeroConst == value;
}

/** Four zero points as f32, whatever their kind. */
export function zeros4(p: i32, g: i32, channel: i32): v128 {
  if (zeroAt == 0) return f32x4.splat(zeroConst);
  if (zeroKind == ZERO_FLOAT) return groupValues4(zeroAt, scaleHalf, p, g, channel);
  return f32x4.convert_i32x4_s(intZeros4(p, g, channel));
}

/** Four integer zero points. */
// @ts-ignore: decorator
@inline
function intZeros4(p: i32, g: i32, channel: i32): v128 {
  const index = (<usize>p * <usize>groups + <usize>g) * 32 + <usize>channel;
  return i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(zeroAt + index)));
}

// ---- linearInt: from integer sums to outputs ------------------------------------------------------------------------

/** Bytes of the parameters of one group of 16 channels: scales (f32), zero points (i32 or f32), code sums (i32). */
export const GROUP_BYTES: usize = 192;

/** How zero points enter: folded into the start of the sums; as 16-bit or 32-bit integers; as floats. */
export const ZERO_FOLDED: i32 = 0;
export const ZERO_SHORT: i32 = 1;
const ZERO_LONG: i32 = 2;
export const ZERO_AS_FLOAT: i32 = 3;

/** Of the open weight; loops copy it to a local. */
export let zeroMode: i32 = 0;
export let asymmetric: bool = false;
/** -z of a folded zero point. */
let minusZero: i32 = 0;

/** Decides how the groups of the open weight are finished. */
export function openGroups(asymmetricActivations: bool): void {
  asymmetric = asymmetricActivations;
  minusZero = 0;
  if (zeroKind == ZERO_FLOAT) {
    zeroMode = ZERO_AS_FLOAT;
  } else if (zeroKind == ZERO_CONST && !asymmetric) {
    zeroMode = ZERO_FOLDED;
    minusZero = -(<i32>zeroConst);
  } else {
    // Zero points of at most 255 and sums of at most 255 * 128 are 16-bit factors: one multiplication for four channels.
    zeroMode = zeroKind == ZERO_INT && groupSize <= 255 && !asymmetric ? ZERO_SHORT : ZERO_LONG;
  }
}

/** Whether `finishDirect` serves: symmetric activations, integer zero points. */
// @ts-ignore: decorator
@inline
export function isDirect(): bool {
  return !asymmetric && zeroMode != ZERO_AS_FLOAT;
}

/** Unpacks the parameters of all groups of one half-panel to `out`, GROUP_BYTES a group. */
export function prepareGroups(p: i32, half: i32, out: usize): void {
  for (let g = 0; g < groups; g++) {
    for (let q = 0; q < 4; q++) {
      const channel = (half << 4) + (q << 2);
      const to = out + (<usize>q << 4);
      v128.store(to, groupValues4(scaleAt, scaleHalf, p, g, channel));
      if (zeroMode == ZERO_FOLDED) continue;
      if (zeroMode == ZERO_AS_FLOAT) v128.store(to, zeros4(p, g, channel), 64);
      else v128.store(to, zeroKind == ZERO_INT ? intZeros4(p, g, channel) : i32x4.splat(<i32>zeroConst), 64);
      if (asymmetric) {
        const index = (<usize>p * <usize>groups + <usize>g) * 32 + <usize>channel;
        v128.store(to, v128.load(codeSumAt + (index << 2)), 128);
      }
    }
    out += GROUP_BYTES;
  }
}

/** The same for linearFloat: scale and zero point as f32. */
export function prepareFloatGroups(p: i32, half: i32, out: usize): void {
  for (let g = 0; g < groups; g++) {
    for (let q = 0; q < 4; q++) {
      const channel = (half << 4) + (q << 2);
      const to = out + (<usize>q << 4);
      v128.store(to, groupValues4(scaleAt, scaleHalf, p, g, channel));
      v128.store(to, zeros4(p, g, channel), 64);
    }
    out += GROUP_BYTES;
  }
}

/** What the integer sums of a group start from, given the row's code sum. */
// @ts-ignore: decorator
@inline
export function startOf(sum: i32): v128 {
  return i32x4.splat(minusZero * sum);
}

/** The row's code sum less its zero points: what weight zero points are multiplied with. */
// @ts-ignore: decorator
@inline
export function centered(sum: i32, za: i32, g: i32): i32 {
  return asymmetric ? sum - za * min<i32>(groupSize, k - g * groupSize) : sum;
}

/** Product of zero points (i32) with a splat sum. */
// @ts-ignore: decorator
@inline
function timesSum(zero: v128, sum: v128, mode: i32): v128 {
  // The high halves of zero are 0, so what stands in those of sum does not matter.
  return mode == ZERO_SHORT ? i32x4.dot_i16x8_s(zero, sum) : i32x4.mul(zero, sum);
}

/**
 * What the sums of four channels start from, so that their zero points (integers) are already subtracted at the end: -z * sum.
 * `parameters`: the quarter's place in the group's parameters.
 */
// @ts-ignore: decorator
@inline
export function startQuarter(parameters: usize, sum: i32, mode: i32): v128 {
  return mode == ZERO_FOLDED ? startOf(sum) : timesSum(v128.load(parameters, 64), i32x4.splat(-sum), mode);
}

/**
 * y (4 f32) of one row and group from its integer sums. parameters: the quarter's place in the group's parameters; scale,
 * sum, za: the row's, splat (sum centered). `first` overwrites y. mode, shifted: zeroMode and asymmetric.
 */
// @ts-ignore: decorator
@inline
export function finishQuarter(
  acc: v128, parameters: usize, scale: v128, sum: v128, za: v128, y: usize, first: bool, mode: i32, shifted: bool,
): void {
  if (shifted) acc = i32x4.sub(acc, i32x4.mul(za, v128.load(parameters, 128)));
  let value: v128;
  if (mode == ZERO_FOLDED) {
    value = f32x4.convert_i32x4_s(acc);
  } else if (mode == ZERO_AS_FLOAT) {
    const product = f32x4.mul(v128.load(parameters, 64), f32x4.convert_i32x4_s(sum));
    value = f32x4.sub(f32x4.convert_i32x4_s(acc), product);
  } else {
    value = f32x4.convert_i32x4_s(i32x4.sub(acc, timesSum(v128.load(parameters, 64), sum, mode)));
  }
  value = f32x4.mul(value, f32x4.mul(scale, v128.load(parameters)));
  if (!first) value = f32x4.add(v128.load(y), value);
  v128.store(y, value);
}

/** Where the scales of group 0 of panel p stand. half: they are f16. */
// @ts-ignore: decorator
@inline
export function scalesOf(p: i32, half: bool): usize {
  return scaleAt + ((<usize>p * <usize>groups) << (half ? 6 : 7));
}

/** Where the integer zero points of group 0 of panel p stand. */
// @ts-ignore: decorator
@inline
export function zerosOf(p: i32): usize {
  return zeroAt + ((<usize>p * <usize>groups) << 5);
}

/** startQuarter of eight channels, to acc, from their stored zero points. */
// @ts-ignore: decorator
@inline
function startEight(acc: usize, zeros: usize, minusSum: v128, mode: i32): void {
  const z = v128.load8x8_u(zeros);
  const none = i32x4.splat(0);
  v128.store(acc, timesSum(i16x8.shuffle(z, none, 0, 8, 1, 9, 2, 10, 3, 11), minusSum, mode));
  v128.store(acc, timesSum(i16x8.shuffle(z, none, 4, 12, 5, 13, 6, 14, 7, 15), minusSum, mode), 16);
}

/** What the sums acc[32] of a panel start from: -z * sum. For isDirect(); zeros: zero points of the group. */
// @ts-ignore: decorator
@inline
export function startDirect(acc: usize, zeros: usize, sum: i32, mode: i32): void {
  if (mode == ZERO_FOLDED) {
    setAll(acc, startOf(sum));
  } else {
    const minusSum = i32x4.splat(-sum);
    startEight(acc, zeros, minusSum, mode);
    startEight(acc + 32, zeros + 8, minusSum, mode);
    startEight(acc + 64, zeros + 16, minusSum, mode);
    startEight(acc + 96, zeros + 24, minusSum, mode);
  }
}

/** 128 bytes of one value. */
// @ts-ignore: decorator
@inline
export function setAll(at: usize, value: v128): void {
  v128.store(at, value);
  v128.store(at, value, 16);
  v128.store(at, value, 32);
  v128.store(at, value, 48);
  v128.store(at, value, 64);
  v128.store(at, value, 80);
  v128.store(at, value, 96);
  v128.store(at, value, 112);
}

/**
 * Eight channels (number `channel` of a panel, a multiple of 8) from sums begun by startDirect and the stored scales of a group.
 * half: scales are f16. Adds to y, which starts as -0: that leaves the first group as it is, its sign of zero included.
 */
// @ts-ignore: decorator
@inline
export function finishDirect(acc: usize, scales: usize, channel: usize, scale: v128, y: usize, half: bool): void {
  let s0: v128;
  let s1: v128;
  if (half) {
    const none = i32x4.splat(0);
    const h = v128.load(scales + (channel << 1));
    s0 = finiteHalf(i16x8.shuffle(none, h, 0, 8, 1, 9, 2, 10, 3, 11));
    s1 = finiteHalf(i16x8.shuffle(none, h, 4, 12, 5, 13, 6, 14, 7, 15));
  } else {
    s0 = v128.load(scales + (channel << 2));
    s1 = v128.load(scales + (channel << 2), 16);
  }
  const from = acc + (channel << 2);
  const to = y + (channel << 2);
  const u = f32x4.mul(f32x4.convert_i32x4_s(v128.load(from)), f32x4.mul(scale, s0));
  v128.store(to, f32x4.add(v128.load(to), u));
  const v = f32x4.mul(f32x4.convert_i32x4_s(v128.load(from, 16)), f32x4.mul(scale, s1));
  v128.store(to, f32x4.add(v128.load(to, 16), v), 16);
}

/** The epilogue of 16 whole outputs: y to `to`. combine: they are the up half of a swiglu whose gates wait there. */
// @ts-ignore: decorator
@inline
function finish16(y: usize, to: usize, combine: bool): void {
  let a = v128.load(y);
  let b = v128.load(y, 16);
  let c = v128.load(y, 32);
  let d = v128.load(y, 48);
  if (combine) {
    a = f32x4.mul(silu4(v128.load(to)), a);
    b = f32x4.mul(silu4(v128.load(to, 16)), b);
    c = f32x4.mul(silu4(v128.load(to, 32)), c);
    d = f32x4.mul(silu4(v128.load(to, 48)), d);
  } else if (epilogue == EPILOGUE_ADD) {
    a = f32x4.add(v128.load(to), a);
    b = f32x4.add(v128.load(to, 16), b);
    c = f32x4.add(v128.load(to, 32), c);
    d = f32x4.add(v128.load(to, 48), d);
  }
  v128.store(to, a);
  v128.store(to, b, 16);
  v128.store(to, c, 32);
  v128.store(to, d, 48);
}

/** Bias and epilogue of 16 finished outputs of row m. A swiglu half 0 waits in dst for its other half. */
export function finishHalf(y: usize, p: i32, half: i32, m: i32): void {
  const first = (p << 5) + (half << 4);
  if (biasAt != 0) {
    const bias = biasAt + (<usize>first << 2);
    for (let q: usize = 0; q < 64; q += 16) {
      v128.store(y + q, f32x4.add(v128.load(y + q), v128.load(bias + q)));
    }
  }
  let column = first;
  let count = n - first;
  if (epilogue == EPILOGUE_SWIGLU) {
    column = p << 4;
    count = (n >> 1) - column;
  }
  if (count <= 0) return;
  const to = rowAt(dst, m, ldDst) + (<usize>column << 2);
  const combine = epilogue == EPILOGUE_SWIGLU && half == 1;
  if (count >= 16) return finish16(y, to, combine);
  let j = 0;
  for (; j + 4 <= count; j += 4) {
    const at = <usize>j << 2;
    let value = v128.load(y + at);
    if (epilogue == EPILOGUE_ADD) value = f32x4.add(v128.load(to + at), value);
    else if (combine) value = f32x4.mul(silu4(v128.load(to + at)), value);
    v128.store(to + at, value);
  }
  for (; j < count; j++) {
    const at = <usize>j << 2;
    let value = load<f32>(y + at);
    if (epilogue == EPILOGUE_ADD) value = load<f32>(to + at) + value;
    else if (combine) value = f32x4.extract_lane(silu4(v128.load32_splat(to + at)), 0) * value;
    store<f32>(to + at, value);
  }
}
