import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../../core/rng.js";
import type { PlaneName, SealInfo } from "../contract.js";
import { bitsFor, qaq, tolerance } from "./qaq.js";

const N = 32;
const gaussian = (n: number, name: string) => Float32Array.from(new Philox(1, name).normals(n));
const make = (plane: PlaneName, o: object, headDim: number) =>
  qaq.create(qaq.options.parse({ qNorm: 300, ...o }), {
    plane,
    headDim,
    layer: 0,
    kvHead: 0,
    seed: 0,
    calibration: null,
  });

function roundTrip(plane: PlaneName, o: object, rows: Float32Array, seal: Partial<SealInfo> = {}) {
  const headDim = rows.length / N;
  const codec = make(plane, o, headDim);
  const dst = new Uint8Array(codec.groupBytes).fill(255);
  const info = { firstSlot: 0, length: 1000, attention: null, ...seal };
  const variable = codec.encode(rows, N, dst, info);
  const out = new Float32Array(rows.length);
  codec.decode(dst, variable, N, out);
  return { out, bits: dst.subarray(0, N), dst, variable };
}
const attention = (value: number) => new Float32Array(N).fill(value);

describe("qaq", () => {
  it("twice the attention is one more bit where the range is large", () => {
    for (const rule of ["repo", "paper"] as const) {
      const bits = (a: number) =>
        bitsFor(
          rule,
          1e6,
          tolerance({ rule, targetErrorK: 1, targetErrorV: 1 }, { length: 512, attention: a }),
        );
      for (const a of [0.01, 0.03, 0.2]) expect(bits(2 * a)).toBe(bits(a) + 1);
    }
    // The code's rule is one bit below the paper's there.
    const target = { targetErrorK: 1, targetErrorV: 1 };
    const seen = { length: 512, attention: 0.1 };
    expect(bitsFor("paper", 1e6, tolerance({ rule: "paper", ...target }, seen))).toBe(
      bitsFor("repo", 1e6, tolerance({ rule: "repo", ...target }, seen)) + 1,
    );
  });

  it("equal limits are uniform quantization about the mean, clamped", () => {
    const d = 32;
    const rows = gaussian(N * d, "uniform").map((x) => x ** 3 + x);
    for (const plane of ["k", "v"] as const) {
      for (const bits of [1, 2, 3, 4]) {
        const { out, bits: got } = roundTrip(plane, { bits: [bits, bits], outliers: 0 }, rows, {
          attention: attention(0.1),
        });
        expect([...got]).toEqual(Array(N).fill(bits));
        for (let t = 0; t < N; t++) {
          const row = rows.subarray(t * d, (t + 1) * d);
          const mean = row.reduce((a, b) => a + b, 0) / d;
          const scale = (Math.max(...row) - Math.min(...row)) / 2 ** bits;
          for (let c = 0; c < d; c++) {
            const code = Math.round(((row[c] as number) - mean) / scale);
            const clamped = Math.max(-(2 ** (bits - 1)), Math.min(2 ** (bits - 1) - 1, code));
            const off = Math.abs((out[t * d + c] as number) - (clamped * scale + mean)) / scale;
            // Half floats of mean and scale may move a value over a rounding border.
            expect(Math.min(off, Math.abs(1 - off))).toBeLessThan(0.02);
          }
        }
      }
    }
  });

  it("no bits decode to the mean; outliers are exact; a constant row has none", () => {
    const d = 32;
    const rows = gaussian(N * d, "zero");
    rows.fill(2.5, 0, d);
    const { out, variable } = roundTrip("v", { bits: [0, 0] }, rows, { attention: attention(0) });
    expect([...out.subarray(0, d)]).toEqual(Array(d).fill(2.5));
    for (let t = 1; t < N; t++) {
      const row = rows.subarray(t * d, (t + 1) * d);
      const sorted = [...row].sort((a, b) => a - b);
      const mean = sorted.slice(1, -1).reduce((a, b) => a + b, 0) / (d - 2);
      for (let c = 0; c < d; c++) {
        const x = row[c] as number;
        const want = x === sorted[0] || x === sorted[d - 1] ? x : mean;
        expect(Math.abs((out[t * d + c] as number) - want)).toBeLessThan(2e-3);
      }
    }
    expect(variable?.length).toBe(N + 3 * 2 * (N - 1) + 4);
  });

  it("the newest window - 1 tokens have full width, whatever attends to them", () => {
    const rows = gaussian(N * 16, "young");
    for (const plane of ["k", "v"] as const) {
      const { bits } = roundTrip(plane, { window: 5, qNorm: 1e-9, targetErrorV: 1e6 }, rows, {
        firstSlot: 68,
        length: 100,
        attention: attention(0),
      });
      expect([...bits.subarray(N - 4)]).toEqual([4, 4, 4, 4]);
      expect([...bits.subarray(0, N - 4)].every((b) => b <= 1)).toBe(true);
    }
    expect(make("v", { window: 5 }, 16).caps).toMatchObject({
      flush: { when: 36, keep: 4, take: 32 },
      stats: { kind: "colMaxProb", lastRows: 5 },
    });
    expect(make("k", {}, 16).caps.stats).toBeUndefined();
  });

  it("stored bytes are the widths, the parameters and the outliers", () => {
    const d = 64;
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1e6 }), fc.double({ min: 0.01, max: 1 }), (seed, a) => {
        const rows = gaussian(N * d, `bytes/${seed}`);
        const { bits, dst, variable, out } = roundTrip("v", {}, rows, {
          attention: attention(a),
        });
        const width = bits.reduce((sum, b) => sum + b, 0);
        expect(variable?.length).toBe((width * d) / 8 + N + 3 * 2 * N + 4);
        expect(dst.length).toBe(N * 5);
        for (const x of out) expect(Number.isFinite(x)).toBe(true);
      }),
      { numRuns: 20 },
    );
    for (const x of [0, 1e30, -1e30]) {
      const { out } = roundTrip(
        "k",
        {},
        gaussian(N * d, "extreme").map((y) => y * x),
      );
      for (const y of out) expect(Number.isFinite(y)).toBe(true);
    }
  });

  it("Monte Carlo: errors of attention outputs stay at the target, about twice that for the code's rule", () => {
    const [d, tokens, trials] = [32, 256, 6];
    const target = 0.1;
    for (const rule of ["paper", "repo"] as const) {
      let [middle, coded] = [0, 0];
      for (let trial = 0; trial < trials; trial++) {
        const rng = new Philox(trial, "monte-carlo");
        const values = Float32Array.from(rng.normals(tokens * d));
        const weights = Float32Array.from(rng.normals(tokens), Math.exp);
        const sum = weights.reduce((a, b) => a + b, 0);
        const p = weights.map((w) => w / sum);
        const error = new Float64Array(2 * d);
        const add = (c: number, e: number) => {
          error[c] = (error[c] as number) + e;
        };
        for (let g = 0; g < tokens; g += N) {
          const rows = values.subarray(g * d, (g + N) * d);
          const seal = { length: tokens, attention: p.slice(g, g + N), firstSlot: -tokens + g };
          const { out, bits } = roundTrip(
            "v",
            { rule, targetErrorV: target, outliers: 0 },
            rows,
            seal,
          );
          for (let t = 0; t < N; t++) {
            const row = rows.subarray(t * d, (t + 1) * d);
            const low = Math.min(...row);
            const step = (Math.max(...row) - low) / 2 ** (bits[t] as number);
            for (let c = 0; c < d; c++) {
              const x = row[c] as number;
              // The bound assumes values in the middle of their interval; the quantizer clips a long side.
              const code = Math.min(2 ** (bits[t] as number) - 1, Math.floor((x - low) / step));
              add(c, (p[g + t] as number) * (low + (code + 0.5) * step - x));
              add(d + c, (p[g + t] as number) * ((out[t * d + c] as number) - x));
            }
          }
        }
        const rms = (part: Float64Array) => Math.sqrt(part.reduce((s, e) => s + e * e, 0) / d);
        middle += rms(error.subarray(0, d)) / trials;
        coded += rms(error.subarray(d)) / trials;
      }
      const allowed = rule === "paper" ? target : 2 * target;
      expect(middle).toBeLessThan(allowed);
      expect(coded).toBeLessThan(1.5 * allowed);
      expect(middle).toBeGreaterThan(0.2 * target);
    }
  });

  it("1 % of outliers lower the error of rows that have some", () => {
    const rows = gaussian(N * 64, "tails").map((x, i) => (i % 61 === 0 ? 20 * x : x));
    const error = (outliers: number) => {
      const { out } = roundTrip("k", { bits: [2, 2], outliers }, rows);
      return rows.reduce((s, x, i) => s + (x - (out[i] as number)) ** 2, 0);
    };
    expect(error(0.01)).toBeLessThan(0.2 * error(0));
  });

  it("refuses levels without statistics, missing calibration, mixed-up limits", () => {
    expect(() => make("k", { level: "layer" }, 16)).toThrow(/level "layer" is not available/);
    expect(() => make("k", { qNorm: "calibrated" }, 16)).toThrow(/needs calibration/);
    expect(() => make("v", { qNorm: "calibrated" }, 16)).not.toThrow();
    expect(qaq.options.safeParse({ bits: [3, 2] }).success).toBe(false);
    const rows = gaussian(N * 16, "no attention");
    expect(() => roundTrip("v", {}, rows)).toThrow(/attention/);
  });

  it("refuses head sizes that its rows cannot hold", () => {
    const head = expect.objectContaining({ code: "kv-head" });
    for (const headDim of [20, 264]) expect(() => make("v", {}, headDim)).toThrow(head);
  });
});
