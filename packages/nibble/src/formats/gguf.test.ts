import { readFile } from "node:fs/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { buildGguf, type Entry } from "../../test/support/gguf-builder.js";
import { type ByteSource, bufferSource } from "../core/byte-source.js";
import { FormatError, ModelError, NibbleError } from "../core/errors.js";
import { type GgufValue, openGguf } from "./gguf.js";

const golden = (name: string) =>
  readFile(new URL(`../../test/golden/gguf-container/${name}`, import.meta.url));
const open = (bytes: Uint8Array) => openGguf(bufferSource(bytes, "x.gguf"));

interface Expected {
  version: number;
  alignment: number;
  data_offset: number;
  kv: Record<string, { types: string[]; value: unknown }>;
  tensors: Record<
    string,
    {
      type: string;
      ne: number[];
      rel_offset: number;
      nbytes: number;
      values_row_major_f32: number[];
    }
  >;
}

/** A value as the golden JSON writes it: integers beyond 2^53 as strings. */
function plain({ value }: GgufValue): unknown {
  if (typeof value === "bigint") {
    return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  }
  return typeof value === "object"
    ? Array.from<unknown>(value as Iterable<unknown> & ArrayLike<unknown>)
    : value;
}

describe("all-types.gguf, written by gguf-py", () => {
  it("header, every key, every tensor", async () => {
    const file = await open(await golden("all-types.gguf"));
    const expected = JSON.parse((await golden("all-types.expected.json")).toString()) as Expected;
    expect(file.version).toBe(expected.version);
    expect(file.alignment).toBe(expected.alignment);
    expect(file.dataStart).toBe(expected.data_offset);
    const keys = Object.entries(expected.kv).filter(([key]) => !key.startsWith("GGUF."));
    expect([...file.metadata.keys()]).toEqual(keys.map(([key]) => key));
    for (const [key, { types, value }] of keys) {
      expect(plain(file.metadata.get(key) as GgufValue), key).toEqual(value);
      expect(file.metadata.get(key)?.type[0], key).toBe(types[0]?.[0]?.toLowerCase());
    }
    for (const [name, tensor] of Object.entries(expected.tensors)) {
      const info = file.tensors.get(name);
      expect(info).toMatchObject({
        type: tensor.type,
        ne: tensor.ne,
        shape: tensor.ne.toReversed(),
        offset: expected.data_offset + tensor.rel_offset,
        bytes: tensor.nbytes,
      });
      expect([...(await file.readF32(name))]).toEqual(tensor.values_row_major_f32);
    }
    const width = expected.tensors["d.weight"]?.ne[0] as number;
    expect([...(await file.readF32("d.weight", 1, 3))]).toEqual(
      expected.tensors["d.weight"]?.values_row_major_f32.slice(width, 3 * width),
    );
    await expect(file.readF32("d.weight", 5, 7)).rejects.toThrow(FormatError);
    await expect(file.readF32("none")).rejects.toThrow(/no tensor none/);
  });
});

/** Overwrites bytes of a valid file. */
function patched(bytes: Uint8Array, at: number, values: number[]): Uint8Array {
  const out = new Uint8Array(bytes);
  out.set(values, at);
  return out;
}
const word = (n: number) => [n & 255, (n >> 8) & 255, (n >> 16) & 255, n >>> 24];
const small = buildGguf(
  { "general.architecture": ["string", "llama"], list: ["array", "i32", [1, 2, 3]] },
  {
    "a.weight": { ne: [4, 2], data: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8) },
    b: { ne: [1], data: Float32Array.of(9) },
  },
);

