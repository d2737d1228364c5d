/** Writing GGUF v3: header, metadata in the given order, tensor list, aligned data. Layout: llama.cpp, gguf.h. */
import { FormatError } from "../core/errors.js";
import { GGML_TYPES, type GgmlType } from "./ggml-blocks.js";
import { GGUF_TYPES, type GgufType, type GgufValue } from "./gguf.js";
import type { ByteSink } from "./safetensors-write.js";

export interface GgufTensorToWrite {
  name: string;
  type: GgmlType;
  /** Sizes as in the file, ne[0] contiguous. */
  ne: readonly number[];
  data: () => Promise<Uint8Array> | Uint8Array;
}

const ALIGNMENT = 32;

class Bytes {
  readonly parts: Uint8Array[] = [];
  length = 0;
  push(bytes: Uint8Array): void {
    this.parts.push(bytes);
    this.length += bytes.length;
  }
  number(type: GgufType, value: number | bigint | boolean): void {
    const view = new DataView(new ArrayBuffer(8));
    const size = {
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
    }[type as string];
    if (!size) throw new FormatError(`${type} is no scalar type`);
    if (type === "f32") view.setFloat32(0, Number(value), true);
    else if (type === "f64") view.setFloat64(0, Number(value), true);
    else view.setBigUint64(0, BigInt.asUintN(64, BigInt(value)), true);
    this.push(new Uint8Array(view.buffer, 0, size));
  }
  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.number("u64", bytes.length);
    this.push(bytes);
  }
  value(type: GgufType, value: GgufValue["value"], element?: GgufType): void {
    if (type === "string") this.string(String(value));
    else if (type === "array") {
      if (!element || typeof value !== "object")
        throw new FormatError("an array without an element type");
      this.number("u32", GGUF_TYPES.indexOf(element));
      this.number("u64", value.length);
      for (const item of value) this.value(element, item);
    } else this.number(type, value as number | bigint | boolean);
  }
}

/** @throws FormatError when a tensor's bytes are not what its type and sizes say; the sink holds an unfinished file then. */
export async function writeGguf(
  sink: ByteSink,
  metadata: Iterable<readonly [string, GgufValue]>,
  tensors: readonly GgufTensorToWrite[],
): Promise<void> {
  const entries = [...metadata].filter(([key]) => key !== "general.alignment");
  const head = new Bytes();
  head.push(new TextEncoder().encode("GGUF"));
  head.number("u32", 3);
  head.number("u64", tensors.length);
  head.number("u64", entries.length);
  for (const [key, { type, element, value }] of entries) {
    head.string(key);
    head.number("u32", GGUF_TYPES.indexOf(type));
    head.value(type, value, element);
  }
  const sizes = tensors.map(({ type, ne }) => {
    const { block, bytes } = GGML_TYPES[type];
    return (ne.reduce((a, b) => a * b, 1) / block) * bytes;
  });
  let offset = 0;
  tensors.forEach((tensor, i) => {
    head.string(tensor.name);
    head.number("u32", tensor.ne.length);
    for (const n of tensor.ne) head.number("u64", n);
    head.number("u32", GGML_TYPES[tensor.type].id);
    head.number("u64", offset);
    offset += align(sizes[i] as number);
  });
  for (const part of head.parts) await sink.write(part);
  await sink.write(new Uint8Array(align(head.length) - head.length));
  for (const [i, tensor] of tensors.entries()) {
    const data = await tensor.data();
    if (data.length !== sizes[i]) {
      throw new FormatError(
        `${data.length} bytes where ${tensor.type} [${tensor.ne}] takes ${sizes[i]}`,
        {
          place: `tensor ${tensor.name}`,
        },
      );
    }
    await sink.write(data);
    await sink.write(new Uint8Array(align(data.length) - data.length));
  }
}

function align(length: number): number {
  return Math.ceil(length / ALIGNMENT) * ALIGNMENT;
}
