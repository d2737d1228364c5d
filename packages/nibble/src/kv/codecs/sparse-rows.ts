/**
 * The sparse side of a dense-and-sparse group: rows in compressed form, u16 row ends, then column numbers of one byte,
 * then half floats. 24 bits an entry and 16 bits a row. A head has at most 256 columns.
 */
import { readHalf, writeHalf } from "./code-words.js";

/** Bytes of a part with `count` entries; starts of parts behind it stay even. */
export function sparseBytes(rows: number, count: number): number {
  return 2 * rows + count + (count & 1) + 2 * count;
}

/** Packs the entries of `values` [rows, columns] that `mask` marks to out[at ..]. @returns bytes written */
export function packSparse(
  mask: Uint8Array,
  values: Float32Array,
  rows: number,
  columns: number,
  out: Uint8Array,
  at: number,
): number {
  let count = 0;
  for (let i = 0; i < rows * columns; i++) count += mask[i];
  let index = at + 2 * rows;
  let value = index + count + (count & 1);
  let written = 0;
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < columns; c++) {
      if (mask[t * columns + c] === 0) continue;
      out[index++] = c;
      writeHalf(out, value, values[t * columns + c]);
      value += 2;
      written++;
    }
    out[at + 2 * t] = written & 0xff;
    out[at + 2 * t + 1] = written >>> 8;
  }
  return sparseBytes(rows, count);
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
  if (rows === 0) return;
  const last = at + 2 * rows - 2;
  const count = src[last] | (src[last + 1] << 8);
  const indices = at + 2 * rows;
  const values = indices + count + (count & 1);
  let entry = 0;
  for (let t = 0; t < n; t++) {
    const end = src[at + 2 * t] | (src[at + 2 * t + 1] << 8);
    for (; entry < end; entry++) {
      const place = t * columns + src[indices + entry];
      const value = readHalf(src, values + 2 * entry);
      out[place] = add ? out[place] + value : value;
    }
  }
}
