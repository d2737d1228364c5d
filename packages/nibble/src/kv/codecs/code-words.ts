/**
 * Codes of 1 to 4 bits in little-endian words: eight codes fill `bits` bytes, the first code in the lowest bits. Half
 * floats beside them are clamped to the finite range, so that extreme rows stay finite.
 */
import { f16ToF32, f32ToF16 } from "../../core/dtype.js";

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

/** Inverse of packWords. */
export function unpackWords(
  src: Uint8Array,
  at: number,
  count: number,
  bits: number,
  codes: Uint8Array,
  to: number,
): void {
  const end = to + count;
  switch (bits) {
    case 1:
      for (; to < end; to += 8) {
        const word = src[at++];
        for (let j = 0; j < 8; j++) codes[to + j] = (word >>> j) & 1;
      }
      return;
    case 2:
      for (; to < end; to += 4) {
        const word = src[at++];
        codes[to] = word & 3;
        codes[to + 1] = (word >>> 2) & 3;
        codes[to + 2] = (word >>> 4) & 3;
        codes[to + 3] = word >>> 6;
      }
      return;
    case 3:
      for (; to < end; to += 8) {
        const word = src[at] | (src[at + 1] << 8) | (src[at + 2] << 16);
        at += 3;
        codes[to] = word & 7;
        codes[to + 1] = (word >>> 3) & 7;
        codes[to + 2] = (word >>> 6) & 7;
        codes[to + 3] = (word >>> 9) & 7;
        codes[to + 4] = (word >>> 12) & 7;
        codes[to + 5] = (word >>> 15) & 7;
        codes[to + 6] = (word >>> 18) & 7;
        codes[to + 7] = word >>> 21;
      }
      return;
    case 4:
      for (; to < end; to += 2) {
        const word = src[at++];
        codes[to] = word & 15;
        codes[to + 1] = word >>> 4;
      }
      return;
    default:
      codes.fill(0, to, end);
  }
}
