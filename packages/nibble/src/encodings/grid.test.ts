import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { GridFitter, type GridRules, type Symmetry } from "./grid.js";

const RULES: GridRules = {
  bits: 4,
  sym: false,
  zero: "int",
  range: "zero",
  scaleType: "f32",
  clip: "none",
  clipNorm: 2.4,
  clipGrid: 100,
  clipMaxShrink: 0.8,
};
const gaussian = (count: number, seed: number) =>
  Float32Array.from(new Philox(seed).normals(count));

function fit(rules: Partial<GridRules>, w: Float32Array, importance: Float64Array | null = null) {
  const fitter = new GridFitter({ ...RULES, ...rules });
  fitter.fit(w, 0, w.length, importance);
  const { scale, zero } = fitter;
  const codes = new Uint8Array(w.length);
  fitter.encode(w, 0, w.length, scale, zero, codes, 0);
  const values = Float32Array.from(codes, (c) => scale * (c - zero));
  return { fitter, scale, zero, codes, values };
}

const SYMMETRIES: Symmetry[] = [false, "narrow", "gptq", "full"];

describe("golden row of the official quantizer", () => {
  const row = Float32Array.of(0.1, -0.2, 0.15, -0.05, 0.25, -0.3, 0.2, 1.0);
  it.each(["none", "mse"] as const)("3 bit, clip %s", (clip) => {
    const asym = fit({ bits: 3, clip }, row);
    expect(asym.scale).toBeCloseTo(0.185714, 6);
    expect(asym.zero).toBe(2);
    expect([...asym.codes]).toEqual([3, 1, 3, 2, 3, 0, 3, 7]);
    const sym = fit({ bits: 3, sym: "gptq", clip }, row);
    expect(sym.scale).toBeCloseTo(0.285714, 6);
    expect(sym.zero).toBe(4);
    expect([...sym.codes]).toEqual([4, 3, 5, 4, 5, 3, 5, 7]);
  });
});

it("rounds half to even", () => {
  const fitter = new GridFitter({ ...RULES, bits: 8 });
  const codes = new Uint8Array(5);
  fitter.encode(Float32Array.of(0.5, 1.5, 2.5, -0.5, -1.5), 0, 5, 1, 128, codes, 0);
  expect(Array.from(codes, (c) => c - 128)).toEqual([0, 2, 2, 0, -2]);
});

describe.each(SYMMETRIES)("sym %s", (sym) => {
  it("0 is exact, a constant zero group stays zero, codes are idempotent", () => {
    for (let bits = sym === "narrow" ? 2 : 1; bits <= 8; bits++) {
      for (const scaleType of ["f32", "f16", "bf16"] as const) {
        const zeros = fit({ bits, sym, scaleType }, new Float32Array(7));
        expect([...zeros.values.map(Math.abs)]).toEqual([0, 0, 0, 0, 0, 0, 0]);
        const w = gaussian(64, bits);
        w[5] = 0;
        const { fitter, scale, zero, codes, values } = fit({ bits, sym, scaleType }, w);
        expect(Math.abs(values[5] as number)).toBe(0);
        const again = new Uint8Array(codes.length);
        fitter.encode(values, 0, values.length, scale, zero, again, 0);
        expect(again).toEqual(codes);
      }
    }
  });

  it("|error| <= scale / 2 where nothing is clipped", () => {
    const w = gaussian(128, 9);
    const { scale, values, codes, fitter } = fit({ sym }, w);
    w.forEach((x, i) => {
      const inside = codes[i] !== 0 && codes[i] !== fitter.maxCode;
      if (inside) {
        expect(Math.abs(x - (values[i] as number))).toBeLessThanOrEqual(Math.abs(scale / 2) + 1e-6);
      }
    });
  });

  it("clip search finds the best of the 80 grids within 1e-5 and is never worse than none", () => {
    for (let seed = 0; seed < 20; seed++) {
      const w = gaussian(96, 100 + seed);
      const error = (values: Float32Array) =>
        w.reduce((sum, x, i) => sum + Math.abs(x - (values[i] as number)) ** 2.4, 0);
      let best = Number.POSITIVE_INFINITY;
      for (let i = 0; i < 80; i++) {
        // The grid of the shrunk range, fitted by shrinking the extremes only.
        const shrunk = new Float32Array(w.length);
        shrunk[0] = (1 - i / 100) * Math.min(0, ...w);
        shrunk[1] = (1 - i / 100) * Math.max(0, ...w);
        const { fitter, scale, zero } = fit({ sym, bits: 3 }, shrunk);
        const codes = new Uint8Array(w.length);
        fitter.encode(w, 0, w.length, scale, zero, codes, 0);
        best = Math.min(best, error(Float32Array.from(codes, (c) => scale * (c - zero))));
      }
      const found = error(fit({ sym, bits: 3, clip: "mse" }, w).values);
      expect(found).toBeLessThanOrEqual(best * (1 + 1e-5));
      expect(found).toBeLessThanOrEqual(error(fit({ sym, bits: 3 }, w).values));
    }
  });
});

