import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { bitmapDense, decodeDense, floatPatterns, neuzipDense } from "./dense-codec.js";
import { bitsPerWeight } from "./quant-tensor.js";
import { describe as describeTensor, deserialize, serialize } from "./serialize.js";
import type { Dense, QuantTensor } from "./types.js";

const asTensor = (n: number, k: number, main: Dense): QuantTensor => ({
  n,
  k,
  main,
  pre: [],
  post: [],
});

async function reload(tensor: QuantTensor): Promise<QuantTensor> {
  const stored = new Map(serialize("m", tensor).map((t) => [t.name, t]));
  return deserialize("m", JSON.parse(JSON.stringify(describeTensor(tensor))), (name) => {
    const found = stored.get(name);
    if (!found) throw new Error(name);
    return { ...found, bytes: found.bytes.slice() };
  });
}

describe("dense codecs", () => {
  it("bitmap: gives any mask and values back", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 40 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        async (n, k, p) => {
          const rng = new Philox(n * 100 + k, "bitmap");
          const values = Float32Array.from({ length: n * k }, () =>
            rng.uniform() < p ? rng.normal() : 0,
          );
          const tensor = asTensor(n, k, bitmapDense(values, "f16", n, k));
          expect(await reload(tensor)).toEqual(tensor);
          const kept = (tensor.main as Dense).data.filter((x) => x !== 0).length;
          expect(bitsPerWeight(tensor)).toBeCloseTo(
            (8 * n * Math.ceil(k / 8) + 16 * kept) / (n * k),
            9,
          );
        },
      ),
      { numRuns: 50 },
    );
  });

  it("bitmap: refuses a mask that does not fit its values", () => {
    const dense = bitmapDense(Float32Array.of(1, 0, 2, 0), "f32", 1, 4);
    const bytes = dense.codec?.bytes.slice() as Uint8Array;
    bytes[0] = 7;
    expect(() => decodeDense("bitmap", bytes, "f32", 1, 4, "tensor x")).toThrow(
      /tensor x: marks 3 values, holds 2/,
    );
  });

  it("neuzip: saves and loads bit for bit, at fewer bits", async () => {
    const rng = new Philox(3, "dense");
    const values = Float32Array.from({ length: 64 * 256 }, () => Math.fround(rng.normal() * 0.02));
    for (const type of ["f32", "bf16", "f16"] as const) {
      const rounded = decodeOnce(values, type);
      const tensor = asTensor(64, 256, neuzipDense(rounded, type));
      const loaded = await reload(tensor);
      expect(floatPatterns((loaded.main as Dense).data, type)).toEqual(
        floatPatterns(rounded, type),
      );
      expect(bitsPerWeight(tensor)).toBeLessThan({ f32: 27, bf16: 10.9, f16: 13.9 }[type]);
    }
  });

  it("neuzip: refuses a stream of another shape", () => {
    const dense = neuzipDense(Float32Array.of(1, 2, 3, 4), "bf16");
    const bytes = dense.codec?.bytes as Uint8Array;
    expect(() => decodeDense("neuzip", bytes, "bf16", 1, 5, "tensor x")).toThrow(/4 values/);
    expect(() => decodeDense("neuzip", bytes, "f16", 1, 4, "tensor x")).toThrow(/bf16/);
  });
});

function decodeOnce(values: Float32Array, type: "f32" | "bf16" | "f16"): Float32Array {
  return bitmapDense(values, type, 1, values.length).data;
}
