import { describe, expect, it } from "vitest";
import {
  activations,
  statsOf as moments,
  solveContext,
  studentT,
} from "../../test/support/solver.js";
import { Philox } from "../core/rng.js";
import { unpackCodes } from "../encodings/packed-codes.js";
import { decode, effectiveWeight } from "../encodings/quant-tensor.js";
import type { Gint, QuantTensor } from "../encodings/types.js";
import { notPositiveDefinite, referenceLinalg } from "../linalg/engine-linalg.js";
import { createMemo, type SiteStatsView, type SolveContext } from "./contract.js";
import { type GptqOptions, gptq } from "./gptq.js";
import { roundToNearest } from "./rtn.js";

// The example of the specification: N = 3, K = 8, T = 16 (values of the official code).
const N = 3;
const K = 8;
const T = 16;
const W = Float32Array.from({ length: N * K }, (_, i) => {
  const [r, c] = [Math.floor(i / K), i % K];
  return Math.sin(1.3 * (r + 1) * (c + 1)) * (1 + 0.5 * (c % 3));
});
const X = Float64Array.from({ length: T * K }, (_, i) => {
  const [t, j] = [Math.floor(i / K), i % K];
  return Math.cos(0.7 * t * (j + 1) + 0.3 * j) * (j === 5 ? 4 : 1) + 0.1 * Math.sin(t + j);
});

/** Upper triangle of the sum of x x^T. */
function statsOf(
  x: Float64Array,
  k: number,
  factor = 1,
): SiteStatsView & { hessian: Float64Array } {
  const hessian = new Float64Array(k * k);
  const count = x.length / k;
  for (let t = 0; t < count; t++) {
    for (let i = 0; i < k; i++) {
      for (let j = i; j < k; j++) {
        hessian[i * k + j] =
          (hessian[i * k + j] as number) +
          factor * (x[t * k + i] as number) * (x[t * k + j] as number);
      }
    }
  }
  return { count, hessian };
}

/** Squared output error over X. */
function outputError(tensor: QuantTensor, w: Float32Array, x: Float64Array): number {
  const q = effectiveWeight(tensor);
  const { n, k } = tensor;
  let sum = 0;
  for (let t = 0; t < x.length / k; t++) {
    for (let r = 0; r < n; r++) {
      let y = 0;
      for (let c = 0; c < k; c++) {
        y += ((w[r * k + c] as number) - (q[r * k + c] as number)) * (x[t * k + c] as number);
      }
      sum += y * y;
    }
  }
  return sum;
}

const context = (log: (m: string) => void = () => {}): SolveContext => ({
  rng: new Philox(0),
  engineLinalg: referenceLinalg,
  log,
  memo: createMemo(),
});
const parse = (options: object) =>
  gptq.options.parse({ scaleType: "f32", ...options }) as GptqOptions;
const run = (
  options: object,
  w = W,
  x = X,
  shape = { n: N, k: K, path: "layers.0.q" },
  stats: SiteStatsView = statsOf(x, shape.k),
) => gptq.solve(w.slice(), shape, stats, parse(options), context());
const codesOf = (tensor: QuantTensor) => unpackCodes((tensor.main as Gint).codes);
const rows = (text: string) => text.split(" / ").flatMap((row) => row.split(" ").map(Number));

const big = { n: 24, k: 320 };
const bigW = Float32Array.from(new Philox(1).normals(big.n * big.k));
const bigX = (() => {
  // Correlated inputs with a few strong channels.
  const base = new Philox(2).normals(512 * big.k);
  const x = new Float64Array(base.length);
  for (let t = 0; t < 512; t++) {
    for (let c = 0; c < big.k; c++) {
      const at = t * big.k + c;
      const left = c > 0 ? (x[at - 1] as number) : 0;
      x[at] = (0.7 * left + (base[at] as number)) * (c % 37 === 5 ? 4 : 1) * 0.7;
    }
  }
  return x;
})();
const bigStats = statsOf(bigX, big.k);
const runBig = (options: object, stats: SiteStatsView = bigStats) =>
  run(options, bigW, bigX, { ...big, path: "layers.1.o" }, stats);

