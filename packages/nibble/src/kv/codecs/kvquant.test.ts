import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../../core/rng.js";
import { inertia1d, kmeans1d } from "../../linalg/kmeans-1d.js";
import type { CalibrationSamples } from "../../observers/kv-samples.js";
import type { PlaneCodec, PlaneName } from "../contract.js";
import { kvquant, markValueOutliers } from "./kvquant.js";
import { fitKvquant, qNorm, range } from "./kvquant-fit.js";

const INFO = { firstSlot: 0, length: 32, attention: null };
const parse = (o: object = {}) => kvquant.options.parse(o);
const uniform = (levels: number) =>
  Float32Array.from({ length: levels }, (_, i) => -1 + (2 * i) / (levels - 1));

function make(plane: PlaneName, o: object, tensors: Record<string, Float32Array>, headDim: number) {
  const calibration = new Map(Object.entries(tensors));
  return kvquant.create(parse(o), { plane, headDim, layer: 3, kvHead: 1, seed: 0, calibration });
}

function roundTrip(codec: PlaneCodec, rows: Float32Array, n: number) {
  const dst = new Uint8Array(codec.groupBytes);
  const variable = codec.encode(rows, n, dst, INFO);
  const out = new Float32Array(rows.length);
  codec.decode(dst, variable, n, out);
  return { out, dst, variable };
}

const gaussian = (n: number, name: string) => Float32Array.from(new Philox(1, name).normals(n));
const ranges = (d: number, half = 2) => ({
  "k.low": new Float32Array(d).fill(-half),
  "k.high": new Float32Array(d).fill(half),
});

