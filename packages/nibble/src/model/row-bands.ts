/** Tables in bands of rows: what is read, converted or solved row by row never needs a whole one in memory. */
import type { LazyTensor } from "./model.js";

/** Values of a band: 16 MB in f32. */
export const BAND_ELEMENTS = 1 << 22;

export interface RowBand {
  /** First row. */
  from: number;
  /** f32 [rows, k]; fresh, the caller may change it. */
  values: Float32Array;
}

/** Rows of a matrix in order, band by band; one band where the tensor has to be read whole. */
export async function* rowBands(
  tensor: LazyTensor,
  elements = BAND_ELEMENTS,
): AsyncGenerator<RowBand> {
  const [n = 1, k = 1] = tensor.shape;
  const step = Math.max(1, Math.floor(elements / k));
  if (!tensor.readRows || step >= n) {
    yield { from: 0, values: await tensor.read() };
    return;
  }
  for (let from = 0; from < n; from += step) {
    yield { from, values: await tensor.readRows(from, Math.min(n, from + step)) };
  }
}
