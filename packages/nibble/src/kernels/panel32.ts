/**
 * Panel 32, the runtime layout of weights (docs/engine.md, section 4): output channels in panels of 32, so that one load
 * brings four columns of sixteen channels. Everything here is a pure permutation that writes straight into views of the
 * arena, one output channel at a time; nothing of the size of a matrix is copied.
 *
 * A *slot* is the place of an output channel: 32 * panel + lane. Views must be zero where no channel is written.
 */
import type { FloatType, PackedCodes } from "../encodings/types.js";
import { f32ToBf16, f32ToF16 } from "./reference/numerics.js";

export type SegmentWidth = 8 | 4 | 2 | 1;
/** One byte array for each set bit of the code width. */
export type CodeSegments = Partial<Record<SegmentWidth, Uint8Array>>;

export const PANEL = 32;
const STEP_BYTES = 128;
const WIDTHS: readonly SegmentWidth[] = [8, 4, 2, 1];

/** Segment widths of b-bit codes, widest (least significant) first: 6 -> [4, 2]. */
export function segmentWidths(bits: number): SegmentWidth[] {
  return WIDTHS.filter((width) => (bits & width) !== 0);
}

export function panelCount(n: number): number {
  return Math.ceil(n / PANEL);
}

/** Columns of integer codes after padding. */
export function paddedColumns(k: number): number {
  return Math.ceil(k / 32) * 32;
}

/** Number of groups of a row of k columns; groupSize 0 is one group. */
export function groupCount(k: number, groupSize: number): number {
  return groupSize > 0 ? Math.ceil(k / groupSize) : 1;
}

/** Bytes of the segment of `width` bits of an [n, k] matrix. */
export function segmentBytes(n: number, k: number, width: SegmentWidth): number {
  return (panelCount(n) * paddedColumns(k) * PANEL * width) / 8;
}

/** Zeroed segments for [n, k] codes of `bits` bits. */
export function allocateSegments(n: number, k: number, bits: number): CodeSegments {
  const segments: CodeSegments = {};
  for (const width of segmentWidths(bits))
    segments[width] = new Uint8Array(segmentBytes(n, k, width));
  return segments;
}

/** Slot of an output channel; `interleaved`: channels 0..n/2-1 are gate, n/2..n-1 are up. */
export function panelSlot(channel: number, n: number, interleaved: boolean): number {
  if (!interleaved) return channel;
  const half = n / 2;
  const i = channel < half ? channel : channel - half;
  return (i >> 4) * PANEL + (i & 15) + (channel < half ? 0 : 16);
}

/** Writes codes into panel segments, one channel at a time. */
export class PanelWriter {
  readonly #target: CodeSegments;
  readonly #k: number;
  readonly #kPad: number;
  readonly #bits: number;
  /** Values of one segment of the row, one byte each; columns beyond k stay 0. */
  readonly #row: Uint8Array;

  /** @param target zeroed views of `segmentBytes` bytes for each segment width of `bits` */
  constructor(target: CodeSegments, k: number, bits: number) {
    this.#target = target;
    this.#k = k;
    this.#kPad = paddedColumns(k);
    this.#bits = bits;
    this.#row = new Uint8Array(Math.ceil(k / 64) * 64);
  }

