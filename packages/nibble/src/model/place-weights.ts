/**
 * Places one weight, or several fused along their outputs (q|k|v, gate|up), in the runtime layout and registers the
 * descriptor. What a kernel needs is decided by the encoding alone.
 */
import { ModelError } from "../core/errors.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import { decode } from "../encodings/quant-tensor.js";
import { namedTable } from "../encodings/tables.js";
import type {
  Dense,
  Encoding,
  Gint,
  GroupSize,
  Lut,
  PreOp,
  QuantTensor,
  StoredFloats,
} from "../encodings/types.js";
import type { Arena } from "../graph/arena.js";
import { SCALAR_TYPE, WEIGHT_KIND, ZERO_KIND } from "../kernels/ops.js";
import {
  groupCodeSums,
  groupCount,
  packDensePanels,
  paddedColumns,
  panelCount,
  panelSlot,
  writePanelFloats,
  writePanelRow,
} from "../kernels/panel32.js";
import { NO_WEIGHT, type ProgramBuilder } from "../kernels/program.js";
import type { PlacedLinear } from "./lower.js";
import { placeCodes } from "./place-codes.js";

interface WeightBase {
  n: number;
  k: number;
  bias: Float32Array | null;
  /** Role path, for error messages. */
  path: string;
}
export type LoadedWeight = WeightBase &
  ({ quant: QuantTensor } | { dense: Float32Array; pre?: PreOp[] });

function preOps(weight: LoadedWeight): PreOp[] {
  return "quant" in weight ? weight.quant.pre : (weight.pre ?? []);
}

/** Columns of a group; 0 = one group a row. */
function groupColumns(groupSize: GroupSize, k: number): number {
  return typeof groupSize === "number" && groupSize < k ? groupSize : 0;
}

