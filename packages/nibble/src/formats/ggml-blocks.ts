/**
 * Block formats of ggml (llama.cpp, ggml-quants.c): sizes of all types, values of those that models are shipped in. Decoding
 * is bit-equal to ggml's: there every product of integer codes and f16 scales is exact in f32, so float64 arithmetic
 * with one rounding on store gives the same bits.
 */
import { decodeBf16, decodeF16, f16ToF32, float8Values, typedView } from "../core/dtype.js";
import { FormatError } from "../core/errors.js";

/** Decodes `blocks` blocks of `view` into `out`, which has room for exactly their values. */
type Decode = (view: DataView, blocks: number, out: Float32Array) => void;

interface BlockType {
  /** Number in the file. */
  id: number;
  /** Values in a block. */
  block: number;
  /** Bytes of a block. */
  bytes: number;
  /** Absent: the type is known but cannot be decoded here. */
  decode?: Decode;
}

/** Tables are looked up with nibbles or bytes, always inside. */
const at = (table: Float32Array, index: number): number => table[index] as number;

const IQ4 = Float32Array.of(
  ...[-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
);
/** E2M1 (FP4), sign in the top bit. */
const E2M1 = Float32Array.of(0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6);

const f16At = (view: DataView, offset: number): number => f16ToF32(view.getUint16(offset, true));

const q4_0: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 18) {
    const d = f16At(view, p);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 2 + j);
      out[o + j] = d * ((q & 15) - 8);
      out[o + 16 + j] = d * ((q >> 4) - 8);
    }
  }
};

const q4_1: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 20) {
    const d = f16At(view, p);
    const m = f16At(view, p + 2);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 4 + j);
      out[o + j] = d * (q & 15) + m;
      out[o + 16 + j] = d * (q >> 4) + m;
    }
  }
};

const q5_0: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 22) {
    const d = f16At(view, p);
    const high = view.getUint32(p + 2, true);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 6 + j);
      out[o + j] = d * (((q & 15) | (((high >>> j) & 1) << 4)) - 16);
      out[o + 16 + j] = d * (((q >> 4) | (((high >>> (16 + j)) & 1) << 4)) - 16);
    }
  }
};

const q5_1: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 24) {
    const d = f16At(view, p);
    const m = f16At(view, p + 2);
    const high = view.getUint32(p + 4, true);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 8 + j);
      out[o + j] = d * ((q & 15) | (((high >>> j) & 1) << 4)) + m;
      out[o + 16 + j] = d * ((q >> 4) | (((high >>> (16 + j)) & 1) << 4)) + m;
    }
  }
};

const q8_0: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 34) {
    const d = f16At(view, p);
    for (let j = 0; j < 32; j++) out[o + j] = d * view.getInt8(p + 2 + j);
  }
};

const q2_k: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 84) {
    const d = f16At(view, p + 80);
    const dmin = f16At(view, p + 82);
    for (let g = 0; g < 16; g++) {
      const s = view.getUint8(p + g);
      const scale = d * (s & 15);
      const min = dmin * (s >> 4);
      // Group g of 16 values: half g / 8, shift 2 * (g / 2 % 4), bytes 16 * (g % 2) of the half's 32.
      const shift = 2 * ((g >> 1) & 3);
      const from = p + 16 + 32 * (g >> 3) + 16 * (g & 1);
      for (let l = 0; l < 16; l++) {
        out[o + 16 * g + l] = scale * ((view.getUint8(from + l) >> shift) & 3) - min;
      }
    }
  }
};

const q3_k: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 110) {
    const d = f16At(view, p + 108);
    for (let g = 0; g < 16; g++) {
      const low = view.getUint8(p + 96 + (g & 7));
      const high = view.getUint8(p + 104 + (g & 3)) >> (2 * (g >> 2));
      const scale = d * (((g < 8 ? low & 15 : low >> 4) | ((high & 3) << 4)) - 32);
      const shift = 2 * ((g >> 1) & 3);
      const from = p + 32 + 32 * (g >> 3) + 16 * (g & 1);
      for (let l = 0; l < 16; l++) {
        // The stored high bit says "do not subtract 4".
        const bit = (view.getUint8(p + 16 * (g & 1) + l) >> (g >> 1)) & 1;
        const q = ((view.getUint8(from + l) >> shift) & 3) - (bit ? 0 : 4);
        out[o + 16 * g + l] = scale * q;
      }
    }
  }
};

/** 6-bit scale and minimum of sub-block b in the 12 bytes at `p` (Q4_K, Q5_K), as scale | min << 8. */
function scaleMin(view: DataView, p: number, b: number): number {
  if (b < 4) return (view.getUint8(p + b) & 63) | ((view.getUint8(p + b + 4) & 63) << 8);
  const low = view.getUint8(p + b + 4);
  const scale = (low & 15) | ((view.getUint8(p + b - 4) >> 6) << 4);
  const min = (low >> 4) | ((view.getUint8(p + b) >> 6) << 4);
  return scale | (min << 8);
}

