/**
 * appendKv (exact class): per head QK-norm, RoPE, head Hadamard, query quantization, and the codecs that write keys and
 * values into the packed pages. Heads of all rows are split over threads.
 */
import {
  clipOf, codecOf, headHadamard, isFloat, isInt, openCache, pageAt, parametersOf, planeAt, positionLimit,
  queryBits, residual, ringAt, ringKeys, ringValues, slotLimit, valueBlock, zeroIntOf,
} from "./cache";
import { fail, operand, operandF, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { rowAt } from "./elementwise";
import { scaleAll, sylvester } from "./hadamard";
import { storeKiviKeys, storeKiviValue } from "./kivi";
import { clamp4, floatToHalf, halfToFloat, ROUND_BITS, roundBits } from "./math";
import { quantizeRow, rmsnormRow, signedMin } from "./norm-quantize";
import {
  APPEND_KV_CACHE_C, APPEND_KV_COS_AT, APPEND_KV_EPSILON_F, APPEND_KV_HEADS, APPEND_KV_HEAD_DIM,
  APPEND_KV_KEY_GAIN_AT, APPEND_KV_KV_HEADS, APPEND_KV_LAYER, APPEND_KV_LD_QKV, APPEND_KV_POSITIONS_AT,
  APPEND_KV_QKV_AT, APPEND_KV_QUERY_AT, APPEND_KV_QUERY_GAIN_AT, APPEND_KV_QUERY_SCALE_AT, APPEND_KV_QUERY_SUM_AT,
  APPEND_KV_SEQUENCES_AT, APPEND_KV_SIN_AT, CODEC_INT4,
} from "./ops";

const PAD: usize = 0;
const X: usize = 64;
// headDim is at most 1024.
const CODES: usize = 64 + 4096;

/** Rotates the halves of x [headDim] by the angles of one position. */
function rope(x: usize, cos: usize, sin: usize, headDim: i32): void {
  const half = headDim >> 1;
  const far = (<usize>half) << 2;
  let i = 0;
  for (; i + 4 <= half; i += 4) {
    const at = (<usize>i) << 2;
    const a = v128.load(x + at);
    const b = v128.load(x + far + at);
    const c = v128.load(cos + at);
    const s = v128.load(sin + at);
    v128.store(x + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)));
    v128.store(x + far + at, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)));
  }
  for (; i < half; i++) {
    const at = (<usize>i) << 2;
    const a = load<f32>(x + at);
    const b = load<f32>(x + far + at);
    const c = load<f32>(cos + at);
    const s = load<f32>(sin + at);
    store<f32>(x + at, a * c - b * s);
    store<f32>(x + far + at, b * c + a * s);
  }
}

/** Unsigned codes of x [headDim] at `codes`; f16 scale and zero at `parameters` and + 64 bytes. */
function encode(x: usize, headDim: i32, levels: f32, zeroInt: bool, clip: f32, codes: usize, parameters: usize): void {
  const start: f32 = zeroInt ? 0 : load<f32>(x);
  let low = clip * signedMin(x, headDim, 1, start);
  let high = clip * -signedMin(x, headDim, -1, -start);
  if (zeroInt && low == 0 && high == 0) {
    low = -1;
    high = 1;
  }
  let range = high - low;
  if (!zeroInt) range = max<f32>(range, 1e-5);
  let scaleBits = floatToHalf(range / levels);
  if (scaleBits == 0) scaleBits = 1;
  store<u16>(parameters, <u16>scaleBits);
  const inverse = <f32>1 / halfToFloat(scaleBits);
  // Value before scaling: x + offset (float zero); shift of the code after rounding: z (int zero).
  let offset: f32 = 0;
  let z: f32 = 0;
  if (zeroInt) {
    // 0 - low: the zero point of a row without negative values is +0.
    z = nearest<f32>((<f32>0 - low) * inverse);
    store<u16>(parameters, <u16>floatToHalf(z), 64);
  } else {
    const zeroBits = floatToHalf(<f32>0 - low);
    offset = halfToFloat(zeroBits);
    store<u16>(parameters, <u16>zeroBits, 64);
  }
  const inverse4 = f32x4.splat(inverse);
  const offset4 = f32x4.splat(offset);
  const low4 = f32x4.splat(0 - z);
  const high4 = f32x4.splat(levels - z);
  const shift = i32x4.splat(<i32>z - ROUND_BITS);
  for (let i = 0; i < headDim; i += 4) {
    let v = v128.load(x + ((<usize>i) << 2));
    if (!zeroInt) v = f32x4.add(v, offset4);
    v = i32x4.add(shift, roundBits(clamp4(f32x4.mul(v, inverse4), low4, high4)));
    v = i16x8.narrow_i32x4_s(v, v);
    v128.store32_lane(codes + i, i8x16.narrow_i16x8_u(v, v), 0);
  }
}

