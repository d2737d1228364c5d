/** Builds small GGUF files for tests, byte by byte, independent of the reader. */
import { bytesOf } from "../../src/core/dtype.js";
import { GGUF_TYPES, type GgufType } from "../../src/formats/gguf.js";

export type Entry =
  | [type: Exclude<GgufType, "array">, value: number | bigint | boolean | string]
  | [
      type: "array",
      element: Exclude<GgufType, "array">,
      values: readonly (number | bigint | boolean | string)[],
    ];

export interface BuiltTensor {
  ne: number[];
  /** ggml type number; default 0 (F32). */
  type?: number;
  data: Uint8Array | Float32Array;
}

/** One value in the file's bytes. */
function scalar(type: GgufType, value: number | bigint | boolean | string): Uint8Array {
  const view = new DataView(new ArrayBuffer(8));
  const cut = (bytes: number) => new Uint8Array(view.buffer, 0, bytes);
  switch (type) {
    case "string": {
      const text = new TextEncoder().encode(String(value));
      return concat([scalar("u64", BigInt(text.length)), text]);
    }
    case "u64":
      view.setBigUint64(0, BigInt(value), true);
      return cut(8);
    case "i64":
      view.setBigInt64(0, BigInt(value), true);
      return cut(8);
    case "f64":
      view.setFloat64(0, Number(value), true);
      return cut(8);
    case "f32":
      view.setFloat32(0, Number(value), true);
      return cut(4);
    case "u32":
    case "i32":
      view.setUint32(0, Number(value), true);
      return cut(4);
    case "u16":
    case "i16":
      view.setUint16(0, Number(value), true);
      return cut(2);
    default:
      view.setUint8(0, Number(value));
      return cut(1);
  }
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** A whole file. */
export function buildGguf(
  metadata: Record<string, Entry>,
  tensors: Record<string, BuiltTensor> = {},
  options: { version?: number; alignment?: number } = {},
): Uint8Array {
  const alignment = options.alignment ?? 32;
  const u32 = (n: number) => scalar("u32", n);
  const u64 = (n: number | bigint) => scalar("u64", n);
  const id = (type: GgufType) => u32(GGUF_TYPES.indexOf(type));
  const parts = [
    new TextEncoder().encode("GGUF"),
    u32(options.version ?? 3),
    u64(Object.keys(tensors).length),
    u64(Object.keys(metadata).length),
  ];
  for (const [key, entry] of Object.entries(metadata)) {
    parts.push(scalar("string", key), id(entry[0]));
    if (entry[0] === "array") {
      const [, element, values] = entry;
      parts.push(id(element), u64(values.length), ...values.map((value) => scalar(element, value)));
    } else parts.push(scalar(entry[0], entry[1]));
  }
  const pad = (bytes: Uint8Array): Uint8Array =>
    concat([bytes, new Uint8Array((alignment - (bytes.length % alignment)) % alignment)]);
  const blobs: Uint8Array[] = [];
  let offset = 0;
  for (const [name, { ne, type, data }] of Object.entries(tensors)) {
    parts.push(
      scalar("string", name),
      u32(ne.length),
      ...ne.map((n) => u64(n)),
      u32(type ?? 0),
      u64(offset),
    );
    const blob = pad(data instanceof Float32Array ? bytesOf(data) : data);
    blobs.push(blob);
    offset += blob.length;
  }
  return concat([pad(concat(parts)), ...blobs]);
}
