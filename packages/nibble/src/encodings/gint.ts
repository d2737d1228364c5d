/** Encoding `gint`: w = s (c - z), b-bit codes, a scale per group, zero points constant, integer or float. */

import { columnsPerGroup, scaleShape } from "./groups.js";
import { packCodes, unpackCodes } from "./packed-codes.js";
import type {
  AffineBytes,
  FloatType,
  Gint,
  GroupSize,
  PackedCodes,
  StoredFloats,
  Zero,
} from "./types.js";

export interface GintParts {
  n: number;
  k: number;
  bits: number;
  groupSize: GroupSize;
  /** [n, k], one byte a code, or packed already. */
  codes: Uint8Array | PackedCodes;
  /** [n, G] values that `scaleType` holds exactly ([1, 1] for "tensor"). */
  scale: Float32Array;
  scaleType: FloatType;
  /** A constant, integer zero points [n, G], or floats [n, G] that `scaleType` holds exactly. */
  zero: number | Uint8Array | Float32Array;
  /** Bits of integer zero points; default `bits`. */
  zeroBits?: number;
  /** How scales, and float zeros, are stored when in 8 bits (encodings/affine-bytes.ts); `scaleType` is f16 then. */
  affine?: { scale: AffineBytes; zero?: AffineBytes };
}

/** Assembles a Gint from unpacked parts. */
export function createGint(parts: GintParts): Gint {
  const { n, k, bits, groupSize, codes, scale, scaleType } = parts;
  const shape = scaleShape(n, k, groupSize);
  return {
    kind: "gint",
    bits,
    groupSize,
    codes: codes instanceof Uint8Array ? packCodes(codes, bits, n, k) : codes,
    scale: stored(scale, scaleType, shape, parts.affine?.scale),
    zero: createZero(parts, shape),
  };
}

function stored(
  data: Float32Array,
  type: FloatType,
  shape: [number, number],
  affine: AffineBytes | undefined,
): StoredFloats {
  return { type, shape, data, ...(affine && { affine }) };
}

function createZero(parts: GintParts, shape: [number, number]): Zero {
  const { zero, zeroBits, bits, scaleType, affine } = parts;
  if (typeof zero === "number") return { kind: "const", value: zero };
  if (zero instanceof Float32Array) {
    return { kind: "float", values: stored(zero, scaleType, shape, affine?.zero) };
  }
  // One packed row: padding every row of a few zeros to 64 would cost more than the zeros.
  return { kind: "int", codes: packCodes(zero, zeroBits ?? bits, 1, zero.length) };
}

/** Zero points as one value per scale. */
export function zeroValues(gint: Gint): Float32Array {
  const { zero, scale } = gint;
  switch (zero.kind) {
    case "const":
      return new Float32Array(scale.data.length).fill(zero.value);
    case "int":
      return Float32Array.from(unpackCodes(zero.codes));
    case "float":
      return zero.values.data;
  }
}

/** Decodes rows [from, to) into out [to - from, k]. */
export function decodeGintRows(gint: Gint, from: number, to: number, out: Float32Array): void {
  const k = gint.codes.cols;
  const width = columnsPerGroup(k, gint.groupSize);
  const groups = Math.ceil(k / width);
  const scales = gint.scale.data;
  const zeros = zeroValues(gint);
  const row = new Uint8Array(k);
  for (let r = from; r < to; r++) {
    unpackCodes(gint.codes, r, r + 1, row);
    const at = (r - from) * k;
    const group = gint.groupSize === "tensor" ? 0 : r * groups;
    for (let g = 0; g < groups; g++) {
      const s = scales[group + g];
      const z = zeros[group + g];
      const end = Math.min(k, (g + 1) * width);
      for (let c = g * width; c < end; c++) out[at + c] = s * (row[c] - z);
    }
  }
}
