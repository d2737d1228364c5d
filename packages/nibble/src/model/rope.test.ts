import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ModelError } from "../core/errors.js";
import type { RopeParameters } from "./config.js";
import { inverseFrequencies, type RopeConfig, ropeTables } from "./rope.js";

const make = (
  type: RopeParameters["type"],
  parameters: RopeParameters["parameters"] = {},
  extra: Partial<RopeConfig> = {},
): RopeConfig => ({
  headDim: 8,
  maxPositionEmbeddings: 64,
  rope: { type, theta: 10000, parameters },
  ...extra,
});
const close = (actual: Float64Array, expected: number[]) => {
  expect(actual.length).toBe(expected.length);
  for (const [i, x] of expected.entries()) {
    expect(Math.abs((actual[i] as number) / x - 1)).toBeLessThan(1e-12);
  }
};

describe("inverse frequencies", () => {
  it("default: theta^(-2i/d)", () => {
    close(inverseFrequencies(make("default")).inverse, [1, 0.1, 0.01, 0.001]);
  });
  it("linear: divided by the factor", () => {
    const { inverse, attentionFactor } = inverseFrequencies(make("linear", { factor: 4 }));
    close(inverse, [0.25, 0.025, 0.0025, 0.00025]);
    expect(attentionFactor).toBe(1);
  });
  it("dynamic: unchanged up to the trained length, theta grows beyond", () => {
    const config = make("dynamic", { factor: 2 });
    close(inverseFrequencies(config, 64).inverse, [1, 0.1, 0.01, 0.001]);
    close(inverseFrequencies(config, 3).inverse, [1, 0.1, 0.01, 0.001]);
    // n = 128: growth 2 * 128 / 64 - 1 = 3, theta = 10000 * 3^(8/6), and f_i = theta^(-i/4)
    const theta = 10000 * 3 ** (4 / 3);
    close(
      inverseFrequencies(config, 128).inverse,
      [0, 1, 2, 3].map((i) => theta ** (-i / 4)),
    );
  });
  it("llama3: high kept, low divided, blend between", () => {
    const config = make("llama3", {
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 128,
    });
    // waves = 128 f / 2 pi = 20.37, 2.037, 0.2037, 0.02037: kept, blended, divided, divided
    const s = ((128 * 0.1) / (2 * Math.PI) - 1) / 3;
    close(inverseFrequencies(config).inverse, [
      1,
      (1 - s) * (0.1 / 8) + s * 0.1,
      0.01 / 8,
      0.001 / 8,
    ]);
  });
  it("yarn: ramp between the two correction dimensions, attention factor 0.1 ln f + 1", () => {
    const config = make("yarn", { factor: 4, original_max_position_embeddings: 4096 });
    // corr(32) = 8 ln(4096/(64 pi)) / (2 ln 10000) = 1.3088 -> 1, corr(1) = 2.8140 -> 3
    const { inverse, attentionFactor } = inverseFrequencies(config);
    close(inverse, [1, 0.1, 0.01 / 4 / 2 + 0.01 / 2, 0.001 / 4]);
    expect(attentionFactor).toBeCloseTo(0.1 * Math.log(4) + 1, 15);
    const open = inverseFrequencies(
      make("yarn", { factor: 4, original_max_position_embeddings: 4096, truncate: false }),
    ).inverse;
    const corr = (n: number) => (8 * Math.log(4096 / (n * 2 * Math.PI))) / (2 * Math.log(10000));
    const ramp = (2 - corr(32)) / (corr(1) - corr(32));
    close(open, [1, 0.1, (0.01 / 4) * ramp + 0.01 * (1 - ramp), 0.001 / 4]);
  });
  it("yarn: given attention factor and mscale pair", () => {
    const factor = (p: RopeParameters["parameters"]) =>
      inverseFrequencies(make("yarn", { factor: 4, ...p })).attentionFactor;
    expect(factor({ attention_factor: 0.5 })).toBe(0.5);
    const m = (w: number) => 0.1 * w * Math.log(4) + 1;
    expect(factor({ mscale: 2, mscale_all_dim: 0.5 })).toBeCloseTo(m(2) / m(0.5), 15);
  });
  it("longrope: short and long factors, sqrt(1 + ln f / ln original)", () => {
    const config = make(
      "longrope",
      {
        short_factor: [1, 2, 4, 8],
        long_factor: [2, 4, 8, 16],
        original_max_position_embeddings: 16,
      },
      { maxPositionEmbeddings: 64 },
    );
    close(inverseFrequencies(config, 16).inverse, [1, 0.05, 0.0025, 0.000125]);
    const long = inverseFrequencies(config, 17);
    close(long.inverse, [0.5, 0.025, 0.00125, 0.0000625]);
    expect(long.attentionFactor).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(16)), 15);
  });
  it("missing or impossible parameters are named", () => {
    expect(() => inverseFrequencies(make("linear"))).toThrow(/type linear: factor: is missing/);
    expect(() => inverseFrequencies(make("linear", { factor: -1 }))).toThrow(ModelError);
    expect(() => inverseFrequencies(make("linear", { factor: "2" }))).toThrow(/not a number/);
    expect(() => inverseFrequencies(make("longrope", { short_factor: [1] }))).toThrow(/list of 4/);
  });
});

