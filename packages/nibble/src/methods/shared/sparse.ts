/** The sparse side-car of methods that keep some weights apart. */
import { storeFloats } from "../../encodings/stored-floats.js";
import type { Csr } from "../../encodings/types.js";

/**
 * What must be added to the main term at the marked places.
 * @param mask [n, k], 1 = kept apart
 * @param delta value to add at index i of [n, k]
 * @returns undefined when nothing is marked; values in f16, or f32 where f16 overflows
 */
export function sparseDelta(
  mask: Uint8Array,
  n: number,
  k: number,
  delta: (i: number) => number,
): Csr | undefined {
  const rowPointers = new Uint32Array(n + 1);
  const columns: number[] = [];
  const values: number[] = [];
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      if (!mask[r * k + c]) continue;
      columns.push(c);
      values.push(delta(r * k + c));
    }
    rowPointers[r + 1] = columns.length;
  }
  if (columns.length === 0) return undefined;
  const data = Float32Array.from(values);
  const half = storeFloats(data, "f16", [data.length]);
  return {
    rowPointers,
    columns: Uint32Array.from(columns),
    values: half.data.every(Number.isFinite) ? half : storeFloats(data, "f32", [data.length]),
  };
}
