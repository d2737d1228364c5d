/**
 * QuantTensor <-> named tensors of an artifact (design, section 4): `X.codes.<segment>`, `X.scale`, `X.zero`, `X.table` …
 * for module X. The plan of names, types and shapes follows from the description alone, so a loader checks all of it
 * before it reads a byte.
 */
import { bytesOf, typedView } from "../core/dtype.js";
import { FormatError } from "../core/errors.js";
import { decodeAffine } from "./affine-bytes.js";
import { decodeDense } from "./dense-codec.js";
import { parseDescription, type TensorDescription } from "./description.js";
import { decodeDoubleQuant, doubleQuantBlocks } from "./double-quant.js";
import { scaleShape } from "./groups.js";
import { rowBytes, segmentWidths } from "./packed-codes.js";
import { floatsFromBytes, floatsToBytes } from "./stored-floats.js";
import { namedTable } from "./tables.js";
import type {
  AffineBytes,
  Encoding,
  FloatType,
  Lut,
  PackedCodes,
  PreOp,
  QuantTensor,
  StoredFloats,
  Zero,
} from "./types.js";

/** Element types of stored tensors, in safetensors spelling. */
export type StoredDtype = "U8" | "U16" | "U32" | "F32" | "F16" | "BF16";

export interface PlannedTensor {
  name: string;
  dtype: StoredDtype;
  shape: number[];
}

export interface NamedTensor extends PlannedTensor {
  /** Little-endian, row-major. */
  bytes: Uint8Array;
}

const DTYPE_BYTES: Record<StoredDtype, number> = { U8: 1, U16: 2, U32: 4, F32: 4, F16: 2, BF16: 2 };
const FLOAT_DTYPE: Record<FloatType, StoredDtype> = { f32: "F32", f16: "F16", bf16: "BF16" };

function tensorBytes({ dtype, shape }: PlannedTensor): number {
  return shape.reduce((product, size) => product * size, DTYPE_BYTES[dtype]);
}

/** Bytes of all tensors of a plan. */
export function tensorPlanBytes(plan: readonly PlannedTensor[]): number {
  return plan.reduce((sum, tensor) => sum + tensorBytes(tensor), 0);
}

/** The nibble.json entry of a tensor. */
export function describe(tensor: QuantTensor): TensorDescription {
  const { main, csr, lowRank } = tensor;
  const common = {
    shape: [tensor.n, tensor.k] as [number, number],
    ...(csr && {
      csr: {
        entries: csr.columns.length,
        columns: tensor.k <= 0x10000 ? ("u16" as const) : ("u32" as const),
        values: csr.values.type,
      },
    }),
    ...(lowRank?.length && {
      lowRank: lowRank.map(({ a, b, alpha }) => ({
        rank: a.shape[0],
        a: a.type,
        b: b.type,
        alpha,
      })),
    }),
    pre: tensor.pre.map((op) =>
      op.op === "scale" ? { op: op.op, type: op.values.type } : { op: op.op },
    ),
    post: tensor.post.map(({ op }) => ({ op })),
  };
  switch (main.kind) {
    case "gint": {
      const { zero } = main;
      return {
        encoding: "gint",
        ...common,
        bits: main.bits,
        groupSize: main.groupSize,
        scale: main.scale.affine ? "u8" : main.scale.type,
        zero:
          zero.kind === "int"
            ? "int"
            : zero.kind === "const"
              ? { const: zero.value }
              : { float: zero.values.affine ? "u8" : zero.values.type },
        ...(zero.kind === "int" && zero.codes.bits !== main.bits && { zeroBits: zero.codes.bits }),
      };
    }
    case "lut": {
      const { table } = main;
      return {
        encoding: "lut",
        ...common,
        bits: main.bits,
        groupSize: main.groupSize,
        table:
          "named" in table
            ? table.named
            : {
                rowsPerTile: table.rowsPerTile,
                colsPerTile: table.colsPerTile,
                classes: table.classes,
                values: table.values.type,
                ...(table.additive && { additive: true }),
              },
        ...(main.scale && { scale: main.scale.dq8 ? ("dq8" as const) : main.scale.type }),
        ...(main.scaleNegative && { scaleNegative: main.scaleNegative.type }),
      };
    }
    case "dense":
      return {
        encoding: "dense",
        ...common,
        type: main.type,
        ...(main.codec && { codec: { id: main.codec.id, bytes: main.codec.bytes.length } }),
      };
  }
}

