/**
 * GGUF container (llama.cpp), versions 2 and 3, little-endian: metadata, tensor list, tensor bytes. Everything a file claims
 * is compared with its size before memory is taken, and tensor offsets must follow one another as llama.cpp demands.
 */
import type { ByteSource } from "../core/byte-source.js";
import { FormatError, ModelError } from "../core/errors.js";
import { dequantize, GGML_TYPES, type GgmlType, ggmlTypeOf } from "./ggml-blocks.js";

/** Value types of metadata; the index is the number in the file. */
export const GGUF_TYPES = [
  "u8",
  "i8",
  "u16",
  "i16",
  "u32",
  "i32",
  "f32",
  "bool",
  "string",
  "array",
  "u64",
  "i64",
  "f64",
] as const;
export type GgufType = (typeof GGUF_TYPES)[number];

export type GgufArray =
  | string[]
  | boolean[]
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** u64 and i64 are bigint. */
export interface GgufValue {
  type: GgufType;
  /** Element type of an array. */
  element?: GgufType;
  value: number | bigint | boolean | string | GgufArray;
}

export interface GgufTensor {
  readonly name: string;
  readonly type: GgmlType;
  /** Sizes as in the file: ne[0] is the contiguous dimension. */
  readonly ne: readonly number[];
  /** HF orientation: ne reversed, [out, in]. */
  readonly shape: readonly number[];
  /** First byte within the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface GgufFile {
  readonly name: string;
  readonly version: number;
  readonly alignment: number;
  /** In file order. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** First byte of the tensor data. */
  readonly dataStart: number;
  readonly source: ByteSource;
  /** Packed bytes of a tensor, or of rows [from, to) of ne[0] elements each. Do not write into them. */
  readRaw(name: string, from?: number, to?: number): Promise<Uint8Array>;
  /** Values of a tensor, or of rows [from, to), row-major: a fresh f32 array. */
  readF32(name: string, from?: number, to?: number): Promise<Float32Array>;
  close(): Promise<void>;
}

const MAX_STRING_BYTES = 2 ** 30;
const MAX_ARRAY = 2 ** 30;
/** Largest metadata that is read; real files stay below 20 MB. */
const MAX_HEADER_BYTES = 512 << 20;
const FIRST_READ = 4 << 20;
const HINT = "The file is truncated, damaged or no GGUF file; fetch it again.";

/** Thrown inside the parser when the bytes at hand end before the header does. */
class NeedMore extends Error {}

/**
 * Reads and checks the header.
 * @throws FormatError with the first rule the file breaks, naming key or tensor
 */
export async function openGguf(source: ByteSource): Promise<GgufFile> {
  for (let length = FIRST_READ; ; length *= 2) {
    const have = Math.min(length, source.size);
    const bytes = await source.read(0, have);
    try {
      return makeFile(source, new HeaderParser(bytes, source.size, source.name).parse());
    } catch (error) {
      if (!(error instanceof NeedMore)) throw error;
      if (have === source.size || have >= MAX_HEADER_BYTES) {
        throw new FormatError("the file ends inside its header", {
          place: source.name,
          hint: HINT,
        });
      }
    }
  }
}

type Header = Pick<GgufFile, "version" | "alignment" | "metadata" | "tensors" | "dataStart">;

function makeFile(source: ByteSource, header: Header): GgufFile {
  const locate = (name: string, from: number, to: number | undefined) => {
    const tensor = header.tensors.get(name);
    if (!tensor) throw new FormatError(`there is no tensor ${name}`, { place: source.name });
    const [width = 1, ...outer] = tensor.ne;
    const rows = outer.reduce((product, n) => product * n, 1);
    const end = to ?? rows;
    if (
      !(Number.isInteger(from) && Number.isInteger(end) && 0 <= from && from <= end && end <= rows)
    ) {
      throw new FormatError(`rows ${from}..${end} are outside of ${rows}`, {
        place: `${source.name}, tensor ${name}`,
      });
    }
    const rowBytes = rows === 0 ? 0 : tensor.bytes / rows;
    return { tensor, width, count: end - from, at: tensor.offset + from * rowBytes, rowBytes };
  };
  const readRaw = async (name: string, from = 0, to?: number) => {
    const { at, count, rowBytes } = locate(name, from, to);
    return source.read(at, count * rowBytes);
  };
  return {
    name: source.name,
    ...header,
    source,
    readRaw,
    async readF32(name, from = 0, to) {
      const { tensor, width, count } = locate(name, from, to);
      // Decodable? Asked before anything is read or allocated.
      if (!GGML_TYPES[tensor.type].decode) {
        throw new ModelError(`values of type ${tensor.type} cannot be decoded`, {
          place: `${source.name}, tensor ${name}`,
          hint: "Use a file of another quantization, e.g. Q4_K_M, Q8_0 or F16.",
        });
      }
      const bytes = await readRaw(name, from, to);
      const out = new Float32Array(count * width);
      dequantize(tensor.type, bytes, out);
      return out;
    },
    close: () => source.close(),
  };
}

