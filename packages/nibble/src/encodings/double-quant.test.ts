import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { decodeDoubleQuant, doubleQuantize, dynamicMap } from "./double-quant.js";

describe("double quantization", () => {
  it("has the dynamic map of bitsandbytes", () => {
    const map = dynamicMap();
    expect(map.length).toBe(256);
    expect(map.filter((x) => x < 0).length).toBe(127);
    expect(map.filter((x) => x > 0).length).toBe(128);
    const golden: Record<number, number> = {
      0: -0.9929687,
      1: -0.9789063,
      2: -0.9648438,
      3: -0.9507812,
      64: -0.09859375,
      126: -5.5e-7,
      127: 0,
      128: 5.5e-7,
      129: 3.25e-6,
      191: 0.1070313,
      254: 0.9929687,
      255: 1,
    };
    for (const [i, value] of Object.entries(golden))
      expect(Math.abs((map[Number(i)] as number) - value)).toBeLessThan(1e-7);
    expect(map.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
  });

  it("errs by less than 1 % of the block maximum on scales of Gaussian rows", () => {
    const rng = new Philox(0, "dq");
    const scales = Float32Array.from({ length: 1000 }, () => 0.1 + 0.02 * Math.abs(rng.normal()));
    const stored = doubleQuantize(scales);
    const back = decodeDoubleQuant(stored);
    scales.forEach((x, i) => {
      expect(Math.abs((back[i] as number) - x)).toBeLessThan(
        0.01 * (stored.blockMax[i >> 8] as number),
      );
    });
  });

  it("keeps constant arrays exactly (property: any length)", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 600 }),
        fc.float({ min: Math.fround(1e-3), max: 10, noNaN: true }),
        (n, x) => {
          const scales = new Float32Array(n).fill(x);
          for (const y of decodeDoubleQuant(doubleQuantize(scales)))
            expect(Math.abs(y - x)).toBeLessThan(1e-6 * x);
        },
      ),
    );
  });
});
