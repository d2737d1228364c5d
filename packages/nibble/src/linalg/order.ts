/** Order statistics of f32 arrays: exact, ties by index, without comparison functions (typed arrays sort natively). */

const INDEX = 2 ** 21;

/**
 * Indices of values[at .. at + count) by rising value, ties by rising index. No NaN; at most 2^21 values.
 * A value's bits, made monotone, and its index share one f64 (53 bits).
 */
export function risingOrder(values: Float32Array, at = 0, count = values.length - at): Uint32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const keys = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const b = values[at + i] === 0 ? 0 : bits[at + i]; // -0 equals 0
    keys[i] = ((b & 0x80000000 ? ~b : b | 0x80000000) >>> 0) * INDEX + i;
  }
  keys.sort();
  return Uint32Array.from(keys, (key) => key % INDEX);
}

/**
 * The value that stands at `index` (0-based) when `values`, all >= 0, are sorted by rising value.
 * Two passes over 16-bit digits of the bits, so it costs the same for any order.
 */
export function valueAtRank(values: Float32Array, index: number): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const counts = new Uint32Array(0x10000);
  for (let i = 0; i < bits.length; i++) counts[(bits[i] & 0x7fffffff) >>> 16]++;
  let rest = index;
  let high = 0;
  while (rest >= counts[high]) rest -= counts[high++];
  counts.fill(0);
  for (let i = 0; i < bits.length; i++) {
    if ((bits[i] & 0x7fffffff) >>> 16 === high) counts[bits[i] & 0xffff]++;
  }
  let low = 0;
  while (rest >= counts[low]) rest -= counts[low++];
  return new Float32Array(Uint32Array.of((high << 16) | low).buffer)[0];
}