/** Smallest metadata entry: key of one byte, type, one byte of value. Smallest tensor: name of one byte, no dimensions. */
const MIN_KEY_BYTES = 8 + 1 + 4 + 1;
const MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8;

const FIXED_BYTES: Partial<Record<GgufType, number>> = {
  u8: 1,
  i8: 1,
  bool: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  u64: 8,
  i64: 8,
  f64: 8,
};

/** One pass over the header in `bytes`, the first part of a file of `fileSize` bytes. */
class HeaderParser {
  #at = 0;
  readonly #view: DataView;
  readonly #text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(
    private readonly bytes: Uint8Array,
    private readonly fileSize: number,
    private readonly name: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  parse(): Header {
    const magic = this.fileSize >= 4 ? this.#view.getUint32(this.#take(4), true) : 0;
    if (magic !== 0x46554747) throw this.#fail("does not start with GGUF");
    const version = this.#u32();
    if ((version & 0xffff) === 0) throw this.#fail("is a big-endian file, which is not supported");
    if (version !== 2 && version !== 3) {
      throw this.#fail(`has version ${version}, expected 2 or 3`);
    }
    const tensorCount = this.#count("tensors", MIN_TENSOR_BYTES);
    const keyCount = this.#count("metadata keys", MIN_KEY_BYTES);
    const metadata = new Map<string, GgufValue>();
    for (let i = 0; i < keyCount; i++) {
      const key = this.#string(`metadata key ${i}`);
      if (key === "") throw this.#fail(`metadata key ${i} is empty`);
      if (metadata.has(key)) throw this.#fail(`metadata key ${key} stands twice`);
      metadata.set(key, this.#value(key));
    }
    const alignment = this.#alignment(metadata.get("general.alignment"));
    const infos = new Map<string, Omit<GgufTensor, "offset"> & { relative: bigint }>();
    for (let i = 0; i < tensorCount; i++) {
      const info = this.#tensor(i);
      if (infos.has(info.name)) throw this.#fail(`tensor ${info.name} stands twice`);
      infos.set(info.name, info);
    }
    const align = (n: number) => Math.ceil(n / alignment) * alignment;
    const dataStart = align(this.#at);
    const tensors = new Map<string, GgufTensor>();
    let next = 0;
    for (const { relative, ...info } of infos.values()) {
      if (relative !== BigInt(next)) {
        throw this.#fail(`tensor ${info.name} begins at ${relative}, expected ${next}`);
      }
      const offset = dataStart + next;
      if (offset + info.bytes > this.fileSize) {
        throw this.#fail(
          `tensor ${info.name} ends at byte ${offset + info.bytes}, the file at ${this.fileSize}`,
        );
      }
      tensors.set(info.name, { ...info, offset });
      next = align(next + info.bytes);
    }
    return { version, alignment, metadata, tensors, dataStart };
  }

  #tensor(index: number): Omit<GgufTensor, "offset"> & { relative: bigint } {
    const name = this.#string(`name of tensor ${index}`);
    if (name === "") throw this.#fail(`tensor ${index} has no name`);
    const fail = (message: string) => this.#fail(`tensor ${name}: ${message}`);
    const dims = this.#u32();
    if (dims > 4) throw fail(`${dims} dimensions, expected at most 4`);
    const ne: number[] = [];
    let elements = 1;
    for (let d = 0; d < dims; d++) {
      const size = Number(this.#u64());
      elements *= size;
      if (!Number.isSafeInteger(size) || !Number.isSafeInteger(elements)) {
        throw fail(`impossible size ${size} of dimension ${d}`);
      }
      ne.push(size);
    }
    const id = this.#u32();
    const type = ggmlTypeOf(id);
    if (type === undefined) throw fail(`unknown type ${id}`);
    const { block, bytes: blockBytes } = GGML_TYPES[type];
    const width = ne[0] ?? 1;
    if (width % block !== 0) throw fail(`${width} columns are no multiple of ${type}'s ${block}`);
    const bytes = (elements / block) * blockBytes;
    if (bytes > this.fileSize) throw fail(`${bytes} bytes in a file of ${this.fileSize}`);
    return { name, type, ne, shape: ne.toReversed(), bytes, relative: this.#u64() };
  }

  #alignment(entry: GgufValue | undefined): number {
    if (!entry) return 32;
    const { value } = entry;
    if (entry.type !== "u32" || typeof value !== "number" || value === 0 || value & (value - 1)) {
      throw this.#fail(`general.alignment ${String(value)} is no u32 power of two`);
    }
    return value;
  }

  #value(key: string): GgufValue {
    const type = this.#type(key);
    if (type !== "array") return { type, value: this.#scalar(type, key) };
    const element = this.#type(key);
    if (element === "array") throw this.#fail(`${key} is an array of arrays`);
    const size = element === "string" ? 8 : (FIXED_BYTES[element] ?? 1);
    const count = this.#count(`elements of ${key}`, size);
    if (count >= MAX_ARRAY) throw this.#fail(`${key} has ${count} elements`);
    return { type, element, value: this.#array(element, count, key) };
  }

  #type(key: string): GgufType {
    const id = this.#u32();
    const type = GGUF_TYPES[id];
    if (type === undefined) throw this.#fail(`${key} has the unknown type ${id}`);
    return type;
  }

  #scalar(type: GgufType, key: string): number | bigint | boolean | string {
    const view = this.#view;
    switch (type) {
      case "u8":
        return view.getUint8(this.#take(1));
      case "i8":
        return view.getInt8(this.#take(1));
      case "u16":
        return view.getUint16(this.#take(2), true);
      case "i16":
        return view.getInt16(this.#take(2), true);
      case "u32":
        return this.#u32();
      case "i32":
        return view.getInt32(this.#take(4), true);
      case "f32":
        return view.getFloat32(this.#take(4), true);
      case "f64":
        return view.getFloat64(this.#take(8), true);
      case "u64":
        return this.#u64();
      case "i64":
        return view.getBigInt64(this.#take(8), true);
      case "string":
        return this.#string(key);
      case "bool":
        return this.#bool(view.getUint8(this.#take(1)), key);
      case "array":
        throw this.#fail(`${key} is an array of arrays`);
    }
  }

  #array(element: GgufType, count: number, key: string): GgufArray {
    if (element === "string") {
      const list: string[] = [];
      for (let i = 0; i < count; i++) list.push(this.#string(key));
      return list;
    }
    const length = count * (FIXED_BYTES[element] ?? 1);
    const at = this.#take(length);
    // A copy: it is aligned, and it does not keep the whole header alive.
    const own = this.bytes.slice(at, at + length);
    switch (element) {
      case "bool":
        return Array.from(own, (byte) => this.#bool(byte, key));
      case "i8":
        return new Int8Array(own.buffer);
      case "u16":
        return new Uint16Array(own.buffer);
      case "i16":
        return new Int16Array(own.buffer);
      case "u32":
        return new Uint32Array(own.buffer);
      case "i32":
        return new Int32Array(own.buffer);
      case "f32":
        return new Float32Array(own.buffer);
      case "f64":
        return new Float64Array(own.buffer);
      case "u64":
        return new BigUint64Array(own.buffer);
      case "i64":
        return new BigInt64Array(own.buffer);
      default:
        return own;
    }
  }

  #bool(byte: number, key: string): boolean {
    if (byte > 1) throw this.#fail(`${key} holds ${byte} where a bool is expected`);
    return byte === 1;
  }

  #string(what: string): string {
    const length = this.#u64();
    if (length >= MAX_STRING_BYTES || length > this.fileSize - this.#at) {
      throw this.#fail(`${what} claims a string of ${length} bytes`);
    }
    const at = this.#take(Number(length));
    try {
      return this.#text.decode(this.bytes.subarray(at, this.#at));
    } catch (cause) {
      throw this.#fail(`${what} is not UTF-8`, cause);
    }
  }

  /** A u64 count of things that take at least `minBytes` each in the rest of the file. */
  #count(what: string, minBytes: number): number {
    const count = this.#u64();
    if (count > Math.floor((this.fileSize - this.#at) / minBytes)) {
      throw this.#fail(`${count} ${what} are impossible in ${this.fileSize} bytes`);
    }
    return Number(count);
  }

  #u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  #u64(): bigint {
    return this.#view.getBigUint64(this.#take(8), true);
  }

  /** Position of the next `length` bytes, which are consumed. */
  #take(length: number): number {
    const at = this.#at;
    if (at + length > this.bytes.length) throw new NeedMore();
    this.#at = at + length;
    return at;
  }

  #fail(message: string, cause?: unknown): FormatError {
    return new FormatError(message, { place: this.name, hint: HINT, cause });
  }
}
