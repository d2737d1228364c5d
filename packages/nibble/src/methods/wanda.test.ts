import { describe, expect, it } from "vitest";
import { weightGolden } from "../../test/support/golden.js";
import {
  activations,
  gaussian,
  outputError,
  solveContext,
  statsOf,
} from "../../test/support/solver.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { referenceLinalg } from "../linalg/engine-linalg.js";
import { columnImportance } from "./rtn.js";
import { hessianFactor } from "./shared/hessian-factor.js";
import { pruneSweep, sparsegpt } from "./sparsegpt.js";
import { wanda, wandaMask } from "./wanda.js";

const golden = weightGolden().pruning;
const GW = Float32Array.from(golden.W);
const GX = Float64Array.from(golden.X);
const norms = columnImportance(statsOf(GX, 8), 8, "golden").map(Math.sqrt);
const half = { sparsity: 0.5, pattern: "unstructured", variant: false } as const;
const zeros = (row: ArrayLike<number>) => Array.from(row).filter((x) => x === 0).length;
const dense = (data: Float32Array, n: number, k: number) =>
  ({ n, k, main: { kind: "dense", type: "f32", data }, pre: [], post: [] }) as const;
const masked = (w: Float32Array, keep: Uint8Array) => w.map((x, i) => (keep[i] ? x : 0));

async function factorOf(x: Float64Array, k: number) {
  const factor = await hessianFactor(
    statsOf(x, k),
    k,
    { percDamp: 0.01, actOrder: false },
    "t",
    solveContext(),
  );
  if (!factor.u) throw new Error("no factor");
  return factor.u;
}

describe("wanda", () => {
  it("gives the masks of the golden values", () => {
    expect([...wandaMask(GW, 3, 8, norms, half)]).toEqual(golden.wanda50_keep);
    expect([...wandaMask(GW, 3, 8, norms, { ...half, pattern: "2:4" })]).toEqual(
      golden.wanda24_keep,
    );
  });

  it("gives the reconstruction errors of the golden values", () => {
    const error = (w: Float32Array) =>
      outputError({ ...dense(w, 3, 8), pre: [], post: [] }, GW, GX);
    expect(error(masked(GW, wandaMask(GW, 3, 8, norms, half)))).toBeCloseTo(
      golden.recon_err.wanda50,
      4,
    );
  });

  it("prunes int(K * ratio) weights of every row, and n of every m inputs", () => {
    const w = gaussian(7 * 50, 1);
    for (const sparsity of [0, 0.3, 0.5, 0.77]) {
      const keep = wandaMask(w, 7, 50, null, { ...half, sparsity });
      for (let r = 0; r < 7; r++)
        expect(zeros(keep.subarray(r * 50, r * 50 + 50))).toBe(Math.floor(50 * sparsity));
    }
    for (const [pattern, prune, of] of [
      ["2:4", 2, 4],
      ["4:8", 4, 8],
      ["1:4", 1, 4],
    ] as const) {
      const keep = wandaMask(w, 7, 50, null, { ...half, pattern });
      for (let r = 0; r < 7; r++) {
        for (let c = 0; c + of <= 50; c += of)
          expect(zeros(keep.subarray(r * 50 + c, r * 50 + c + of))).toBe(prune);
        expect(zeros(keep.subarray(r * 50 + 48, r * 50 + 50))).toBe(Math.floor((prune * 2) / of));
      }
    }
  });

  it("with equal norms it is magnitude pruning of each row", async () => {
    const w = gaussian(5 * 64, 2);
    const equal = wandaMask(w, 5, 64, new Float64Array(64).fill(2.5), half);
    const { tensor } = await wanda.solve(
      w.slice(),
      { n: 5, k: 64, path: "w" },
      null,
      wanda.options.parse({ score: "magnitude", type: "f32" }),
      solveContext(),
    );
    expect(decode(tensor)).toEqual(masked(w, equal));
  });

  it("the variant reaches the sparsity of the matrix with unequal rows", () => {
    const w = gaussian(16 * 128, 3).map((x, i) =>
      Math.floor(i / 128) % 2 ? x : Math.sign(x) * (2 + 0.1 * x),
    );
    const keep = wandaMask(w, 16, 128, null, { ...half, variant: true });
    expect(Math.abs(zeros(keep) / keep.length - 0.5)).toBeLessThan(0.01);
    const counts = Array.from({ length: 16 }, (_, r) =>
      zeros(keep.subarray(r * 128, (r + 1) * 128)),
    );
    expect(new Set(counts).size).toBeGreaterThan(1);
  });

  it("costs 9 bits in f16 at half the weights, in any pattern", async () => {
    const w = gaussian(8 * 64, 4);
    for (const pattern of ["unstructured", "2:4", "4:8"]) {
      const o = wanda.options.parse({ score: "magnitude", pattern });
      const { tensor } = await wanda.solve(
        w.slice(),
        { n: 8, k: 64, path: "w" },
        null,
        o,
        solveContext(),
      );
      expect(bitsPerWeight(tensor)).toBe(9);
    }
  });

  it("refuses a sparsity beside a pattern", () => {
    expect(() => wanda.options.parse({ pattern: "2:4", sparsity: 0.6 })).toThrow(
      /decides the sparsity/,
    );
    expect(() => sparsegpt.options.parse({ pattern: "2:4", sparsity: 0.6 })).toThrow(
      /decides the sparsity/,
    );
    expect(() => wanda.options.parse({ pattern: "2:4", variant: true })).toThrow(/unstructured/);
  });
});