/** Names, types and shapes of the stored tensors of a module, in file order. */
export function tensorPlan(module: string, d: TensorDescription): PlannedTensor[] {
  const [n, k] = d.shape;
  const plan: PlannedTensor[] = [];
  const add = (suffix: string, dtype: StoredDtype, shape: number[]) =>
    plan.push({ name: `${module}.${suffix}`, dtype, shape });
  const addGroupFloats = (suffix: string, type: FloatType | "u8", shape: [number, number]) => {
    if (type === "u8") {
      add(`${suffix}.codes`, "U8", shape);
      add(`${suffix}.low`, "F32", [shape[1]]);
      add(`${suffix}.step`, "F32", [shape[1]]);
    } else add(suffix, FLOAT_DTYPE[type], shape);
  };
  if (d.encoding === "dense") {
    if (d.codec) add(`weight.${d.codec.id}`, "U8", [d.codec.bytes]);
    else add("weight", FLOAT_DTYPE[d.type], [n, k]);
  } else {
    for (const width of segmentWidths(d.bits)) add(`codes.${width}`, "U8", [n, rowBytes(k, width)]);
    const scales = scaleShape(n, k, d.groupSize);
    if (d.encoding === "gint") {
      addGroupFloats("scale", d.scale, scales);
      if (d.zero === "int") add("zero", "U8", [zeroBytes(d.zeroBits ?? d.bits, scales)]);
      else if ("float" in d.zero) addGroupFloats("zero", d.zero.float, scales);
    } else {
      if (typeof d.table !== "string") {
        const { rowsPerTile, colsPerTile, classes, values, additive } = d.table;
        const tiles = Math.ceil(n / rowsPerTile) * Math.ceil(k / colsPerTile);
        add("table", FLOAT_DTYPE[values], [tiles, classes, additive ? d.bits : 2 ** d.bits]);
        if (classes === 2) add("col_class", "U8", [Math.ceil(k / 8)]);
      }
      if (d.scale === "dq8") {
        const count = scales[0] * scales[1];
        add("scale.codes", "U8", scales);
        add("scale.block_max", "F32", [doubleQuantBlocks(count)]);
        add("scale.offset", "F32", [1]);
      } else if (d.scale) add("scale", FLOAT_DTYPE[d.scale], scales);
      if (d.scaleNegative) add("scale_neg", FLOAT_DTYPE[d.scaleNegative], scales);
    }
  }
  if (d.csr) {
    add("csr.row_ptr", "U32", [n + 1]);
    add("csr.col", d.csr.columns === "u16" ? "U16" : "U32", [d.csr.entries]);
    add("csr.val", FLOAT_DTYPE[d.csr.values], [d.csr.entries]);
  }
  for (const [i, { rank, a, b }] of (d.lowRank ?? []).entries()) {
    add(`lowrank.${i}.a`, FLOAT_DTYPE[a], [rank, k]);
    add(`lowrank.${i}.b`, FLOAT_DTYPE[b], [n, rank]);
  }
  for (const op of d.pre) {
    if (op.op === "scale") add("pre_scale", FLOAT_DTYPE[op.type], [k]);
    else add("perm", "U32", [k]);
  }
  const names = new Set(plan.map(({ name }) => name));
  if (names.size !== plan.length) {
    throw new FormatError("an input scale or permutation stands there twice", {
      place: `linears.${module}.pre`,
    });
  }
  return plan;
}

/** All segments of one packed row behind one another. */
function zeroBytes(bits: number, [rows, groups]: [number, number]): number {
  return segmentWidths(bits).reduce((sum, width) => sum + rowBytes(rows * groups, width), 0);
}

