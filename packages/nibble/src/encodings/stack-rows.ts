/** One tensor of several that were solved apart: bands of rows of one matrix, below each other. */
import { packCodes, segmentWidths, unpackCodes } from "./packed-codes.js";
import type { Gint, PackedCodes, QuantTensor, StoredFloats, Zero } from "./types.js";

/**
 * @param bands at least one; Gint of equal bits, groups and kinds of zero, with nothing beside the main term
 * @throws Error for anything else: which encodings are stacked is decided by who solves in bands, not by data
 */
export function stackRows(bands: readonly QuantTensor[]): QuantTensor {
  const [first] = bands;
  if (!first) throw new Error("no bands to stack");
  if (bands.length === 1) return first;
  const mains = bands.map((band) => {
    const plain = !band.csr && !band.lowRank && band.pre.length === 0 && band.post.length === 0;
    if (
      band.main.kind !== "gint" ||
      !plain ||
      band.main.groupSize === "tensor" ||
      band.k !== first.k
    )
      throw new Error(`bands of ${band.main.kind} cannot be stacked`);
    return band.main;
  });
  const [main] = mains as [Gint, ...Gint[]];
  return {
    ...first,
    n: bands.reduce((sum, { n }) => sum + n, 0),
    main: {
      ...main,
      codes: stackCodes(mains.map(({ codes }) => codes)),
      scale: stackFloats(mains.map(({ scale }) => scale)),
      zero: stackZeros(mains.map(({ zero }) => zero)),
    },
  };
}

function stackCodes(parts: readonly PackedCodes[]): PackedCodes {
  const { bits, cols } = parts[0] as PackedCodes;
  const segments: PackedCodes["segments"] = {};
  for (const width of segmentWidths(bits)) {
    const pieces = parts.map(({ segments: own }) => own[width] as Uint8Array);
    const whole = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    segments[width] = whole;
  }
  return { bits, rows: parts.reduce((sum, { rows }) => sum + rows, 0), cols, segments };
}

function stackFloats(parts: readonly StoredFloats[]): StoredFloats {
  const first = parts[0] as StoredFloats;
  if (parts.some(({ dq8, affine }) => dq8 || affine))
    throw new Error("scales with scales of their own cannot be stacked");
  const data = new Float32Array(parts.reduce((sum, part) => sum + part.data.length, 0));
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  const rows = parts.reduce((sum, { shape }) => sum + (shape[0] ?? 0), 0);
  return { type: first.type, shape: [rows, ...first.shape.slice(1)], data };
}

function stackZeros(parts: readonly Zero[]): Zero {
  const first = parts[0] as Zero;
  if (parts.some(({ kind }) => kind !== first.kind)) throw new Error("zeros of several kinds");
  if (first.kind === "const") return first;
  if (first.kind === "float") {
    return { kind: "float", values: stackFloats(parts.map((z) => (z as typeof first).values)) };
  }
  // Packed as one row that is padded at its end, so the codes are taken apart once.
  const codes = parts.map((z) => unpackCodes((z as typeof first).codes));
  const all = new Uint8Array(codes.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of codes) {
    all.set(part, at);
    at += part.length;
  }
  return { kind: "int", codes: packCodes(all, first.codes.bits, 1, all.length) };
}
