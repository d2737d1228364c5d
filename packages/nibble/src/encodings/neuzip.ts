/**
 * NeuZip (arXiv 2410.20650): the exponents of trained weights carry under 3 bits of information, so they are entropy coded
 * (rANS) apart from sign and mantissa. Lossless for f32, f16 and bf16, bit for bit; lossy for bf16 by keeping p < 7
 * mantissa bits (round half up in magnitude), where blocks may be divided by the mantissa of their largest weight first.
 *
 * Stream, little-endian: [type u8, precision u8, normalizer u16, count u32, exponent bytes u32, 0 u32], normalizers u8
 * [ceil(count / normalizer)], residue, exponents. Residue: sign << p | mantissa, bytes as planes, bits beyond them as one bit
 * string, first weight in the highest bits (f16: a byte of sign and upper mantissa, three bits of lower mantissa).
 */
import { bf16ToF32, encodeBf16 } from "../core/dtype.js";
import { FormatError, NumericError } from "../core/errors.js";
import { RansDecoder, ransEncode } from "./rans.js";
import type { FloatType } from "./types.js";

const TYPES: readonly FloatType[] = ["f32", "f16", "bf16"];
const FIELDS: Record<FloatType, { exponent: number; mantissa: number }> = {
  f32: { exponent: 8, mantissa: 23 },
  f16: { exponent: 5, mantissa: 10 },
  bf16: { exponent: 8, mantissa: 7 },
};
const HEAD = 16;
const CHUNK = 0x10000;

/** The bit patterns of values: u32 for f32, u16 for f16 and bf16. */
export type FloatBits = Uint16Array | Uint32Array;

export interface NeuzipOptions {
  /** Mantissa bits kept; default all of the type's. Fewer only for bf16. */
  precision?: number;
  /** Weights a normalizer; 0 = none. Only with fewer mantissa bits than the type has. */
  normalizer?: number;
  /** Weights that are decoded together; a row length makes rows readable on their own. */
  chunk?: number;
}

export interface NeuzipStats {
  /** Entropies in bits per weight. */
  sign: number;
  exponent: number;
  mantissa: number;
}

/**
 * Compresses bit patterns.
 * @throws NumericError for NaN and infinities when mantissa bits are cut
 */
export function neuzipEncode(
  bits: FloatBits,
  type: FloatType,
  options: NeuzipOptions = {},
): Uint8Array {
  const { mantissa } = FIELDS[type];
  const { precision = mantissa, normalizer = 0, chunk = CHUNK } = options;
  const lossy = precision < mantissa;
  if (lossy && type !== "bf16")
    throw new NumericError(`mantissas of ${type} cannot be cut`, { hint: "store bf16" });
  const count = bits.length;
  const exponents = new Uint8Array(count);
  const residue = new ResidueWriter(count, precision + 1);
  let normalizers = new Uint8Array(0);
  if (!lossy) {
    const { exponent } = FIELDS[type];
    const exponentMask = 2 ** exponent - 1;
    const mantissaMask = 2 ** mantissa - 1;
    for (let i = 0; i < count; i++) {
      const v = bits[i];
      exponents[i] = (v >>> mantissa) & exponentMask;
      const r = ((v >>> (mantissa + exponent)) << mantissa) | (v & mantissaMask);
      // f16: sign and the seven highest mantissa bits make the byte, the lowest three the rest.
      residue.set(i, type === "f16" ? (r >> 3) | ((r & 7) << 8) : r);
    }
  } else {
    if (normalizer > 0) normalizers = blockNormalizers(bits, normalizer);
    const scratch = new DataView(new ArrayBuffer(4));
    for (let i = 0; i < count; i++) {
      if ((bits[i] & 0x7f80) === 0x7f80) {
        throw new NumericError(`weight ${i} is not finite`, {
          hint: "Keep all mantissa bits, or repair the model.",
        });
      }
      const value = bf16ToF32(bits[i]);
      scratch.setFloat32(
        0,
        normalizer > 0 ? value / normalizerValue(normalizers[Math.floor(i / normalizer)]) : value,
      );
      const v = scratch.getUint32(0);
      const cut = 23 - precision;
      const magnitude = v & 0x7fffffff;
      let rounded = ((magnitude + 2 ** (cut - 1)) >>> cut) << cut;
      if (rounded >= 0x7f800000) rounded = magnitude; // would carry into infinity: truncate instead
      exponents[i] = rounded >>> 23;
      residue.set(i, ((v >>> 31) << precision) | ((rounded & 0x7fffff) >>> cut));
    }
  }
  const stream = ransEncode(exponents, chunk, chunk >= 8192 ? 8 : 1);
  const out = new Uint8Array(HEAD + normalizers.length + residue.bytes.length + stream.length);
  const view = new DataView(out.buffer);
  view.setUint8(0, TYPES.indexOf(type));
  view.setUint8(1, precision);
  view.setUint16(2, lossy ? normalizer : 0, true);
  view.setUint32(4, count, true);
  view.setUint32(8, stream.length, true);
  out.set(normalizers, HEAD);
  out.set(residue.bytes, HEAD + normalizers.length);
  out.set(stream, out.length - stream.length);
  return out;
}