/** The stored tensors of a module, in the order of `tensorPlan`. Bytes may be views of the tensor's buffers. */
export function serialize(module: string, tensor: QuantTensor): NamedTensor[] {
  const { main, csr, lowRank = [] } = tensor;
  const bytes = new Map<string, Uint8Array>();
  const put = (suffix: string, data: Uint8Array) => bytes.set(`${module}.${suffix}`, data);
  const putFloats = (suffix: string, { data, type, affine }: StoredFloats) => {
    if (affine) {
      put(`${suffix}.codes`, affine.codes);
      put(`${suffix}.low`, bytesOf(affine.low));
      put(`${suffix}.step`, bytesOf(affine.step));
    } else put(suffix, floatsToBytes(data, type));
  };
  if (main.kind === "dense") {
    if (main.codec) put(`weight.${main.codec.id}`, main.codec.bytes);
    else put("weight", floatsToBytes(main.data, main.type));
  } else {
    for (const width of segmentWidths(main.bits)) {
      put(`codes.${width}`, main.codes.segments[width] as Uint8Array);
    }
    if (main.scale?.dq8) {
      const { codes, blockMax, offset } = main.scale.dq8;
      put("scale.codes", codes);
      put("scale.block_max", bytesOf(blockMax));
      put("scale.offset", bytesOf(Float32Array.of(offset)));
    } else if (main.scale) putFloats("scale", main.scale);
    if (main.kind === "gint") {
      if (main.zero.kind === "int") put("zero", joinSegments(main.zero.codes));
      else if (main.zero.kind === "float") putFloats("zero", main.zero.values);
    } else {
      if (main.scaleNegative) putFloats("scale_neg", main.scaleNegative);
      if (!("named" in main.table)) {
        putFloats("table", main.table.values);
        if (main.table.colClass) put("col_class", packBits(main.table.colClass));
      }
    }
  }
  if (csr) {
    put("csr.row_ptr", bytesOf(csr.rowPointers));
    put("csr.col", bytesOf(tensor.k <= 0x10000 ? Uint16Array.from(csr.columns) : csr.columns));
    putFloats("csr.val", csr.values);
  }
  for (const [i, { a, b }] of lowRank.entries()) {
    putFloats(`lowrank.${i}.a`, a);
    putFloats(`lowrank.${i}.b`, b);
  }
  for (const op of tensor.pre) {
    if (op.op === "scale") putFloats("pre_scale", op.values);
    else put("perm", bytesOf(op.index));
  }
  return tensorPlan(module, describe(tensor)).map((planned) => {
    const data = bytes.get(planned.name);
    if (data?.byteLength !== tensorBytes(planned)) {
      throw new FormatError(
        `${planned.name} has ${data?.byteLength ?? 0} bytes, ${tensorBytes(planned)} expected`,
      );
    }
    return { ...planned, bytes: data };
  });
}

function joinSegments(codes: PackedCodes): Uint8Array {
  const widths = segmentWidths(codes.bits);
  const out = new Uint8Array(widths.reduce((sum, width) => sum + rowBytes(codes.cols, width), 0));
  let at = 0;
  for (const width of widths) {
    out.set(codes.segments[width] as Uint8Array, at);
    at += rowBytes(codes.cols, width);
  }
  return out;
}

function packBits(values: Uint8Array): Uint8Array {
  const out = new Uint8Array(Math.ceil(values.length / 8));
  for (let i = 0; i < values.length; i++) out[i >> 3] |= values[i] << (i & 7);
  return out;
}

/** How a loader hands over one stored tensor; may throw its own error when there is none of that name. */
export type ReadTensor = (name: string) => NamedTensor | Promise<NamedTensor>;

/**
 * Rebuilds the tensor of a module. Codes stay views of the bytes that were read.
 * @param description the entry of nibble.json, not yet validated
 * @throws FormatError naming the tensor for a wrong name, type, shape or length, and for contents that cannot be
 *   (scales that are not finite, a permutation that is none, side-car indices out of range)
 */
