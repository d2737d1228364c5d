/**
 * The sparse side of a dense-and-sparse group: how many entries each row has (one byte), then column numbers of one byte,
 * then half floats. 24 bits an entry and 8 bits a row. A head has at most 256 columns.
 */
import { readHalf, writeHalf } from "./code-words.js";

/** Largest count that a byte holds. */
const ROW_MAX = 255;

/** Bytes in front of the half floats of `rows` rows and `count` entries: even. */
const headBytes = (rows: number, count: number) => (rows + count + 1) & ~1;

/** Bytes of a part with `count` entries; parts behind it stay even. */
export function sparseBytes(rows: number, count: number): number {
  return headBytes(rows, count) + 2 * count;
}

/** Entries of a mask [rows, columns]. In a row of 256 marks the last is taken back: that value stays as it is coded. */
export function countSparse(mask: Uint8Array, rows: number, columns: number): number {
  let count = 0;
  for (let t = 0; t < rows; t++) {
    let inRow = 0;
    for (let i = t * columns; i < (t + 1) * columns; i++) {
      if (mask[i] === 1 && ++inRow > ROW_MAX) {
        mask[i] = 0;
        inRow--;
      }
    }
    count += inRow;
  }
  return count;
}

/** Packs the entries of `values` [rows, columns] that `mask` marks (`count` of them) to out[at ..]. */
export function packSparse(
  mask: Uint8Array,
  count: number,
  values: Float32Array,
  rows: number,
  columns: number,
  out: Uint8Array,
  at: number,
): void {
  let index = at + rows;
  let value = at + headBytes(rows, count);
  for (let t = 0; t < rows; t++) {
    const first = index;
    for (let c = 0; c < columns; c++) {
      if (mask[t * columns + c] === 0) continue;
      out[index++] = c;
      writeHalf(out, value, values[t * columns + c]);
      value += 2;
    }
    out[at + t] = index - first;
  }
}

/** Puts the entries of the first `n` rows in place of (or, with `add`, on top of) out [n, columns]. `rows`: rows packed. */
export function applySparse(
  src: Uint8Array,
  at: number,
  rows: number,
  n: number,
  columns: number,
  out: Float32Array,
  add: boolean,
): void {
  let count = 0;
  for (let t = 0; t < rows; t++) count += src[at + t];
  let index = at + rows;
  let value = at + headBytes(rows, count);
  for (let t = 0; t < n; t++) {
    for (let end = index + src[at + t]; index < end; index++, value += 2) {
      const place = t * columns + src[index];
      out[place] = add ? out[place] + readHalf(src, value) : readHalf(src, value);
    }
  }
}
