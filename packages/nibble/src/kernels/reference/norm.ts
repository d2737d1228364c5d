/** rmsnorm and the elementwise ops on rows (docs/engine.md, section 5). */
import type { Operands } from "../program.js";
import type { Machine } from "./machine.js";
import { Lane16, silu } from "./numerics.js";

const f = Math.fround;
const lanes = new Lane16();

/** dst[d..] = x / rms(x) * gain for the row src[s..]; gains are read at f32[gain..] of `source`, gain < 0: none. */
export function normRow(
  source: Float32Array,
  s: number,
  target: Float32Array,
  d: number,
  width: number,
  gain: number,
  epsilon: number,
): void {
  lanes.reset();
  for (let i = 0; i < width; i++) lanes.add(i, f(source[s + i] * source[s + i]));
  const inverse = f(1 / f(Math.sqrt(f(f(lanes.fold() / width) + epsilon))));
  for (let i = 0; i < width; i++) {
    const y = f(source[s + i] * inverse);
    target[d + i] = gain < 0 ? y : y * source[gain + i];
  }
}

export function rmsnorm({ f32 }: Machine, o: Operands<"rmsnorm">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    const dst = o.dstAt * 16 + m * o.ldDst;
    normRow(f32, src, f32, dst, o.width, o.gainAt * 16, o.epsilonF);
  }
}

export function siluMul({ f32 }: Machine, o: Operands<"siluMul">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const gate = o.gateAt * 16 + m * o.ldGate;
    const up = o.upAt * 16 + m * o.ldUp;
    const dst = o.dstAt * 16 + m * o.ldDst;
    for (let i = 0; i < o.width; i++) f32[dst + i] = silu(f32[gate + i]) * f32[up + i];
  }
}

export function add({ f32 }: Machine, o: Operands<"add">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    const dst = o.dstAt * 16 + m * o.ldDst;
    for (let i = 0; i < o.width; i++) f32[dst + i] += f(o.alphaF * f32[src + i]);
  }
}

export function columns(machine: Machine, o: Operands<"columns">, rows: number): void {
  const { f32 } = machine;
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    const dst = o.dstAt * 16 + m * o.ldDst;
    for (let k = 0; k < o.width; k++) {
      const x = f32[src + (o.permAt < 0 ? k : machine.index(o.permAt, k, o.width))];
      f32[dst + k] = o.scaleAt < 0 ? x : x * f32[o.scaleAt * 16 + k];
    }
  }
}

export function gatherRows(machine: Machine, o: Operands<"gatherRows">, rows: number): void {
  const { f32, maxRows } = machine;
  for (let i = 0; i < rows; i++) {
    const src = o.srcAt * 16 + machine.index(o.indexAt, i, maxRows) * o.ldSrc;
    f32.copyWithin(o.dstAt * 16 + i * o.ldDst, src, src + o.width);
  }
}

export function scatterAddRows(
  machine: Machine,
  o: Operands<"scatterAddRows">,
  rows: number,
): void {
  const { f32, maxRows } = machine;
  for (let i = 0; i < rows; i++) {
    const src = o.srcAt * 16 + i * o.ldSrc;
    const dst = o.dstAt * 16 + machine.index(o.indexAt, i, maxRows) * o.ldDst;
    const weight = o.weightAt < 0 ? 1 : f32[o.weightAt * 16 + i];
    for (let k = 0; k < o.width; k++) f32[dst + k] += f(weight * f32[src + k]);
  }
}