const q4_k: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 144) {
    const d = f16At(view, p);
    const dmin = f16At(view, p + 2);
    for (let s = 0; s < 8; s++) {
      const packed = scaleMin(view, p + 4, s);
      const scale = d * (packed & 255);
      const min = dmin * (packed >> 8);
      const from = p + 16 + 32 * (s >> 1);
      const shift = 4 * (s & 1);
      for (let l = 0; l < 32; l++) {
        out[o + 32 * s + l] = scale * ((view.getUint8(from + l) >> shift) & 15) - min;
      }
    }
  }
};

const q5_k: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 176) {
    const d = f16At(view, p);
    const dmin = f16At(view, p + 2);
    for (let s = 0; s < 8; s++) {
      const packed = scaleMin(view, p + 4, s);
      const scale = d * (packed & 255);
      const min = dmin * (packed >> 8);
      const from = p + 48 + 32 * (s >> 1);
      const shift = 4 * (s & 1);
      for (let l = 0; l < 32; l++) {
        const high = (view.getUint8(p + 16 + l) >> s) & 1;
        const q = ((view.getUint8(from + l) >> shift) & 15) | (high << 4);
        out[o + 32 * s + l] = scale * q - min;
      }
    }
  }
};

const q6_k: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 210) {
    const d = f16At(view, p + 208);
    for (let g = 0; g < 16; g++) {
      // Group of 16: half n = g / 8, quarter k = g / 2 % 4 (which 32 of the half's 128), lower or upper 16 of them.
      const n = g >> 3;
      const k = (g >> 1) & 3;
      const l0 = 16 * (g & 1);
      const scale = d * view.getInt8(p + 192 + g);
      const low = p + 64 * n + 32 * (k & 1) + l0;
      const high = p + 128 + 32 * n + l0;
      const nibble = 4 * (k >> 1);
      for (let l = 0; l < 16; l++) {
        const q =
          ((view.getUint8(low + l) >> nibble) & 15) |
          (((view.getUint8(high + l) >> (2 * k)) & 3) << 4);
        out[o + 16 * g + l] = scale * (q - 32);
      }
    }
  }
};

const iq4_nl: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 18) {
    const d = f16At(view, p);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 2 + j);
      out[o + j] = d * at(IQ4, q & 15);
      out[o + 16 + j] = d * at(IQ4, q >> 4);
    }
  }
};

const iq4_xs: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 136) {
    const d = f16At(view, p);
    const high = view.getUint16(p + 2, true);
    for (let s = 0; s < 8; s++) {
      const low = (view.getUint8(p + 4 + (s >> 1)) >> (4 * (s & 1))) & 15;
      const scale = d * ((low | (((high >> (2 * s)) & 3) << 4)) - 32);
      for (let j = 0; j < 16; j++) {
        const q = view.getUint8(p + 8 + 16 * s + j);
        out[o + 32 * s + j] = scale * at(IQ4, q & 15);
        out[o + 32 * s + 16 + j] = scale * at(IQ4, q >> 4);
      }
    }
  }
};

/** Trit t of a base-3 byte. */
const trit = (byte: number, power: number): number => (((byte * power) & 255) * 3) >> 8;

const tq1_0: Decode = (view, blocks, out) => {
  // [first byte, bytes, trits each, first value] of the three regions of a block.
  const regions = [
    [0, 32, 5, 0],
    [32, 16, 5, 160],
    [48, 4, 4, 240],
  ] as const;
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 54) {
    const d = f16At(view, p + 52);
    for (const [first, count, trits, value] of regions) {
      for (let l = 0; l < count; l++) {
        const byte = view.getUint8(p + first + l);
        for (let t = 0, power = 1; t < trits; t++, power *= 3) {
          out[o + value + count * t + l] = d * (trit(byte, power) - 1);
        }
      }
    }
  }
};

const tq2_0: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 256, p += 66) {
    const d = f16At(view, p + 64);
    for (let i = 0; i < 64; i++) {
      const q = view.getUint8(p + i);
      const base = o + 128 * (i >> 5) + (i & 31);
      for (let s = 0; s < 4; s++) out[base + 32 * s] = d * (((q >> (2 * s)) & 3) - 1);
    }
  }
};

const mxfp4: Decode = (view, blocks, out) => {
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 32, p += 17) {
    // No NaN here: exponent 255 is 2^128, as in ggml.
    const d = 2 ** (view.getUint8(p) - 127);
    for (let j = 0; j < 16; j++) {
      const q = view.getUint8(p + 1 + j);
      out[o + j] = d * at(E2M1, q & 15);
      out[o + 16 + j] = d * at(E2M1, q >> 4);
    }
  }
};

