/** Lossless storage through the whole pipeline: the saved model computes what the original computes, bit for bit. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { allLogits } from "../runtime/logits.js";
import { openModel } from "../runtime/open.js";
import { recipeFromObject } from "./load.js";
import { compress } from "./run.js";

const ids = Array.from({ length: 24 }, (_, i) => (i * 41 + 5) % 320);
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-lossless-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function logits(path: string): Promise<Float32Array> {
  const opened = await openModel(path, { backend: "wasm", threads: 1, maxContext: 32 });
  try {
    return await allLogits(opened.runner, ids);
  } finally {
    await opened.close();
  }
}

it.each([
  ["llama-tied", [{ neuzip: {} }]],
  ["qwen2", [{ neuzip: { chunk: "row" } }]],
  ["llama-tied", []],
])("%s stored by %j gives the logits of the original", async (name, steps) => {
  const model = fileURLToPath(new URL(`../../test/golden/models/${name}`, import.meta.url));
  const output = join(folder, `${name}-${steps.length}`);
  const recipe = recipeFromObject({ version: 1, steps });
  await compress(model, recipe, { output, backend: "wasm", threads: 1, resume: false });
  expect(await logits(output)).toEqual(await logits(model));
});

it("cut mantissas are near, and nearer with more bits", async () => {
  const model = fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url));
  const plain = await logits(model);
  const distances: number[] = [];
  for (const precision of [3, 1, 0]) {
    const output = join(folder, `cut-${precision}`);
    const recipe = recipeFromObject({ version: 1, steps: [{ neuzip: { precision } }] });
    await compress(model, recipe, { output, backend: "wasm", threads: 1, resume: false });
    const cut = await logits(output);
    distances.push(plain.reduce((sum, x, i) => sum + (x - (cut[i] as number)) ** 2, 0));
  }
  expect(distances[0]).toBeGreaterThan(0);
  expect(distances).toEqual([...distances].sort((a, b) => a - b));
});