it("hdiag weighs the error: an element that matters is not clipped", () => {
  const w = gaussian(64, 3);
  w[7] = 6;
  const flat = new Float64Array(64).fill(1);
  const heavy = flat.with(7, 1e6);
  const error = (importance: Float64Array) =>
    Math.abs((fit({ bits: 3, clip: "hdiag" }, w, importance).values[7] as number) - 6);
  expect(error(heavy)).toBeLessThan(0.5);
  expect(error(flat)).toBeGreaterThan(error(heavy));
});

it("float zeros reproduce a 4-bit affine block exactly", () => {
  const d = 0.0123;
  const m = -0.071;
  const w = Float32Array.from({ length: 32 }, (_, i) => Math.fround(d * (i % 16)) + m);
  const { values } = fit({ zero: "float" }, w);
  w.forEach((x, i) => {
    expect(values[i]).toBeCloseTo(x, 7);
  });
});

it("raw range: a group of positive values uses its codes for [0, max - min] and clips the top", () => {
  const w = Float32Array.of(1, 1.5, 2);
  expect(fit({ range: "raw", bits: 2 }, w).zero).toBe(0);
  expect(fit({ range: "raw", bits: 2 }, w).scale).toBeCloseTo(1 / 3, 6);
});

it("full: the element of largest magnitude gets code 0, whatever its sign", () => {
  for (const sign of [1, -1]) {
    const { codes, values } = fit({ sym: "full" }, Float32Array.of(0.3, 2 * sign, -1));
    expect(codes[1]).toBe(0);
    expect(values[1]).toBe(2 * sign);
  }
});

it("scales that underflow f16 become the smallest one", () => {
  const { scale, codes } = fit({ scaleType: "f16" }, Float32Array.of(1e-9, -1e-9));
  expect(scale).toBe(2 ** -24);
  expect(codes[0]).toBe(codes[1]);
});

it.each([
  ["int4 asym", { bits: 4 }, 0.0101],
  ["int4 narrow", { bits: 4, sym: "narrow" }, 0.0138],
  ["int4 amax / 7.5", { bits: 4, sym: "gptq" }, 0.0123],
  ["int3 asym", { bits: 3 }, 0.0465],
] as const)(
  "relative squared error of Gaussian groups of 128, %s: within 3 %%",
  (_, rules, expected) => {
    let error = 0;
    let energy = 0;
    for (let row = 0; row < 1500; row++) {
      const w = gaussian(128, 5000 + row);
      const { values } = fit(rules, w);
      for (const [i, x] of w.entries()) {
        error += (x - (values[i] as number)) ** 2;
        energy += x * x;
      }
    }
    expect(Math.abs(error / energy / expected - 1)).toBeLessThan(0.03);
  },
);
