import { describe, expect, it } from "vitest";
import { weightGolden } from "../../test/support/golden.js";
import { gaussian, relativeError, solveContext } from "../../test/support/solver.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { namedTable } from "../encodings/tables.js";
import type { Lut, QuantTensor } from "../encodings/types.js";
import { nf4 } from "./nf4.js";

async function solve(
  w: Float32Array,
  n: number,
  k: number,
  options: object = {},
): Promise<QuantTensor & { main: Lut }> {
  const o = nf4.options.parse(options);
  const { tensor } = await nf4.solve(w.slice(), { n, k, path: "w" }, null, o, solveContext());
  return tensor as QuantTensor & { main: Lut };
}

describe("nf4", () => {
  it("gives the codes of bitsandbytes", async () => {
    const golden = weightGolden().nf4;
    const tensor = await solve(Float32Array.from(golden.w), 1, 64, { scale: "f32" });
    const codes = unpackCodes(tensor.main.codes);
    expect([...codes]).toEqual(golden.codes);
    expect(tensor.main.scale?.data[0]).toBe(Math.fround(golden.absmax));
    // bitsandbytes packs the first of two codes into the high nibble.
    const bytes = Array.from(
      { length: 32 },
      (_, i) => ((codes[2 * i] as number) << 4) | (codes[2 * i + 1] as number),
    );
    expect(Buffer.from(bytes).toString("hex")).toBe(golden.bytes);
  });

  it("gives back table values times a power of two exactly", async () => {
    const { values } = namedTable("nf4");
    for (const factor of [2 ** -9, 1, 64]) {
      const w = values.map((v) => v * factor);
      expect(decode(await solve(w, 1, 16, { scale: "f16" }))).toEqual(w);
    }
  });

  it("stores zeros as code 7, also between groups that are not zero", async () => {
    const w = new Float32Array(256);
    w.fill(1, 0, 64);
    for (const scale of ["dq8", "f16"]) {
      const tensor = await solve(w, 1, 256, { scale });
      expect(
        unpackCodes(tensor.main.codes)
          .subarray(64)
          .every((c) => c === 7),
      ).toBe(true);
      expect(
        decode(tensor)
          .subarray(64)
          .every((x) => x === 0),
      ).toBe(true);
    }
  });

  it("Gaussian rows: relative error 0.00913 for groups of 128 (3 %), less for 64", async () => {
    const w = gaussian(64 * 1024);
    const error = async (groupSize: number) =>
      relativeError(decode(await solve(w, 64, 1024, { groupSize, scale: "f32" })), w);
    const wide = await error(128);
    expect(Math.abs(wide / 0.00913 - 1)).toBeLessThan(0.03);
    expect(await error(64)).toBeLessThan(wide);
  });

  it("double quantization: 4.127 bits, error within 0.5 % of f32 scales", async () => {
    const w = gaussian(128 * 1024, 1);
    const dq = await solve(w, 128, 1024);
    const f32 = await solve(w, 128, 1024, { scale: "f32" });
    expect(bitsPerWeight(dq)).toBeCloseTo(4.127, 3);
    expect(bitsPerWeight(f32)).toBeCloseTo(4.5, 9);
    expect(relativeError(decode(dq), w) / relativeError(decode(f32), w)).toBeLessThan(1.005);
  });

  it("has the FP4 of bitsandbytes under its own name", async () => {
    const tensor = await solve(Float32Array.of(12, 8, -6, 0.0625, 0, -12, 4, 2), 1, 8, {
      table: "fp4",
      scale: "f32",
    });
    expect([...decode(tensor)]).toEqual(
      [12, 8, -6, 0.0625, 0, -12, 4, 2].map((x) => Math.fround(Math.fround(x / 12) * 12)),
    );
  });
});
