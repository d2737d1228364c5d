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

/** Adds the codes of one segment (4 channels, one column) to `c`. r: byte of the channel, t: group of 4 columns. */
// @ts-ignore: decorator
@inline
function codesOf(c: v128, at: usize, width: i32, t: i32, r: i32, shift: i32): v128 {
  const mask = i32x4.splat((1 << width) - 1);
  const v = i32x4.shr_u(v128.load(at), (r << 3) + t * width);
  return v128.or(c, i32x4.shl(v128.and(v, mask), shift));
}

/** Codes of 4 channels (quarter q of half `half`) in column `column` of panel p. */
export function codes4(p: i32, half: i32, q: i32, column: i32): v128 {
  const r = column & 3;
  const quad = column >> 2;
  const skip = (<usize>half << 6) + (<usize>q << 4);
  const panel = <usize>p * <usize>kPad << 2;
  let c = i32x4.splat(0);
  if (seg8 != 0) c = codesOf(c, seg8 + panel * 8 + (<usize>quad << 7) + skip, 8, 0, r, 0);
  if (seg4 != 0) c = codesOf(c, seg4 + panel * 4 + (<usize>(quad >> 1) << 7) + skip, 4, quad & 1, r, 0);
  if (seg2 != 0) c = codesOf(c, seg2 + panel * 2 + (<usize>(quad >> 2) << 7) + skip, 2, quad & 3, r, shift2);
  if (seg1 != 0) c = codesOf(c, seg1 + panel + (<usize>(quad >> 3) << 7) + skip, 1, quad & 7, r, shift1);
  return c;
}

/** Fast path of plain 4-bit codes: eight columns of four channels at once, stride 64 bytes a column. */
// @ts-ignore: decorator
@inline
function decodeStep4(from: usize, z: v128, out: usize): void {
  const m = i32x4.splat(15);
  const v = v128.load(from);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(v, m)), z));
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 8), m)), z), 64);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 16), m)), z), 128);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 24), m)), z), 192);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 4), m)), z), 256);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 12), m)), z), 320);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 20), m)), z), 384);
  v128.store(out, f32x4.sub(f32x4.convert_i32x4_s(i32x4.shr_u(v, 28)), z), 448);
}

function decodeGint(p: i32, half: i32, from: i32, to: i32, out: usize): void {
  const only4 = bits == 4;
  for (let q = 0; q < 4; q++) {
    const channel = (half << 4) + (q << 2);
    let g = from / groupSize;
    let stop = from;
    let z = f32x4.splat(0);
    let at = out + (<usize>q << 4);
    let column = from;
    while (column < to) {
      if (column == stop || column == from) {
        z = zeros4(p, g, channel);
        stop = min<i32>((g + 1) * groupSize, to);
        g++;
      }
      if (only4 && (column & 7) == 0) {
        let step = seg4 + (<usize>p * <usize>kPad << 4) + (<usize>(column >> 3) << 7) + (<usize>half << 6) + (<usize>q << 4);
        for (; column + 8 <= stop; column += 8) {
          decodeStep4(step, z, at);
          step += 128;
          at += 512;
        }
      }
      for (; column < stop; column++) {
        v128.store(at, f32x4.sub(f32x4.convert_i32x4_s(codes4(p, half, q, column)), z));
        at += 64;
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

function decodeLut(p: i32, half: i32, from: i32, to: i32, sign: i32, out: usize): void {
  for (let column = from; column < to; column++) {
    for (let q = 0; q < 4; q++) {
      const c = codes4(p, half, q, column);
      let table = tableAt;
      let step: usize = 0;
      let c0 = i32x4.extract_lane(c, 0);
      let c1 = i32x4.extract_lane(c, 1);
      let c2 = i32x4.extract_lane(c, 2);
      let c3 = i32x4.extract_lane(c, 3);
      if (tableScope != 0) {
        // One table a row: [panels][2^bits][32 channels].
        table += (<usize>p << bits << 7) + (<usize>((half << 4) + (q << 2)) << 2);
        step = 1;
        c0 <<= 5;
        c1 <<= 5;
        c2 <<= 5;
        c3 <<= 5;
      }
      step <<= 2;
      store<f32>(out, entry(table, c0, sign));
      store<f32>(out, entry(table + step, c1, sign), 4);
      store<f32>(out, entry(table + 2 * step, c2, sign), 8);
      store<f32>(out, entry(table + 3 * step, c3, sign), 12);
      out += 16;
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
  const c = codes4(p, channel >> 4, (channel >> 2) & 3, column);
  const r = channel & 3;
  if (r == 0) return i32x4.extract_lane(c, 0);
  if (r == 1) return i32x4.extract_lane(c, 1);
  return r == 2 ? i32x4.extract_lane(c, 2) : i32x4.extract_lane(c, 3);
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
