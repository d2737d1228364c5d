/**
 * Decoding of weights to f32 (the generic path for every encoding): a half-panel as [columns][16 channels], or one row of a
 * table (embed). gint gives c - z without the scale, lut gives the table entry; scales are applied by the caller.
 */
import { fail, operand, place, shareOf, thread } from "./control";
import { rowAt } from "./elementwise";
import { halfToFloat, widenHalf4 } from "./math";
import {
  EMBED_DST_AT, EMBED_LD_DST, EMBED_TABLE_W, EMBED_TOKENS_AT, KIND_BF16, KIND_F16, KIND_F32, KIND_GINT, ZERO_FLOAT,
} from "./ops";
import {
  bits, denseAt, groupSize, k, kPad, kind, n, openWeight, scaleAt, scaleHalf, seg1, seg2, seg4, seg8, shift1, shift2,
  groups, tableAt, tableScope, zeroAt, zeroConst, zeroKind, zeros4,
} from "./weight";

/** Which entries of a lut to keep: all, those >= 0, those < 0. */
export const SIGN_ALL: i32 = 0;
export const SIGN_POSITIVE: i32 = 1;
export const SIGN_NEGATIVE: i32 = 2;

/** Codes of 4 channels and the 4 columns of a quad as bytes [channel][column]; places are 0 where a segment is absent. */
// @ts-ignore: decorator
@inline
export function quadCodes(at8: usize, at4: usize, at2: usize, at1: usize, quad: i32): v128 {
  if (at8 != 0) return v128.load(at8 + ((<usize>quad) << 7));
  let c = i32x4.splat(0);
  if (at4 != 0) {
    const v = v128.load(at4 + ((<usize>(quad >> 1)) << 7));
    c = v128.and(i16x8.shr_u(v, (quad & 1) << 2), i8x16.splat(15));
  }
  if (at2 != 0) {
    const v = v128.load(at2 + ((<usize>(quad >> 2)) << 7));
    c = v128.or(c, i16x8.shl(v128.and(i16x8.shr_u(v, (quad & 3) << 1), i8x16.splat(3)), shift2));
  }
  if (at1 != 0) {
    const v = v128.load(at1 + ((<usize>(quad >> 3)) << 7));
    c = v128.or(c, i16x8.shl(v128.and(i16x8.shr_u(v, quad & 7), i8x16.splat(1)), shift1));
  }
  return c;
}

/** Byte r of each i32 lane, as i32. A constant index makes this one instruction. */
// @ts-ignore: decorator
@inline
export function byte0(v: v128): v128 {
  return i8x16.swizzle(v, i32x4(0x80808000, 0x80808004, 0x80808008, 0x8080800c));
}
// @ts-ignore: decorator
@inline
export function byte1(v: v128): v128 {
  return i8x16.swizzle(v, i32x4(0x80808001, 0x80808005, 0x80808009, 0x8080800d));
}
// @ts-ignore: decorator
@inline
export function byte2(v: v128): v128 {
  return i8x16.swizzle(v, i32x4(0x80808002, 0x80808006, 0x8080800a, 0x8080800e));
}
// @ts-ignore: decorator
@inline
export function byte3(v: v128): v128 {
  return i32x4.shr_u(v, 24);
}

/** Place of quarter q of half `half` of panel p in a segment of `width` bits; 0 when the segment is absent. */
// @ts-ignore: decorator
@inline
function quarterAt(segment: usize, width: usize, p: i32, half: i32, q: i32): usize {
  if (segment == 0) return 0;
  return segment + ((<usize>p * <usize>kPad) << 2) * width + ((<usize>half) << 6) + ((<usize>q) << 4);
}

/** Decodes whole quads: up to three columns beyond `to` are written too. */
function decodeGint(p: i32, half: i32, from: i32, to: i32, out: usize): void {
  for (let q = 0; q < 4; q++) {
    const at8 = quarterAt(seg8, 8, p, half, q);
    const at4 = quarterAt(seg4, 4, p, half, q);
    const at2 = quarterAt(seg2, 2, p, half, q);
    const at1 = quarterAt(seg1, 1, p, half, q);
    let g = from / groupSize;
    let at = out + ((<usize>q) << 4);
    for (let column = from; column < to; g++) {
      const z = zeros4(p, g, (half << 4) + (q << 2));
      const stop = min<i32>((g + 1) * groupSize, to);
      for (; column < stop; column += 4) {
        const c = quadCodes(at8, at4, at2, at1, column >> 2);
        v128.store(at, f32x4.sub(f32x4.convert_i32x4_s(byte0(c)), z));
        v128.store(at, f32x4.sub(f32x4.convert_i32x4_s(byte1(c)), z), 64);
        v128.store(at, f32x4.sub(f32x4.convert_i32x4_s(byte2(c)), z), 128);
        v128.store(at, f32x4.sub(f32x4.convert_i32x4_s(byte3(c)), z), 192);
        at += 256;
      }
    }
  }
}

