/** appendKv: head norms, RoPE, head Hadamard, query quantization, and the codecs of the packed cache. */
import type { Cache } from "../decode.js";
import { KV_CODEC, LINE, PAGE_TOKENS } from "../ops.js";
import {
  isIntCodec,
  keyCodePlace,
  keyFloatIndex,
  planeBytes,
  valueCodePlace,
} from "../page-layout.js";
import type { Operands } from "../program.js";
import { butterflies } from "./hadamard.js";
import { codeKeyPage, storeKiviToken } from "./kivi.js";
import type { Machine } from "./machine.js";
import { normRow } from "./norm.js";
import { f16ToF32, f32ToF16, rne } from "./numerics.js";
import { type Plane, pageOf, planeOf } from "./pages.js";
import { clamp, rangeQuantizer } from "./quantize.js";

const f = Math.fround;

const codePlace = (p: Plane, slot: number, dim: number) =>
  (p.keys ? keyCodePlace : valueCodePlace)(p.codec, p.headDim, slot, dim);
const floatIndex = (p: Plane, slot: number, dim: number) =>
  p.keys ? keyFloatIndex(p.headDim, slot, dim) : slot * p.headDim + dim;

/** u16 index of the f16 scale of a slot; its zero is 32 further. */
const parameterIndex = (p: Plane, slot: number) =>
  Math.ceil((p.at + planeBytes(p.codec, p.headDim)) / LINE) * (LINE / 2) + slot;

const MIN_RANGE = f(1e-5);

/** Scale and stored zero of a token of an int codec, and how a value becomes a code. */
function tokenQuantizer(p: Plane, x: Float32Array, levels: number) {
  let low = p.zeroInt ? 0 : x[0];
  let high = low;
  for (const v of x) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  low = f(p.clip * low);
  high = f(p.clip * high);
  if (p.zeroInt && low === 0 && high === 0) {
    low = -1;
    high = 1;
  }
  const range = f(high - low);
  const scaleBits = f32ToF16(f((p.zeroInt ? range : Math.max(range, MIN_RANGE)) / levels)) || 1;
  const inverse = f(1 / f16ToF32(scaleBits));
  if (p.zeroInt) {
    const zero = rne(f(-low * inverse));
    return { scaleBits, zeroBits: f32ToF16(zero), code: (v: number) => rne(f(v * inverse)) + zero };
  }
  const zeroBits = f32ToF16(f(0 - low));
  const zero = f16ToF32(zeroBits);
  return { scaleBits, zeroBits, code: (v: number) => rne(f(f(v + zero) * inverse)) };
}

/** Writes one token's vector x [headDim] at `slot` of a plane. */
export function storeToken(machine: Machine, p: Plane, slot: number, x: Float32Array): void {
  const { u8, u16, f32 } = machine;
  if (!isIntCodec(p.codec)) {
    for (let d = 0; d < p.headDim; d++) {
      if (p.codec === KV_CODEC.f32) f32[p.at / 4 + floatIndex(p, slot, d)] = x[d];
      else u16[p.at / 2 + floatIndex(p, slot, d)] = f32ToF16(x[d]);
    }
    return;
  }
  const levels = p.codec === KV_CODEC.int4 ? 15 : 255;
  const { scaleBits, zeroBits, code } = tokenQuantizer(p, x, levels);
  for (let d = 0; d < p.headDim; d++) {
    const { byte, high } = codePlace(p, slot, d);
    const c = clamp(code(x[d]), 0, levels);
    if (p.codec === KV_CODEC.int8) u8[p.at + byte] = c;
    else u8[p.at + byte] = high ? (u8[p.at + byte] & 15) | (c << 4) : (u8[p.at + byte] & 240) | c;
  }
  const parameter = parameterIndex(p, slot);
  u16[parameter] = scaleBits;
  u16[parameter + PAGE_TOKENS] = zeroBits;
}

/** A token as attention reads it: codes (or plain values) and, for int codecs, value = code * scale - zero. */
export interface TokenParameters {
  scale: number;
  zero: number;
}

