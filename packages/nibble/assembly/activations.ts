/** The quantized activations of the running linearInt: codes, and scale, code sum and zero point per row and group. */
import { groups } from "./weight";

export let codes: usize = 0;
/** Bytes from row to row of the codes. */
export let ldCodes: i32 = 0;
let scales: usize = 0;
let sums: usize = 0;
let zeros: usize = 0;
let activationGroups: i32 = 1;

export function openActivations(at: usize, ld: i32, scaleAt: usize, sumAt: usize, zeroAt: usize, count: i32): void {
  codes = at;
  ldCodes = ld;
  scales = scaleAt;
  sums = sumAt;
  zeros = zeroAt;
  activationGroups = count;
}

// @ts-ignore: decorator
@inline
function entry(m: i32, g: i32): usize {
  return (<usize>(m * activationGroups + (activationGroups == 1 ? 0 : g))) << 2;
}

// @ts-ignore: decorator
@inline
export function rowScale(m: i32, g: i32): f32 {
  return load<f32>(scales + entry(m, g));
}
// @ts-ignore: decorator
@inline
export function rowSum(m: i32, g: i32): i32 {
  return load<i32>(sums + ((<usize>(m * groups + g)) << 2));
}
/** 0 for symmetric activations. */
// @ts-ignore: decorator
@inline
export function rowZero(m: i32, g: i32): i32 {
  return zeros == 0 ? 0 : load<i32>(zeros + entry(m, g));
}

/** Largest |code| of `rows` rows of `columns` codes (a multiple of 16): 4-bit activations allow longer 16-bit sums. */
export function largestCode(rows: i32, columns: i32): i32 {
  let low = i8x16.splat(0);
  let high = low;
  for (let m = 0; m < rows; m++) {
    const row = codes + <usize>m * <usize>ldCodes;
    for (let i = 0; i < columns; i += 16) {
      const v = v128.load(row + i);
      low = i8x16.min_s(low, v);
      high = i8x16.max_s(high, v);
    }
    // No need to look further: these are 8-bit codes.
    if (v128.any_true(v128.or(i8x16.gt_s(high, i8x16.splat(63)), i8x16.lt_s(low, i8x16.splat(-63))))) return 128;
  }
  let largest = 63;
  for (; largest > 0; largest--) {
    const reached = v128.or(i8x16.ge_s(high, i8x16.splat(<i8>largest)), i8x16.le_s(low, i8x16.splat(<i8>-largest)));
    if (v128.any_true(reached)) break;
  }
  return largest;
}
