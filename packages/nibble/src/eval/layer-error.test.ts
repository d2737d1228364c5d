import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { outlierFacts } from "./activations.js";
import { roundGroups, variantErrors } from "./kv-error.js";
import { relativeOutputError, shareOut } from "./layer-error.js";
import { gridPicture, kvPicture, outlierPicture, sensitivityPictures } from "./pictures.js";

const rng = new Philox(9, "layer-error");
const site = (values: Float32Array, rows: number, width: number) => ({
  site: "attn_in" as const,
  values,
  rows,
  width,
});

describe("relativeOutputError", () => {
  it("equals the error of the outputs themselves", () => {
    const [n, k, tokens] = [5, 7, 40];
    const w = Float32Array.from(rng.normals(n * k));
    const rounded = w.map((v) => Math.round(v * 2) / 2);
    const x = rng.normals(tokens * k);
    const hessian = new Float64Array(k * k);
    for (let t = 0; t < tokens; t++) {
      for (let i = 0; i < k; i++) {
        for (let j = i; j < k; j++) {
          hessian[i * k + j] =
            (hessian[i * k + j] as number) + (x[t * k + i] as number) * (x[t * k + j] as number);
        }
      }
    }
    let error = 0;
    let total = 0;
    for (let t = 0; t < tokens; t++) {
      for (let r = 0; r < n; r++) {
        let y = 0;
        let z = 0;
        for (let i = 0; i < k; i++) {
          y += (w[r * k + i] as number) * (x[t * k + i] as number);
          z += (rounded[r * k + i] as number) * (x[t * k + i] as number);
        }
        error += (y - z) ** 2;
        total += y * y;
      }
    }
    expect(relativeOutputError(w, rounded, n, k, hessian)).toBeCloseTo(error / total, 10);
    expect(relativeOutputError(w, w, n, k, hessian)).toBe(0);
  });
});

describe("shareOut", () => {
  it("divides a layer's cost by output error and scales it to other widths", () => {
    const modules = [
      { path: "layers.0.q", layer: 0, role: "q" as const, weights: 10, error: { 2: 0.3, 4: 0.01 } },
      { path: "layers.0.o", layer: 0, role: "o" as const, weights: 20, error: { 2: 0.9, 4: 0.03 } },
    ];
    const shared = shareOut(modules, [{ layer: 0, kl: 0.4 }], 4);
    expect(shared.map((s) => s.path)).toEqual(["layers.0.q", "layers.0.o"]);
    expect(shared[0]?.loss[4]).toBeCloseTo(0.1, 12);
    expect(shared[0]?.loss[2]).toBeCloseTo(3, 12);
    expect(shared[1]?.loss[4]).toBeCloseTo(0.3, 12);
  });
});

describe("outliers", () => {
  const flat = Float32Array.from(rng.normals(20 * 64));
  const spiky = flat.map((v, i) => (i % 64 === 7 ? 40 * v : v));
  it("are told by peak to rms and cost at 4 bits", () => {
    const a = outlierFacts(site(spiky, 20, 64));
    const b = outlierFacts(site(flat, 20, 64));
    expect(a.peakToRms).toBeGreaterThan(1.5 * b.peakToRms);
    expect(a.max).toBeGreaterThan(b.max);
  });
  it("are drawn before and after", () => {
    const picture = outlierPicture(
      { layer: 5, before: [site(spiky, 20, 64)], after: [site(flat, 20, 64)] },
      "attn_in",
      "m",
    );
    expect(picture.svg).toContain("before and after rotation");
    expect(() => outlierPicture({ layer: 5, before: [], after: [] }, "mlp_out", "m")).toThrow(
      /no site mlp_out/,
    );
  });
});

describe("cache errors", () => {
  it("rounding keeps the ends of each group and is exact with enough bits", () => {
    const x = Float64Array.from([1, 2, 3.4, 9, -1, 0, 0.2, 4]);
    const y = roundGroups(x, 4, 4);
    expect([y[0], y[3], y[4], y[7]]).toEqual([1, 9, -1, 4]);
    expect(
      Math.max(...roundGroups(x, 4, 16).map((v, i) => Math.abs(v - (x[i] as number)))),
    ).toBeLessThan(1e-4);
  });
  it("rotation helps vectors with outlier channels, 8 bits help all", () => {
    const x = Float64Array.from(rng.normals(64 * 50), (v, i) => (i % 64 === 3 ? 25 + v : v));
    const [int4, rotated, int8] = variantErrors(x, 64) as [number, number, number];
    expect(int8).toBeLessThan(int4 / 10);
    expect(rotated).toBeLessThan(int4);
  });
});

describe("pictures", () => {
  it("are drawn from data, with labels", () => {
    const rows = [0, 1, 2].map((layer) => ({
      layer,
      keys: [0.2, 0.1, 0.01],
      values: [0.1, 0.1, 0.01],
    }));
    const modules = [0, 1].map((layer) => ({
      path: `layers.${layer}.q`,
      layer,
      role: "q" as const,
      weights: 4,
      error: { 4: 0.01 * (layer + 1) },
    }));
    const kl = [0, 1].map((layer) => ({ layer, kl: 0.1, deltaNll: 0.1 }));
    const drawn = [
      kvPicture(rows, "m"),
      gridPicture(Float32Array.from(rng.normals(64 * 16)), [16, 64], {
        bits: 4,
        what: "w",
        model: "m",
        name: "weights",
      }),
      ...sensitivityPictures({ bits: 4, groupSize: 128, tokens: 9, modules, kl }, "m"),
    ];
    for (const { svg } of drawn) {
      expect(svg).toMatch(/^<svg/);
      expect(svg).not.toMatch(/NaN|undefined/);
    }
    expect(drawn.map((p) => p.name)).toEqual([
      "kv-error",
      "weights",
      "layer-error",
      "layer-sensitivity",
    ]);
  });
});
