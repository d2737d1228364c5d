/**
 * KIVI (arXiv:2402.02750): keys coded per channel over the 32 tokens of a page, values per token over 32 channels, the
 * newest rows exact. Exact rows live in a ring of `tailTokens` rows; codes are written as soon as their inputs are known,
 * and a row of queries at position p reads them by rule: keys below floor(p / R) * R, values below p - R. That is what
 * feeding one token at a time gives, whatever the number of rows in a run (docs/engine.md, "kivi").
 */
import type { Cache } from "../decode.js";
import { ATTENTION_CHUNK, PAGE_TOKENS } from "../ops.js";
import {
  KIVI_GROUP,
  keyFloatIndex,
  kiviBits,
  kiviKeyPlace,
  kiviValuePlace,
  planeBytes,
  tailLines,
} from "../page-layout.js";
import type { Machine } from "./machine.js";
import { f16ToF32, f32ToF16, Lane16, rne } from "./numerics.js";
import { type Plane, pageOf, planeOf } from "./pages.js";
import { clamp } from "./quantize.js";

const f = Math.fround;
const lanes = new Lane16();
const LARGEST_HALF = 65504;

/** Slots whose keys and values a query at `position` reads as codes: those below. */
export const sealedKeys = (c: Cache, position: number): number =>
  position - (position % c.residual);
export const sealedValues = (c: Cache, position: number): number =>
  Math.max(0, position - c.residual);

/** Word of the arena where the exact keys (or values) of a sequence's head begin. */
function ringAt(c: Cache, sequence: number, layer: number, head: number, keys: boolean): number {
  const ring = (sequence * c.layers + layer) * c.kvHeads + head;
  const at = (c.tailAt + ring * tailLines(c.tailTokens, c.headDim)) * 16;
  return keys ? at : at + c.tailTokens * c.headDim;
}

const ringIndex = (c: Cache, position: number, dim: number, keys: boolean): number => {
  const row = position % c.tailTokens;
  return keys ? keyFloatIndex(c.headDim, row, dim) : row * c.headDim + dim;
};

/** u16 index of a plane's scales; the minima follow `headDim` further. */
const scalesAt = (p: Plane): number => (p.at + planeBytes(p.codec, p.headDim)) / 2;

/** Codes a group of values; writes scale and minimum (f16) at u16 index `scaleAt`, `minimumAt`. */
function codeGroup(
  { u16 }: Machine,
  x: Float32Array,
  bits: number,
  scaleAt: number,
  minimumAt: number,
  write: (i: number, code: number) => void,
): void {
  let low = x[0];
  let high = low;
  for (const v of x) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  // + 0: a minimum of -0 and of +0 are the same bits
  low += 0;
  high += 0;
  const levels = 2 ** bits - 1;
  u16[scaleAt] = f32ToF16(Math.min(f(f(high - low) / levels), LARGEST_HALF));
  u16[minimumAt] = f32ToF16(clamp(low, -LARGEST_HALF, LARGEST_HALF));
  const scale = f16ToF32(u16[scaleAt]);
  const minimum = f16ToF32(u16[minimumAt]);
  x.forEach((v, i) => {
    write(i, scale === 0 ? 0 : rne(clamp(f(f(v - minimum) / scale), 0, levels)));
  });
}

function writeCode(machine: Machine, at: number, shift: number, bits: number, code: number): void {
  const mask = ((1 << bits) - 1) << shift;
  machine.u8[at] = (machine.u8[at] & ~mask) | (code << shift);
}

