import { describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { referenceBackend } from "../kernels/reference.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import { roundToNearest, rtn } from "../methods/rtn.js";
import { type Model, parameter } from "../model/model.js";
import type { Site } from "../model/roles.js";
import { BlockRunner } from "./block-runner.js";

/** Longer than a run of rows (512), so that a window spans two of them. */
const SEQLEN = 600;
const windows = [0, 1].map((w) =>
  Int32Array.from({ length: SEQLEN }, (_, i) => (i * (w + 3) + (i >> 3) + w) % 50),
);
const wanted = { hessian: true, absStats: false };

function runnerOf(model: Model, keepOriginal: boolean): Promise<BlockRunner> {
  return BlockRunner.create(model, {
    backend: referenceBackend,
    threads: 1,
    windows,
    keepOriginal,
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
  });
}

/** Rounds the linears of a layer to 3 bits. */
async function damage(model: Model, layer: number): Promise<void> {
  for (const role of ["q", "k", "v", "o", "gate", "up", "down"]) {
    const target = parameter(model, `layers.${layer}.${role}`);
    const [n, k] = target.spec.shape as [number, number];
    if (!("read" in target.weight)) throw new Error("not dense");
    const tensor = roundToNearest(await target.weight.read(), n, k, rtn.options.parse({ bits: 3 }));
    target.weight = { quant: async () => tensor };
  }
}

describe("drift of a block's inputs", () => {
  it("is the sum of x (y - x)^T over all tokens, 0 before anything was quantized", async () => {
    const model = await tinyModel();
    const runner = await runnerOf(model, true);
    const plain = await runnerOf(await tinyModel(), false);
    try {
      const before = await runner.observe(0, { ...wanted, drift: true });
      for (const { drift } of before.values()) expect(drift?.every((x) => x === 0)).toBe(true);
      await damage(model, 0);
      await runner.advance(0);
      await plain.advance(0);
      const stats = await runner.observe(1, { ...wanted, drift: true });
      // The first 512 tokens of each model, and both their Gram matrices: what does not need the pairs.
      const x = await runner.capture(1);
      const y = await plain.capture(1);
      const original = await plain.observe(1, wanted);
      for (const [site, { drift, hessian }] of stats) {
        const width = x.get(site as Site)?.width ?? expect.unreachable();
        const g = original.get(site)?.hessian ?? expect.unreachable();
        // |y - x|^2 summed from the drift: G_y - G_x - D - D^T is the Gram matrix of y - x, so its trace is positive.
        let trace = 0;
        let part = 0;
        for (let i = 0; i < width; i++) {
          const at = i * width + i;
          trace += (g[at] as number) - (hessian?.[at] as number) - 2 * (drift?.[at] as number);
        }
        const a = x.get(site as Site)?.values ?? expect.unreachable();
        const b = y.get(site as Site)?.values ?? expect.unreachable();
        for (const [i, value] of a.entries()) part += ((b[i] as number) - value) ** 2;
        expect(part).toBeGreaterThan(0);
        expect(trace).toBeGreaterThan(part * (1 - 1e-3));
        expect(trace).toBeLessThan(part * 5);
      }
    } finally {
      await runner.dispose();
      await plain.dispose();
    }
  });

  it("equals a direct sum when a window fits one run, also after advanceOriginal", async () => {
    const short = windows.map((w) => w.subarray(0, 64));
    const models = [await tinyModel(), await tinyModel()] as const;
    const options = (model: Model, keepOriginal: boolean) => ({
      backend: referenceBackend,
      threads: 1,
      windows: short,
      keepOriginal,
      cache: (tokens: number, sequences: number) =>
        planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
    });
    const runner = await BlockRunner.create(models[0], options(models[0], true));
    const plain = await BlockRunner.create(models[1], options(models[1], false));
    try {
      await runner.advanceOriginal(0);
      await damage(models[0], 0);
      await runner.advance(0);
      await plain.advance(0);
      const x = await runner.capture(1);
      const y = await plain.capture(1);
      const stats = await runner.observe(1, { ...wanted, drift: true });
      for (const [site, { width, rows, values }] of x) {
        expect(rows).toBe(128);
        const other = y.get(site)?.values ?? expect.unreachable();
        const { drift, hessian } = stats.get(site) ?? expect.unreachable();
        const scale = hessian?.[0] ?? 1;
        for (const [i, j] of [
          [0, 0],
          [0, width - 1],
          [width - 1, 0],
          [3, 5],
        ] as const) {
          let sum = 0;
          for (let r = 0; r < rows; r++) {
            const at = r * width;
            sum +=
              (values[at + i] as number) * ((other[at + j] as number) - (values[at + j] as number));
          }
          expect(Math.abs((drift?.[i * width + j] as number) - sum)).toBeLessThan(
            1e-4 * (Math.abs(sum) + scale),
          );
        }
      }
    } finally {
      await runner.dispose();
      await plain.dispose();
    }
  });

  it("needs a runner that keeps the original model", async () => {
    const runner = await runnerOf(await tinyModel(), false);
    try {
      await expect(runner.observe(0, { ...wanted, drift: true })).rejects.toThrow("original");
    } finally {
      await runner.dispose();
    }
  });
});
