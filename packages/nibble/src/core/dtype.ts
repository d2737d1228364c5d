/**
 * Number formats narrower than f32: IEEE binary16, bfloat16, and the 8-bit floats of the OCP specification
 * (E4M3 without infinities, E5M2, E8M0). Decoding is exact, encoding rounds to nearest, ties to even.
 * Views over bytes assume a little-endian machine, as every JavaScript engine in use has.
 */

const scratch = new DataView(new ArrayBuffer(4));
let f16Table: Float32Array | undefined;

/** All 65536 binary16 values, built on first use (256 KiB). */
function f16Values(): Float32Array {
  if (f16Table) return f16Table;
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >>> 10) & 31;
    const mantissa = bits & 1023;
    let value: number;
    if (exponent === 31) value = mantissa ? Number.NaN : Number.POSITIVE_INFINITY;
    else if (exponent === 0) value = mantissa * 2 ** -24;
    else value = (1024 + mantissa) * 2 ** (exponent - 25);
    table[bits] = bits & 0x8000 ? -value : value;
  }
  f16Table = table;
  return table;
}

/** binary16 bits -> value, exact. */
export function f16ToF32(bits: number): number {
  return f16Values()[bits & 0xffff] as number; // 65536 entries, 16-bit index
}

/** Value -> binary16 bits of its f32 rounding, nearest even; overflow gives infinity, NaN stays NaN. */
export function f32ToF16(value: number): number {
  scratch.setFloat32(0, value);
  return f16Bits(scratch.getUint32(0));
}

/** f32 bits -> binary16 bits. */
function f16Bits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x7f800000) {
    return magnitude === 0x7f800000 ? sign | 0x7c00 : sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff);
  }
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) {
    // A carry out of the mantissa raises the exponent, up to infinity: that is the right result.
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  if (magnitude <= 0x33000000) return sign; // at most half of the smallest subnormal, tie to even
  const shift = 126 - (magnitude >>> 23);
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const kept = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return sign | (kept + (rest > half || (rest === half && kept & 1) ? 1 : 0));
}

/** bfloat16 bits -> value, exact. */
export function bf16ToF32(bits: number): number {
  scratch.setUint32(0, (bits & 0xffff) << 16);
  return scratch.getFloat32(0);
}

/** Value -> bfloat16 bits of its f32 rounding, nearest even; NaN stays (quiet) NaN. */
export function f32ToBf16(value: number): number {
  scratch.setFloat32(0, value);
  return bf16Bits(scratch.getUint32(0));
}

/** f32 bits -> bfloat16 bits. */
function bf16Bits(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Decodes binary16 codes into `out` (same length). */
export function decodeF16(
  codes: Uint16Array,
  out: Float32Array = new Float32Array(codes.length),
): Float32Array {
  const table = f16Values();
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i] as number] as number;
  return out;
}

/** Encodes values as binary16 codes. */
export function encodeF16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = f16Bits(bits[i] as number);
  return out;
}

/** Decodes bfloat16 codes into `out` (same length). */
export function decodeBf16(
  codes: Uint16Array,
  out: Float32Array = new Float32Array(codes.length),
): Float32Array {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < codes.length; i++) bits[i] = (codes[i] as number) << 16;
  return out;
}

/** Encodes values as bfloat16 codes. */
export function encodeBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = bf16Bits(bits[i] as number);
  return out;
}

export type Float8 = "e4m3" | "e5m2" | "e8m0";
const float8Tables = new Map<Float8, Float32Array>();

/**
 * The 256 values of an 8-bit float. e4m3 ("fn"): bias 7, largest 448, 0x7F and 0xFF are NaN, no infinity;
 * e5m2: the upper byte of a binary16; e8m0: 2^(code - 127), 255 is NaN.
 */
export function float8Values(type: Float8): Float32Array {
  const known = float8Tables.get(type);
  if (known) return known;
  const table = new Float32Array(256);
  for (let code = 0; code < 256; code++) {
    if (type === "e5m2") table[code] = f16ToF32(code << 8);
    else if (type === "e8m0") table[code] = code === 255 ? Number.NaN : 2 ** (code - 127);
    else {
      const exponent = (code >>> 3) & 15;
      const mantissa = code & 7;
      let value = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
      if ((code & 0x7f) === 0x7f) value = Number.NaN;
      table[code] = code & 0x80 ? -value : value;
    }
  }
  float8Tables.set(type, table);
  return table;
}

interface ViewConstructor<T> {
  new (buffer: ArrayBuffer, byteOffset: number, length: number): T;
  readonly BYTES_PER_ELEMENT: number;
}

/**
 * Typed array over `bytes`: a view where the offset allows, else a copy. The length must be a multiple of the element
 * size; a tail that does not fill an element is left out.
 */
export function typedView<T>(type: ViewConstructor<T>, bytes: Uint8Array): T {
  const size = type.BYTES_PER_ELEMENT;
  const length = Math.floor(bytes.byteLength / size);
  const aligned = bytes.byteOffset % size === 0 && bytes.buffer instanceof ArrayBuffer;
  const source = aligned ? bytes : new Uint8Array(bytes); // a copy starts at offset 0
  return new type(source.buffer as ArrayBuffer, source.byteOffset, length);
}

/** The bytes of a typed array, without a copy. */
export function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