function sameArray(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

function samePre(a: PreOp[], b: PreOp[]): boolean {
  return (
    a.length === b.length &&
    a.every((x, i) => {
      const y = b[i];
      if (x.op === "scale") return y?.op === "scale" && sameArray(x.values.data, y.values.data);
      return y?.op === "perm" && sameArray(x.index, y.index);
    })
  );
}

/** What two weights must share to become one matrix; null when a weight is never fused. */
function fusionKey(weight: LoadedWeight): string | null {
  if (!("quant" in weight)) return "dense f32";
  const { main, csr, lowRank, post } = weight.quant;
  if (csr || lowRank?.length || post.length || main.kind === "lut") return null;
  if (main.kind === "dense") return `dense ${main.type}`;
  const zero = main.zero.kind === "const" ? `const${main.zero.value}` : main.zero.kind;
  return `gint ${main.bits} ${groupColumns(main.groupSize, weight.k)} ${main.scale.type} ${zero}`;
}

/** Whether weights that read the same input can run as one matrix. */
export function fusable(weights: LoadedWeight[]): boolean {
  const [first, ...rest] = weights;
  if (!first) return false;
  const key = fusionKey(first);
  return (
    key !== null && rest.every((w) => fusionKey(w) === key && samePre(preOps(w), preOps(first)))
  );
}

export interface WeightOptions {
  /** Two weights of equal shape, gate and up, in alternating half-panels. */
  interleaved?: boolean;
  /** Keep the sum of the codes of every group: asymmetric activations need it. */
  codeSums?: boolean;
}

/**
 * @throws ModelError for an encoding that no kernel runs; ResourceError when the arena is full
 */
export function placeWeights(
  arena: Arena,
  builder: ProgramBuilder,
  weights: LoadedWeight[],
  options: WeightOptions = {},
): PlacedLinear {
  const { interleaved = false, codeSums = false } = options;
  const [first] = weights;
  if (!first) throw new Error("nothing to place");
  const k = first.k;
  const n = weights.reduce((sum, w) => sum + w.n, 0);
  const panels = panelCount(n);
  // Channel index inside the fused matrix of row r of weight w.
  const starts = weights.map((_, i) => weights.slice(0, i).reduce((sum, w) => sum + w.n, 0));
  const slot = (w: number, row: number) => panelSlot((starts[w] as number) + row, n, interleaved);

  const fields = { ...NO_WEIGHT, n, k, panels, kPad: k, interleaved: interleaved ? 1 : 0 };
  if (weights.some((w) => w.bias)) {
    fields.biasAt = arena.allocF32(panels * 32);
    const bias = arena.f32(fields.biasAt, panels * 32).fill(0);
    weights.forEach((weight, w) => {
      weight.bias?.forEach((value, row) => {
        bias[slot(w, row)] = value;
      });
    });
  }

  const quants = weights.map((w) => ("quant" in w ? w.quant : null));
  const mains = quants.map((q) => q?.main);
  let groupSize = 0;
  let integer = false;
  if (mains.every((m): m is Gint => m?.kind === "gint")) {
    groupSize = groupColumns((mains[0] as Gint).groupSize, k);
    integer = groupSize % 32 === 0;
    if (groupSize % 8 !== 0) {
      throw new ModelError(`${first.path}: groups of ${groupSize} columns cannot be run`, {
        hint: "use a groupSize that is a multiple of 8 (of 32 when activations are quantized)",
      });
    }
    placeGint(arena, fields, mains, weights, slot, codeSums);
  } else if (mains.length === 1 && mains[0]?.kind === "lut" && runsAsLut(mains[0], k)) {
    groupSize = placeLut(arena, fields, mains[0], first, slot);
  } else if (halfType(mains)) {
    placeHalf(arena, fields, mains as Dense[], weights, slot);
  } else {
    fields.kind = WEIGHT_KIND.f32;
    fields.denseAt = arena.allocF32(panels * 32 * k);
    const rows = new Array<{ data: Float32Array; offset: number } | null>(panels * 32).fill(null);
    weights.forEach((weight, w) => {
      const data = "quant" in weight ? decodeMain(weight.quant) : weight.dense;
      for (let row = 0; row < weight.n; row++) rows[slot(w, row)] = { data, offset: row * k };
    });
    packDensePanels(arena.f32(fields.denseAt, panels * 32 * k), k, rows);
  }

  const quant = quants[0];
  if (quant?.post.length) {
    throw new ModelError(`${first.path}: a layernorm after a linear cannot be run`);
  }
  const placed: PlacedLinear = {
    weight: builder.weight(fields),
    n,
    k,
    integer,
    groupSize,
    interleaved,
    ...placePre(arena, preOps(first)),
    csr: null,
    lowRank: [],
  };
  // Dense decoding of a quantized weight (calibration) folds the side-cars in; see loadWeight.
  if (quant?.csr) {
    placed.csr = {
      rowPointersAt: arena.place(quant.csr.rowPointers),
      columnsAt: arena.place(quant.csr.columns),
      valuesAt: arena.place(quant.csr.values.data),
    };
  }
  for (const { a, b, alpha } of quant?.lowRank ?? []) {
    const rank = a.shape[0] as number;
    const scaled = alpha === 1 ? b.data : b.data.map((x) => x * alpha);
    const dense = (data: Float32Array, rows: number, cols: number) =>
      placeWeights(arena, builder, [
        { n: rows, k: cols, bias: null, path: first.path, dense: data },
      ]).weight;
    placed.lowRank.push({ a: dense(a.data, rank, k), b: dense(scaled, n, rank), rank });
  }
  return placed;
}

/** The main term alone, as f32. */
/** f16 or bf16 when all weights are stored so: then they run so, with half the bytes to read. */
function halfType(mains: readonly (Encoding | undefined)[]): "f16" | "bf16" | null {
  const [first] = mains;
  if (first?.kind !== "dense" || first.type === "f32") return null;
  return mains.every((m) => m?.kind === "dense" && m.type === first.type) ? first.type : null;
}

function placeHalf(
  arena: Arena,
  fields: Fields,
  mains: readonly Dense[],
  weights: readonly LoadedWeight[],
  slot: SlotOf,
): void {
  const { k, panels } = fields;
  const type = mains[0]?.type as "f16" | "bf16";
  fields.kind = WEIGHT_KIND[type];
  const bytes = panels * 32 * k * 2;
  fields.denseAt = arena.alloc(bytes);
  const target = arena.u16(fields.denseAt, bytes / 2).fill(0);
  mains.forEach((main, w) => {
    const rows = weights[w]?.n ?? 0;
    for (let row = 0; row < rows; row++) {
      const values = main.data.subarray(row * k, (row + 1) * k);
      writePanelFloats(target, type, slot(w, row), k, values);
    }
  });
}

function decodeMain(quant: QuantTensor): Float32Array {
  return decode({ n: quant.n, k: quant.k, main: quant.main, pre: [], post: [] });
}

type Fields = typeof NO_WEIGHT;
type SlotOf = (weight: number, row: number) => number;

function placeGint(
  arena: Arena,
  fields: Fields,
  mains: Gint[],
  weights: LoadedWeight[],
  slot: SlotOf,
  withCodeSums: boolean,
): void {
  const first = mains[0] as Gint;
  const { bits } = first;
  const { k, panels } = fields;
  const groupSize = groupColumns(first.groupSize, k);
  const groups = groupCount(k, groupSize);
  Object.assign(fields, {
    kind: WEIGHT_KIND.gint,
    bits,
    groupSize,
    groups,
    kPad: paddedColumns(k),
  });
  const interleaved = fields.interleaved === 1;
  Object.assign(
    fields,
    placeCodes(
      arena,
      mains.map(({ codes }) => codes),
      interleaved,
    ),
  );
  const count = panels * groups * 32;
  const scales = placeFloats(arena, first.scale, count);
  fields.scaleAt = scales.at;
  fields.scaleType = scales.type;
  let codeSums: Int32Array | null = null;
  if (withCodeSums) {
    fields.codeSumAt = arena.alloc(count * 4);
    codeSums = arena.i32(fields.codeSumAt, count).fill(0);
  }
  let zeroBytes: Uint8Array | null = null;
  let zeroFloats: ReturnType<typeof placeFloats> | null = null;
  if (first.zero.kind === "const") {
    fields.zeroKind = ZERO_KIND.const;
    fields.zeroConstF = first.zero.value;
  } else if (first.zero.kind === "int") {
    fields.zeroKind = ZERO_KIND.int;
    fields.zeroAt = arena.alloc(count);
    zeroBytes = arena.u8(fields.zeroAt, count).fill(0);
  } else {
    // Kernels read float zeros in the scale's type; the wider of the two is exact for both.
    fields.zeroKind = ZERO_KIND.float;
    if (first.zero.values.type !== first.scale.type) {
      throw new ModelError(`scales are ${first.scale.type} but zeros ${first.zero.values.type}`);
    }
    zeroFloats = placeFloats(arena, first.zero.values, count);
    fields.zeroAt = zeroFloats.at;
  }

  const row = new Uint8Array(k);
  const sums = new Int32Array(groups);
  mains.forEach((main, w) => {
    const perTensor = main.groupSize === "tensor";
    const zeros = main.zero.kind === "int" ? unpackCodes(main.zero.codes) : null;
    for (let r = 0; r < (weights[w] as LoadedWeight).n; r++) {
      const at = slot(w, r);
      if (codeSums) {
        unpackCodes(main.codes, r, r + 1, row);
        groupCodeSums(row, k, groupSize, sums);
        writePanelRow(codeSums, at, groups, sums);
      }
      const from = perTensor ? 0 : r * groups;
      scales.write(at, groups, main.scale.data, from);
      if (zeros && zeroBytes) writePanelRow(zeroBytes, at, groups, zeros, from);
      if (zeroFloats && main.zero.kind === "float") {
        zeroFloats.write(at, groups, main.zero.values.data, from);
      }
    }
  });
}

/** A per-panel float array in f16 or f32 (bf16 is widened: exact). */
function placeFloats(arena: Arena, values: StoredFloats, count: number) {
  const half = values.type === "f16";
  const at = arena.alloc(count * (half ? 2 : 4));
  const target = half ? arena.u16(at, count) : arena.f32(at, count);
  target.fill(0);
  return {
    at,
    type: half ? SCALAR_TYPE.f16 : SCALAR_TYPE.f32,
    /** The values of the channel at `slot`: data[from..from + groups - 1]. */
    write: (slot: number, groups: number, data: Float32Array, from: number) =>
      writePanelFloats(target, half ? "f16" : "f32", slot, groups, data, from),
  };
}

/** Tables of up to 8 bits that belong to the tensor or to a row; the others are decoded when they are placed. */
function runsAsLut(lut: Lut, k: number): boolean {
  const { table } = lut;
  if ("named" in table) return true;
  return (
    table.classes === 1 && !table.additive && table.rowsPerTile === 1 && table.colsPerTile >= k
  );
}

function placeLut(
  arena: Arena,
  fields: Fields,
  lut: Lut,
  weight: LoadedWeight,
  slot: SlotOf,
): number {
  const { n, k, panels } = fields;
  const { bits, table } = lut;
  const groupSize = groupColumns(lut.groupSize, k);
  const groups = groupCount(k, groupSize);
  Object.assign(fields, { kind: WEIGHT_KIND.lut, bits, groupSize, groups, kPad: paddedColumns(k) });
  Object.assign(fields, placeCodes(arena, [lut.codes], false));
  const size = 2 ** bits;
  if ("named" in table) {
    fields.tableScope = 0;
    fields.tableAt = arena.place(namedTable(table.named).values);
  } else {
    fields.tableScope = 1;
    fields.tableAt = arena.allocF32(panels * 32 * size);
  }
  const rowTables = "named" in table ? null : arena.f32(fields.tableAt, panels * 32 * size).fill(0);
  const count = panels * groups * 32;
  const ones: StoredFloats = { type: "f32", shape: [], data: new Float32Array(groups).fill(1) };
  const scales = placeFloats(arena, lut.scale ?? ones, count);
  fields.scaleAt = scales.at;
  fields.scaleType = scales.type;
  const negative = lut.scaleNegative ? placeFloats(arena, lut.scaleNegative, count) : null;
  if (negative) {
    if (negative.type !== scales.type)
      throw new ModelError(`${weight.path}: the two scales have different types`);
    fields.negativeScaleAt = negative.at;
  }
  for (let r = 0; r < n; r++) {
    const at = slot(0, r);
    const from = lut.groupSize === "tensor" ? 0 : r * groups;
    scales.write(at, groups, (lut.scale ?? ones).data, lut.scale ? from : 0);
    if (negative && lut.scaleNegative) negative.write(at, groups, lut.scaleNegative.data, from);
    if (rowTables && !("named" in table)) {
      writePanelRow(rowTables, at, size, table.values.data, r * size);
    }
  }
  return groupSize;
}

function placePre(arena: Arena, pre: PreOp[]): { permAt: number; preScaleAt: number } {
  let permAt = -1;
  let preScaleAt = -1;
  for (const op of pre) {
    if (op.op === "perm") {
      if (permAt >= 0 || preScaleAt >= 0)
        throw new ModelError("a permutation must be the first operation on an input");
      permAt = arena.place(op.index);
    } else {
      if (preScaleAt >= 0) throw new ModelError("an input can be scaled only once");
      preScaleAt = arena.place(op.values.data);
    }
  }
  return { permAt, preScaleAt };
}