describe("golden values of the official code", () => {
  it("diagonal of H = 2 X^T X", () => {
    const { hessian } = statsOf(X, K, 2);
    const expected = [
      17.62534, 16.60791, 16.26818, 18.37702, 15.84663, 237.46274, 16.09567, 13.7752,
    ];
    expected.forEach((h, i) => {
      expect(hessian[i * K + i]).toBeCloseTo(h, 4);
    });
  });

  it("RTN: scales, zeros, codes and output error", () => {
    const tensor = roundToNearest(W, N, K, parse({}));
    const main = tensor.main as Gint;
    [0.224841, 0.221485, 0.231443].forEach((s, i) => {
      expect(main.scale.data[i]).toBeCloseTo(s, 6);
    });
    expect([...unpackCodes((main.zero as { codes: Gint["codes"] }).codes)]).toEqual([6, 6, 9]);
    expect([...codesOf(tensor)]).toEqual(
      rows("10 9 0 2 7 15 7 0 / 8 0 15 2 9 7 3 12 / 6 15 2 9 13 0 13 8"),
    );
    expect(outputError(tensor, W, X)).toBeCloseTo(2.15759, 4);
  });

  it.each([
    [{}, "10 9 0 2 7 15 7 0 / 8 0 15 2 9 7 3 12 / 6 15 2 10 13 0 12 7", 1.80199],
    [{ actOrder: true }, "10 9 0 2 7 15 7 0 / 8 0 15 2 9 7 3 12 / 6 15 1 9 13 0 12 7", 1.57652],
  ])("4 bit per row %o", async (options, codes, error) => {
    const { tensor } = await run(options);
    expect([...codesOf(tensor)]).toEqual(rows(codes));
    expect(outputError(tensor, W, X)).toBeCloseTo(error, 4);
  });

  it("3 bit, groups of 4: stale, fully updated, act-order with static groups", async () => {
    const base = { bits: 3, groupSize: 8 };
    expect(() => parse({ ...base, groupSize: 4 })).toThrow();
    const grouped = { ...parse(base), groupSize: 4 };
    const solve = (extra: Partial<GptqOptions>) =>
      gptq.solve(
        W.slice(),
        { n: N, k: K, path: "x" },
        statsOf(X, K),
        { ...grouped, ...extra },
        context(),
      );
    const stale = await solve({});
    expect(outputError(stale.tensor, W, X)).toBeCloseTo(6.2584, 4);
    const scale = (t: QuantTensor) => (t.main as Gint).scale.data[3];
    expect(scale(stale.tensor)).toBeCloseTo(0.28543, 5);
    for (const exact of [{ blockSize: 4 }, { staleGroups: false }]) {
      const { tensor } = await solve(exact);
      expect(outputError(tensor, W, X)).toBeCloseTo(6.36007, 4);
      expect(scale(tensor)).toBeCloseTo(0.2889, 5);
    }
    const ordered = await solve({ actOrder: true });
    expect(outputError(ordered.tensor, W, X)).toBeCloseTo(5.52173, 4);
  });
});

