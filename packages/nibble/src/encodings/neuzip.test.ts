import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bf16ToF32, encodeBf16 } from "../core/dtype.js";
import { Philox } from "../core/rng.js";
import { type FloatBits, NeuzipDecoder, neuzipEncode, neuzipStats } from "./neuzip.js";
import { RansDecoder, ransEncode, scaleFrequencies } from "./rans.js";
import type { FloatType } from "./types.js";

const roundTrip = (bits: FloatBits, type: FloatType, chunk?: number) =>
  new NeuzipDecoder(neuzipEncode(bits, type, chunk === undefined ? {} : { chunk }), "t").decode();

function gaussianBf16(count: number, sigma: number): Uint16Array {
  const rng = new Philox(0, "neuzip");
  return encodeBf16(Float32Array.from({ length: count }, () => rng.normal() * sigma));
}

describe("rans", () => {
  it("gives bytes back, any chunk and number of states", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 700 }),
        fc.integer({ min: 1, max: 300 }),
        fc.constantFrom(1 as const, 8 as const),
        (symbols, chunk, lanes) => {
          const decoder = new RansDecoder(ransEncode(symbols, chunk, lanes), "t");
          expect(decoder.decodeAll()).toEqual(symbols);
        },
      ),
    );
  });

  it("scales counts to 4096 and keeps every symbol that occurs", () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.constant(0), fc.constant(1), fc.nat(1e6)), {
          minLength: 256,
          maxLength: 256,
        }),
        (counts) => {
          fc.pre(counts.some((c) => c > 0));
          const scaled = scaleFrequencies(counts);
          expect(scaled.reduce((a, b) => a + b, 0)).toBe(4096);
          expect(Array.from(scaled, (f) => f > 0)).toEqual(counts.map((c) => c > 0));
        },
      ),
    );
    const many = Array.from({ length: 256 }, (_, s) => (s < 200 ? 1 : 1e6));
    expect(scaleFrequencies(many).reduce((a, b) => a + b, 0)).toBe(4096);
  });

  it("stays within 0.5 % of the entropy and 1 % of incompressible bytes", () => {
    const bits = gaussianBf16(65536, 0.02);
    const exponents = Uint8Array.from(bits, (v) => v >> 7);
    const coded = (8 * ransEncode(exponents).length) / bits.length;
    expect(coded).toBeLessThan(neuzipStats(bits, "bf16").exponent * 1.005 + 0.01);
    expect(coded).toBeGreaterThan(2.53);
    expect(coded).toBeLessThan(2.57);
    const rng = new Philox(1, "noise");
    const noise = Uint8Array.from({ length: 65536 }, () => rng.uint32());
    expect(ransEncode(noise).length).toBeLessThan(65536 * 1.01);
  });

  it("notices damage", () => {
    const bits = gaussianBf16(4096, 1);
    const stream = ransEncode(Uint8Array.from(bits, (v) => v >> 7));
    let noticed = 0;
    for (let at = 0; at < stream.length; at += 7) {
      const copy = stream.slice();
      copy[at] ^= 0x10;
      try {
        new RansDecoder(copy, "t").decodeAll();
      } catch (error) {
        expect((error as { code: string }).code).toBe("damaged");
        noticed++;
      }
    }
    expect(noticed).toBeGreaterThan(stream.length / 7 - 8); // head padding and unused words of the head may change freely
    expect(() => new RansDecoder(stream.subarray(0, 100), "t")).toThrow(/damaged|cut off|length/);
  });
});

describe("neuzip", () => {
  it.each(["bf16", "f16"] as const)("keeps all 65536 patterns of %s bit for bit", (type) => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => (i * 40503) & 65535);
    expect(roundTrip(bits, type)).toEqual(bits);
    expect(roundTrip(bits, type, 576)).toEqual(bits);
  });

  it("keeps patterns of f32, NaN payloads included", () => {
    const rng = new Philox(2, "f32");
    const bits = Uint32Array.from({ length: 5000 }, () => rng.uint32());
    bits.set([0x7fc00001, 0x7f800001, 0xff800000, 0x80000000, 1, 0]);
    expect(roundTrip(bits, "f32")).toEqual(bits);
  });

  it("keeps tensors of 0, 1 and equal weights", () => {
    for (const values of [[], [0x3f80], new Array<number>(1000).fill(0xbf80)]) {
      expect(roundTrip(Uint16Array.from(values), "bf16")).toEqual(Uint16Array.from(values));
    }
  });

  it("keeps any length and chunk (property)", () => {
    fc.assert(
      fc.property(
        fc.uint16Array({ maxLength: 200 }),
        fc.constantFrom("bf16" as const, "f16" as const),
        fc.integer({ min: 1, max: 80 }),
        (bits, type, chunk) => {
          const decoder = new NeuzipDecoder(neuzipEncode(bits, type, { chunk }), "t");
          expect(decoder.decode()).toEqual(bits);
          const from = Math.floor(bits.length / 3);
          expect(decoder.decode(from, bits.length - from)).toEqual(
            bits.subarray(from, Math.max(from, bits.length - from)),
          );
        },
      ),
    );
  });

  it("stores Gaussian bf16 in about 10.55 bits", () => {
    const bits = gaussianBf16(1 << 18, 0.02);
    const bytes = neuzipEncode(bits, "bf16");
    expect((8 * bytes.length) / bits.length).toBeCloseTo(10.55, 1);
    expect(neuzipStats(bits, "bf16").mantissa).toBeGreaterThan(6.9);
  });

  it.each([
    [3, 2 ** -4],
    [1, 2 ** -2],
    [0, 2 ** -1],
  ])("cutting to %i mantissa bits errs by at most %f, and is idempotent", (precision, bound) => {
    const bits = gaussianBf16(20001, 0.05);
    const once = new NeuzipDecoder(neuzipEncode(bits, "bf16", { precision }), "t").decode();
    for (let i = 0; i < bits.length; i++) {
      const v = bf16ToF32(bits[i] as number);
      expect(Math.abs(bf16ToF32(once[i] as number) - v)).toBeLessThanOrEqual(bound * Math.abs(v));
    }
    expect(new NeuzipDecoder(neuzipEncode(once, "bf16", { precision }), "t").decode()).toEqual(
      once,
    );
  });

  it("does not round the largest value to infinity, and refuses infinities when cutting", () => {
    const bits = Uint16Array.of(0x7f7f, 0xff7f);
    const out = new NeuzipDecoder(neuzipEncode(bits, "bf16", { precision: 1 }), "t").decode();
    expect([...out].every((v) => Number.isFinite(bf16ToF32(v)))).toBe(true);
    expect(() => neuzipEncode(Uint16Array.of(0x7f80), "bf16", { precision: 3 })).toThrow(
      /not finite/,
    );
  });

  it("the largest weight of a normalized block survives", () => {
    const bits = gaussianBf16(4096, 0.05);
    const out = new NeuzipDecoder(
      neuzipEncode(bits, "bf16", { precision: 0, normalizer: 64 }),
      "t",
    ).decode();
    for (let b = 0; b < 64; b++) {
      let largest = 64 * b;
      for (let i = 64 * b; i < 64 * (b + 1); i++) {
        if (((bits[i] as number) & 0x7fff) > ((bits[largest] as number) & 0x7fff)) largest = i;
      }
      expect(out[largest]).toBe(bits[largest]);
    }
  });

  it("notices a cut stream", () => {
    const stream = neuzipEncode(gaussianBf16(3000, 1), "bf16");
    expect(() => new NeuzipDecoder(stream.subarray(0, 2000), "model.x").decode()).toThrow(
      /model\.x/,
    );
  });
});
