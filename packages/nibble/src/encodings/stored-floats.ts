/** Small float arrays as they are stored: rounded to f32, f16 or bf16 (half to even) before anything is computed with them. */
import {
  bf16ToF32,
  bytesOf,
  decodeBf16,
  decodeF16,
  encodeBf16,
  encodeF16,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  typedView,
} from "../core/dtype.js";
import type { FloatType, StoredFloats } from "./types.js";

/** The nearest value of the type to an f64 (which is rounded to f32 first). */
export function roundFloat(value: number, type: FloatType): number {
  if (type === "f16") return f16ToF32(f32ToF16(value));
  return type === "bf16" ? bf16ToF32(f32ToBf16(value)) : Math.fround(value);
}

/** Rounds `values` to `type`; the input is not changed. */
export function storeFloats(values: Float32Array, type: FloatType, shape: number[]): StoredFloats {
  const data =
    type === "f16"
      ? decodeF16(encodeF16(values))
      : type === "bf16"
        ? decodeBf16(encodeBf16(values))
        : values.slice();
  return { type, shape, data };
}

export function floatBytes(type: FloatType): 2 | 4 {
  return type === "f32" ? 4 : 2;
}

/** Little-endian bytes as written to files. `values` must already be rounded to `type`. */
export function floatsToBytes(values: Float32Array, type: FloatType): Uint8Array {
  if (type === "f32") return bytesOf(values);
  return bytesOf(type === "f16" ? encodeF16(values) : encodeBf16(values));
}

/** A fresh f32 array from stored bytes. */
export function floatsFromBytes(bytes: Uint8Array, type: FloatType): Float32Array {
  if (type === "f32") return Float32Array.from(typedView(Float32Array, bytes));
  const codes = typedView(Uint16Array, bytes);
  return type === "f16" ? decodeF16(codes) : decodeBf16(codes);
}
