/** Activation quantizers, and dequantize (docs/engine.md, section 5). */
import type { Operands } from "../program.js";
import { hadamardRow } from "./hadamard.js";
import type { Machine } from "./machine.js";
import { normRow } from "./norm.js";
import { rne } from "./numerics.js";

const f = Math.fround;
/** Scales below the smallest normal f32 become 1: their reciprocal would overflow. */
const MIN_SCALE = 2 ** -126;

export const clamp = (x: number, low: number, high: number) => Math.max(low, Math.min(x, high));

export interface RowQuantizer {
  scale: number;
  inverse: number;
  /** 0 when symmetric. */
  zero: number;
  low: number;
  high: number;
}

/** Scale (and zero) of the values x[start, end). */
export function rangeQuantizer(
  x: Float32Array,
  start: number,
  end: number,
  bits: number,
  symmetric: boolean,
  clip: number,
): RowQuantizer {
  let low = 0;
  let high = 0;
  for (let i = start; i < end; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  const levels = 2 ** bits - 1;
  const top = 2 ** (bits - 1) - 1;
  const from = f(clip * low);
  const range = symmetric ? f(clip * Math.max(-low, high)) : f(f(clip * high) - from);
  let scale = f(range / (symmetric ? top : levels));
  if (!(scale >= MIN_SCALE)) scale = 1;
  const inverse = f(1 / scale);
  if (symmetric) return { scale, inverse, zero: 0, low: -top - 1, high: top };
  return { scale, inverse, zero: rne(f(-from * inverse)), low: 0, high: levels };
}

type QuantizeOperands = Operands<"quantize">;

/** Quantizes one f32 row into the outputs of row m. */
function quantizeRow(machine: Machine, o: QuantizeOperands, m: number, x: Float32Array): void {
  const { i8, i32, f32 } = machine;
  const symmetric = (o.symmetric & 1) === 1;
  const shared = (o.symmetric & 2) === 2;
  const size = o.groupSize > 0 ? o.groupSize : o.width;
  const groups = Math.ceil(o.width / size);
  // 8-bit asymmetric codes are 0..255; they and their zero are stored minus 128.
  const offset = !symmetric && o.bits === 8 ? 128 : 0;
  const codes = o.codesAt * 64 + m * o.ldCodes;
  let q = rangeQuantizer(x, 0, o.width, o.bits, symmetric, o.clipF);
  for (let g = 0; g < groups; g++) {
    const start = g * size;
    const end = Math.min(start + size, o.width);
    if (!shared) q = rangeQuantizer(x, start, end, o.bits, symmetric, o.clipF);
    let sum = 0;
    for (let i = start; i < end; i++) {
      const code = clamp(rne(f(x[i] * q.inverse)) + q.zero, q.low, q.high) - offset;
      i8[codes + i] = code;
      sum += code;
    }
    i32[o.sumAt * 16 + m * groups + g] = sum;
    if (g > 0 && shared) continue;
    const entry = shared ? m : m * groups + g;
    f32[o.scaleAt * 16 + entry] = q.scale;
    if (!symmetric) i32[o.zeroAt * 16 + entry] = q.zero - offset;
  }
  i8.fill(0, codes + o.width, codes + Math.ceil(o.width / 32) * 32);
}

export function quantize(machine: Machine, o: QuantizeOperands, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    quantizeRow(machine, o, m, machine.f32.subarray(src, src + o.width));
  }
}

export function rmsnormQuantize(
  machine: Machine,
  o: Operands<"rmsnormQuantize">,
  rows: number,
): void {
  const row = new Float32Array(o.width);
  for (let m = 0; m < rows; m++) {
    normRow(machine.f32, o.srcAt * 16 + m * o.ldSrc, row, 0, o.width, o.gainAt * 16, o.epsilonF);
    quantizeRow(machine, o, m, row);
  }
}

export function hadamardQuantize(
  machine: Machine,
  o: Operands<"hadamardQuantize">,
  rows: number,
): void {
  const row = new Float32Array(o.width);
  for (let m = 0; m < rows; m++) {
    hadamardRow(machine, o, o.srcAt * 16 + m * o.ldSrc, row, 0);
    quantizeRow(machine, o, m, row);
  }
}

export function dequantize(machine: Machine, o: Operands<"dequantize">, rows: number): void {
  const { f32, i32, i8 } = machine;
  const size = o.groupSize > 0 ? o.groupSize : o.width;
  const groups = Math.ceil(o.width / size);
  for (let m = 0; m < rows; m++) {
    for (let i = 0; i < o.width; i++) {
      const entry = m * groups + Math.floor(i / size);
      const zero = o.zeroAt < 0 ? 0 : i32[o.zeroAt * 16 + entry];
      const code = i8[o.codesAt * 64 + m * o.ldCodes + i];
      f32[o.dstAt * 16 + m * o.ldDst + i] = f32[o.scaleAt * 16 + entry] * (code - zero);
    }
  }
}

export function roundFloat(machine: Machine, o: Operands<"roundFloat">, rows: number): void {
  const { f32 } = machine;
  for (let m = 0; m < rows; m++) {
    const from = o.srcAt * 16 + m * o.ldSrc;
    const to = o.dstAt * 16 + m * o.ldDst;
    let most = 0;
    for (let i = 0; i < o.width; i++) most = Math.max(most, Math.abs(f32[from + i]));
    let scale = f(most / o.largestF);
    if (!(scale >= MIN_SCALE)) scale = 1;
    const inverse = f(1 / scale);
    for (let i = 0; i < o.width; i++) {
      const t = clamp(f(f32[from + i] * inverse), -o.largestF, o.largestF);
      // The exponent field of an f32; steps are powers of two, so only the last product rounds.
      const exponent = t === 0 ? o.minExponent : Math.max(exponentOf(t), o.minExponent);
      const step = 2 ** (exponent - o.mantissa);
      // Plus zero: no negative zero.
      f32[to + i] = f(clamp(rne(t / step) * step, -o.largestF, o.largestF) * scale) + 0;
    }
  }
}

const bitsView = new Float32Array(1);
const wordView = new Int32Array(bitsView.buffer);
function exponentOf(x: number): number {
  bitsView[0] = x;
  return ((wordView[0] >> 23) & 255) - 127;
}