  /** Stores the k codes (one byte each) of the channel at `slot`. */
  write(slot: number, codes: Uint8Array): void {
    let shift = 0;
    const row = this.#row;
    for (const width of segmentWidths(this.#bits)) {
      const mask = (1 << width) - 1;
      for (let i = 0; i < this.#k; i++) row[i] = (codes[i] >> shift) & mask;
      this.#store(width, slot);
      shift += width;
    }
  }

  /** Stores row `sourceRow` of tile64 codes (layout of encodings/types.ts) as the channel at `slot`. */
  writePacked(slot: number, packed: PackedCodes, sourceRow: number): void {
    for (const width of segmentWidths(this.#bits)) {
      readTileRow(packed, width, sourceRow, this.#row);
      this.#store(width, slot);
    }
  }

  #store(width: SegmentWidth, slot: number): void {
    const target = this.#target[width] as Uint8Array; // the constructor's contract
    const row = this.#row;
    const columns = 32 / width;
    const fields = 8 / width;
    const steps = this.#kPad / columns;
    let at = slotOffset(slot, steps);
    if (width === 4) {
      // The common width, written out: seven times faster than the general loop.
      for (let k = 0; k < this.#kPad; k += 8, at += STEP_BYTES) {
        target[at] = row[k] | (row[k + 4] << 4);
        target[at + 1] = row[k + 1] | (row[k + 5] << 4);
        target[at + 2] = row[k + 2] | (row[k + 6] << 4);
        target[at + 3] = row[k + 3] | (row[k + 7] << 4);
      }
      return;
    }
    for (let k = 0; k < this.#kPad; k += columns, at += STEP_BYTES) {
      for (let r = 0; r < 4; r++) {
        let byte = 0;
        for (let t = 0; t < fields; t++) byte |= row[k + 4 * t + r] << (width * t);
        target[at + r] = byte;
      }
    }
  }
}

/** Byte of step 0 that holds the first code of a slot, in a segment of `steps` steps a panel. */
function slotOffset(slot: number, steps: number): number {
  const lane = slot & 31;
  return (slot >> 5) * steps * STEP_BYTES + (lane >> 4) * 64 + (lane & 15) * 4;
}

/** One segment's values of a tile64 row, one byte each, columns padded to 64. */
function readTileRow(packed: PackedCodes, width: SegmentWidth, row: number, out: Uint8Array): void {
  const source = packed.segments[width] as Uint8Array; // PackedCodes has one segment a set bit
  const tiles = Math.ceil(packed.cols / 64);
  const bytes = 8 * width;
  let at = row * tiles * bytes;
  for (let tile = 0; tile < tiles; tile++, at += bytes) {
    const base = 64 * tile;
    if (width === 1) {
      for (let j = 0; j < 64; j++) out[base + j] = (source[at + (j >> 3)] >> (j & 7)) & 1;
      continue;
    }
    const mask = (1 << width) - 1;
    for (let t = 0; t < 8 / width; t++) {
      for (let i = 0; i < bytes; i++)
        out[base + t * bytes + i] = (source[at + i] >> (width * t)) & mask;
    }
  }
}

/** The k codes of the channel at `slot`, one byte each, into `out` (length >= k). */
export function readPanelCodes(
  segments: CodeSegments,
  slot: number,
  k: number,
  bits: number,
  out: Uint8Array,
): void {
  out.fill(0, 0, k);
  let shift = 0;
  for (const width of segmentWidths(bits)) {
    const source = segments[width] as Uint8Array; // one segment a set bit
    const columns = 32 / width;
    const steps = paddedColumns(k) / columns;
    const mask = (1 << width) - 1;
    let at = slotOffset(slot, steps);
    for (let first = 0; first < k; first += columns, at += STEP_BYTES) {
      const end = Math.min(columns, k - first);
      for (let i = 0; i < end; i++) {
        const value = (source[at + (i & 3)] >> (width * (i >> 2))) & mask;
        out[first + i] |= value << shift;
      }
    }
    shift += width;
  }
}

/**
 * Panels of a whole matrix.
 * @param codes [n, k] unpacked, one byte a code; `interleaved`: rows 0..n/2-1 gate, n/2..n-1 up
 */
export function packPanel32(
  codes: Uint8Array,
  n: number,
  k: number,
  bits: number,
  interleaved = false,
): CodeSegments {
  const segments = allocateSegments(n, k, bits);
  const writer = new PanelWriter(segments, k, bits);
  for (let row = 0; row < n; row++) {
    writer.write(panelSlot(row, n, interleaved), codes.subarray(row * k, (row + 1) * k));
  }
  return segments;
}

/** Inverse of `packPanel32`: [n, k] codes, one byte each. */
export function unpackPanel32(
  segments: CodeSegments,
  n: number,
  k: number,
  bits: number,
  interleaved = false,
): Uint8Array {
  const codes = new Uint8Array(n * k);
  for (let row = 0; row < n; row++) {
    const out = codes.subarray(row * k, (row + 1) * k);
    readPanelCodes(segments, panelSlot(row, n, interleaved), k, bits, out);
  }
  return codes;
}

/**
 * Stores one value per column (or per group) of the channel at `slot`, values[from..], into `[panels][count][32]`: scales, float zeros,
 * integer zeros (Uint8Array), code sums (Int32Array), dense f32 weights.
 */
export function writePanelRow(
  target: Float32Array | Int32Array | Uint8Array | Uint16Array,
  slot: number,
  count: number,
  values: ArrayLike<number>,
  from = 0,
): void {
  let at = (slot >> 5) * count * PANEL + (slot & 31);
  for (let i = from; i < from + count; i++, at += PANEL) target[at] = values[i];
}

/** Columns of one step of `packDensePanels`: 32 rows and their panel stay in the first cache level. */
const DENSE_BLOCK = 64;

/**
 * Stores all rows of a dense matrix at once: the same permutation as `writePanelRow` row by row, in an order that the
 * cache likes (a row at a time touches every line of a panel 32 times).
 * @param target [panels, k, 32]
 * @param rows the channels in slot order: row of `data` at `offset`, or null for an empty slot (written as zeros)
 */
export function packDensePanels(
  target: Float32Array,
  k: number,
  rows: readonly ({ data: Float32Array; offset: number } | null)[],
): void {
  const none = { data: new Float32Array(k), offset: 0 };
  for (let first = 0; first < rows.length; first += PANEL) {
    const base = first * k;
    for (let from = 0; from < k; from += DENSE_BLOCK) {
      const to = Math.min(from + DENSE_BLOCK, k);
      for (let lane = 0; lane < PANEL; lane++) {
        const { data, offset } = rows[first + lane] ?? none;
        let at = base + from * PANEL + lane;
        for (let i = from; i < to; i++, at += PANEL) target[at] = data[offset + i];
      }
    }
  }
}

/** As `writePanelRow`, converting f32 values to the stored type. f16 and bf16 targets are Uint16Array. */
export function writePanelFloats(
  target: Float32Array | Uint16Array,
  type: FloatType,
  slot: number,
  count: number,
  values: ArrayLike<number>,
  from = 0,
): void {
  if (type === "f32") {
    writePanelRow(target, slot, count, values, from);
    return;
  }
  const convert = type === "f16" ? f32ToF16 : f32ToBf16;
  let at = (slot >> 5) * count * PANEL + (slot & 31);
  for (let i = from; i < from + count; i++, at += PANEL) target[at] = convert(values[i]);
}

/** Sum of the codes of each group's real columns, into `out` [groups]. */
export function groupCodeSums(
  codes: Uint8Array,
  k: number,
  groupSize: number,
  out: Int32Array,
): void {
  const size = groupSize > 0 ? groupSize : k;
  for (let g = 0, start = 0; start < k; g++, start += size) {
    const end = Math.min(start + size, k);
    let sum = 0;
    for (let i = start; i < end; i++) sum += codes[i];
    out[g] = sum;
  }
}