/** Decodes ranges of a stream. @throws FormatError code "damaged" when the stream is not what it claims to be. */
export class NeuzipDecoder {
  readonly type: FloatType;
  readonly count: number;
  readonly precision: number;
  readonly #normalizer: number;
  readonly #normalizers: Uint8Array;
  readonly #residue: Uint8Array;
  readonly #exponents: RansDecoder;

  /** @param place tensor, for messages */
  constructor(bytes: Uint8Array, place: string) {
    const fail = (what: string): never => {
      throw new FormatError(
        `the compressed stream ${what}`,
        { place, hint: "get the file again" },
        "damaged",
      );
    };
    if (bytes.length < HEAD) fail("is shorter than its head");
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const type = TYPES[view.getUint8(0)];
    if (!type) fail("has an unknown type");
    this.type = type;
    this.precision = view.getUint8(1);
    this.#normalizer = view.getUint16(2, true);
    this.count = view.getUint32(4, true);
    const { mantissa } = FIELDS[type];
    if (this.precision > mantissa || (this.precision < mantissa && type !== "bf16"))
      fail("has a wrong precision");
    const blocks = this.#normalizer > 0 ? Math.ceil(this.count / this.#normalizer) : 0;
    const residueAt = HEAD + blocks;
    const streamAt = residueAt + residueBytes(this.count, this.precision + 1);
    if (streamAt + view.getUint32(8, true) !== bytes.length) fail("has a wrong length");
    this.#normalizers = bytes.subarray(HEAD, residueAt);
    this.#residue = bytes.subarray(residueAt, streamAt);
    this.#exponents = new RansDecoder(bytes.subarray(streamAt), place);
    if (this.#exponents.count !== this.count) fail("has a wrong number of exponents");
  }

  /** Bit patterns of weights [from, to). Whole chunks are decoded, so ranges of whole chunks are cheapest. */
  decode(from = 0, to = this.count): FloatBits {
    const { chunk } = this.#exponents;
    const wide = this.type === "f32" ? new Uint32Array(to - from) : null;
    const narrow = wide ? null : new Uint16Array(to - from);
    let scratch: Uint16Array | null = null;
    for (let c = Math.floor(from / chunk); c * chunk < to; c++) {
      const start = c * chunk;
      const end = Math.min(this.count, start + chunk);
      const first = Math.max(from, start);
      const last = Math.min(to, end);
      const whole = narrow !== null && first === start && last === end;
      scratch ??= whole ? null : new Uint16Array(Math.min(chunk, this.count));
      const target = whole ? narrow.subarray(start - from, end - from) : (scratch as Uint16Array);
      this.#decodeChunk(c, start, target.subarray(0, end - start));
      if (wide) {
        const part = wide.subarray(first - from, last - from);
        mergeF32(target.subarray(first - start), this.#residue, this.count, first, part);
      } else if (!whole) narrow?.set(target.subarray(first - start, last - start), first - from);
    }
    if (wide) return wide;
    const out = narrow as Uint16Array; // one of the two exists
    if (this.#normalizer > 0) this.#denormalize(out, from);
    return out;
  }

  /** Chunk c, whose first weight is `start`: bit patterns, or exponents alone for f32. */
  #decodeChunk(c: number, start: number, out: Uint16Array): void {
    const { type, precision } = this;
    const bytes = type === "f16" || precision === 7;
    const residue = bytes
      ? this.#residue.subarray(start, start + out.length)
      : new Uint8Array(out.length);
    const symbolShift = type === "f32" ? 0 : type === "f16" ? 10 : 7;
    const residueShift = type === "f16" ? 3 : 0;
    this.#exponents.decode(c, out, { residue, symbolShift, residueShift });
    if (type === "f16") addLowBits(out, this.#residue, this.count, start);
    else if (type === "bf16" && precision < 7) addCut(out, this.#residue, precision, start);
  }

  #denormalize(out: Uint16Array, from: number): void {
    const values = new Float32Array(out.length);
    for (let i = 0; i < out.length; i++) {
      const n = normalizerValue(this.#normalizers[Math.floor((from + i) / this.#normalizer)]);
      values[i] = bf16ToF32(out[i]) * n;
    }
    out.set(encodeBf16(values));
  }
}

/** f16: the three lowest mantissa bits, a bit string behind the byte plane. */
function addLowBits(out: Uint16Array, residue: Uint8Array, count: number, first: number): void {
  const fields = residue.subarray(count + Math.floor((first * 3) / 8));
  const start = (first * 3) % 8;
  let i = 0;
  if (start === 0) {
    for (let byte = 0; i + 8 <= out.length; i += 8, byte += 3) {
      const u = (fields[byte] << 16) | (fields[byte + 1] << 8) | fields[byte + 2];
      out[i] |= u >> 21;
      out[i + 1] |= (u >> 18) & 7;
      out[i + 2] |= (u >> 15) & 7;
      out[i + 3] |= (u >> 12) & 7;
      out[i + 4] |= (u >> 9) & 7;
      out[i + 5] |= (u >> 6) & 7;
      out[i + 6] |= (u >> 3) & 7;
      out[i + 7] |= u & 7;
    }
  }
  for (; i < out.length; i++) {
    const at = start + i * 3;
    const byte = at >> 3;
    out[i] |= (((fields[byte] << 8) | fields[byte + 1]) >> (13 - (at & 7))) & 7;
  }
}

/** Residue of 4, 2 or 1 bits: never across bytes. */
function addCut(out: Uint16Array, residue: Uint8Array, precision: number, first: number): void {
  const width = precision + 1;
  const signBit = 1 << precision;
  const base = Math.floor((first * width) / 8);
  const start = (first * width) % 8;
  for (let i = 0; i < out.length; i++) {
    const at = start + i * width;
    const r = residue[base + (at >> 3)] >> (8 - (at & 7) - width);
    out[i] |= ((r & signBit) << (15 - precision)) | ((r & (signBit - 1)) << (7 - precision));
  }
}

/** f32: exponents and three byte planes. */
function mergeF32(
  exponents: Uint16Array,
  residue: Uint8Array,
  count: number,
  first: number,
  out: Uint32Array,
): void {
  for (let i = 0; i < out.length; i++) {
    const at = first + i;
    const high = residue[2 * count + at];
    const low = residue[at] | (residue[count + at] << 8) | ((high & 127) << 16);
    out[i] = ((high & 128) << 24) | (exponents[i] << 23) | low;
  }
}

/** Entropies of sign, exponent and mantissa (mantissas of f32 in three bytes, summed). */
export function neuzipStats(bits: FloatBits, type: FloatType): NeuzipStats {
  const { exponent, mantissa } = FIELDS[type];
  const field = (shift: number, width: number) => {
    const counts = new Float64Array(2 ** width);
    for (let i = 0; i < bits.length; i++) counts[(bits[i] >>> shift) & (counts.length - 1)]++;
    return entropy(counts);
  };
  const low =
    mantissa > 10 ? field(0, 8) + field(8, 8) + field(16, mantissa - 16) : field(0, mantissa);
  return {
    sign: field(mantissa + exponent, 1),
    exponent: field(mantissa, exponent),
    mantissa: low,
  };
}

function entropy(counts: Float64Array): number {
  const total = counts.reduce((sum, c) => sum + c, 0);
  return counts.reduce((sum, c) => (c > 0 ? sum - (c / total) * Math.log2(c / total) : sum), 0);
}

/** Mantissa of the largest magnitude of each block, as a number 1 + code / 256. A bf16 mantissa fits exactly. */
function blockNormalizers(bits: FloatBits, block: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(Math.ceil(bits.length / block));
  for (let b = 0; b < out.length; b++) {
    let largest = 0;
    for (let i = b * block; i < Math.min(bits.length, (b + 1) * block); i++) {
      largest = Math.max(largest, bits[i] & 0x7fff);
    }
    out[b] = (largest & 127) << 1;
  }
  return out;
}

function normalizerValue(code: number): number {
  return 1 + code / 256;
}

/** Whole bytes as planes, the bits above them packed. */
class ResidueWriter {
  readonly bytes: Uint8Array;
  readonly #count: number;
  readonly #planes: number;
  readonly #high: number;

  constructor(count: number, width: number) {
    this.#count = count;
    this.#planes = width >> 3;
    this.#high = width & 7;
    this.bytes = new Uint8Array(residueBytes(count, width));
  }

  set(i: number, value: number): void {
    for (let p = 0; p < this.#planes; p++) this.bytes[p * this.#count + i] = value >>> (8 * p);
    const high = this.#high;
    if (high === 0) return;
    const first = i * high;
    const at = this.#planes * this.#count + Math.floor(first / 8);
    const shifted = (value >>> (8 * this.#planes)) << (16 - (first % 8) - high);
    this.bytes[at] |= shifted >>> 8;
    if ((shifted & 255) !== 0) this.bytes[at + 1] |= shifted & 255;
  }
}

function residueBytes(count: number, width: number): number {
  return (width >> 3) * count + Math.ceil((count * (width & 7)) / 8);
}