describe("kvquant", () => {
  it("a table point decodes to itself, for every width and table", () => {
    fc.assert(
      fc.property(fc.constantFrom(2, 3, 4), fc.integer({ min: 0, max: 1000 }), (bits, seed) => {
        const levels = 2 ** bits;
        const rng = new Philox(seed, "table");
        const table = Float32Array.from({ length: levels }, () => 2 * rng.uniform() - 1).sort();
        fc.pre(table.every((x, i) => i === 0 || x - (table[i - 1] as number) > 1e-3));
        const d = 16;
        const low = Float32Array.from({ length: d }, () => -rng.uniform() - 0.1);
        const high = low.map((x) => x + 0.5 + rng.uniform());
        const codec = make("k", { bits }, { "k.low": low, "k.high": high, "k.table": table }, d);
        const rows = new Float32Array(levels * d);
        for (let i = 0; i < rows.length; i++) {
          const [l, h] = [low[i % d] as number, high[i % d] as number];
          rows[i] = (l + h) / 2 + (table[Math.floor(i / d)] as number) * ((h - l) / 2);
        }
        const { out, variable } = roundTrip(codec, rows, levels);
        expect(variable).toBeNull();
        for (const [i, x] of rows.entries()) expect(out[i]).toBeCloseTo(x, 5);
      }),
      { numRuns: 40 },
    );
  });

  it("an even table without outliers is uniform quantization from minimum to maximum", () => {
    const [n, d, bits] = [32, 64, 3];
    const rows = gaussian(n * d, "rows");
    const low = new Float32Array(d).fill(Number.POSITIVE_INFINITY);
    const high = new Float32Array(d).fill(Number.NEGATIVE_INFINITY);
    for (const [i, x] of rows.entries()) {
      low[i % d] = Math.min(low[i % d] as number, x);
      high[i % d] = Math.max(high[i % d] as number, x);
    }
    const tensors = { "k.low": low, "k.high": high, "k.table": uniform(8), "v.table": uniform(8) };
    const keys = roundTrip(make("k", { bits, sparsity: 1 }, tensors, d), rows, n);
    const values = roundTrip(make("v", { bits, sparsity: 1 }, tensors, d), rows, n);
    expect(values.variable).toBeNull();
    for (let t = 0; t < n; t++) {
      const row = rows.subarray(t * d, (t + 1) * d);
      const [rowLow, rowHigh] = [Math.min(...row), Math.max(...row)];
      for (let c = 0; c < d; c++) {
        const grid = (l: number, h: number) =>
          l + (Math.round(((row[c] as number) - l) / ((h - l) / 7)) * (h - l)) / 7;
        const key = grid(low[c] as number, high[c] as number);
        expect(Math.abs((keys.out[t * d + c] as number) - key)).toBeLessThan(1e-5);
        // Middle and half range of a value row are halves.
        const value = grid(rowLow, rowHigh);
        const step = (rowHigh - rowLow) / 7;
        const off = Math.abs((values.out[t * d + c] as number) - value) / step;
        expect(Math.min(off, Math.abs(1 - off))).toBeLessThan(0.02);
      }
    }
  });

  it("a key row of outliers only is exact up to its half floats; sparse parts are counted", () => {
    const d = 64;
    const codec = make("k", {}, { ...ranges(d, 1), "k.table": uniform(8) }, d);
    const rows = gaussian(4 * d, "outliers").map((x, i) => (i < d ? x + 40 : x / 8));
    const { out, variable } = roundTrip(codec, rows, 4);
    for (let c = 0; c < d; c++) {
      expect(Math.abs((out[c] as number) - (rows[c] as number))).toBeLessThan(40 * 2 ** -10);
    }
    expect(variable?.length).toBe(2 + 4 + d + 2 * d);
    // Fewer rows than were sealed.
    const one = new Float32Array(d);
    const dst = new Uint8Array(codec.groupBytes);
    codec.decode(dst, codec.encode(rows, 4, dst, INFO), 1, one);
    expect(one).toEqual(out.subarray(0, d));
  });

  it("capOutliers keeps the largest of each side and clips the others", () => {
    const d = 16;
    const tensors = { ...ranges(d, 1), "k.table": uniform(8) };
    const rows = Float32Array.from({ length: d }, (_, c) => (c < 4 ? 2 + c : c < 8 ? -2 - c : 0));
    const { out } = roundTrip(make("k", { capOutliers: 2 }, tensors, d), rows, 1);
    expect([...out.subarray(0, 8)]).toEqual([1, 1, 4, 5, -1, -1, -8, -9]);
    const auto = roundTrip(make("k", { capOutliers: "auto" }, tensors, d), rows, 1).out;
    expect([...auto.subarray(0, 8)]).toEqual([1, 1, 1, 5, -1, -1, -1, -9]);
  });

  it("marks the value budget where it narrows ranges most, exactly as many as allowed", () => {
    const [n, d] = [8, 64];
    const rows = gaussian(n * d, "values");
    rows[5] = 30;
    rows[3 * d + 7] = -25;
    const mask = new Uint8Array(n * d);
    markValueOutliers(rows, n, d, 5, mask);
    expect(mask.reduce((a, b) => a + b, 0)).toBe(5);
    expect([mask[5], mask[3 * d + 7]]).toEqual([1, 1]);
    const squares = (marked: Uint8Array) => {
      let sum = 0;
      for (let t = 0; t < n; t++) {
        const dense = [...rows.subarray(t * d, (t + 1) * d)].filter((_, c) => !marked[t * d + c]);
        sum += (Math.max(...dense) - Math.min(...dense)) ** 2;
      }
      return sum;
    };
    const best = squares(mask);
    fc.assert(
      fc.property(fc.uniqueArray(fc.integer({ min: 0, max: n * d - 1 }), { maxLength: 5 }), (i) => {
        const other = new Uint8Array(n * d);
        for (const k of i) other[k] = 1;
        expect(squares(other)).toBeGreaterThanOrEqual(best);
      }),
    );
  });

  it("a row of 256 outliers keeps 255 of them and clips one", () => {
    const d = 256;
    const codec = make("k", {}, { ...ranges(d, 1), "k.table": uniform(8) }, d);
    const { out } = roundTrip(codec, new Float32Array(d).fill(9), 1);
    expect([out[0], out[254], out[255]]).toEqual([9, 9, 1]);
  });

  it("constant, zero and extreme rows stay finite; short and single groups work", () => {
    const d = 32;
    const tensors = { ...ranges(d), "k.table": uniform(8), "v.table": uniform(8) };
    for (const plane of ["k", "v"] as const) {
      for (const group of [1, 4, 32]) {
        const codec = make(plane, { group }, tensors, d);
        expect(codec.groupBytes % 4).toBe(0);
        const fills = [0, 7, 1e30, -1e30, 1e-30];
        for (const x of fills) {
          const rows = new Float32Array(group * d).fill(x);
          rows[1] = 3;
          for (const y of roundTrip(codec, rows, group).out) {
            expect(Number.isFinite(y)).toBe(true);
            if (x === 0 || x === 7) expect(Math.abs(y)).toBeLessThan(8);
          }
        }
      }
    }
    expect(make("v", { group: 1 }, tensors, d).caps.sealTiming).toBe("beforeAttend");
  });

  it("refuses to work without calibration or with that of other bits", () => {
    const create = (calibration: Map<string, Float32Array> | null) => () =>
      kvquant.create(parse(), {
        plane: "k",
        headDim: 8,
        layer: 0,
        kvHead: 0,
        seed: 0,
        calibration,
      });
    expect(create(null)).toThrow(/needs calibration/);
    expect(create(new Map([["k.table", uniform(4)]]))).toThrow(/4 numbers, expected 8/);
    expect(kvquant.options.safeParse({ bits: 5 }).success).toBe(false);
  });

  it("bits per element stay within codes + parameters + 1 % outliers", () => {
    const [n, d] = [32, 64];
    const rows = gaussian(n * d, "bits");
    const [low, high] = range(rows, 0.99);
    const tensors = {
      "k.low": new Float32Array(d).fill(low),
      "k.high": new Float32Array(d).fill(high),
      "k.table": uniform(8),
      "v.table": uniform(8),
    };
    for (const plane of ["k", "v"] as const) {
      const codec = make(plane, {}, tensors, d);
      const { variable } = roundTrip(codec, rows, n);
      const bits = (8 * (codec.groupBytes + (variable?.length ?? 0))) / (n * d);
      const formula = 3 + (plane === "v" ? 32 / d : 0) + 0.0105 * 24 + 8 / d + 32 / (n * d);
      expect(bits).toBeLessThan(formula);
      expect(bits).toBeGreaterThan(3.2);
    }
  });
});

