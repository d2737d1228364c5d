/** What is decided when a model runs: inputs of weight-only models. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { allLogits } from "../runtime/logits.js";
import { openModel } from "../runtime/open.js";
import { recipeFromObject } from "./load.js";
import { compress } from "./run.js";

const model = fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url));
const ids = Array.from({ length: 16 }, (_, i) => (i * 53 + 7) % 320);
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-options-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function made(name: string, steps: unknown[]): Promise<string> {
  const output = join(folder, name);
  const recipe = recipeFromObject({ version: 1, steps });
  await compress(model, recipe, { output, backend: "wasm", threads: 1, resume: false });
  return output;
}

async function logits(path: string, activations?: "f32" | "i8"): Promise<Float32Array> {
  const opened = await openModel(path, {
    backend: "wasm",
    threads: 1,
    maxContext: 32,
    ...(activations ? { activations } : {}),
  });
  try {
    return await allLogits(opened.runner, ids);
  } finally {
    await opened.close();
  }
}

it("a weight-only model runs on 8-bit inputs when asked: near, and not the same", async () => {
  const path = await made("w4", [{ rtn: { bits: 4, groupSize: 32 } }]);
  const plain = await logits(path);
  expect(await logits(path, "f32")).toEqual(plain);
  const fast = await logits(path, "i8");
  // As an artifact whose recipe says the same.
  const stored = await made("w4a8", [
    { rtn: { bits: 4, groupSize: 32 } },
    { activations: { bits: 8 } },
  ]);
  expect(fast).toEqual(await logits(stored));
  expect(fast).not.toEqual(plain);
  await expect(logits(stored, "i8")).rejects.toMatchObject({
    message: expect.stringContaining("artifact says"),
  });
});
