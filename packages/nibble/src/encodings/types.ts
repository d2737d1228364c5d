/**
 * How a weight matrix W [n, k] = [out, in] is stored. Every quantization method ends as a QuantTensor; none owns a
 * kernel. Decode formulas: w = s (c - z) for gint, v = T[c], w = s v for lut (section 2 of the storage spec).
 */

/** Types a small float array (scales, zeros, tables) may be stored in. */
export type FloatType = "f32" | "f16" | "bf16";

/** A float array as stored: `data` holds the values after rounding to `type`, so codes computed with them decode exactly. */
export interface StoredFloats {
  type: FloatType;
  shape: number[];
  data: Float32Array;
  /** Scales of a lut that are themselves stored in 8 bits (QLoRA's double quantization); `type` is f32. */
  dq8?: DoubleQuant;
  /** Values that are themselves stored in 8 bits (encodings/affine-bytes.ts); `type` is f16. */
  affine?: AffineBytes;
}

/** value = f16(low[g] + step[g] * code) for an array [n, G]; codes [n, G], low and step [G]. */
export interface AffineBytes {
  codes: Uint8Array;
  low: Float32Array;
  step: Float32Array;
}

/** value = map[code] * blockMax[index >> 8] + offset, with the signed dynamic 8-bit map of bitsandbytes. */
export interface DoubleQuant {
  codes: Uint8Array;
  blockMax: Float32Array;
  offset: number;
}

/** b-bit codes of [rows, cols] in layout tile64: one segment per set bit of `bits`, narrow segments most significant. */
export interface PackedCodes {
  bits: number;
  rows: number;
  cols: number;
  /** Keyed by segment width 8 | 4 | 2 | 1; each [rows][ceil(cols / 64)][8 * width bytes]. */
  segments: Partial<Record<8 | 4 | 2 | 1, Uint8Array>>;
}

/** "channel": one scale a row (groupSize = k); "tensor": one for the matrix. Ragged last groups are allowed. */
export type GroupSize = number | "channel" | "tensor";

export type Zero =
  | { kind: "const"; value: number }
  /** Integer zero points [n, G], packed as ONE row of n * G codes. */
  | { kind: "int"; codes: PackedCodes }
  | { kind: "float"; values: StoredFloats };

export interface Gint {
  kind: "gint";
  bits: number;
  groupSize: GroupSize;
  codes: PackedCodes;
  /** [n, G], or [1, 1] for "tensor". */
  scale: StoredFloats;
  zero: Zero;
}

export interface Lut {
  kind: "lut";
  bits: number;
  codes: PackedCodes;
  /** A named table, or values [tiles, classes, 2^bits] owned by tiles of rowsPerTile x colsPerTile. */
  table:
    | { named: string }
    | {
        rowsPerTile: number;
        colsPerTile: number;
        classes: 1 | 2;
        /** Class of each column [k], 0 or 1; present exactly when classes = 2. */
        colClass?: Uint8Array;
        values: StoredFloats;
        /** values are [tiles, classes, bits]: entry c is the sum of the values of its set bits. */
        additive?: boolean;
      };
  groupSize: GroupSize;
  scale?: StoredFloats;
  /** Scale of negative entries (AFPQ). */
  scaleNegative?: StoredFloats;
}

export interface Dense {
  kind: "dense";
  type: FloatType;
  /** [n, k] values after rounding to `type`. */
  data: Float32Array;
  /** How `data` is stored when not as it is (encodings/dense-codec.ts). */
  codec?: { id: DenseCodecId; bytes: Uint8Array };
}

/** "neuzip": entropy-coded exponents; "bitmap": a bit per weight and the values that are not 0. */
export type DenseCodecId = "neuzip" | "bitmap";

/**
 * What a matrix may be stored as. Vector codes (AQLM, GPTVQ, lattices: codes of d values into codebooks) are the fourth
 * member when a method needs them; `decode`, `describe`, `serialize` and `placeWeights` switch over `kind` and say so by
 * failing to compile.
 */
export type Encoding = Gint | Lut | Dense;

/** Delta values: what must be added to the decoded main term. */
export interface Csr {
  rowPointers: Uint32Array;
  columns: Uint32Array;
  values: StoredFloats;
}

/** y += alpha * b (a x); a [r, k], b [n, r]. */
export interface LowRank {
  a: StoredFloats;
  b: StoredFloats;
  alpha: number;
}

export type PreOp =
  | { op: "scale"; values: StoredFloats }
  /** x'_k = x[perm_k] */
  | { op: "perm"; index: Uint32Array };
export type PostOp = { op: "layernorm" };

export interface QuantTensor {
  /** [n, k] = [out, in] */
  n: number;
  k: number;
  main: Encoding;
  csr?: Csr;
  lowRank?: LowRank[];
  pre: PreOp[];
  post: PostOp[];
}
