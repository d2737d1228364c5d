/** Sizes of the parts of a KV cache page (docs/engine.md, "Pages"). */
import { KV_CODEC, LINE, PAGE_TOKENS } from "./ops.js";

export const isIntCodec = (codec: number): boolean =>
  codec === KV_CODEC.int8 || codec === KV_CODEC.int4;

export const isKiviCodec = (codec: number): boolean =>
  codec === KV_CODEC.kivi4 || codec === KV_CODEC.kivi2;
export const kiviBits = (codec: number): number => (codec === KV_CODEC.kivi2 ? 2 : 4);
/** The cache descriptor's words about exact rows, for codecs without. */
export const NO_TAIL = { residual: 0, tailAt: -1, tailTokens: 0 } as const;
/** Tokens (keys) or channels (values) of a group of the kivi codecs. */
export const KIVI_GROUP = PAGE_TOKENS;

/** Bytes of the elements of 32 tokens of one head, parameters not counted. */
export function planeBytes(codec: number, headDim: number): number {
  const bits = [32, 16, 8, 4, 4, 2][codec] ?? 0; // in the order of KV_CODEC
  return (PAGE_TOKENS * headDim * bits) / 8;
}

/**
 * Lines of one plane (keys or values of one head): elements, then f16 scale[32] and zero[32] of int codecs; kivi: scale and
 * minimum in f16, [headDim] each for keys, [headDim / 32][32] each for values.
 */
export function planeLines(codec: number, headDim: number): number {
  const parameters = isIntCodec(codec) ? 2 : isKiviCodec(codec) ? headDim / 16 : 0;
  return Math.ceil(planeBytes(codec, headDim) / LINE) + parameters;
}

/** Lines of the exact rows of one KV head: keys [tailTokens / 16][headDim][16], then values [tailTokens][headDim], f32. */
export function tailLines(tailTokens: number, headDim: number): number {
  return (2 * tailTokens * headDim * 4) / LINE;
}

/** Byte and shift of kivi key code (slot, dim): a channel's 32 tokens stand together, the first in the lowest bits. */
export function kiviKeyPlace(bits: number, slot: number, dim: number) {
  const bit = (dim * PAGE_TOKENS + slot) * bits;
  return { byte: bit >> 3, shift: bit & 7 };
}

/**
 * Byte and shift of kivi value code (slot, dim): one row a token, in blocks of 64 channels (32 where 64 does not divide
 * headDim). A byte holds channels i, i + w, ... of its block, w = bits / 8 of the block.
 */
export function kiviValuePlace(bits: number, headDim: number, slot: number, dim: number) {
  const block = headDim % 64 === 0 ? 64 : 32;
  const width = (block * bits) / 8;
  const inside = dim % block;
  const byte = ((slot * headDim + dim - inside) * bits) / 8 + (inside % width);
  return { byte, shift: bits * Math.floor(inside / width) };
}

/**
 * Byte and nibble of key element (slot, dim) inside a key plane: 16 positions to a half-panel, four dims (eight for
 * nibbles) to a 64-byte step. Only int codecs; `high` tells the nibble.
 */
export function keyCodePlace(codec: number, headDim: number, slot: number, dim: number) {
  const dims = codec === KV_CODEC.int4 ? 8 : 4;
  const half = (slot >> 4) * (headDim / dims) * 64;
  const byte = half + Math.floor(dim / dims) * 64 + (slot & 15) * 4 + (dim & 3);
  return { byte, high: codec === KV_CODEC.int4 && (dim & 7) >= 4 };
}

/** Byte and nibble of value element (slot, dim) inside a value plane: one row a token. */
export function valueCodePlace(codec: number, headDim: number, slot: number, dim: number) {
  if (codec === KV_CODEC.int8) return { byte: slot * headDim + dim, high: false };
  const block = headDim % 64 === 0 ? 64 : headDim;
  const inside = dim % block;
  const start = (dim - inside) / 2;
  const high = inside >= block / 2;
  return { byte: (slot * headDim) / 2 + start + (high ? inside - block / 2 : inside), high };
}

/** Index of element (slot, dim) of an f32 or f16 key plane: `[half-panel][headDim][16]`. */
export function keyFloatIndex(headDim: number, slot: number, dim: number): number {
  return ((slot >> 4) * headDim + dim) * 16 + (slot & 15);
}
