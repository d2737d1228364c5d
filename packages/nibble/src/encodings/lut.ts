/**
 * Encoding `lut`: w = s T[c]. The table is named (the whole tensor), or owned by tiles of rows x columns, with two column classes
 * (BiLLM), as sums of bit values (DB-LLM), or with an own scale for negative entries (AFPQ).
 */
import { columnsPerGroup } from "./groups.js";
import { unpackCodes } from "./packed-codes.js";
import { namedTable } from "./tables.js";
import type { Lut } from "./types.js";

/** All tables, expanded: [tiles, classes, 2^bits] values, tiles row by row. */
function expandTables(lut: Lut): Float32Array {
  if ("named" in lut.table) return namedTable(lut.table.named).values;
  const { values, additive } = lut.table;
  if (!additive) return values.data;
  const size = 2 ** lut.bits;
  const tables = values.data.length / lut.bits;
  const out = new Float32Array(tables * size);
  for (let t = 0; t < tables; t++) {
    for (let code = 0; code < size; code++) {
      let sum = 0;
      for (let bit = 0; bit < lut.bits; bit++) {
        if ((code >> bit) & 1) sum += values.data[t * lut.bits + bit];
      }
      out[t * size + code] = sum;
    }
  }
  return out;
}

/** Decodes rows [from, to) of an [n, k] weight into out [to - from, k]. */
export function decodeLutRows(lut: Lut, from: number, to: number, out: Float32Array): void {
  const k = lut.codes.cols;
  const size = 2 ** lut.bits;
  const tables = expandTables(lut);
  const owned = "named" in lut.table ? null : lut.table;
  const colsPerTile = owned ? owned.colsPerTile : k;
  const rowsPerTile = owned ? owned.rowsPerTile : lut.codes.rows;
  const classes = owned ? owned.classes : 1;
  const colClass = owned?.colClass;
  const across = Math.ceil(k / colsPerTile);
  const width = columnsPerGroup(k, lut.groupSize);
  const groups = Math.ceil(k / width);
  const row = new Uint8Array(k);
  for (let r = from; r < to; r++) {
    unpackCodes(lut.codes, r, r + 1, row);
    const tileRow = Math.floor(r / rowsPerTile) * across;
    const group = lut.groupSize === "tensor" ? 0 : r * groups;
    for (let c = 0; c < k; c++) {
      const tile = tileRow + Math.floor(c / colsPerTile);
      const v = tables[(tile * classes + (colClass ? colClass[c] : 0)) * size + row[c]];
      const scales = v < 0 && lut.scaleNegative ? lut.scaleNegative : lut.scale;
      out[(r - from) * k + c] = scales ? v * scales.data[group + Math.floor(c / width)] : v;
    }
  }
}