describe("scores over pre-RoPE keys", () => {
  const rotate = (x: Float64Array, position: number) => {
    const half = x.length / 2;
    return x.map((_, i) => {
      const j = i % half;
      const angle = position * 10000 ** (-j / half);
      const [a, b] = [x[j] as number, x[j + half] as number];
      return i < half
        ? a * Math.cos(angle) - b * Math.sin(angle)
        : b * Math.cos(angle) + a * Math.sin(angle);
    });
  };
  const dot = (a: Float64Array, b: Float64Array) =>
    a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);

  it("(R_m q)(R_t k) = (R_{m-t} q) k, and the folded form equals the score of decoded keys", () => {
    const [n, d] = [8, 16];
    const rows = gaussian(n * d, "keys");
    const table = Float32Array.of(-0.9, -0.5, -0.3, -0.05, 0.1, 0.25, 0.6, 0.95);
    const tensors = { ...ranges(d, 1.5), "k.table": table };
    const { out } = roundTrip(make("k", {}, tensors, d), rows, n);
    const q = Float64Array.from(gaussian(d, "query"));
    for (let t = 0; t < n; t++) {
      const m = 100 + 3 * t;
      const key = Float64Array.from(out.subarray(t * d, (t + 1) * d));
      const direct = dot(rotate(q, m), rotate(key, t));
      const turned = rotate(q, m - t);
      expect(dot(turned, key)).toBeCloseTo(direct, 10);
      // sum q r lut[code] + sum q z + sparse: ranges are symmetric here, so z = 0 and r = 1.5.
      let folded = 0;
      for (let c = 0; c < d; c++) {
        const x = rows[t * d + c] as number;
        const unit = table.reduce((a, b) =>
          Math.abs(b - x / 1.5) < Math.abs(a - x / 1.5) ? b : a,
        );
        const dense = (turned[c] as number) * 1.5 * unit;
        folded += dense + (Math.abs(x) > 1.5 ? (turned[c] as number) * (x - 1.5 * unit) : 0);
      }
      expect(Math.abs(folded - direct)).toBeLessThan(0.01);
    }
  });
});