/** Puts a key or value [headDim] of `position` into the ring; values are coded at once. */
export function storeKiviToken(
  machine: Machine,
  c: Cache,
  place: { sequence: number; layer: number; head: number; keys: boolean },
  position: number,
  x: Float32Array,
): void {
  const { sequence, layer, head, keys } = place;
  const ring = ringAt(c, sequence, layer, head, keys);
  for (let d = 0; d < c.headDim; d++) machine.f32[ring + ringIndex(c, position, d, keys)] = x[d];
  if (keys) return;
  const page = pageOf(machine, c, sequence, layer, position);
  const plane = planeOf(c, page, head, false);
  const bits = kiviBits(c.valueCodec);
  const slot = position % PAGE_TOKENS;
  for (let g = 0; g < c.headDim / KIVI_GROUP; g++) {
    const scaleAt = scalesAt(plane) + g * PAGE_TOKENS + slot;
    const group = x.subarray(g * KIVI_GROUP, (g + 1) * KIVI_GROUP);
    codeGroup(machine, group, bits, scaleAt, scaleAt + c.headDim, (i, code) => {
      const { byte, shift } = kiviValuePlace(bits, c.headDim, slot, g * KIVI_GROUP + i);
      writeCode(machine, plane.at + byte, shift, bits, code);
    });
  }
}

/** Codes the keys of the page that `position` ends, from the ring. */
export function codeKeyPage(
  machine: Machine,
  c: Cache,
  sequence: number,
  layer: number,
  head: number,
  position: number,
): void {
  const plane = planeOf(c, pageOf(machine, c, sequence, layer, position), head, true);
  const ring = ringAt(c, sequence, layer, head, true);
  const bits = kiviBits(c.keyCodec);
  const first = position - PAGE_TOKENS + 1;
  const x = new Float32Array(PAGE_TOKENS);
  for (let d = 0; d < c.headDim; d++) {
    for (let t = 0; t < PAGE_TOKENS; t++)
      x[t] = machine.f32[ring + ringIndex(c, first + t, d, true)];
    const scaleAt = scalesAt(plane) + d;
    codeGroup(machine, x, bits, scaleAt, scaleAt + c.headDim, (t, code) => {
      const { byte, shift } = kiviKeyPlace(bits, t, d);
      writeCode(machine, plane.at + byte, shift, bits, code);
    });
  }
}

/** What queries of one sequence, KV head and position see of a chunk of 128 slots. */
export class KiviChunk {
  /** [slot][headDim]: codes below the sealed length, exact values above. */
  readonly #keys: Float32Array;
  readonly #values: Float32Array;
  /** [page of the chunk][headDim]. */
  readonly #keyScale: Float32Array;
  readonly #keyMinimum: Float32Array;
  /** [channel group][slot]. */
  readonly #valueScale: Float32Array;
  readonly #valueMinimum: Float32Array;
  readonly #folded: Float32Array;
  #sealedKeys = 0;
  #sealedValues = 0;

  constructor(
    readonly machine: Machine,
    readonly cache: Cache,
    readonly layer: number,
  ) {
    const { headDim } = cache;
    this.#keys = new Float32Array(ATTENTION_CHUNK * headDim);
    this.#values = new Float32Array(ATTENTION_CHUNK * headDim);
    this.#keyScale = new Float32Array((ATTENTION_CHUNK / PAGE_TOKENS) * headDim);
    this.#keyMinimum = new Float32Array(this.#keyScale.length);
    this.#valueScale = new Float32Array((headDim / KIVI_GROUP) * ATTENTION_CHUNK);
    this.#valueMinimum = new Float32Array(this.#valueScale.length);
    this.#folded = new Float32Array(headDim);
  }