describe("invariants", () => {
  it("H -> 7 H and a duplicated calibration set change nothing", async () => {
    const { tensor } = await runBig({ bits: 3 });
    const scaled = { ...bigStats, hessian: bigStats.hessian.map((h) => 7 * h) };
    expect(codesOf((await runBig({ bits: 3 }, scaled)).tensor)).toEqual(codesOf(tensor));
    const twice = { count: 2 * bigStats.count, hessian: bigStats.hessian.map((h) => 2 * h) };
    expect(codesOf((await runBig({ bits: 3 }, twice)).tensor)).toEqual(codesOf(tensor));
  });

  it("K = 1 and a diagonal H equal RTN", async () => {
    const w = W.slice(0, 5);
    const one = await run({}, w, Float64Array.of(1, 2), { n: 5, k: 1, path: "x" });
    expect(codesOf(one.tensor)).toEqual(codesOf(roundToNearest(w, 5, 1, parse({}))));
    const hessian = new Float64Array(K * K);
    for (let i = 0; i < K; i++) hessian[i * K + i] = 1 + i;
    const { tensor } = await run({ bits: 3 }, W, X, undefined, { count: 10, hessian });
    expect(codesOf(tensor)).toEqual(codesOf(roundToNearest(W, N, K, parse({ bits: 3 }))));
  });

  it("per row, the result does not depend on the block size (but for near ties)", async () => {
    const reference = codesOf((await runBig({ bits: 4, blockSize: 4096 })).tensor);
    for (const blockSize of [1, 7, 128]) {
      const codes = codesOf((await runBig({ bits: 4, blockSize })).tensor);
      const different = codes.reduce((sum, c, i) => sum + (c === reference[i] ? 0 : 1), 0);
      expect(different).toBeLessThan(codes.length * 0.01);
    }
  });

  it.each([
    ["per row", {}],
    ["groups of 64", { groupSize: 64 }],
    ["ragged groups of 96", { groupSize: 96 }],
    ["updated groups", { groupSize: 96, staleGroups: false }],
    ["act-order", { actOrder: true }],
    ["act-order, static groups", { actOrder: true, groupSize: 64 }],
    ["act-order, dynamic groups", { actOrder: true, staticGroups: false, groupSize: 96 }],
    ["one scale", { groupSize: "tensor" }],
    ["symmetric with clip search", { sym: true, clip: "mse" }],
    ["hdiag clip", { clip: "hdiag", actOrder: true, staticGroups: false, groupSize: 64 }],
    ["float zeros", { zero: "float", groupSize: 64 }],
  ])("output error is below RTN's, and the loss predicts it: %s", async (_, options) => {
    const { tensor, loss } = await runBig({ bits: 3, ...options });
    const o = parse({ bits: 3, ...options, actOrder: false });
    const importance = Float64Array.from(
      { length: big.k },
      (_, i) => bigStats.hessian[i * big.k + i] as number,
    );
    const rounded = roundToNearest(bigW, big.n, big.k, o, importance);
    const error = outputError(tensor, bigW, bigX);
    expect(error).toBeLessThan(0.8 * outputError(rounded, bigW, bigX));
    // The loss is per token and counts the damping too.
    expect((loss as number) * bigStats.count).toBeGreaterThan(error * 0.99);
    expect((loss as number) * bigStats.count).toBeLessThan(error * 1.3);
  });

  it("only dynamic act-order stores a permutation", async () => {
    const pre = async (options: object) => (await runBig({ groupSize: 64, ...options })).tensor.pre;
    expect(await pre({ actOrder: true })).toEqual([]);
    expect(await pre({ actOrder: true, staticGroups: false })).toHaveLength(1);
    expect(await pre({ actOrder: true, staticGroups: false, groupSize: "channel" })).toEqual([]);
  });

  it("decoded values are those the sweep saw: f16 scales are rounded first", async () => {
    const o = gptq.options.parse({ groupSize: 64 }) as GptqOptions;
    const shape = { ...big, path: "x" };
    const { tensor, loss } = await gptq.solve(bigW.slice(), shape, bigStats, o, context());
    expect((loss as number) * bigStats.count).toBeGreaterThan(
      0.99 * outputError(tensor, bigW, bigX),
    );
    expect(decode(tensor).every(Number.isFinite)).toBe(true);
  });
});

