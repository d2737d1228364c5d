/** Steps that only rescale inputs: the model computes the same, and what follows quantizes the rescaled tensors. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { loadModel } from "../runtime/load-model.js";
import { allLogits } from "../runtime/logits.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { recipeFromObject } from "./load.js";
import { compress } from "./run.js";

const golden = (name: string) =>
  fileURLToPath(new URL(`../../test/golden/models/${name}`, import.meta.url));
const ids = Array.from({ length: 24 }, (_, i) => (i * 37 + 11) % 320);
const run = { version: 1 as const, calibration: { samples: 4, seqlen: 32 } };
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-scaling-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function logitsOf(path: string): Promise<{ logits: Float32Array; opened: OpenedModel }> {
  const opened = await openModel(path, { backend: "wasm", threads: 1, maxContext: 32 });
  try {
    return { logits: await allLogits(opened.runner, ids), opened };
  } finally {
    await opened.close();
  }
}

async function made(model: string, name: string, steps: unknown[]): Promise<string> {
  const output = join(folder, name);
  const recipe = recipeFromObject({ ...run, steps });
  await compress(golden(model), recipe, { output, backend: "wasm", threads: 1, resume: false });
  return output;
}

function distance(a: Float32Array, b: Float32Array): number {
  let most = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    most = Math.max(most, Math.abs((a[i] as number) - (b[i] as number)));
    size = Math.max(size, Math.abs(b[i] as number));
  }
  return most / size;
}

const every = { sites: ["attn_in", "attn_out", "mlp_in", "mlp_out"] };
it.each(["llama-tied", "qwen2", "mixtral"])(
  "smoothed, unquantized %s computes the same",
  async (model) => {
    const plain = await logitsOf(golden(model));
    const output = await made(model, `plain-${model}`, [{ smoothquant: every }]);
    expect(distance((await logitsOf(output)).logits, plain.logits)).toBeLessThan(1e-5);
    // The scales are in the tensors, not beside them.
    const [smoothed, original] = [await loadModel(output), await loadModel(golden(model))];
    const gain = async (m: typeof smoothed) => {
      const norm = m.parameters.get("layers.1.inputNorm");
      if (!norm || "quant" in norm.weight) throw new Error("norms are not quantized");
      return norm.weight.read();
    };
    expect(await gain(smoothed)).not.toEqual(await gain(original));
    await smoothed.close();
    await original.close();
  },
);

it("smooths before the solvers of later steps, and works without any", async () => {
  const eight = [{ rtn: { bits: 8, sym: "narrow" } }, { activations: { bits: 8 } }];
  const plain = await logitsOf(golden("llama-tied"));
  const naive = await logitsOf(await made("llama-tied", "naive", eight));
  const smooth = await logitsOf(await made("llama-tied", "smooth", ["smoothquant", ...eight]));
  expect(distance(smooth.logits, plain.logits)).toBeLessThan(0.1);
  expect(smooth.logits).not.toEqual(naive.logits);
  // Statistics that the solver reads are those of the rescaled inputs.
  const both = await made("llama-tied", "both", ["smoothquant", { gptq: { bits: 8 } }]);
  expect(distance((await logitsOf(both)).logits, plain.logits)).toBeLessThan(0.05);
});

it("a scale that nothing can take up is refused by name", async () => {
  const steps = [{ quarot: { rotations: ["R4"] } }, { smoothquant: every }];
  await expect(made("llama-tied", "refused", steps)).rejects.toMatchObject({
    code: "recipe",
    message: expect.stringContaining("mlp_out"),
  });
});