function storeKey(plane: usize, codec: i32, slot: i32, headDim: i32, x: usize): void {
  const half = slot >> 4;
  const position = slot & 15;
  if (!isInt(codec)) {
    let index = (<usize>(half * headDim)) * 16 + <usize>position;
    for (let d = 0; d < headDim; d++) {
      const value = load<f32>(x + ((<usize>d) << 2));
      if (isFloat(codec)) store<f32>(plane + (index << 2), value);
      else store<u16>(plane + (index << 1), <u16>floatToHalf(value));
      index += 16;
    }
    return;
  }
  const nibbles = codec == CODEC_INT4;
  const codes = scratch + CODES;
  const parameters = plane + parametersOf(codec, headDim) + ((<usize>slot) << 1);
  encode(x, headDim, nibbles ? 15 : 255, zeroIntOf(true), clipOf(true), codes, parameters);
  const dims = nibbles ? 8 : 4;
  let to = plane + <usize>((half * headDim) / dims) * 64 + ((<usize>position) << 2);
  for (let d = 0; d < headDim; d += dims) {
    let word = load<u32>(codes + d);
    if (nibbles) word |= load<u32>(codes + d, 4) << 4;
    store<u32>(to, word);
    to += 64;
  }
}

function storeValue(plane: usize, codec: i32, slot: i32, headDim: i32, x: usize): void {
  if (!isInt(codec)) {
    const row = <usize>(slot * headDim);
    if (isFloat(codec)) {
      memory.copy(plane + (row << 2), x, (<usize>headDim) << 2);
      return;
    }
    for (let d: usize = 0; d < <usize>headDim; d++) {
      store<u16>(plane + ((row + d) << 1), <u16>floatToHalf(load<f32>(x + (d << 2))));
    }
    return;
  }
  const nibbles = codec == CODEC_INT4;
  const codes = scratch + CODES;
  const parameters = plane + parametersOf(codec, headDim) + ((<usize>slot) << 1);
  encode(x, headDim, nibbles ? 15 : 255, zeroIntOf(false), clipOf(false), codes, parameters);
  if (!nibbles) {
    memory.copy(plane + <usize>(slot * headDim), codes, headDim);
    return;
  }
  const block = valueBlock(headDim);
  const half = block >> 1;
  let to = plane + <usize>((slot * headDim) >> 1);
  for (let b = 0; b < headDim; b += block) {
    for (let i = 0; i < half; i++) {
      store<u8>(to, load<u8>(codes + (b + i)) | (load<u8>(codes + (b + i + half)) << 4));
      to++;
    }
  }
}

/** A key or value of a kivi cache goes to the ring; values are coded at once. */
function storeKivi(keys: bool, plane: usize, ring: usize, position: i32, headDim: i32, x: usize): void {
  if (!keys) {
    memory.copy(ringValues(ring, position), x, (<usize>headDim) << 2);
    storeKiviValue(plane, codecOf(false), position & 31, headDim, x, scratch + CODES);
    return;
  }
  let to = ringKeys(ring, position) + ((<usize>(position & 15)) << 2);
  for (let d: usize = 0; d < <usize>headDim; d++) {
    store<f32>(to, load<f32>(x + (d << 2)));
    to += 64;
  }
}

// @ts-ignore: decorator
@inline
function endsPage(pc: usize, m: i32): bool {
  return (load<i32>(place(pc, APPEND_KV_POSITIONS_AT) + ((<usize>m) << 2)) & 31) == 31;
}

/** Phases of the instruction in this run: keys of a kivi cache are coded by pages, after all rows are in the ring. */
export function appendPhases(pc: usize, program: usize, rows: i32): i32 {
  openCache(program, operand(pc, APPEND_KV_CACHE_C));
  if (residual() == 0) return 1;
  for (let m = 0; m < rows; m++) if (endsPage(pc, m)) return 2;
  return 1;
}

