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
