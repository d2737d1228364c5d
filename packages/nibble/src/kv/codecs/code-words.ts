/**
 * Codes of 1 to 4 bits in little-endian words: eight codes fill `bits` bytes, the first code in the lowest bits. Half
 * floats beside them are clamped to the finite range, so that extreme rows stay finite.
 */
import { f16ToF32, f32ToF16 } from "../../core/dtype.js";
import { RecipeError } from "../../core/errors.js";

const F16_MAX = 65504;

/** Bits of the half nearest to a finite value, at most the largest half. */
export function toHalf(value: number): number {
  return f32ToF16(Math.max(-F16_MAX, Math.min(F16_MAX, value)));
}

/** A value as it reads back from a half. */
export function throughHalf(value: number): number {
  return f16ToF32(toHalf(value));
}

export function writeHalf(bytes: Uint8Array, at: number, value: number): void {
  const bits = toHalf(value);
  bytes[at] = bits & 0xff;
  bytes[at + 1] = bits >>> 8;
}

export function readHalf(bytes: Uint8Array, at: number): number {
  return f16ToF32(bytes[at] | (bytes[at + 1] << 8));
}

/**
 * @param multiple channels that a row is coded by
 * @throws RecipeError code "kv-head" for head sizes that the packed rows of a codec cannot hold
 */
export function checkHead(codec: string, headDim: number, multiple: number): void {
  if (headDim % multiple === 0 && headDim <= 256) return;
  const want = multiple > 1 ? `a multiple of ${multiple}, at most 256` : "at most 256";
  throw new RecipeError(
    `${codec} needs a head size of ${want}; this model has ${headDim}`,
    { hint: "Use a codec without outliers: int4-token, int8-token or kivi." },
    "kv-head",
  );
}

/** Bytes of `count` codes, a multiple of eight. */
export const wordBytes = (count: number, bits: number): number => (count >> 3) * bits;

/** Next multiple of 4: the size of a group's fixed part. */
export const align4 = (bytes: number): number => (bytes + 3) & ~3;

/** Packs codes[from .. from + count) to dst[at ..]; count is a multiple of eight, bits 0..4. */
export function packWords(
  codes: Uint8Array,
  from: number,
  count: number,
  bits: number,
  dst: Uint8Array,
  at: number,
): void {
  for (let i = from; i < from + count; i += 8) {
    let word = 0;
    for (let j = 7; j >= 0; j--) word = (word << bits) | codes[i + j];
    for (let b = 0; b < bits; b++) dst[at++] = word >>> (8 * b);
  }
}

/**
 * Inverse of packWords, through a table: out[to + i] = table[i * stride + code i]. `stride` is 0 for one table, 2^bits for a
 * table each. Decoding is most of what reading such a cache costs, hence one pass and no inner loop.
 */
export function lookupWords(
  src: Uint8Array,
  at: number,
  count: number,
  bits: number,
  table: Float32Array,
  stride: number,
  out: Float32Array,
  to: number,
): void {
  const mask = (1 << bits) - 1;
  const end = to + count;
  for (let base = 0; to < end; to += 8, base += 8 * stride) {
    let word = src[at++];
    if (bits > 1) word |= src[at++] << 8;
    if (bits > 2) word |= src[at++] << 16;
    if (bits > 3) word |= src[at++] << 24;
    out[to] = table[base + (word & mask)];
    out[to + 1] = table[base + stride + ((word >>> bits) & mask)];
    out[to + 2] = table[base + 2 * stride + ((word >>> (2 * bits)) & mask)];
    out[to + 3] = table[base + 3 * stride + ((word >>> (3 * bits)) & mask)];
    out[to + 4] = table[base + 4 * stride + ((word >>> (4 * bits)) & mask)];
    out[to + 5] = table[base + 5 * stride + ((word >>> (5 * bits)) & mask)];
    out[to + 6] = table[base + 6 * stride + ((word >>> (6 * bits)) & mask)];
    out[to + 7] = table[base + 7 * stride + ((word >>> (7 * bits)) & mask)];
  }
}
