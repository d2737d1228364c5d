/**
 * QuaRot on the golden checkpoints: logits of the rotated, unquantized model against those of transformers, through the
 * engine and through the f64 oracle that the unit tests of folds rely on.
 */
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { fileSource } from "../src/core/file-source.js";
import { Philox } from "../src/core/rng.js";
import { openSafetensors } from "../src/formats/safetensors.js";
import { type QuarotOptions, quarot } from "../src/methods/quarot.js";
import type { Model } from "../src/model/model.js";
import { loadModel } from "../src/runtime/load-model.js";
import { openModel } from "../src/runtime/open.js";
import { tinyForward } from "./tiny-forward.js";

const folder = (name: string) => fileURLToPath(new URL(`golden/models/${name}`, import.meta.url));
const TOKENS = 24;

async function golden(name: string) {
  const file = await openSafetensors(await fileSource(`${folder(name)}/expected.safetensors`));
  const raw = await file.readRaw("input_ids");
  const ids = [...new Int32Array(raw.slice().buffer)].slice(0, TOKENS);
  const logits = await file.readF32("logits");
  await file.close();
  return { ids, logits };
}

async function rotate(model: Model, options: object): Promise<void> {
  const parsed = quarot.options.parse(options) as QuarotOptions;
  await quarot.apply(model, parsed, { rng: new Philox(3), log: () => {} });
}

function worst(rows: ArrayLike<number>[], expected: Float32Array): number {
  let max = 0;
  for (const [i, row] of rows.entries()) {
    for (let v = 0; v < row.length; v++) {
      max = Math.max(max, Math.abs((row[v] as number) - (expected[i * row.length + v] as number)));
    }
  }
  return max;
}

it.each(["llama-tied", "qwen2", "mixtral"])(
  "%s: the oracle equals transformers within 1e-4, rotated within 1e-3",
  async (name) => {
    const { ids, logits } = await golden(name);
    const model = await loadModel(folder(name));
    expect(worst(await tinyForward(model, ids), logits)).toBeLessThan(1e-4);
    await rotate(model, {});
    expect(worst(await tinyForward(model, ids), logits)).toBeLessThan(1e-3);
    await model.close();
  },
);

describe.each(["llama-tied", "llama-untied-rope3", "qwen2", "mixtral"])(
  "%s through the engine: rotated logits within 1e-3 of transformers",
  (name) => {
    it.each([
      {},
      { tied: "untie", headMix: "none" },
      { tied: "dense-edge", headMix: "orthogonal" },
      { headMix: "full", blockSize: 32 },
    ])("%o", async (options) => {
      const { ids, logits } = await golden(name);
      const model = await loadModel(folder(name));
      await rotate(model, options);
      const opened = await openModel(model, { backend: "wasm", threads: 1, maxContext: 64 });
      try {
        const { runner } = opened;
        await runner.prefill(0, ids, 0, { logits: false });
        await runner.score(0, ids);
        const rows = ids.map((_, i) => runner.logits(i).slice());
        expect(worst(rows, logits)).toBeLessThan(1e-3);
      } finally {
        await opened.close();
        await model.close();
      }
    });
  },
);
