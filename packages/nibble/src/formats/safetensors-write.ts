/**
 * Writing safetensors: the header first (all sizes are known up front), then tensor after tensor, so that a checkpoint
 * larger than memory streams through. Bytes equal those of the official writer for the same tensors.
 */
import { ModelError } from "../core/errors.js";
import { DTYPE_BITS, type SafetensorsDtype } from "./safetensors.js";

export interface TensorToWrite {
  name: string;
  dtype: SafetensorsDtype;
  shape: readonly number[];
  /** The tensor's bytes, little-endian, row-major, whole or in pieces. Called once, when its turn comes. */
  data: () => Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}

/** Where bytes go, in order. */
export interface ByteSink {
  write(bytes: Uint8Array): Promise<void>;
}

/** Loaders of transformers 4.x refuse a file without it. */
const METADATA = { format: "pt" };
const DTYPES = Object.keys(DTYPE_BITS);

/** Stored bytes of a tensor. @throws ModelError when the elements of a sub-byte dtype do not fill bytes. */
export function tensorBytes(tensor: Pick<TensorToWrite, "name" | "dtype" | "shape">): number {
  const bits = tensor.shape.reduce((product, n) => product * n, DTYPE_BITS[tensor.dtype]);
  if (!Number.isSafeInteger(bits) || bits < 0 || bits % 8 !== 0) {
    throw new ModelError(`${tensor.dtype} [${tensor.shape}] cannot be stored`, {
      place: `tensor ${tensor.name}`,
    });
  }
  return bits / 8;
}

/** Header bytes, tensors in file order and the file's size. */
export function planSafetensors(
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> = METADATA,
): { header: Uint8Array; order: TensorToWrite[]; bytes: number } {
  // Widest dtypes first keeps every tensor aligned; names in the order of their UTF-8 bytes, as the official writer.
  const order = tensors.toSorted(
    (a, b) => DTYPES.indexOf(b.dtype) - DTYPES.indexOf(a.dtype) || compareUtf8(a.name, b.name),
  );
  const parts: string[] = [];
  const keys = Object.keys(metadata).sort();
  if (keys.length > 0) {
    const body = keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`);
    parts.push(`"__metadata__":{${body.join(",")}}`);
  }
  const seen = new Set<string>(["__metadata__"]);
  let end = 0;
  for (const tensor of order) {
    if (seen.has(tensor.name)) {
      throw new ModelError("two tensors of this name", { place: `tensor ${tensor.name}` });
    }
    seen.add(tensor.name);
    const begin = end;
    end += tensorBytes(tensor);
    const { name, dtype, shape } = tensor;
    parts.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`,
    );
  }
  const json = new TextEncoder().encode(`{${parts.join(",")}}`);
  const length = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, 8);
  return { header, order, bytes: header.length + end };
}

/**
 * Writes a whole file to a sink.
 * @throws ModelError when a tensor's bytes are not what its shape says; the sink holds an unfinished file then.
 */
export async function writeSafetensors(
  sink: ByteSink,
  tensors: readonly TensorToWrite[],
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  const { header, order } = planSafetensors(tensors, metadata);
  await sink.write(header);
  for (const tensor of order) {
    const want = tensorBytes(tensor);
    let got = 0;
    const data = await tensor.data();
    for await (const piece of data instanceof Uint8Array ? [data] : data) {
      got += piece.length;
      if (got > want) break;
      await sink.write(piece);
    }
    if (got !== want) {
      throw new ModelError(`${got} bytes where [${tensor.shape}] ${tensor.dtype} takes ${want}`, {
        place: `tensor ${tensor.name}`,
      });
    }
  }
}

/** Order of the UTF-8 bytes, which is the order of the code points (plain `<` compares UTF-16 units). */
function compareUtf8(a: string, b: string): number {
  const x = new TextEncoder().encode(a);
  const y = new TextEncoder().encode(b);
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const difference = (x[i] ?? 0) - (y[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

export interface Shard {
  /** `model.safetensors`, or `model-00001-of-00003.safetensors`. */
  file: string;
  tensors: TensorToWrite[];
}

export interface ShardPlan {
  shards: Shard[];
  /** Text of `model.safetensors.index.json`; null when one file suffices. */
  index: string | null;
}

/** 5 GB, the usual split of published checkpoints. */
export const MAX_SHARD_BYTES = 5_000_000_000;

/** Divides tensors, in the given order, over files of at most `maxBytes` of data (one tensor may exceed it). */
export function planShards(
  tensors: readonly TensorToWrite[],
  maxBytes = MAX_SHARD_BYTES,
): ShardPlan {
  const groups: TensorToWrite[][] = [[]];
  let used = 0;
  let total = 0;
  for (const tensor of tensors) {
    const bytes = tensorBytes(tensor);
    const open = groups.at(-1) as TensorToWrite[]; // starts with one group
    if (open.length > 0 && used + bytes > maxBytes) {
      groups.push([tensor]);
      used = bytes;
    } else {
      open.push(tensor);
      used += bytes;
    }
    total += bytes;
  }
  if (groups.length === 1) {
    return { shards: [{ file: "model.safetensors", tensors: [...tensors] }], index: null };
  }
  const digits = (n: number) => String(n).padStart(5, "0");
  const shards = groups.map((group, i) => ({
    file: `model-${digits(i + 1)}-of-${digits(groups.length)}.safetensors`,
    tensors: group,
  }));
  const map = shards
    .flatMap(({ file, tensors: group }) => group.map(({ name }) => [name, file] as const))
    .sort(([a], [b]) => compareUtf8(a, b));
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(map) };
  return { shards, index: `${JSON.stringify(index, null, 2)}\n` };
}
