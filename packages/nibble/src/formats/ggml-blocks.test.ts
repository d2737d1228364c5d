import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { bytesOf, f32ToF16, typedView } from "../core/dtype.js";
import { FormatError } from "../core/errors.js";
import { dequantize, GGML_TYPES, type GgmlType, ggmlTypeOf } from "./ggml-blocks.js";

const golden = (name: string) =>
  readFile(new URL(`../../test/golden/ggml-blocks/${name}`, import.meta.url));
const GOLDEN: GgmlType[] = [
  "F16",
  "BF16",
  "Q4_0",
  "Q4_1",
  "Q5_0",
  "Q5_1",
  "Q8_0",
  "Q2_K",
  "Q3_K",
  "Q4_K",
  "Q5_K",
  "Q6_K",
  "IQ4_NL",
  "TQ1_0",
  "TQ2_0",
  "MXFP4",
  "NVFP4",
];

describe("values made by llama.cpp's own library", () => {
  it.each(GOLDEN)("%s: every bit equal", async (type) => {
    const packed = await golden(`${type.toLowerCase()}.bin`);
    const expected = await golden(`${type.toLowerCase()}.deq.f32.bin`);
    const out = new Float32Array(expected.length / 4);
    dequantize(type, packed, out);
    expect(Buffer.from(bytesOf(out)).equals(expected)).toBe(true);
    // The same from an odd address: file offsets promise no alignment.
    const odd = new Uint8Array(packed.length + 1);
    odd.set(packed, 1);
    const again = new Float32Array(out.length);
    dequantize(type, odd.subarray(1), again);
    expect(Buffer.from(bytesOf(again)).equals(expected)).toBe(true);
  });

  it("sizes and numbers agree with the manifest", async () => {
    type Facts = { ggml_type: number; block: number; bytes_per_block: number };
    const manifest = JSON.parse((await golden("manifest.json")).toString()) as {
      formats: Record<GgmlType, Facts>;
    };
    for (const [name, facts] of Object.entries(manifest.formats)) {
      const type = GGML_TYPES[name as GgmlType];
      expect([type.id, type.block, type.bytes]).toEqual([
        facts.ggml_type,
        facts.block,
        facts.bytes_per_block,
      ]);
      expect(ggmlTypeOf(facts.ggml_type)).toBe(name);
    }
  });
});

describe("types without golden files", () => {
  it("IQ4_XS: scale from low nibble and two high bits, values from the IQ4 table", () => {
    const block = new Uint8Array(136);
    const view = new DataView(block.buffer);
    view.setUint16(0, f32ToF16(0.5), true);
    view.setUint16(2, 0b11 << 6, true); // sub-block 3: high bits 3
    block[4 + 1] = 0x50; // sub-block 3: low nibble 5, so 5 | 48 = 53; all others 0
    block[8 + 16 * 3 + 2] = 0xf0; // value 2 is code 0, value 18 is code 15
    const out = new Float32Array(256);
    dequantize("IQ4_XS", block, out);
    expect(out[96 + 2]).toBe(0.5 * (53 - 32) * -127);
    expect(out[96 + 18]).toBe(0.5 * (53 - 32) * 113);
    expect(out[0]).toBe(0.5 * -32 * -127);
  });
  it("F32 and F64", () => {
    const out = new Float32Array(2);
    dequantize("F32", bytesOf(Float32Array.of(1.25, -0)), out);
    expect([...out]).toEqual([1.25, -0]);
    dequantize("F64", bytesOf(Float64Array.of(0.1, 3)), out);
    expect([...out]).toEqual([Math.fround(0.1), 3]);
  });
});

it("NVFP4 scale codes 0x7F and 0xFF as ggml reads them", () => {
  const block = new Uint8Array(36).fill(0x22, 4); // all values 1
  block.set([0x7f, 0xff, 0x38, 0xb8]);
  const out = new Float32Array(64);
  dequantize("NVFP4", block, out);
  expect([0, 16, 32, 48].map((i) => out[i])).toEqual([0, 480, 1, 1]);
});

it("sizes that do not fit and types without values are refused", () => {
  expect(() => dequantize("Q4_0", new Uint8Array(17), new Float32Array(32))).toThrow(FormatError);
  expect(() => dequantize("Q4_0", new Uint8Array(18), new Float32Array(31))).toThrow(FormatError);
  expect(() => dequantize("IQ2_S", new Uint8Array(82), new Float32Array(256))).toThrow(/IQ2_S/);
  expect(typedView(Uint8Array, new Uint8Array(3)).length).toBe(3);
});
