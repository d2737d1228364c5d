/** The cache descriptor of the running instruction and the checked look-up of pages (docs/engine.md, "Pages"). */
import { fail } from "./control";
import {
  CACHE_WORDS, CODEC_F16, CODEC_F32, CODEC_INT4, CODEC_INT8, C_HADAMARD, C_HEAD_DIM, C_HEAD_LINES, C_KEY_CLIP_F, C_KEY_CODEC,
  C_KEY_LINES, C_KEY_ZERO_INT, C_KV_HEADS, C_LAYERS, C_MAX_PAGES, C_PAGES, C_PAGE_LINES, C_POOL_AT, C_QUERY_BITS,
  C_RESIDUAL, C_SLOTS, C_TABLE_AT, C_TAIL_AT, C_TAIL_TOKENS, C_VALUE_CLIP_F, C_VALUE_CODEC, C_VALUE_ZERO_INT, H_CACHES_START,
} from "./ops";

let cache: usize = 0;

// @ts-ignore: decorator
@inline
function field(i: i32): i32 {
  return load<i32>(cache + ((<usize>i) << 2));
}

export function openCache(program: usize, index: i32): void {
  const start = load<i32>(program + ((<usize>H_CACHES_START) << 2));
  cache = program + ((<usize>(start + index * CACHE_WORDS)) << 2);
}

// @ts-ignore: decorator
@inline
export function codecOf(keys: bool): i32 {
  return field(keys ? C_KEY_CODEC : C_VALUE_CODEC);
}
// @ts-ignore: decorator
@inline
export function zeroIntOf(keys: bool): bool {
  return field(keys ? C_KEY_ZERO_INT : C_VALUE_ZERO_INT) != 0;
}
// @ts-ignore: decorator
@inline
export function clipOf(keys: bool): f32 {
  return reinterpret<f32>(field(keys ? C_KEY_CLIP_F : C_VALUE_CLIP_F));
}
export function queryBits(): i32 {
  return field(C_QUERY_BITS);
}
export function headHadamard(): bool {
  return field(C_HADAMARD) != 0;
}
export function positionLimit(): i32 {
  return field(C_MAX_PAGES) << 5;
}
export function slotLimit(): i32 {
  return field(C_SLOTS);
}

// @ts-ignore: decorator
@inline
export function isInt(codec: i32): bool {
  return codec == CODEC_INT8 || codec == CODEC_INT4;
}

/** Newest tokens that a kivi cache keeps exact; 0 for the other codecs. */
// @ts-ignore: decorator
@inline
export function residual(): i32 {
  return field(C_RESIDUAL);
}

/** Exact keys [tailTokens / 16][headDim][16] of a sequence's head; its values [tailTokens][headDim] follow. */
export function ringAt(sequence: i32, layer: i32, head: i32): usize {
  const ring = <usize>((sequence * field(C_LAYERS) + layer) * field(C_KV_HEADS) + head);
  const row = (<usize>field(C_HEAD_DIM)) << 2;
  return ((<usize>field(C_TAIL_AT)) << 6) + ring * 2 * <usize>field(C_TAIL_TOKENS) * row;
}
/** The exact keys [headDim][16] of the 16 tokens that `position` is among. */
export function ringKeys(ring: usize, position: i32): usize {
  return ring + <usize>((position % field(C_TAIL_TOKENS)) >> 4) * ((<usize>field(C_HEAD_DIM)) << 6);
}
/** The exact values from `position` on; those of a chunk stand together. */
export function ringValues(ring: usize, position: i32): usize {
  const row = (<usize>field(C_HEAD_DIM)) << 2;
  const tokens = field(C_TAIL_TOKENS);
  return ring + <usize>(tokens + position % tokens) * row;
}

/** Byte address of the page that holds `position` of a sequence in a layer; 0 after reporting a bad page number. */
export function pageAt(sequence: i32, layer: i32, position: i32): usize {
  const maxPages = field(C_MAX_PAGES);
  const entry = <usize>(sequence * field(C_LAYERS) + layer) * <usize>maxPages + <usize>(position >> 5);
  const page = load<u32>(((<usize>field(C_TABLE_AT)) << 6) + (entry << 2));
  if (page >= <u32>field(C_PAGES)) {
    fail();
    return 0;
  }
  return (<usize>field(C_POOL_AT) + <usize>page * <usize>field(C_PAGE_LINES)) << 6;
}

/** Keys or values of a KV head inside a page. */
// @ts-ignore: decorator
@inline
export function planeAt(page: usize, head: i32, keys: bool): usize {
  const at = page + ((<usize>head * <usize>field(C_HEAD_LINES)) << 6);
  return keys ? at : at + ((<usize>field(C_KEY_LINES)) << 6);
}

/** Offset of the f16 scales of a plane; the zeros stand 64 bytes further. Only int codecs. */
// @ts-ignore: decorator
@inline
export function parametersOf(codec: i32, headDim: i32): usize {
  return (<usize>headDim) << (codec == CODEC_INT4 ? 4 : 5);
}

/** Dims of a block whose two halves share bytes in int4 values. */
// @ts-ignore: decorator
@inline
export function valueBlock(headDim: i32): i32 {
  return (headDim & 63) == 0 ? 64 : headDim;
}

// @ts-ignore: decorator
@inline
export function isHalf(codec: i32): bool {
  return codec == CODEC_F16;
}
// @ts-ignore: decorator
@inline
export function isFloat(codec: i32): bool {
  return codec == CODEC_F32;
}
