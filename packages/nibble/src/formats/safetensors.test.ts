import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bufferSource, sourceFolder } from "../core/byte-source.js";
import { bytesOf, f16ToF32 } from "../core/dtype.js";
import { FormatError, ModelError, NibbleError } from "../core/errors.js";
import { fileFolder } from "../core/file-source.js";
import { openSafetensors, openSafetensorsFolder } from "./safetensors.js";
import { saveCheckpoint, saveSafetensors } from "./safetensors-save.js";
import { planShards, type TensorToWrite, writeSafetensors } from "./safetensors-write.js";

const golden = (name: string) =>
  readFile(new URL(`../../test/golden/safetensors/${name}`, import.meta.url));

/** A file of any header text and data length. */
function file(header: string, dataBytes: number): Uint8Array {
  const json = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}
const entry = (dtype: string, shape: unknown, offsets: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: offsets });
const open = (bytes: Uint8Array) => openSafetensors(bufferSource(bytes, "x.safetensors"));

async function write(tensors: TensorToWrite[], metadata?: Record<string, string>) {
  const parts: Uint8Array[] = [];
  const sink = { write: async (part: Uint8Array) => void parts.push(part.slice()) };
  await writeSafetensors(sink, tensors, metadata);
  return Buffer.concat(parts);
}
const f32 = (name: string, values: number[], shape = [values.length]): TensorToWrite => ({
  name,
  dtype: "F32",
  shape,
  data: () => bytesOf(Float32Array.from(values)),
});

describe("files of the official writer", () => {
  it.each([
    "gptq_w4_sym_g32.safetensors",
    "weight.bf16.safetensors",
    "fp8_channel_dynamic.safetensors",
  ])("%s: read, written again, equal bytes", async (name) => {
    const bytes = await golden(name);
    const reader = await open(bytes);
    const tensors = [...reader.tensors.values()].reverse().map((tensor) => ({
      name: tensor.name,
      dtype: tensor.dtype,
      shape: tensor.shape,
      data: () => reader.readRaw(tensor.name),
    }));
    const again = await write(tensors, Object.fromEntries(reader.metadata));
    expect(again.equals(bytes)).toBe(true);
  });

  it("decodes f8 x scale to the expected bf16 weight", async () => {
    const reader = await open(await golden("fp8_channel_dynamic.safetensors"));
    const codes = await reader.readF32("layer.weight");
    const scale = await reader.readF32("layer.weight_scale");
    const expected = await reader.readF32("expected.weight");
    for (const [i, x] of expected.entries()) {
      const product = (codes[i] as number) * (scale[Math.floor(i / 128)] as number);
      expect(Math.abs(product - x)).toBeLessThanOrEqual(Math.abs(x) / 256); // bf16 rounding
    }
    expect(await reader.readF32Rows("expected.weight", 3, 5)).toEqual(expected.slice(384, 640));
  });
});

