/**
 * Layout "tile64" of b-bit codes (storage-formats, section 3): power-of-two segments that never straddle bytes (3 = 2 + 1,
 * 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1, the widest holds the low bits); rows are padded with code 0 to tiles of 64. In a tile,
 * byte i of a w-bit segment holds codes i, i + 8 w, i + 16 w …; 1-bit segments are a little-endian bit string instead.
 */
import { NumericError } from "../core/errors.js";
import type { PackedCodes } from "./types.js";

export type SegmentWidth = 8 | 4 | 2 | 1;
const WIDTHS: readonly SegmentWidth[] = [8, 4, 2, 1];
const TILE = 64;

/** Segment widths of a code, widest (least significant bits) first. bits 1..8. */
export function segmentWidths(bits: number): SegmentWidth[] {
  return WIDTHS.filter((width) => bits & width);
}

/** Bytes of one row of a segment. */
export function rowBytes(cols: number, width: SegmentWidth): number {
  return Math.ceil(cols / TILE) * 8 * width;
}

/** Stored bytes of [rows, cols] codes. */
export function packedBytes(bits: number, rows: number, cols: number): number {
  return segmentWidths(bits).reduce((sum, width) => sum + rows * rowBytes(cols, width), 0);
}

/** Codes of the given shape, all 0. @throws NumericError unless bits is an integer in 1..8. */
export function allocateCodes(bits: number, rows: number, cols: number): PackedCodes {
  if (!Number.isInteger(bits) || bits < 1 || bits > 8) {
    throw new NumericError(`codes of ${bits} bits cannot be packed`, { hint: "Use 1 to 8 bits." });
  }
  const segments: PackedCodes["segments"] = {};
  for (const width of segmentWidths(bits)) {
    segments[width] = new Uint8Array(rows * rowBytes(cols, width));
  }
  return { bits, rows, cols, segments };
}

/** Packs unpacked codes [rows, cols], one byte a code. @throws NumericError when a code needs more than `bits` bits. */
export function packCodes(
  codes: Uint8Array,
  bits: number,
  rows: number,
  cols: number,
): PackedCodes {
  const packed = allocateCodes(bits, rows, cols);
  packRows(packed, 0, codes);
  return packed;
}

/** Writes rows `from`.. of `packed` from unpacked codes [count, cols]. @throws NumericError as packCodes. */
export function packRows(packed: PackedCodes, from: number, codes: Uint8Array): void {
  const { bits, cols } = packed;
  const count = cols === 0 ? 0 : codes.length / cols;
  if (!Number.isInteger(count) || from + count > packed.rows) {
    throw new NumericError(`${codes.length} codes are no rows of ${packed.rows} x ${cols}`);
  }
  let seen = 0;
  for (let i = 0; i < codes.length; i++) seen |= codes[i];
  if (seen >> bits !== 0) throw new NumericError(`a code does not fit in ${bits} bits`);
  const tiles = Math.ceil(cols / TILE);
  const padded = new Uint8Array(tiles * TILE);
  for (let r = 0; r < count; r++) {
    padded.set(codes.subarray(r * cols, (r + 1) * cols));
    let shift = 0;
    for (const width of segmentWidths(bits)) {
      const bytes = packed.segments[width] as Uint8Array;
      packRow(padded, shift, width, bytes, (from + r) * tiles * 8 * width);
      shift += width;
    }
  }
}

function packRow(
  row: Uint8Array,
  shift: number,
  width: SegmentWidth,
  out: Uint8Array,
  at: number,
): void {
  for (let tile = 0; tile < row.length; tile += TILE) {
    switch (width) {
      case 8:
        for (let i = 0; i < 64; i++) out[at + i] = row[tile + i];
        break;
      case 4:
        for (let i = 0; i < 32; i++) {
          const low = (row[tile + i] >> shift) & 15;
          out[at + i] = low | (((row[tile + 32 + i] >> shift) & 15) << 4);
        }
        break;
      case 2:
        for (let i = 0; i < 16; i++) {
          const low = ((row[tile + i] >> shift) & 3) | (((row[tile + 16 + i] >> shift) & 3) << 2);
          const high =
            ((row[tile + 32 + i] >> shift) & 3) | (((row[tile + 48 + i] >> shift) & 3) << 2);
          out[at + i] = low | (high << 4);
        }
        break;
      case 1:
        for (let i = 0; i < 8; i++) {
          let byte = 0;
          for (let j = 0; j < 8; j++) byte |= ((row[tile + 8 * i + j] >> shift) & 1) << j;
          out[at + i] = byte;
        }
        break;
    }
    at += 8 * width;
  }
}

/**
 * Unpacks rows [from, to) to one byte a code, [to - from, cols] row-major, into `out` if given.
 * @throws NumericError when the range lies outside or `out` is too small.
 */
export function unpackCodes(
  packed: PackedCodes,
  from = 0,
  to = packed.rows,
  out?: Uint8Array,
): Uint8Array {
  const { bits, cols } = packed;
  const target = out ?? new Uint8Array((to - from) * cols);
  if (from < 0 || to > packed.rows || target.length < (to - from) * cols) {
    throw new NumericError(`rows ${from}..${to} do not fit (${packed.rows} x ${cols} codes)`);
  }
  const tiles = Math.ceil(cols / TILE);
  const whole = cols === tiles * TILE;
  const row = new Uint8Array(tiles * TILE);
  for (let r = from; r < to; r++) {
    const at = (r - from) * cols;
    const destination = whole ? target.subarray(at, at + cols) : row;
    let shift = 0;
    for (const width of segmentWidths(bits)) {
      const bytes = packed.segments[width] as Uint8Array;
      unpackRow(bytes, r * tiles * 8 * width, width, shift, destination);
      shift += width;
    }
    if (!whole) target.set(row.subarray(0, cols), at);
  }
  return target;
}

/** The first segment (shift 0) overwrites, the others are added. */
function unpackRow(
  bytes: Uint8Array,
  start: number,
  width: SegmentWidth,
  shift: number,
  row: Uint8Array,
): void {
  const keep = shift === 0 ? 0 : 255;
  let at = start;
  for (let tile = 0; tile < row.length; tile += TILE) {
    switch (width) {
      case 8:
        for (let i = 0; i < 64; i++) row[tile + i] = bytes[at + i];
        break;
      case 4:
        for (let i = tile; i < tile + 32; i++) {
          const byte = bytes[at + i - tile];
          row[i] = (row[i] & keep) | ((byte & 15) << shift);
          row[i + 32] = (row[i + 32] & keep) | ((byte >> 4) << shift);
        }
        break;
      case 2:
        for (let i = tile; i < tile + 16; i++) {
          const byte = bytes[at + i - tile];
          row[i] = (row[i] & keep) | ((byte & 3) << shift);
          row[i + 16] = (row[i + 16] & keep) | (((byte >> 2) & 3) << shift);
          row[i + 32] = (row[i + 32] & keep) | (((byte >> 4) & 3) << shift);
          row[i + 48] = (row[i + 48] & keep) | ((byte >> 6) << shift);
        }
        break;
      case 1:
        for (let i = 0; i < 64; i++) {
          const bit = (bytes[at + (i >> 3)] >> (i & 7)) & 1;
          row[tile + i] = (row[tile + i] & keep) | (bit << shift);
        }
        break;
    }
    at += 8 * width;
  }
}