  /** Makes slots from..to (positions, in one chunk) available to a query at `position`. */
  load(sequence: number, head: number, from: number, to: number, position: number): void {
    const { machine, cache: c, layer } = this;
    const { headDim } = c;
    const start = from - (from % ATTENTION_CHUNK);
    this.#sealedKeys = sealedKeys(c, position) - start;
    this.#sealedValues = sealedValues(c, position) - start;
    const planes = [true, false].map((keys) => ({
      keys,
      ring: ringAt(c, sequence, layer, head, keys),
      bits: kiviBits(keys ? c.keyCodec : c.valueCodec),
      sealed: keys ? this.#sealedKeys : this.#sealedValues,
      out: keys ? this.#keys : this.#values,
    }));
    for (let t = from - start; t <= to - start; t++) {
      const page = pageOf(machine, c, sequence, layer, start + t);
      const slot = t % PAGE_TOKENS;
      for (const { keys, ring, bits, sealed, out } of planes) {
        const plane = planeOf(c, page, head, keys);
        if (t < sealed) this.#loadParameters(plane, t);
        for (let d = 0; d < headDim; d++) {
          if (t >= sealed) {
            out[t * headDim + d] = machine.f32[ring + ringIndex(c, start + t, d, keys)];
            continue;
          }
          const { byte, shift } = keys
            ? kiviKeyPlace(bits, slot, d)
            : kiviValuePlace(bits, headDim, slot, d);
          out[t * headDim + d] = (machine.u8[plane.at + byte] >> shift) & ((1 << bits) - 1);
        }
      }
    }
  }

  #loadParameters(plane: Plane, t: number): void {
    const { u16 } = this.machine;
    const { headDim } = this.cache;
    const at = scalesAt(plane);
    if (plane.keys) {
      const page = Math.floor(t / PAGE_TOKENS) * headDim;
      for (let d = 0; d < headDim; d++) {
        this.#keyScale[page + d] = f16ToF32(u16[at + d]);
        this.#keyMinimum[page + d] = f16ToF32(u16[at + headDim + d]);
      }
      return;
    }
    for (let g = 0; g < headDim / KIVI_GROUP; g++) {
      const from = at + g * PAGE_TOKENS + (t % PAGE_TOKENS);
      this.#valueScale[g * ATTENTION_CHUNK + t] = f16ToF32(u16[from]);
      this.#valueMinimum[g * ATTENTION_CHUNK + t] = f16ToF32(u16[from + headDim]);
    }
  }

  /** Unscaled scores of slots first..last of the chunk for the query at word `q`. */
  score(q: number, first: number, last: number, scores: Float32Array): void {
    const { f32 } = this.machine;
    const { headDim } = this.cache;
    const folded = this.#folded;
    let foldedPage = -1;
    let constant = 0;
    for (let t = first; t <= last; t++) {
      const sealed = t < this.#sealedKeys;
      const page = Math.floor(t / PAGE_TOKENS);
      if (sealed && page !== foldedPage) {
        foldedPage = page;
        lanes.reset();
        for (let d = 0; d < headDim; d++) {
          folded[d] = f32[q + d] * this.#keyScale[page * headDim + d];
          lanes.add(d, f(f32[q + d] * this.#keyMinimum[page * headDim + d]));
        }
        constant = lanes.fold();
      }
      let dot = 0;
      for (let d = 0; d < headDim; d++) {
        dot = f(dot + f((sealed ? folded[d] : f32[q + d]) * this.#keys[t * headDim + d]));
      }
      scores[t] = sealed ? dot + constant : dot;
    }
  }

  /** acc[headDim] = sum of softmax weights e[first..last] times values. */
  accumulate(e: Float32Array, first: number, last: number, acc: Float32Array): void {
    const { headDim } = this.cache;
    acc.fill(0);
    for (let g = 0; g < headDim / KIVI_GROUP; g++) {
      lanes.reset();
      for (let t = first; t <= last; t++) {
        const sealed = t < this.#sealedValues;
        const at = g * ATTENTION_CHUNK + t;
        const weight = sealed ? f(e[t] * this.#valueScale[at]) : e[t];
        if (sealed) lanes.add(t, f(e[t] * this.#valueMinimum[at]));
        for (let d = g * KIVI_GROUP; d < (g + 1) * KIVI_GROUP; d++) {
          acc[d] += f(weight * this.#values[t * headDim + d]);
        }
      }
      const minimum = lanes.fold();
      for (let d = g * KIVI_GROUP; d < (g + 1) * KIVI_GROUP; d++) acc[d] += minimum;
    }
  }
}
