import { describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { benchModel } from "./bench.js";
import { contextOf, rooflineSeconds } from "./bench-cases.js";
import { workCounter } from "./bench-work.js";
import { openModel } from "./open.js";

const shape = { vocabSize: 50, hiddenSize: 36, intermediateSize: 40, numHiddenLayers: 2 };
/** Outputs times inputs of a block (4 heads and 2 KV heads of 8) and of the head. */
const BLOCK = 36 * (32 + 16 + 16) + 32 * 36 + 3 * 36 * 40;
const HEAD = 50 * 36;
const open = (options = {}) =>
  openModel(tinyModel(shape), { backend: "reference", threads: 1, maxContext: 64, ...options });

describe("bench", () => {
  it("counts products, attention and bytes of a run from the program", async () => {
    const opened = await open();
    const counter = workCounter(opened.compiled, opened.kv);
    const one = counter.run(0, 1, 1, 1);
    expect(one.intOps).toBe(0);
    // One key of four heads of 8 in each of two layers, two products each.
    expect(one.floatOps).toBe(2 * (2 * BLOCK + HEAD) + 2 * 4 * 4 * 8);
    const many = counter.run(0, 5, 3, 0);
    expect(many.floatOps).toBe(3 * (5 * 2 * 2 * BLOCK + (1 + 2 + 3 + 4 + 5) * 2 * 4 * 4 * 8));
    const key = 2 * 2 * 2 * 8 * 4; // keys and values of two KV heads in f32, two layers
    expect(counter.run(9, 1, 1, 1).bytes - one.bytes).toBe(9 * key);
    expect(one.bytes - key).toBe(opened.compiled.bytesPerToken);
    await opened.close();
  });

  it("a sliding window bounds the keys of a layer", async () => {
    const opened = await openModel(tinyModel({ ...shape, slidingWindow: [4, null] }), {
      backend: "reference",
      threads: 1,
    });
    const counter = workCounter(opened.compiled, opened.kv);
    const attention = counter.run(20, 1, 1, 0).floatOps - 2 * 2 * BLOCK;
    expect(attention).toBe((4 + 21) * 4 * 4 * 8);
    await opened.close();
  });

  it("the roofline is compute or memory, whichever takes longer, and unknown without ceilings", () => {
    const ceilings = { int8Gops: 100, f32Gflops: 10, readGBs: 1 };
    const work = { intOps: 1e11, floatOps: 1e10, bytes: 1e9 };
    expect(rooflineSeconds(work, ceilings)).toBe(2);
    expect(rooflineSeconds({ ...work, bytes: 3e9 }, ceilings)).toBe(3);
    expect(rooflineSeconds(work, { ...ceilings, readGBs: null })).toBeNull();
  });

  it("reports every field, with shares of the ceilings it was given", async () => {
    const opened = await open({ sequences: 2 });
    let asked = 0;
    const result = await benchModel(opened, {
      prefill: 8,
      decode: 3,
      depth: 5,
      batch: 2,
      rounds: 2,
      ceilings: async () => {
        asked++;
        return { int8Gops: 1000, f32Gflops: 1000, readGBs: 1000 };
      },
    });
    expect(asked).toBe(2);
    expect(result).toMatchObject({ prefill: 8, decode: 3, depth: 5, batch: 2, rows: 1, rounds: 2 });
    expect(result).toMatchObject({ threads: 1, backend: "reference", variant: "typescript" });
    for (const name of ["prefill", "decode"] as const) {
      const speed = result[`${name}TokensPerSecond`];
      expect(result[`${name}TokensPerSecondBest`]).toBeGreaterThanOrEqual(speed);
      expect(result[`${name}TokensPerSecondMin`]).toBeLessThanOrEqual(speed);
      expect(result[`${name}ShareOfRoofline`]).toBeGreaterThan(0);
    }
    expect(result.weightBytes).toBe(opened.compiled.weightBytes);
    expect(result.peakBytes).toBeGreaterThan(1e6);
    await opened.close();
  });

  it.each([1, 3])(
    "a cache that cannot be cut begins every round at the depth (%i rows)",
    async (rows) => {
      const retention = { type: "window", sinks: 1, recent: 3 };
      const kv = { k: { codec: "fp16" }, v: { codec: "fp16" }, retention };
      const opened = await open({ kv, sequences: 2 });
      const lengths: number[] = [];
      const step = opened.runner.step.bind(opened.runner);
      opened.runner.step = async (given, logitRows) => {
        if (logitRows.length > 0) lengths.push(given.positions[0] as number);
        return step(given, logitRows);
      };
      await benchModel(opened, { prefill: 0, decode: 3, depth: 9, batch: 2, rows, rounds: 2 });
      // The round that warms up, and two.
      const places = rows === 1 ? [9, 10, 11] : [9, 9, 9];
      expect(lengths).toEqual([...places, ...places, ...places]);
      await opened.close();
    },
  );

  it("rows of one sequence stay at their place; plain decoding moves on", () => {
    const decode = { kind: "decode", steps: 20, depth: 10, batch: 1 } as const;
    expect(contextOf({ ...decode, rows: 1 })).toBe(31);
    expect(contextOf({ ...decode, rows: 4 })).toBe(15);
  });

  it("refuses what the model was not opened for", async () => {
    const opened = await open();
    await expect(benchModel(opened, { prefill: 65 })).rejects.toThrow("opened for 64");
    await expect(benchModel(opened, { prefill: 1, decode: 1, batch: 2 })).rejects.toThrow(
      "as many sequences",
    );
    await opened.close();
  });
});
