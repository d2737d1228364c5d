/** Sizes of the parts of a KV cache page (docs/engine.md, "Pages"). */
import { KV_CODEC, LINE, PAGE_TOKENS } from "./ops.js";

export const isIntCodec = (codec: number): boolean =>
  codec === KV_CODEC.int8 || codec === KV_CODEC.int4;

/** Bytes of the elements of 32 tokens of one head, parameters not counted. */
export function planeBytes(codec: number, headDim: number): number {
  const bits = { [KV_CODEC.f32]: 32, [KV_CODEC.f16]: 16, [KV_CODEC.int8]: 8, [KV_CODEC.int4]: 4 }[
    codec
  ];
  return (PAGE_TOKENS * headDim * (bits ?? 0)) / 8;
}

/** Lines of one plane (keys or values of one head): elements, then f16 scale[32] and zero[32] of int codecs. */
export function planeLines(codec: number, headDim: number): number {
  return Math.ceil(planeBytes(codec, headDim) / LINE) + (isIntCodec(codec) ? 2 : 0);
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