const nvfp4: Decode = (view, blocks, out) => {
  const e4m3 = float8Values("e4m3");
  for (let b = 0, o = 0, p = 0; b < blocks; b++, o += 64, p += 36) {
    for (let s = 0; s < 4; s++) {
      const code = view.getUint8(p + s);
      // Unsigned: the sign bit counts for nothing, and ggml reads the NaN code 0x7F as 0 but 0xFF as 480.
      const d = code === 0x7f ? 0 : code === 0xff ? 480 : at(e4m3, code & 0x7f);
      for (let l = 0; l < 8; l++) {
        const q = view.getUint8(p + 4 + 8 * s + l);
        out[o + 16 * s + l] = d * at(E2M1, q & 15);
        out[o + 16 * s + 8 + l] = d * at(E2M1, q >> 4);
      }
    }
  }
};

/** The bytes behind a view. */
const raw = (view: DataView): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

const f32: Decode = (view, _, out) => {
  new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(raw(view));
};
const f16: Decode = (view, _, out) => {
  decodeF16(typedView(Uint16Array, raw(view)), out);
};
const bf16: Decode = (view, _, out) => {
  decodeBf16(typedView(Uint16Array, raw(view)), out);
};
const f64: Decode = (view, count, out) => {
  for (let i = 0; i < count; i++) out[i] = view.getFloat64(8 * i, true);
};

const TYPES = {
  F32: { id: 0, block: 1, bytes: 4, decode: f32 },
  F16: { id: 1, block: 1, bytes: 2, decode: f16 },
  Q4_0: { id: 2, block: 32, bytes: 18, decode: q4_0 },
  Q4_1: { id: 3, block: 32, bytes: 20, decode: q4_1 },
  Q5_0: { id: 6, block: 32, bytes: 22, decode: q5_0 },
  Q5_1: { id: 7, block: 32, bytes: 24, decode: q5_1 },
  Q8_0: { id: 8, block: 32, bytes: 34, decode: q8_0 },
  Q8_1: { id: 9, block: 32, bytes: 36 },
  Q2_K: { id: 10, block: 256, bytes: 84, decode: q2_k },
  Q3_K: { id: 11, block: 256, bytes: 110, decode: q3_k },
  Q4_K: { id: 12, block: 256, bytes: 144, decode: q4_k },
  Q5_K: { id: 13, block: 256, bytes: 176, decode: q5_k },
  Q6_K: { id: 14, block: 256, bytes: 210, decode: q6_k },
  Q8_K: { id: 15, block: 256, bytes: 292 },
  IQ2_XXS: { id: 16, block: 256, bytes: 66 },
  IQ2_XS: { id: 17, block: 256, bytes: 74 },
  IQ3_XXS: { id: 18, block: 256, bytes: 98 },
  IQ1_S: { id: 19, block: 256, bytes: 50 },
  IQ4_NL: { id: 20, block: 32, bytes: 18, decode: iq4_nl },
  IQ3_S: { id: 21, block: 256, bytes: 110 },
  IQ2_S: { id: 22, block: 256, bytes: 82 },
  IQ4_XS: { id: 23, block: 256, bytes: 136, decode: iq4_xs },
  I8: { id: 24, block: 1, bytes: 1 },
  I16: { id: 25, block: 1, bytes: 2 },
  I32: { id: 26, block: 1, bytes: 4 },
  I64: { id: 27, block: 1, bytes: 8 },
  F64: { id: 28, block: 1, bytes: 8, decode: f64 },
  IQ1_M: { id: 29, block: 256, bytes: 56 },
  BF16: { id: 30, block: 1, bytes: 2, decode: bf16 },
  TQ1_0: { id: 34, block: 256, bytes: 54, decode: tq1_0 },
  TQ2_0: { id: 35, block: 256, bytes: 66, decode: tq2_0 },
  MXFP4: { id: 39, block: 32, bytes: 17, decode: mxfp4 },
  NVFP4: { id: 40, block: 64, bytes: 36, decode: nvfp4 },
  Q1_0: { id: 41, block: 128, bytes: 18 },
  Q2_0: { id: 42, block: 64, bytes: 18 },
} satisfies Record<string, BlockType>;
export type GgmlType = keyof typeof TYPES;

/** Every ggml type with its size; `decode` where values can be had. */
export const GGML_TYPES: Readonly<Record<GgmlType, Readonly<BlockType>>> = TYPES;

const BY_ID = new Map(Object.entries(TYPES).map(([name, { id }]) => [id, name as GgmlType]));

/** The type of a number in a file, or undefined. */
export function ggmlTypeOf(id: number): GgmlType | undefined {
  return BY_ID.get(id);
}

/**
 * Values of packed blocks.
 * @param bytes whole blocks; nothing else
 * @param out room for exactly their values
 * @throws FormatError when the sizes do not fit, or for a type whose values cannot be decoded
 */
export function dequantize(type: GgmlType, bytes: Uint8Array, out: Float32Array): void {
  const { block, bytes: blockBytes, decode } = GGML_TYPES[type];
  if (!decode) throw new FormatError(`values of type ${type} cannot be decoded`);
  const blocks = out.length / block;
  if (!Number.isInteger(blocks) || bytes.length !== blocks * blockBytes) {
    throw new FormatError(`${bytes.length} bytes of ${type} are not ${out.length} values`);
  }
  decode(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), blocks, out);
}