describe("calibration of kvquant", () => {
  const [rows, kvHeads, headDim] = [400, 2, 8];
  const width = kvHeads * headDim;
  const samples: CalibrationSamples = {
    kvHeads,
    headDim,
    rows,
    keys: gaussian(rows * width, "k").map((x, i) => x * (1 + (i % width)) + (i % 3)),
    values: gaussian(rows * width, "v").map((x) => x ** 3),
    positions: Int32Array.from({ length: rows }, (_, i) => i % 100),
    attention: Float64Array.from({ length: rows * kvHeads }, (_, i) => 1 / (1 + (i % 13))),
    queries: Float64Array.from({ length: width }, (_, i) => 1 + (i % 5)),
    queryNorm: Float32Array.of(1, 1),
  };
  const tensor = (plane: PlaneName, name: string, o: object = {}) => {
    const found = fitKvquant(parse(o), plane, samples).find((t) => t.name === name);
    return found?.data as Float32Array;
  };

  it("gives ranges that leave the asked share outside, rising tables, equal results for equal samples", () => {
    const low = tensor("k", "k.low");
    const high = tensor("k", "k.high");
    let outside = 0;
    for (const [i, x] of samples.keys.entries()) {
      const c = i % width;
      if (x < (low[c] as number) || x > (high[c] as number)) outside++;
    }
    expect(outside / samples.keys.length).toBeCloseTo(0.01, 2);
    for (const bits of [2, 3, 4]) {
      const table = tensor("v", "v.table", { bits });
      expect(table.length).toBe(2 ** bits);
      expect([...table]).toEqual([...table].sort((a, b) => a - b));
      expect(tensor("v", "v.table", { bits })).toEqual(table);
    }
    const all = tensor("k", "k.low", { sparsity: 1 });
    for (let c = 0; c < width; c++) {
      const channel = samples.keys.filter((_, i) => i % width === c);
      expect(all[c]).toBe(Math.min(...channel));
    }
  });

  it("weighted k-means: the objective falls with iterations and beats the even grid", () => {
    const x = samples.values.map((v) => v / 30).filter((v) => Math.abs(v) <= 1);
    const weights = Float64Array.from(x, (_, i) => 1 + (i % 7));
    let before = inertia1d(x, weights, Float64Array.from(uniform(8)));
    for (let iterations = 1; iterations <= 20; iterations++) {
      const centres = kmeans1d(x, weights, { clusters: 8, method: "lloyd", iterations });
      const now = inertia1d(x, weights, centres);
      expect(now).toBeLessThanOrEqual(before * (1 + 1e-12));
      before = now;
    }
  });

  it("Q-Norm gives decoded values the mean and spread of the values", () => {
    const x = gaussian(5000, "qnorm").map((v) => Math.max(-1, Math.min(1, v / 3 + 0.1)));
    const points = Float32Array.of(-0.8, -0.2, 0.3, 0.7);
    const [scale, offset] = qNorm(x, points) as unknown as [number, number];
    const decoded = x.map((v) => {
      const p = points.reduce((a, b) => (Math.abs(b - v) < Math.abs(a - v) ? b : a));
      return p * scale + offset;
    });
    const moments = (a: Float32Array) => {
      const mean = a.reduce((s, v) => s + v, 0) / a.length;
      return [mean, Math.sqrt(a.reduce((s, v) => s + (v - mean) ** 2, 0) / a.length)] as const;
    };
    expect(moments(decoded)[0]).toBeCloseTo(moments(x)[0], 5);
    expect(moments(decoded)[1]).toBeCloseTo(moments(x)[1], 5);
    // The codec chooses codes with the plain table and reads them with the shifted one.
    const table = { "k.table": points, "k.norm": Float32Array.of(scale, offset), ...ranges(8, 1) };
    const codec = make("k", { bits: 2, qnorm: true }, table, 8);
    const row = Float32Array.from({ length: 8 }, (_, i) => points[i % 4] as number);
    const { out } = roundTrip(codec, row, 1);
    for (const [i, y] of out.entries())
      expect(y).toBeCloseTo((points[i % 4] as number) * scale + offset, 5);
  });
});