export async function deserialize(
  module: string,
  description: unknown,
  read: ReadTensor,
): Promise<QuantTensor> {
  const d = parseDescription(module, description);
  const [n, k] = d.shape;
  const found = new Map<string, Uint8Array>();
  await Promise.all(
    tensorPlan(module, d).map(async (planned) => {
      const tensor = await read(planned.name);
      checkTensor(planned, tensor);
      found.set(planned.name.slice(module.length + 1), tensor.bytes);
    }),
  );
  const bytes = (suffix: string) => found.get(suffix) as Uint8Array; // every planned name is there
  const fail = (suffix: string, message: string) =>
    new FormatError(message, { place: `tensor ${module}.${suffix}` });
  const floats = (suffix: string, type: FloatType, shape: number[]): StoredFloats => {
    const data = floatsFromBytes(bytes(suffix), type);
    if (!data.every(Number.isFinite)) throw fail(suffix, "holds a value that is not finite");
    return { type, shape, data };
  };
  const groupFloats: GroupFloats = (suffix, type, shape) => {
    if (type !== "u8") return floats(suffix, type, shape);
    const affine: AffineBytes = {
      codes: bytes(`${suffix}.codes`),
      low: floats(`${suffix}.low`, "f32", [shape[1]]).data,
      step: floats(`${suffix}.step`, "f32", [shape[1]]).data,
    };
    const data = decodeAffine(affine);
    if (!data.every(Number.isFinite))
      throw fail(`${suffix}.step`, "gives a value that is not finite");
    return { type: "f16", shape, data, affine };
  };
  const main = readMain(module, d, bytes, floats, groupFloats);
  const tensor: QuantTensor = { n, k, main, pre: [], post: d.post.map(({ op }) => ({ op })) };
  if (d.csr) {
    const rowPointers = Uint32Array.from(typedView(Uint32Array, bytes("csr.row_ptr")));
    const stored = bytes("csr.col");
    const columns = Uint32Array.from(
      d.csr.columns === "u16" ? typedView(Uint16Array, stored) : typedView(Uint32Array, stored),
    );
    if (rowPointers[0] !== 0 || rowPointers[n] !== d.csr.entries) {
      throw fail("csr.row_ptr", "does not span the entries");
    }
    if (rowPointers.some((p, i) => i > 0 && p < rowPointers[i - 1])) {
      throw fail("csr.row_ptr", "decreases");
    }
    if (columns.some((c) => c >= k)) throw fail("csr.col", `names a column beyond ${k - 1}`);
    const values = floats("csr.val", d.csr.values, [d.csr.entries]);
    tensor.csr = { rowPointers, columns, values };
  }
  if (d.lowRank) {
    tensor.lowRank = d.lowRank.map(({ rank, a, b, alpha }, i) => ({
      a: floats(`lowrank.${i}.a`, a, [rank, k]),
      b: floats(`lowrank.${i}.b`, b, [n, rank]),
      alpha,
    }));
  }
  tensor.pre = d.pre.map((op): PreOp => {
    if (op.op === "scale") return { op: "scale", values: floats("pre_scale", op.type, [k]) };
    const index = Uint32Array.from(typedView(Uint32Array, bytes("perm")));
    const seen = new Uint8Array(k);
    for (const i of index) if (i < k) seen[i] = 1;
    if (seen.includes(0)) throw fail("perm", "is no permutation");
    return { op: "perm", index };
  });
  return tensor;
}

function checkTensor(planned: PlannedTensor, tensor: NamedTensor): void {
  const place = `tensor ${planned.name}`;
  if (tensor.dtype !== planned.dtype) {
    throw new FormatError(`has type ${tensor.dtype}, ${planned.dtype} expected`, { place });
  }
  if (tensor.shape.join() !== planned.shape.join()) {
    throw new FormatError(`has shape [${tensor.shape}], [${planned.shape}] expected`, { place });
  }
  if (tensor.bytes.byteLength !== tensorBytes(planned)) {
    throw new FormatError(
      `has ${tensor.bytes.byteLength} bytes, ${tensorBytes(planned)} expected`,
      { place },
    );
  }
}