describe("hard cases", () => {
  it("dead inputs get weight 0 and disturb nobody", async () => {
    const x = bigX.map((v, i) => (i % big.k === 17 ? 0 : v));
    for (const options of [{}, { actOrder: true, staticGroups: false, groupSize: 64 }]) {
      const { tensor } = await run(options, bigW, x, { ...big, path: "x" });
      const w = effectiveWeight(tensor);
      for (let r = 0; r < big.n; r++) expect(Math.abs(w[r * big.k + 17] as number)).toBe(0);
    }
  });

  it("all inputs dead: every weight is 0", async () => {
    const { tensor } = await run({}, W, new Float64Array(T * K));
    expect(decode(tensor).every((v) => v === 0)).toBe(true);
  });

  it("fewer tokens than inputs work, thanks to damping", async () => {
    const { tensor, notes } = await run({}, bigW, bigX.slice(0, 3 * big.k), { ...big, path: "x" });
    expect(notes).toBeUndefined();
    expect(decode(tensor).every(Number.isFinite)).toBe(true);
  });

  it("a Hessian without a factor raises the damping, and says so", async () => {
    const broken = { count: 1, hessian: Float64Array.of(1, 1.05, 1.05, 1) };
    const shape = { n: 1, k: 2, path: "layers.2.up" };
    const solved = await run({}, Float32Array.of(1, 2), X, shape, broken);
    expect(solved.notes).toEqual(["percDamp raised from 0.01 to 0.08"]);
  });

  it("without any factor the layer is rounded, with a note", async () => {
    const shape = { n: 1, k: 2, path: "layers.2.up" };
    const lines: string[] = [];
    const ctx = context((line) => lines.push(line));
    ctx.engineLinalg = {
      ...referenceLinalg,
      async inverseFactor() {
        throw notPositiveDefinite(3);
      },
    };
    const stats = { count: 1, hessian: Float64Array.of(1, 0, 0, 1) };
    const w = Float32Array.of(1, 2);
    const solved = await gptq.solve(w, shape, stats, parse({}), ctx);
    expect(solved.notes).toEqual([expect.stringContaining("rounded to nearest")]);
    expect(lines.at(-1)).toMatch(/^layers\.2\.up: /);
    expect(codesOf(solved.tensor)).toEqual(codesOf(roundToNearest(w, 1, 2, parse({}))));
  });

  it("NaN in weights or Hessian, no tokens, no statistics: an error that names the layer", async () => {
    const nan = { count: 1, hessian: new Float64Array(K * K).fill(Number.NaN) };
    await expect(run({}, W, X, undefined, nan)).rejects.toThrow(/layers\.0\.q.*NaN/);
    const empty = { count: 0, hessian: new Float64Array(K * K) };
    await expect(run({}, W, X, undefined, empty)).rejects.toThrow(/no token/);
    await expect(run({}, W.with(3, Number.NaN))).rejects.toThrow(
      /layers\.0\.q: holds the value NaN/,
    );
    await expect(run({}, W, X, undefined, { count: 1 })).rejects.toThrow(/needs the Hessian/);
  });

  it("asymmetric: makes up for inputs that drifted (8 bits reach the least-squares weight)", async () => {
    const [n, k, tokens] = [24, 32, 400];
    const y = activations(tokens, k, 5);
    const noise = new Philox(9, "drift");
    // Inputs of the quantized model: the original ones, shrunk and disturbed.
    const x = y.map((value) => 0.9 * value + 0.1 * noise.normal());
    const w = studentT(n * k, 4);
    const drift = new Float64Array(k * k);
    for (let t = 0; t < tokens; t++) {
      for (let i = 0; i < k; i++) {
        for (let j = 0; j < k; j++) {
          const [a, b] = [t * k + i, t * k + j];
          (drift[i * k + j] as number) += (x[a] as number) * ((y[b] as number) - (x[b] as number));
        }
      }
    }
    const stats = { ...moments(x, k), drift };
    const missed = async (more: object) => {
      const options = gptq.options.parse({ bits: 8, ...more });
      const { tensor } = await gptq.solve(
        w.slice(),
        { n, k, path: "w" },
        stats,
        options,
        solveContext(),
      );
      const q = decode(tensor);
      let error = 0;
      for (let t = 0; t < tokens; t++) {
        for (let r = 0; r < n; r++) {
          let difference = 0;
          for (let c = 0; c < k; c++) {
            difference +=
              (q[r * k + c] as number) * (x[t * k + c] as number) -
              (w[r * k + c] as number) * (y[t * k + c] as number);
          }
          error += difference ** 2;
        }
      }
      return error;
    };
    const [none, half, whole] = [
      await missed({}),
      await missed({ asymmetric: 0.5 }),
      await missed({ asymmetric: 1 }),
    ];
    expect(half).toBeLessThan(none);
    expect(whole).toBeLessThan(half);
    expect(await missed({ asymmetric: 1, actOrder: true })).toBeLessThan(half);
    expect(gptq.options.safeParse({ asymmetric: 1, trueSequential: true }).success).toBe(false);
  });

  it("linears of a site share one factor", async () => {
    let factors = 0;
    const ctx = context();
    ctx.engineLinalg = {
      ...referenceLinalg,
      inverseFactor(h, n) {
        factors++;
        return referenceLinalg.inverseFactor(h, n);
      },
    };
    const stats = statsOf(X, K);
    for (const path of ["q", "k", "v"]) {
      await gptq.solve(W.slice(), { n: N, k: K, path }, stats, parse({}), ctx);
    }
    expect(factors).toBe(1);
    await gptq.solve(W.slice(), { n: N, k: K, path: "o" }, stats, parse({ percDamp: 0.1 }), ctx);
    expect(factors).toBe(2);
  });
});

describe("options", () => {
  it("defaults are the official ones", () => {
    expect(gptq.options.parse({})).toMatchObject({
      bits: 4,
      groupSize: "channel",
      sym: false,
      percDamp: 0.01,
      blockSize: 128,
      actOrder: false,
      staticGroups: true,
      staleGroups: true,
    });
    expect(gptq.options.parse({ sym: true })).toMatchObject({ sym: "narrow" });
  });
  it.each([
    { bits: 9 },
    { bits: 1, sym: "narrow" },
    { sym: true, zero: "float" },
    { range: "raw", zero: "float" },
    { groupsize: 64 },
  ])("refuses %o", (options) => {
    expect(gptq.options.safeParse(options).success).toBe(false);
  });
});
