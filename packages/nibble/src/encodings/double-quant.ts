/**
 * Double quantization of scales (QLoRA, arXiv 2305.14314; bitsandbytes `compress_statistics`): the mean is subtracted, the
 * rest is stored in blocks of 256 as codes of a signed dynamic 8-bit map with one f32 maximum a block. 8.125 bits a scale.
 */
import type { DoubleQuant } from "./types.js";

const BLOCK = 256;

export function doubleQuantBlocks(count: number): number {
  return Math.ceil(count / BLOCK);
}

let map: Float32Array | undefined;

/** The 256 values of the signed dynamic map, rising: 127 negatives, 0, 128 positives; no -1. */
export function dynamicMap(): Float32Array {
  if (map) return map;
  const values: number[] = [0, 1];
  for (let i = 0; i < 7; i++) {
    const points = 2 ** i + 1;
    const at = (j: number) => 0.1 + (0.9 * j) / (points - 1);
    for (let j = 0; j + 1 < points; j++) {
      const middle = ((at(j) + at(j + 1)) / 2) * 10 ** (i - 6);
      values.push(middle, -middle);
    }
  }
  map = Float32Array.from(values).sort();
  return map;
}

/** Codes of `values`; what they decode to is `decodeDoubleQuant`. */
export function doubleQuantize(values: Float32Array): DoubleQuant {
  const table = dynamicMap();
  const count = values.length;
  const offset = Math.fround(values.reduce((sum, x) => sum + x, 0) / Math.max(1, count));
  const blockMax = new Float32Array(doubleQuantBlocks(count));
  for (let i = 0; i < count; i++) {
    blockMax[i >> 8] = Math.max(blockMax[i >> 8], Math.abs(Math.fround(values[i] - offset)));
  }
  const codes = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const top = blockMax[i >> 8];
    codes[i] = top === 0 ? 127 : nearest(table, Math.fround(values[i] - offset) / top);
  }
  return { codes, blockMax, offset };
}

/** Scales as f32. */
export function decodeDoubleQuant({ codes, blockMax, offset }: DoubleQuant): Float32Array {
  const table = dynamicMap();
  return Float32Array.from(
    codes,
    (code, i) => Math.fround(table[code] * blockMax[i >> 8]) + offset,
  );
}

/** Index of the nearest value of a rising table; ties to the lower one. */
function nearest(table: Float32Array, x: number): number {
  let low = 0;
  let high = table.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (table[middle] <= x) low = middle;
    else high = middle;
  }
  return x - table[low] <= table[high] - x ? low : high;
}