type Bytes = (suffix: string) => Uint8Array;
type Floats = (suffix: string, type: FloatType, shape: number[]) => StoredFloats;
type GroupFloats = (
  suffix: string,
  type: FloatType | "u8",
  shape: [number, number],
) => StoredFloats;

function readMain(
  module: string,
  d: TensorDescription,
  bytes: Bytes,
  floats: Floats,
  groupFloats: GroupFloats,
): Encoding {
  const [n, k] = d.shape;
  if (d.encoding === "dense") {
    if (d.codec) {
      const { id } = d.codec;
      return decodeDense(id, bytes(`weight.${id}`), d.type, n, k, `tensor ${module}.weight.${id}`);
    }
    const data = floats("weight", d.type, [n, k]).data;
    return { kind: "dense", type: d.type, data };
  }
  const segments: PackedCodes["segments"] = {};
  for (const width of segmentWidths(d.bits)) segments[width] = bytes(`codes.${width}`);
  const codes: PackedCodes = { bits: d.bits, rows: n, cols: k, segments };
  const shape = scaleShape(n, k, d.groupSize);
  if (d.encoding === "gint") {
    return {
      kind: "gint",
      bits: d.bits,
      groupSize: d.groupSize,
      codes,
      scale: groupFloats("scale", d.scale, shape),
      zero: readZero(d, bytes, groupFloats, shape),
    };
  }
  const lut: Lut = {
    kind: "lut",
    bits: d.bits,
    groupSize: d.groupSize,
    codes,
    table: { named: "" },
  };
  if (typeof d.table === "string") {
    if (namedTable(d.table).bits !== d.bits) {
      throw new FormatError(`table "${d.table}" has no ${d.bits}-bit codes`);
    }
    lut.table = { named: d.table };
  } else {
    const { values, ...rest } = d.table;
    const tiles = Math.ceil(n / rest.rowsPerTile) * Math.ceil(k / rest.colsPerTile);
    const size = rest.additive ? d.bits : 2 ** d.bits;
    lut.table = {
      rowsPerTile: rest.rowsPerTile,
      colsPerTile: rest.colsPerTile,
      classes: rest.classes,
      values: floats("table", values, [tiles, rest.classes, size]),
      ...(rest.additive && { additive: true }),
      ...(rest.classes === 2 && { colClass: unpackBits(bytes("col_class"), k) }),
    };
  }
  if (d.scale === "dq8") {
    const blocks = [doubleQuantBlocks(shape[0] * shape[1])];
    const dq8 = {
      codes: bytes("scale.codes"),
      blockMax: floats("scale.block_max", "f32", blocks).data,
      offset: floats("scale.offset", "f32", [1]).data[0],
    };
    lut.scale = { type: "f32", shape, data: decodeDoubleQuant(dq8), dq8 };
  } else if (d.scale) lut.scale = floats("scale", d.scale, shape);
  if (d.scaleNegative) lut.scaleNegative = floats("scale_neg", d.scaleNegative, shape);
  return lut;
}

function readZero(
  d: Extract<TensorDescription, { encoding: "gint" }>,
  bytes: Bytes,
  groupFloats: GroupFloats,
  shape: [number, number],
): Zero {
  if (d.zero !== "int") {
    if ("const" in d.zero) return { kind: "const", value: d.zero.const };
    return { kind: "float", values: groupFloats("zero", d.zero.float, shape) };
  }
  const bits = d.zeroBits ?? d.bits;
  const cols = shape[0] * shape[1];
  const joined = bytes("zero");
  const segments: PackedCodes["segments"] = {};
  let at = 0;
  for (const width of segmentWidths(bits)) {
    const end = at + rowBytes(cols, width);
    segments[width] = joined.subarray(at, end);
    at = end;
  }
  return { kind: "int", codes: { bits, rows: 1, cols, segments } };
}

function unpackBits(bytes: Uint8Array, count: number): Uint8Array {
  return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (i & 7)) & 1);
}