describe("reading", () => {
  it("every dtype by its bytes, floats as f32, rows, metadata", async () => {
    const half = Uint16Array.of(0x3c00, 0x3555);
    const bytes = await write(
      [
        f32("ü/π", [1.5, -2, 3, 4], [2, 2]),
        { name: "h", dtype: "F16", shape: [2], data: () => bytesOf(half) },
        { name: "d", dtype: "F64", shape: [], data: () => bytesOf(Float64Array.of(0.1)) },
        { name: "i", dtype: "I64", shape: [1], data: () => bytesOf(BigInt64Array.of(-5n)) },
        { name: "none", dtype: "F32", shape: [0, 7], data: () => new Uint8Array(0) },
        { name: "nibbles", dtype: "F4", shape: [2, 3], data: () => Uint8Array.of(1, 2, 3) },
      ],
      { b: "2", a: "é" },
    );
    const reader = await open(bytes);
    expect([...reader.metadata]).toEqual([
      ["a", "é"],
      ["b", "2"],
    ]);
    expect([...(await reader.readF32("ü/π"))]).toEqual([1.5, -2, 3, 4]);
    expect([...(await reader.readF32Rows("ü/π", 1, 2))]).toEqual([3, 4]);
    expect([...(await reader.readF32("h"))]).toEqual([1, f16ToF32(0x3555)]);
    expect([...(await reader.readF32("d"))]).toEqual([Math.fround(0.1)]);
    expect((await reader.readF32("none")).length).toBe(0);
    expect([...(await reader.readRaw("nibbles"))]).toEqual([1, 2, 3]);
    await expect(reader.readF32("i")).rejects.toThrow(/^i: dtype I64 where floats/);
    await expect(reader.readRawRows("nibbles", 0, 1)).rejects.toThrow(/do not fill bytes/);
    await expect(reader.readF32Rows("ü/π", 1, 3)).rejects.toThrow(FormatError);
    await expect(reader.readRaw("x")).rejects.toThrow(/no tensor x/);
    const own = await reader.readF32("ü/π");
    own[0] = 99;
    expect((await reader.readF32("ü/π"))[0]).toBe(1.5);
  });

  it.each([
    ["too short", new Uint8Array(7)],
    ["header beyond the file", file("{}", 0).subarray(0, 9)],
    ["huge header length", Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 255, 1)],
    ["not an object", file("[]", 0)],
    ["invalid JSON", file('{"a":', 0)],
    ["trailing bytes", file("{}", 1)],
    ["gap", file(`{"a":${entry("F32", [1], [4, 8])}}`, 8)],
    ["overlap", file(`{"a":${entry("F32", [1], [0, 4])},"b":${entry("F32", [1], [0, 4])}}`, 4)],
    ["size against shape", file(`{"a":${entry("F32", [3], [0, 8])}}`, 8)],
    ["negative shape", file(`{"a":${entry("F32", [-1], [0, 0])}}`, 0)],
    ["fraction", file(`{"a":${entry("F32", [0.5], [0, 2])}}`, 2)],
    ["shape as string", file(`{"a":${entry("F32", ["1"], [0, 4])}}`, 4)],
    [
      "beyond 2^53",
      file(`{"a":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}}`, 1),
    ],
    ["product overflow", file(`{"a":${entry("U8", [2 ** 40, 2 ** 40], [0, 0])}}`, 0)],
    ["unknown dtype", file(`{"a":${entry("Q4", [1], [0, 1])}}`, 1)],
    ["inherited dtype", file(`{"a":${entry("toString", [1], [0, 1])}}`, 1)],
    ["sub-byte tail", file(`{"a":${entry("F4", [3], [0, 1])}}`, 1)],
    ["duplicate", file(`{"a":${entry("U8", [0], [0, 0])},"a":${entry("U8", [1], [0, 1])}}`, 1)],
    [
      "escaped duplicate",
      file(`{"a":${entry("U8", [0], [0, 0])},"\\u0061":${entry("U8", [0], [0, 0])}}`, 0),
    ],
    [
      "duplicate field",
      file('{"a":{"dtype":"F32","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ],
    ["metadata number", file('{"__metadata__":{"a":1}}', 0)],
    ["invalid UTF-8", new Uint8Array([2, 0, 0, 0, 0, 0, 0, 0, 0x7b, 0xff])],
  ])("refuses: %s", async (_, bytes) => {
    await expect(open(bytes)).rejects.toThrow(FormatError);
  });

  it("random damage gives typed errors or a readable file, never anything else", async () => {
    const valid = await write([f32("a.weight", [1, 2, 3, 4], [2, 2]), f32("b", [5])]);
    const mutation = fc.array(fc.record({ at: fc.nat(valid.length - 1), to: fc.nat(255) }), {
      maxLength: 4,
    });
    await fc.assert(
      fc.asyncProperty(mutation, fc.nat(valid.length), async (changes, length) => {
        const bytes = new Uint8Array(valid);
        for (const { at, to } of changes) bytes[at] = to;
        try {
          const reader = await open(length % 3 === 0 ? bytes.subarray(0, length) : bytes);
          for (const { name } of reader.tensors.values()) await reader.readF32(name);
        } catch (error) {
          expect(error).toBeInstanceOf(NibbleError);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe("writing", () => {
  it("order: wide dtypes first, then names by code point; header padded to 8", async () => {
    const small = (name: string, dtype: TensorToWrite["dtype"], bytes: number): TensorToWrite => ({
      name,
      dtype,
      shape: [1],
      data: () => new Uint8Array(bytes),
    });
    const bytes = await write([
      small("u8", "U8", 1),
      small("\u{1F600}", "F32", 4),
      small("\uFFFD", "F32", 4),
      small("i64", "I64", 8),
      small("bf", "BF16", 2),
      small("h", "F16", 2),
    ]);
    const headerLength = Number(bytes.readBigUInt64LE(0));
    expect(headerLength % 8).toBe(0);
    const header = JSON.parse(bytes.subarray(8, 8 + headerLength).toString()) as object;
    expect(Object.keys(header)).toEqual([
      "__metadata__",
      "i64",
      "\uFFFD",
      "\u{1F600}",
      "bf",
      "h",
      "u8",
    ]);
  });

  it("refuses tensors that contradict their shape, and equal names", async () => {
    await expect(write([f32("a", [1, 2], [3])])).rejects.toThrow(/8 bytes where/);
    await expect(write([f32("a", [1, 2, 3, 4], [3])])).rejects.toThrow(ModelError);
    await expect(write([f32("a", [1]), f32("a", [2])])).rejects.toThrow(/two tensors/);
  });

  it("streams pieces, saves atomically, hashes what it wrote", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nibble-st-"));
    try {
      const path = join(folder, "m.safetensors");
      async function* pieces() {
        yield bytesOf(Float32Array.of(1));
        yield bytesOf(Float32Array.of(2));
      }
      const saved = await saveSafetensors(path, [{ ...f32("a", [], [2]), data: pieces }]);
      const bytes = await readFile(path);
      expect(saved.bytes).toBe(bytes.length);
      expect(saved.sha256).toBe(createHash("sha256").update(bytes).digest("hex"));
      await expect(saveSafetensors(path, [f32("a", [1], [2])])).rejects.toThrow(ModelError);
      expect((await readFile(path)).equals(bytes)).toBe(true);
      expect(await readdir(folder)).toEqual(["m.safetensors"]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("shards", () => {
  const tensors = ["c", "a", "b", "d"].map((name, i) => f32(name, [i, i, i, i]));

  it("split in order, round trip through the index", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nibble-st-"));
    try {
      const saved = await saveCheckpoint(folder, tensors, { maxShardBytes: 40 });
      expect(saved.map(({ file: name }) => name)).toEqual([
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
      ]);
      const reader = await openSafetensorsFolder(await fileFolder(folder));
      if (!reader) throw new Error("not found");
      expect(reader.metadata.get("total_size")).toBe("64");
      expect([...reader.tensors.keys()]).toEqual(["a", "c", "b", "d"]);
      for (const [i, name] of ["c", "a", "b", "d"].entries()) {
        expect([...(await reader.readF32(name))]).toEqual([i, i, i, i]);
      }
      await reader.close();
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("one file when it fits, and one tensor may exceed the limit", () => {
    expect(planShards(tensors).index).toBeNull();
    expect(planShards(tensors, 1).shards.length).toBe(4);
  });

  it.each([
    ["path traversal", { a: "../x.safetensors" }],
    ["absolute path", { a: "/x.safetensors" }],
    ["backslash", { a: "..\\x.safetensors" }],
    ["not a name", { a: 3 }],
    ["missing shard", { a: "gone.safetensors" }],
    ["tensor not in its shard", { a: "s.safetensors", z: "s.safetensors" }],
  ])("index refused: %s", async (_, map) => {
    const index = new TextEncoder().encode(JSON.stringify({ weight_map: map }));
    const folder = sourceFolder([
      bufferSource(index, "model.safetensors.index.json"),
      bufferSource(await write([f32("a", [1])]), "s.safetensors"),
    ]);
    await expect(openSafetensorsFolder(folder)).rejects.toThrow(FormatError);
  });

  it("no weights at all: null", async () => {
    expect(await openSafetensorsFolder(sourceFolder([]))).toBeNull();
  });
});