/** Reads the vector at `slot` of a plane into out[at..at+headDim). */
export function loadToken(
  machine: Machine,
  p: Plane,
  slot: number,
  out: Float32Array,
  at: number,
): TokenParameters {
  const { u8, u16, f32 } = machine;
  if (!isIntCodec(p.codec)) {
    for (let d = 0; d < p.headDim; d++) {
      const i = floatIndex(p, slot, d);
      out[at + d] = p.codec === KV_CODEC.f32 ? f32[p.at / 4 + i] : f16ToF32(u16[p.at / 2 + i]);
    }
    return { scale: 1, zero: 0 };
  }
  for (let d = 0; d < p.headDim; d++) {
    const { byte, high } = codePlace(p, slot, d);
    const stored = u8[p.at + byte];
    out[at + d] = p.codec === KV_CODEC.int8 ? stored : high ? stored >> 4 : stored & 15;
  }
  const parameter = parameterIndex(p, slot);
  const scale = f16ToF32(u16[parameter]);
  const zero = f16ToF32(u16[parameter + PAGE_TOKENS]);
  return { scale, zero: p.zeroInt ? f(scale * zero) : zero };
}

/** Pages whose last token came in this run: their keys can be coded. */
function codeKeyPages(machine: Machine, o: Operands<"appendKv">, c: Cache, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const position = machine.i32[o.positionsAt * 16 + m];
    if (position % PAGE_TOKENS !== PAGE_TOKENS - 1) continue;
    const sequence = machine.i32[o.sequencesAt * 16 + m];
    for (let head = 0; head < o.kvHeads; head++) {
      codeKeyPage(machine, c, sequence, o.layer, head, position);
    }
  }
}

export function appendKv(machine: Machine, o: Operands<"appendKv">, rows: number): void {
  const { f32, i8, i32 } = machine;
  const c = machine.caches[o.cacheC];
  const { heads, kvHeads, headDim } = o;
  const half = headDim / 2;
  const norm = f(1 / f(Math.sqrt(headDim)));
  const x = new Float32Array(headDim);
  for (let m = 0; m < rows; m++) {
    const position = machine.index(o.positionsAt, m, c.maxPages * PAGE_TOKENS);
    const sequence = machine.index(o.sequencesAt, m, c.slots);
    const page = pageOf(machine, c, sequence, o.layer, position);
    const slot = position % PAGE_TOKENS;
    for (let h = 0; h < heads + 2 * kvHeads; h++) {
      const at = o.qkvAt * 16 + m * o.ldQkv + h * headDim;
      x.set(f32.subarray(at, at + headDim));
      if (h < heads + kvHeads) {
        const gainAt = h < heads ? o.queryGainAt : o.keyGainAt;
        if (gainAt >= 0) {
          normRow(x, 0, x, 0, headDim, -1, o.epsilonF);
          for (let d = 0; d < headDim; d++) x[d] *= f32[gainAt * 16 + d];
        }
        for (let i = 0; i < half; i++) {
          const a = x[i];
          const b = x[i + half];
          const cos = f32[o.cosAt * 16 + position * half + i];
          const sin = f32[o.sinAt * 16 + position * half + i];
          x[i] = f(a * cos) - f(b * sin);
          x[i + half] = f(b * cos) + f(a * sin);
        }
        if (c.hadamard === 1) {
          butterflies(x, 0, headDim, 1);
          for (let d = 0; d < headDim; d++) x[d] *= norm;
        }
      }
      if (h >= heads) {
        const keys = h < heads + kvHeads;
        const head = keys ? h - heads : h - heads - kvHeads;
        if (c.residual > 0) {
          storeKiviToken(machine, c, { sequence, layer: o.layer, head, keys }, position, x);
        } else {
          storeToken(machine, planeOf(c, page, head, keys), slot, x);
        }
      } else if (c.queryBits === 32) {
        f32.set(x, o.queryAt * 16 + (m * heads + h) * headDim);
      } else {
        const q = rangeQuantizer(x, 0, headDim, 8, true, 1);
        let sum = 0;
        for (let d = 0; d < headDim; d++) {
          const code = clamp(rne(f(x[d] * q.inverse)), q.low, q.high);
          i8[o.queryAt * 64 + (m * heads + h) * headDim + d] = code;
          sum += code;
        }
        f32[o.queryScaleAt * 16 + m * heads + h] = q.scale;
        i32[o.querySumAt * 16 + m * heads + h] = sum;
      }
    }
  }
  if (c.residual > 0) codeKeyPages(machine, o, c, rows);
}
