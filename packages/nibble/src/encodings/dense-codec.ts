/**
 * Compressed forms of a `dense` weight. `neuzip` (arXiv 2410.20650): see neuzip.ts. `bitmap`, for pruned weights: a mask of
 * [n, ceil(k / 8)] bytes (bit j of byte i is column 8 i + j) and the values that are not 0, row by row; 1 + 16 * density
 * bits a weight in f16, which is also what 2:4 with 4 bits a group costs.
 */
import { decodeBf16, decodeF16, encodeBf16, encodeF16 } from "../core/dtype.js";
import { FormatError } from "../core/errors.js";
import { type FloatBits, NeuzipDecoder, neuzipEncode } from "./neuzip.js";
import { floatBytes, floatsFromBytes, floatsToBytes } from "./stored-floats.js";
import type { Dense, DenseCodecId, FloatType } from "./types.js";

/** Bit patterns of values as the type stores them. */
export function floatPatterns(values: Float32Array, type: FloatType): FloatBits {
  if (type === "f16") return encodeF16(values);
  if (type === "bf16") return encodeBf16(values);
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

function patternValues(bits: FloatBits, type: FloatType): Float32Array {
  if (bits instanceof Uint32Array)
    return new Float32Array(bits.buffer, bits.byteOffset, bits.length);
  return type === "f16" ? decodeF16(bits) : decodeBf16(bits);
}

/**
 * The weight with entropy-coded exponents. With fewer mantissa bits than the type has (bf16 only), `data` is what the
 * stream decodes to.
 * @throws NumericError for values that are not finite when mantissa bits are cut
 */
export function neuzipDense(
  values: Float32Array,
  type: FloatType,
  options: { precision?: number; normalizer?: number; chunk?: number } = {},
): Dense {
  const bytes = neuzipEncode(floatPatterns(values, type), type, options);
  const bits = new NeuzipDecoder(bytes, "weight").decode();
  return { kind: "dense", type, data: patternValues(bits, type), codec: { id: "neuzip", bytes } };
}

/** The weight [n, k] as mask and values, rounded to the type. */
export function bitmapDense(values: Float32Array, type: FloatType, n: number, k: number): Dense {
  const data = floatsFromBytes(floatsToBytes(values, type), type);
  const rowBytes = Math.ceil(k / 8);
  const mask = new Uint8Array(n * rowBytes);
  const kept = new Float32Array(data.length);
  let count = 0;
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      const x = data[r * k + c];
      if (x === 0) continue;
      mask[r * rowBytes + (c >> 3)] |= 1 << (c & 7);
      kept[count++] = x;
    }
  }
  const tail = floatsToBytes(kept.subarray(0, count), type);
  const bytes = new Uint8Array(mask.length + tail.length);
  bytes.set(mask);
  bytes.set(tail, mask.length);
  return { kind: "dense", type, data, codec: { id: "bitmap", bytes } };
}

/**
 * Reads a compressed weight [n, k].
 * @param place tensor, for messages
 * @throws FormatError when the bytes do not decode to n * k finite values
 */
export function decodeDense(
  id: DenseCodecId,
  bytes: Uint8Array,
  type: FloatType,
  n: number,
  k: number,
  place: string,
): Dense {
  const data =
    id === "neuzip" ? readNeuzip(bytes, type, n * k, place) : readBitmap(bytes, type, n, k, place);
  if (!data.every(Number.isFinite))
    throw new FormatError("holds a value that is not finite", { place });
  return { kind: "dense", type, data, codec: { id, bytes } };
}

function readNeuzip(
  bytes: Uint8Array,
  type: FloatType,
  count: number,
  place: string,
): Float32Array {
  const decoder = new NeuzipDecoder(bytes, place);
  if (decoder.type !== type || decoder.count !== count) {
    throw new FormatError(
      `holds ${decoder.count} values of type ${decoder.type}, ${count} of ${type} expected`,
      { place },
    );
  }
  return patternValues(decoder.decode(), type);
}

function readBitmap(
  bytes: Uint8Array,
  type: FloatType,
  n: number,
  k: number,
  place: string,
): Float32Array {
  const rowBytes = Math.ceil(k / 8);
  const size = floatBytes(type);
  const tail = bytes.length - n * rowBytes;
  if (tail < 0 || tail % size !== 0) throw new FormatError("has a wrong length", { place });
  const values = floatsFromBytes(bytes.slice(n * rowBytes), type);
  const data = new Float32Array(n * k);
  let count = 0;
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      if ((bytes[r * rowBytes + (c >> 3)] >> (c & 7)) & 1) data[r * k + c] = values[count++];
    }
  }
  if (count !== values.length)
    throw new FormatError(`marks ${count} values, holds ${values.length}`, { place });
  return data;
}
