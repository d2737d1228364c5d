import { describe, expect, it } from "vitest";
import { weightGolden } from "../../test/support/golden.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import type { Gint } from "../encodings/types.js";
import { ternarize } from "./ternary.js";

describe("ternary", () => {
  it("gives the codes and the scale of the golden values", () => {
    const golden = weightGolden().ternary;
    const tensor = ternarize(Float32Array.from(golden.w), 4, 8, {
      scale: "absmean",
      scaleType: "f32",
    });
    const codes = [...unpackCodes((tensor.main as Gint).codes)].map((c) => c - 1);
    expect(codes).toEqual(golden.codes.map((c) => c + 0 || 0));
    expect(1 / ((tensor.main as Gint).scale.data[0] as number)).toBeCloseTo(golden.inverseScale, 5);
  });

  it("keeps a matrix that is ternary already, by absmax; 2 bits and one scale", () => {
    const s = Math.fround(0.037);
    const w = Float32Array.from({ length: 8 * 64 }, (_, i) => s * ((i % 3) - 1));
    const tensor = ternarize(w, 8, 64, { scale: "absmax", scaleType: "f32" });
    expect(decode(tensor)).toEqual(w.map((x) => x + 0));
    expect(bitsPerWeight(tensor)).toBeCloseTo(2 + 32 / 512, 9);
  });

  it("rounds half to even at the threshold, and survives zeros", () => {
    const w = Float32Array.of(0.5, -0.5, 1.5, -1.5); // mean 1
    expect([...decode(ternarize(w, 1, 4, { scale: "absmean", scaleType: "f32" }))]).toEqual([
      0, 0, 1, -1,
    ]);
    expect([
      ...decode(ternarize(new Float32Array(4), 1, 4, { scale: "absmean", scaleType: "f32" })),
    ]).toEqual([0, 0, 0, 0]);
  });
});