// @ts-ignore: decorator
@inline
function entry(table: usize, code: i32, sign: i32): f32 {
  const value = load<f32>(table + (<usize>code << 2));
  if (sign == SIGN_ALL) return value;
  return value < 0 == (sign == SIGN_NEGATIVE) ? value : 0;
}

/** Entry of a shared table for each of the 16 bytes, as four vectors [column][4 channels], 64 bytes apart. */
// @ts-ignore: decorator
@inline
function lookUp16(codes: v128, t0: v128, t1: v128, t2: v128, t3: v128, out: usize): void {
  // Bytes [channel][column] -> [column][channel], then the four byte planes of the f32 entries, then interleaved.
  const c = i8x16.swizzle(codes, i8x16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const b0 = i8x16.swizzle(t0, c);
  const b1 = i8x16.swizzle(t1, c);
  const b2 = i8x16.swizzle(t2, c);
  const b3 = i8x16.swizzle(t3, c);
  const low0 = i8x16.shuffle(b0, b1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const low1 = i8x16.shuffle(b0, b1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const high0 = i8x16.shuffle(b2, b3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const high1 = i8x16.shuffle(b2, b3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  v128.store(out, i16x8.shuffle(low0, high0, 0, 8, 1, 9, 2, 10, 3, 11));
  v128.store(out, i16x8.shuffle(low0, high0, 4, 12, 5, 13, 6, 14, 7, 15), 64);
  v128.store(out, i16x8.shuffle(low1, high1, 0, 8, 1, 9, 2, 10, 3, 11), 128);
  v128.store(out, i16x8.shuffle(low1, high1, 4, 12, 5, 13, 6, 14, 7, 15), 192);
}

/** A shared table of at most 16 entries: by byte shuffles, whole quads at a time. */
function decodeSmallLut(p: i32, half: i32, from: i32, to: i32, sign: i32, out: usize): void {
  // The table's four byte planes.
  let t0 = i8x16.splat(0);
  let t1 = t0;
  let t2 = t0;
  let t3 = t0;
  const size = 1 << bits;
  for (let i = 15; i >= 0; i--) {
    const word = i < size ? reinterpret<u32>(entry(tableAt, i, sign)) : 0;
    // Entries enter at lane 0 and move up: after 16 steps entry i stands in lane i.
    t0 = i8x16.replace_lane(shiftUp(t0), 0, <i8>word);
    t1 = i8x16.replace_lane(shiftUp(t1), 0, <i8>(word >> 8));
    t2 = i8x16.replace_lane(shiftUp(t2), 0, <i8>(word >> 16));
    t3 = i8x16.replace_lane(shiftUp(t3), 0, <i8>(word >> 24));
  }
  for (let q = 0; q < 4; q++) {
    const at4 = quarterAt(seg4, 4, p, half, q);
    const at2 = quarterAt(seg2, 2, p, half, q);
    const at1 = quarterAt(seg1, 1, p, half, q);
    let at = out + ((<usize>q) << 4);
    for (let column = from; column < to; column += 4) {
      lookUp16(quadCodes(0, at4, at2, at1, column >> 2), t0, t1, t2, t3, at);
      at += 256;
    }
  }
}

// @ts-ignore: decorator
@inline
function shiftUp(v: v128): v128 {
  return i8x16.shuffle(v, v, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
}

function decodeLut(p: i32, half: i32, from: i32, to: i32, sign: i32, out: usize): void {
  if (tableScope == 0 && bits <= 4) {
    decodeSmallLut(p, half, from, to, sign, out);
    return;
  }
  for (let q = 0; q < 4; q++) {
    const at8 = quarterAt(seg8, 8, p, half, q);
    const at4 = quarterAt(seg4, 4, p, half, q);
    const at2 = quarterAt(seg2, 2, p, half, q);
    const at1 = quarterAt(seg1, 1, p, half, q);
    // One table a row: [panels][2^bits][32 channels].
    const perRow = tableScope != 0;
    const channel = (half << 4) + (q << 2);
    const table = perRow ? tableAt + (((<usize>p) << bits) << 7) + ((<usize>channel) << 2) : tableAt;
    const step: usize = perRow ? 4 : 0;
    const shift = perRow ? 5 : 0;
    let at = out + ((<usize>q) << 4);
    for (let column = from; column < to; column += 4) {
      let c = quadCodes(at8, at4, at2, at1, column >> 2);
      for (let r = 0; r < 4; r++) {
        const b = byte0(c);
        store<f32>(at, entry(table, i32x4.extract_lane(b, 0) << shift, sign));
        store<f32>(at, entry(table + step, i32x4.extract_lane(b, 1) << shift, sign), 4);
        store<f32>(at, entry(table + 2 * step, i32x4.extract_lane(b, 2) << shift, sign), 8);
        store<f32>(at, entry(table + 3 * step, i32x4.extract_lane(b, 3) << shift, sign), 12);
        c = i32x4.shr_u(c, 8);
        at += 64;
      }
    }
  }
}

/** Four dense values (a multiple of 4 in [panel][k][32]) at element `index`. */
// @ts-ignore: decorator
@inline
export function dense4(index: usize): v128 {
  if (kind == KIND_F32) return v128.load(denseAt + (index << 2));
  const h = i32x4.extend_low_i16x8_u(v128.load64_zero(denseAt + (index << 1)));
  return kind == KIND_F16 ? widenHalf4(h) : i32x4.shl(h, 16);
}

function decodeDense(p: i32, half: i32, from: i32, to: i32, out: usize): void {
  let index = (<usize>p * <usize>k + <usize>from) * 32 + (<usize>half << 4);
  for (let column = from; column < to; column++) {
    v128.store(out, dense4(index));
    v128.store(out, dense4(index + 4), 16);
    v128.store(out, dense4(index + 8), 32);
    v128.store(out, dense4(index + 12), 48);
    index += 32;
    out += 64;
  }
}

/** Columns from..to of a half-panel as f32 [column][16] at out. `sign` selects entries of a lut. */
export function decodeHalf(p: i32, half: i32, from: i32, to: i32, sign: i32, out: usize): void {
  if (kind <= KIND_BF16) decodeDense(p, half, from, to, out);
  else if (kind == KIND_GINT) decodeGint(p, half, from, to, out);
  else decodeLut(p, half, from, to, sign, out);
}

/** One code of row `channel` (0..31) of panel p. */
function codeAt(p: i32, channel: i32, column: i32): i32 {
  const half = channel >> 4;
  const q = (channel >> 2) & 3;
  const c = quadCodes(
    quarterAt(seg8, 8, p, half, q), quarterAt(seg4, 4, p, half, q), quarterAt(seg2, 2, p, half, q),
    quarterAt(seg1, 1, p, half, q), column >> 2,
  );
  const r = channel & 3;
  const word = r == 0
    ? i32x4.extract_lane(c, 0)
    : r == 1 ? i32x4.extract_lane(c, 1) : r == 2 ? i32x4.extract_lane(c, 2) : i32x4.extract_lane(c, 3);
  return (word >>> ((column & 3) << 3)) & 255;
}

/** A scale or zero of one channel. */
function groupValue(base: usize, index: usize): f32 {
  return scaleHalf ? halfToFloat(load<u16>(base + (index << 1))) : load<f32>(base + (index << 2));
}

/** Row `row` of the open table as f32: gint s * (c - z), one rounding each; dense as it stands. */
function tableRow(row: i32, out: usize): void {
  const p = row >> 5;
  const channel = row & 31;
  if (kind <= KIND_BF16) {
    let index = <usize>p * <usize>k * 32 + <usize>channel;
    for (let column = 0; column < k; column++) {
      let value: f32;
      if (kind == KIND_F32) value = load<f32>(denseAt + (index << 2));
      else if (kind == KIND_F16) value = halfToFloat(load<u16>(denseAt + (index << 1)));
      else value = reinterpret<f32>(<u32>load<u16>(denseAt + (index << 1)) << 16);
      store<f32>(out + (<usize>column << 2), value);
      index += 32;
    }
    return;
  }
  for (let g = 0; g < groups; g++) {
    const index = (<usize>p * <usize>groups + <usize>g) * 32 + <usize>channel;
    const scale: f32 = scaleAt == 0 ? 1 : groupValue(scaleAt, index);
    let z = zeroConst;
    if (zeroAt != 0) z = zeroKind == ZERO_FLOAT ? groupValue(zeroAt, index) : <f32>load<u8>(zeroAt + index);
    const stop = min<i32>((g + 1) * groupSize, k);
    for (let column = g * groupSize; column < stop; column++) {
      const c = codeAt(p, channel, column);
      let value: f32;
      if (kind == KIND_GINT) value = scale * (<f32>c - z);
      else if (tableScope == 0) value = scale * load<f32>(tableAt + (<usize>c << 2));
      else value = scale * load<f32>(tableAt + (((((<usize>p) << bits) + <usize>c) * 32 + <usize>channel) << 2));
      store<f32>(out + (<usize>column << 2), value);
    }
  }
}

/** dst[m] = row tokens[m] of the table. */
export function embed(pc: usize, program: usize, rows: i32): void {
  openWeight(program, operand(pc, EMBED_TABLE_W));
  const tokens = place(pc, EMBED_TOKENS_AT);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const token = load<u32>(tokens + (<usize>m << 2));
    if (token >= <u32>n) {
      fail();
      return;
    }
    tableRow(<i32>token, rowAt(place(pc, EMBED_DST_AT), m, operand(pc, EMBED_LD_DST)));
  }
}
