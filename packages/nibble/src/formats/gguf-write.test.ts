import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { bufferSource } from "../core/byte-source.js";
import { typedView } from "../core/dtype.js";
import { quantizeGgml } from "./ggml-quantize.js";
import { openGguf } from "./gguf.js";
import { writeGguf } from "./gguf-write.js";

const golden = (name: string) => readFile(new URL(`../../test/golden/${name}`, import.meta.url));

describe("ggml quantizers", () => {
  it.each(["Q4_0", "Q4_1", "Q8_0"] as const)(
    "%s: every byte of llama.cpp's library",
    async (type) => {
      const input = typedView(Float32Array, await golden("ggml-blocks/input.f32.bin"));
      const want = await golden(`ggml-blocks/${type.toLowerCase()}.bin`);
      expect(Buffer.compare(Buffer.from(quantizeGgml(type, input)), want)).toBe(0);
    },
  );

  it("refuses a ragged block", () => {
    expect(() => quantizeGgml("Q4_0", new Float32Array(33))).toThrow(/multiple of 32/);
  });
});

it("re-exports gguf-py's file of all value types byte for byte", async () => {
  const bytes = await golden("gguf-container/all-types.gguf");
  const file = await openGguf(bufferSource(new Uint8Array(bytes)));
  const parts: Uint8Array[] = [];
  await writeGguf(
    { write: async (part) => void parts.push(part.slice()) },
    file.metadata,
    [...file.tensors.values()].map(({ name, type, ne }) => ({
      name,
      type,
      ne,
      data: () => file.readRaw(name),
    })),
  );
  expect(Buffer.compare(Buffer.concat(parts), bytes)).toBe(0);
});