describe("properties", () => {
  const llama3 = fc
    .record({
      factor: fc.double({ min: 1, max: 64, noNaN: true }),
      low_freq_factor: fc.double({ min: 0.5, max: 2, noNaN: true }),
      gap: fc.double({ min: 0.1, max: 8, noNaN: true }),
      original_max_position_embeddings: fc.integer({ min: 16, max: 8192 }),
    })
    .map(({ gap, ...p }) => ({ ...p, high_freq_factor: p.low_freq_factor + gap }));
  it("llama3 and yarn lie between frequency / factor and frequency and fall with i", () => {
    fc.assert(
      fc.property(llama3, fc.constantFrom("llama3" as const, "yarn" as const), (p, type) => {
        const base = inverseFrequencies(make("default", {}, { headDim: 64 })).inverse;
        const { inverse } = inverseFrequencies(make(type, p, { headDim: 64 }));
        for (let i = 0; i < 32; i++) {
          const [f, b] = [inverse[i] as number, base[i] as number];
          expect(f).toBeLessThanOrEqual(b * (1 + 1e-12));
          expect(f).toBeGreaterThanOrEqual((b / p.factor) * (1 - 1e-12));
          if (i > 0) expect(f).toBeLessThan(inverse[i - 1] as number);
        }
      }),
    );
  });
  it("factor 1 changes nothing", () => {
    const base = [...inverseFrequencies(make("default")).inverse];
    const p = { factor: 1, low_freq_factor: 1, high_freq_factor: 4 };
    for (const type of ["linear", "dynamic", "llama3", "yarn"] as const) {
      const { inverse, attentionFactor } = inverseFrequencies(make(type, p));
      close(inverse, base);
      expect(attentionFactor).toBe(1);
    }
  });
  it("tables: cos^2 + sin^2 = attention factor^2, rows follow positions", () => {
    const config = make("yarn", { factor: 4, original_max_position_embeddings: 16 });
    const { attentionFactor } = inverseFrequencies(config);
    const all = ropeTables(config, 50);
    for (let i = 0; i < all.cos.length; i++) {
      const norm = (all.cos[i] as number) ** 2 + (all.sin[i] as number) ** 2;
      expect(norm / attentionFactor ** 2).toBeCloseTo(1, 6);
    }
    const some = ropeTables(config, [7, 49]);
    expect([...some.cos.subarray(0, 4)]).toEqual([...all.cos.subarray(28, 32)]);
    expect([...some.sin.subarray(4)]).toEqual([...all.sin.subarray(196)]);
    expect([...all.sin.subarray(0, 4)]).toEqual([0, 0, 0, 0]);
  });
  it("tables: a known angle", () => {
    const { cos, sin } = ropeTables(make("default"), [3]);
    expect(cos[0]).toBe(Math.fround(Math.cos(3)));
    expect(sin[1]).toBe(Math.fround(Math.sin(3 * 10000 ** -0.25)));
  });
});