describe("sparsegpt", () => {
  const run = async (w: Float32Array, n: number, k: number, x: Float64Array, o: object) => {
    const options = sparsegpt.options.parse({ type: "f32", ...o });
    return (await pruneSweep(w.slice(), n, k, await factorOf(x, k), options, referenceLinalg))
      .weight;
  };

  it("gives the weights of the golden values, and their error", async () => {
    const pruned = await run(GW, 3, 8, GX, {});
    for (const [i, x] of golden.sparsegpt50.entries()) {
      expect(Math.abs((pruned[i] as number) - x)).toBeLessThan(2e-5);
    }
    expect(outputError({ ...dense(pruned, 3, 8), pre: [], post: [] }, GW, GX)).toBeCloseTo(
      golden.recon_err.sparsegpt50,
      3,
    );
  });

  it("sparsity 0 changes nothing", async () => {
    const w = gaussian(6 * 40, 5);
    expect(await run(w, 6, 40, activations(100, 40), { sparsity: 0 })).toEqual(w);
  });

  it("loses less than Wanda, which loses less than magnitude (layer outputs)", async () => {
    const [n, k] = [48, 128];
    const w = gaussian(n * k, 6, 0.05);
    const x = activations(400, k, 6);
    const importance = columnImportance(statsOf(x, k), k, "t").map(Math.sqrt);
    for (const pattern of ["unstructured", "2:4"] as const) {
      const o = { ...half, pattern };
      const error = (weight: Float32Array) =>
        outputError({ ...dense(weight, n, k), pre: [], post: [] }, w, x);
      const byWanda = error(masked(w, wandaMask(w, n, k, importance, o)));
      expect(error(await run(w, n, k, x, { pattern }))).toBeLessThan(byWanda);
      expect(byWanda).toBeLessThan(error(masked(w, wandaMask(w, n, k, null, o))));
    }
  });

  it("keeps its pattern in every group", async () => {
    const w = gaussian(9 * 42, 7);
    const pruned = await run(w, 9, 42, activations(200, 42), { pattern: "2:4" });
    for (let r = 0; r < 9; r++) {
      for (let c = 0; c < 40; c += 4)
        expect(zeros(pruned.subarray(r * 42 + c, r * 42 + c + 4))).toBe(2);
      expect(zeros(pruned.subarray(r * 42 + 40, r * 42 + 42))).toBe(1);
    }
  });

  it("says so when there is no factor and Wanda's score must do", async () => {
    const ctx = solveContext();
    ctx.engineLinalg = {
      ...referenceLinalg,
      inverseFactor: () => referenceLinalg.inverseFactor(Float64Array.of(-1), 1),
    };
    const x = activations(50, 8);
    const { notes } = await sparsegpt.solve(
      GW.slice(),
      { n: 3, k: 8, path: "w" },
      statsOf(x, 8),
      sparsegpt.options.parse({}),
      ctx,
    );
    expect(notes?.at(-1)).toContain("Wanda");
    expect(ctx.messages.at(-1)).toContain("w: no inverse Hessian");
  });
});