describe("headers", () => {
  it("version 2, other alignments, 0-d and empty tensors", async () => {
    const bytes = buildGguf(
      { "general.alignment": ["u32", 64] },
      {
        scalar: { ne: [], data: Float32Array.of(7) },
        none: { ne: [4, 0], data: new Uint8Array(0) },
      },
      { version: 2, alignment: 64 },
    );
    const file = await open(bytes);
    expect([file.version, file.alignment, file.dataStart % 64]).toEqual([2, 64, 0]);
    expect([...(await file.readF32("scalar"))]).toEqual([7]);
    expect((await file.readF32("none")).length).toBe(0);
  });

  it("metadata larger than the first read", async () => {
    const texts = Array.from({ length: 60_000 }, (_, i) => `token ${i} ${"x".repeat(70)}`);
    const file = await open(buildGguf({ texts: ["array", "string", texts], end: ["bool", true] }));
    expect(file.metadata.get("texts")?.value).toEqual(texts);
    expect(file.metadata.get("end")?.value).toBe(true);
  });

  it("100 bytes that claim 2^60 tensors fail without reading or allocating more", async () => {
    const bytes = new Uint8Array(100);
    bytes.set(small.subarray(0, 8));
    new DataView(bytes.buffer).setBigUint64(8, 2n ** 60n, true);
    let asked = 0;
    const source: ByteSource = {
      ...bufferSource(bytes, "x.gguf"),
      read: async (offset, length) => {
        asked += length;
        return bytes.subarray(offset, offset + length);
      },
    };
    await expect(openGguf(source)).rejects.toThrow(/1152921504606846976 tensors are impossible/);
    expect(asked).toBeLessThanOrEqual(100);
  });

  const keyAt = 24; // first key: u64 length, then its bytes
  const listAt = 24 + 8 + 20 + 4 + 8 + 5;
  it.each<[string, Uint8Array, RegExp]>([
    ["empty", new Uint8Array(0), /GGUF/],
    ["magic", patched(small, 0, [71, 71, 85, 71]), /does not start/],
    ["version 1", patched(small, 4, word(1)), /version 1/],
    ["big-endian", patched(small, 4, [0, 0, 0, 3]), /big-endian/],
    ["key count", patched(small, 16, [255, 255, 255, 255, 255, 255, 255, 127]), /impossible/],
    ["key length", patched(small, keyAt, word(2 ** 30 - 1)), /claims a string/],
    ["key not UTF-8", patched(small, keyAt + 8, [0xff]), /not UTF-8/],
    ["value type", patched(small, keyAt + 28, word(13)), /unknown type 13/],
    ["nested array", patched(small, listAt + 8 + 4 + 4, word(9)), /array of arrays/],
    [
      "array count",
      patched(small, listAt + 8 + 4 + 8, word(1 << 29)),
      /elements of list are impossible/,
    ],
    ["truncated header", small.subarray(0, 150), /ends inside|impossible|claims/],
    ["truncated data", small.subarray(0, small.length - 32), /ends at byte/],
    [
      "same key twice",
      buildGguf({ a: ["u8", 1], b: ["u8", 2] }).map((x) => (x === 98 ? 97 : x)),
      /stands twice/,
    ],
    ["bool 2", patched(buildGguf({ k: ["bool", true] }), 24 + 9 + 4, [2]), /bool/],
    ["alignment 0", buildGguf({ "general.alignment": ["u32", 0] }), /alignment/],
    ["alignment 48", buildGguf({ "general.alignment": ["u32", 48] }), /alignment/],
    [
      "five dimensions",
      buildGguf({}, { t: { ne: [1, 1, 1, 1, 1], data: new Uint8Array(4) } }),
      /5 dimensions/,
    ],
    [
      "huge dimensions",
      buildGguf({}, { t: { ne: [2 ** 40, 2 ** 40], data: new Uint8Array(4) } }),
      /impossible size/,
    ],
    [
      "more bytes than the file",
      buildGguf({}, { t: { ne: [2 ** 40], data: new Uint8Array(4) } }),
      /bytes in a file/,
    ],
    [
      "unknown tensor type",
      buildGguf({}, { t: { ne: [1], type: 4, data: new Uint8Array(4) } }),
      /unknown type 4/,
    ],
    [
      "columns against block",
      buildGguf({}, { t: { ne: [33], type: 2, data: new Uint8Array(18) } }),
      /multiple/,
    ],
    [
      "offset gap",
      buildGguf(
        {},
        { s: { ne: [1], data: new Uint8Array(40) }, t: { ne: [1], data: new Uint8Array(4) } },
      ),
      /begins at 64, expected 32/,
    ],
  ])("refuses: %s", async (_, bytes, message) => {
    const error = await open(bytes).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(message);
  });

  it("a type without decoder is named on reading", async () => {
    const file = await open(
      buildGguf({}, { t: { ne: [256], type: 22, data: new Uint8Array(82) } }),
    );
    await expect(file.readF32("t")).rejects.toThrow(ModelError);
    await expect(file.readF32("t")).rejects.toThrow(/IQ2_S/);
  });
});

it("random damage gives typed errors or a readable file, never anything else", async () => {
  const entries: Record<string, Entry> = {
    s: ["string", "text"],
    f: ["f64", 0.5],
    a: ["array", "string", ["x", "yy"]],
    n: ["array", "u16", [1, 2]],
  };
  const valid = buildGguf(entries, {
    w: { ne: [32, 2], type: 2, data: new Uint8Array(36) },
    b: { ne: [3], data: Float32Array.of(1, 2, 3) },
  });
  const change = fc.record({ at: fc.nat(valid.length - 1), to: fc.nat(255) });
  await fc.assert(
    fc.asyncProperty(
      fc.array(change, { maxLength: 4 }),
      fc.nat(2 * valid.length),
      async (list, end) => {
        const bytes = new Uint8Array(valid);
        for (const { at, to } of list) bytes[at] = to;
        try {
          const file = await open(bytes.subarray(0, end));
          for (const name of file.tensors.keys()) await file.readF32(name);
        } catch (error) {
          expect(error).toBeInstanceOf(NibbleError);
        }
      },
    ),
    { numRuns: 1000 },
  );
});
