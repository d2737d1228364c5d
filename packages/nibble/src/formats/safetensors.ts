/**
 * safetensors (github.com/huggingface/safetensors): the flat tensor file of the Hugging Face ecosystem, read from any byte
 * source. The header is checked as strictly as the official reader does before any tensor is touched: no gaps, no
 * overlaps, no trailing bytes, every size equal to what shape and dtype imply.
 */
import {
  type ByteFolder,
  type ByteSource,
  jsonObject,
  readSmall,
  utf8,
} from "../core/byte-source.js";
import { decodeBf16, decodeF16, float8Values, typedView } from "../core/dtype.js";
import { FormatError } from "../core/errors.js";

/** Bits of an element; order of the official enum, which the writer's tensor order depends on. */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;
export type SafetensorsDtype = keyof typeof DTYPE_BITS;

export interface TensorEntry {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** First byte within its file. */
  readonly offset: number;
  readonly bytes: number;
}

/** Tensors of one file, or of all files of a sharded checkpoint. */
export interface SafetensorsReader {
  /** `__metadata__` of the file, or of the index of a sharded checkpoint (strings only). */
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Weight files in name order, for hashing. */
  readonly sources: readonly ByteSource[];
  /** Stored bytes of a tensor. May be a view of shared memory: do not write into it. */
  readRaw(name: string): Promise<Uint8Array>;
  /** Stored bytes of rows [from, to) along the first dimension. */
  readRawRows(name: string, from: number, to: number): Promise<Uint8Array>;
  /** A float tensor as f32, a fresh array. @throws FormatError for integer tensors. */
  readF32(name: string): Promise<Float32Array>;
  readF32Rows(name: string, from: number, to: number): Promise<Float32Array>;
  close(): Promise<void>;
}

const MAX_HEADER_BYTES = 100_000_000;
const HINT = "The file is truncated, damaged or no safetensors file; fetch it again.";

/** Opens one file. @throws FormatError with the first rule it breaks. */
export async function openSafetensors(source: ByteSource): Promise<SafetensorsReader> {
  const { metadata, tensors } = await readHeader(source);
  return makeReader(metadata, tensors, () => source, [source]);
}

/**
 * Opens `model.safetensors`, or all shards that `model.safetensors.index.json` names.
 * @returns null when the folder holds neither
 * @throws FormatError for a shard that is missing, a name that leaves the folder, an index that contradicts the shards
 */
export async function openSafetensorsFolder(folder: ByteFolder): Promise<SafetensorsReader | null> {
  const indexName = "model.safetensors.index.json";
  const indexBytes = await readSmall(folder, indexName);
  if (!indexBytes) {
    const single = "model.safetensors";
    return folder.has(single) ? openSafetensors(await folder.open(single)) : null;
  }
  const index = jsonObject(indexBytes, indexName);
  const fail = (message: string) => new FormatError(message, { place: indexName });
  const map = index.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw fail("weight_map is missing or no object");
  }
  const files = new Map<string, string[]>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== "string" || !/^[^/\\:]+\.safetensors$/.test(file) || file.startsWith(".")) {
      throw fail(`${JSON.stringify(file)} is not a file name inside the folder`);
    }
    const list = files.get(file);
    if (list) list.push(tensor);
    else files.set(file, [tensor]);
  }
  const opened = new Map<string, ByteSource>();
  const tensors = new Map<string, TensorEntry>();
  const home = new Map<string, ByteSource>();
  try {
    for (const file of [...files.keys()].sort()) {
      if (!folder.has(file)) throw fail(`shard ${file} is missing`);
      const source = await folder.open(file);
      opened.set(file, source);
      const header = await readHeader(source);
      for (const [name, entry] of header.tensors) {
        if (tensors.has(name)) throw fail(`tensor ${name} stands in two shards`);
        tensors.set(name, entry);
        home.set(name, source);
      }
    }
    for (const [file, names] of files) {
      for (const name of names) {
        if (home.get(name) !== opened.get(file)) throw fail(`tensor ${name} is not in ${file}`);
      }
    }
  } catch (cause) {
    await Promise.all([...opened.values()].map((source) => source.close()));
    throw cause;
  }
  const metadata = new Map<string, string>();
  if (typeof index.metadata === "object" && index.metadata !== null) {
    for (const [key, value] of Object.entries(index.metadata)) metadata.set(key, String(value));
  }
  return makeReader(metadata, tensors, (name) => home.get(name) as ByteSource, [
    ...opened.values(),
  ]);
}

/** The reader over checked entries. */
function makeReader(
  metadata: Map<string, string>,
  tensors: Map<string, TensorEntry>,
  home: (name: string) => ByteSource,
  sources: readonly ByteSource[],
): SafetensorsReader {
  const find = (name: string): TensorEntry => {
    const entry = tensors.get(name);
    if (!entry) {
      throw new FormatError(`there is no tensor ${name}`, {
        place: sources[0]?.name ?? "checkpoint",
      });
    }
    return entry;
  };
  const rowsOf = async (name: string, from: number, to: number): Promise<Uint8Array> => {
    const entry = find(name);
    const [rows = 1] = entry.shape;
    if (
      !(Number.isInteger(from) && Number.isInteger(to) && 0 <= from && from <= to && to <= rows)
    ) {
      throw new FormatError(`rows ${from}..${to} are outside of shape [${entry.shape}]`, {
        place: name,
      });
    }
    const rowBytes = rows === 0 ? 0 : entry.bytes / rows;
    if (!Number.isInteger(rowBytes)) {
      throw new FormatError(`rows of ${entry.dtype} [${entry.shape}] do not fill bytes`, {
        place: name,
      });
    }
    return home(name).read(entry.offset + from * rowBytes, (to - from) * rowBytes);
  };
  const rawOf = async (name: string) => {
    const entry = find(name);
    return home(name).read(entry.offset, entry.bytes);
  };
  return {
    metadata,
    tensors,
    sources,
    readRaw: rawOf,
    readRawRows: rowsOf,
    readF32: async (name) => toF32(find(name), await rawOf(name)),
    readF32Rows: async (name, from, to) => toF32(find(name), await rowsOf(name, from, to)),
    async close() {
      await Promise.all(sources.map((source) => source.close()));
    },
  };
}