/** Codes the keys of pages whose last token came in this run. */
function codeKeyPages(pc: usize, rows: i32): void {
  const kvHeads = operand(pc, APPEND_KV_KV_HEADS);
  const headDim = operand(pc, APPEND_KV_HEAD_DIM);
  const layer = operand(pc, APPEND_KV_LAYER);
  const items = rows * kvHeads;
  const end = shareOf(items, thread + 1);
  for (let item = shareOf(items, thread); item < end; item++) {
    const m = item / kvHeads;
    const head = item % kvHeads;
    if (!endsPage(pc, m)) continue;
    const position = load<i32>(place(pc, APPEND_KV_POSITIONS_AT) + ((<usize>m) << 2));
    const sequence = load<i32>(place(pc, APPEND_KV_SEQUENCES_AT) + ((<usize>m) << 2));
    const page = pageAt(sequence, layer, position);
    if (page == 0) return;
    const keys = ringKeys(ringAt(sequence, layer, head), position - 31);
    storeKiviKeys(planeAt(page, head, true), codecOf(true), headDim, keys, scratch + CODES);
  }
}

export function appendKv(pc: usize, program: usize, rows: i32, phase: i32): void {
  openCache(program, operand(pc, APPEND_KV_CACHE_C));
  if (phase == 1) return codeKeyPages(pc, rows);
  const heads = operand(pc, APPEND_KV_HEADS);
  const kvHeads = operand(pc, APPEND_KV_KV_HEADS);
  const headDim = operand(pc, APPEND_KV_HEAD_DIM);
  const norm: f32 = <f32>1 / sqrt<f32>(<f32>headDim);
  const epsilon = operandF(pc, APPEND_KV_EPSILON_F);
  const x = scratch + X;
  const perRow = heads + 2 * kvHeads;
  const items = rows * perRow;
  const end = shareOf(items, thread + 1);
  for (let item = shareOf(items, thread); item < end; item++) {
    const m = item / perRow;
    const h = item % perRow;
    const position = load<i32>(place(pc, APPEND_KV_POSITIONS_AT) + ((<usize>m) << 2));
    const sequence = load<i32>(place(pc, APPEND_KV_SEQUENCES_AT) + ((<usize>m) << 2));
    if (<u32>position >= <u32>positionLimit() || <u32>sequence >= <u32>slotLimit()) {
      fail();
      return;
    }
    const row = rowAt(place(pc, APPEND_KV_QKV_AT), m, operand(pc, APPEND_KV_LD_QKV));
    memory.copy(x, rowAt(row, h, headDim), (<usize>headDim) << 2);
    if (h < heads + kvHeads) {
      const gain = placeOrZero(pc, h < heads ? APPEND_KV_QUERY_GAIN_AT : APPEND_KV_KEY_GAIN_AT);
      if (gain != 0) rmsnormRow(x, x, headDim, gain, epsilon, scratch + PAD);
      rope(
        x,
        rowAt(place(pc, APPEND_KV_COS_AT), position, headDim >> 1),
        rowAt(place(pc, APPEND_KV_SIN_AT), position, headDim >> 1),
        headDim,
      );
      if (headHadamard()) {
        sylvester(x, headDim, headDim, 1);
        scaleAll(x, headDim, norm);
      }
    }
    if (h >= heads) {
      const keys = h < heads + kvHeads;
      const page = pageAt(sequence, operand(pc, APPEND_KV_LAYER), position);
      if (page == 0) return;
      if (residual() > 0) {
        const head = h - heads - (keys ? 0 : kvHeads);
        const ring = ringAt(sequence, operand(pc, APPEND_KV_LAYER), head);
        storeKivi(keys, planeAt(page, head, keys), ring, position, headDim, x);
      } else if (keys) storeKey(planeAt(page, h - heads, true), codecOf(true), position & 31, headDim, x);
      else storeValue(planeAt(page, h - heads - kvHeads, false), codecOf(false), position & 31, headDim, x);
      continue;
    }
    const query = m * heads + h;
    if (queryBits() == 32) {
      memory.copy(rowAt(place(pc, APPEND_KV_QUERY_AT), query, headDim), x, (<usize>headDim) << 2);
    } else {
      quantizeRow(
        x, headDim,
        place(pc, APPEND_KV_QUERY_AT) + <usize>query * <usize>headDim,
        rowAt(place(pc, APPEND_KV_QUERY_SCALE_AT), query, 1),
        rowAt(place(pc, APPEND_KV_QUERY_SUM_AT), query, 1),
        0, 8, 1, 0, 1,
      );
    }
  }
}