/** Decodes the bytes of a float tensor into a fresh array. */
function toF32(entry: TensorEntry, bytes: Uint8Array): Float32Array {
  switch (entry.dtype) {
    case "F32":
      // slice: the bytes may be shared, the caller may write.
      return typedView(Float32Array, bytes).slice();
    case "F16":
      return decodeF16(typedView(Uint16Array, bytes));
    case "BF16":
      return decodeBf16(typedView(Uint16Array, bytes));
    case "F64":
      return Float32Array.from(typedView(Float64Array, bytes));
    case "F8_E4M3":
    case "F8_E5M2":
    case "F8_E8M0": {
      const type = entry.dtype === "F8_E4M3" ? "e4m3" : entry.dtype === "F8_E5M2" ? "e5m2" : "e8m0";
      const table = float8Values(type);
      return Float32Array.from(bytes, (code) => table[code] as number); // 256 entries
    }
    default:
      throw new FormatError(`dtype ${entry.dtype} where floats are expected`, {
        place: entry.name,
      });
  }
}

/** Reads and checks the header of one file. */
async function readHeader(source: ByteSource): Promise<{
  metadata: Map<string, string>;
  tensors: Map<string, TensorEntry>;
}> {
  const fail = (message: string, tensor?: string) =>
    new FormatError(message, {
      place: tensor === undefined ? source.name : `${source.name}, tensor ${tensor}`,
      hint: HINT,
    });
  if (source.size < 8) throw fail(`${source.size} bytes are too few for a header`);
  const prefix = await source.read(0, 8);
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES || length > source.size - 8) {
    throw fail(`a header of ${length} bytes is impossible in ${source.size} bytes`);
  }
  const headerBytes = await source.read(8, Number(length));
  if (headerBytes[0] !== 0x7b) throw fail("the header does not start with {");
  const place = `header of ${source.name}`;
  const header = jsonObject(headerBytes, place);
  const twice = repeatedKey(utf8(headerBytes, place));
  if (twice !== null) throw fail(`${twice} stands twice in the header`);

  const metadata = new Map<string, string>();
  const entries: TensorEntry[] = [];
  const dataStart = 8 + Number(length);
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") {
      if (typeof value !== "object" || value === null) throw fail("__metadata__ is no object");
      for (const [key, text] of Object.entries(value)) {
        if (typeof text !== "string") throw fail(`__metadata__.${key} is not a string`);
        metadata.set(key, text);
      }
      continue;
    }
    entries.push(parseEntry(name, value, dataStart, (message) => fail(message, name)));
  }
  entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let next = dataStart;
  for (const entry of entries) {
    if (entry.offset !== next) {
      throw fail(`begins at ${entry.offset - dataStart}, expected ${next - dataStart}`, entry.name);
    }
    next += entry.bytes;
  }
  if (next !== source.size) {
    throw fail(`tensors end at byte ${next}, the file at ${source.size}`);
  }
  // Header order is the order of the file for readers that walk it; lookups do not care.
  return { metadata, tensors: new Map(entries.map((entry) => [entry.name, entry])) };
}

/** One tensor of the header. */
function parseEntry(
  name: string,
  value: unknown,
  dataStart: number,
  fail: (message: string) => FormatError,
): TensorEntry {
  if (typeof value !== "object" || value === null) throw fail("its entry is no object");
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BITS, dtype)) {
    throw fail(`unknown dtype ${JSON.stringify(dtype)}`);
  }
  const size = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= 0;
  if (!Array.isArray(shape) || !shape.every(size)) throw fail("shape is no list of sizes");
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(size)) {
    throw fail("data_offsets is no pair of byte offsets");
  }
  const [begin, end] = offsets as [number, number];
  const bits = shape.reduce((product, n) => product * n, DTYPE_BITS[dtype as SafetensorsDtype]);
  if (!Number.isSafeInteger(bits)) throw fail(`shape [${shape}] is too large`);
  if (bits % 8 !== 0) throw fail(`${dtype} [${shape}] does not fill bytes`);
  if (end - begin !== bits / 8) {
    throw fail(`${dtype} [${shape}] takes ${bits / 8} bytes, data_offsets give ${end - begin}`);
  }
  return {
    name,
    dtype: dtype as SafetensorsDtype,
    shape,
    offset: dataStart + begin,
    bytes: end - begin,
  };
}

/** The first key that some object of `text` (valid JSON) holds twice, or null: JSON.parse keeps the last one silently. */
function repeatedKey(text: string): string | null {
  const levels: Set<string>[] = [];
  let begin = 0;
  let end = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (char === '"') {
      begin = i++;
      while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
      end = i + 1;
    } else if (char === "{") levels.push(new Set());
    else if (char === "}") levels.pop();
    else if (char === ":") {
      const key = JSON.parse(text.slice(begin, end)) as string;
      const level = levels.at(-1) as Set<string>; // valid JSON: a colon stands inside an object
      if (level.has(key)) return key;
      level.add(key);
    }
  }
  return null;
}
