/** W8A8-FP: E4M3 weights and activations, through the real runtime. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { allLogits } from "../runtime/logits.js";
import { openModel } from "../runtime/open.js";
import { recipeFromObject } from "./load.js";
import { getPreset } from "./presets.js";
import { compress } from "./run.js";

const model = fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url));
const ids = Array.from({ length: 16 }, (_, i) => (i * 53 + 7) % 320);
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-fp8-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function logits(path: string, backend: "wasm" | "reference"): Promise<Float32Array> {
  const opened = await openModel(path, { backend, threads: 1, maxContext: 32 });
  try {
    return await allLogits(opened.runner, ids);
  } finally {
    await opened.close();
  }
}

function spread(a: Float32Array, b: Float32Array): number {
  let error = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    error += ((a[i] as number) - (b[i] as number)) ** 2;
    size += (b[i] as number) ** 2;
  }
  return Math.sqrt(error / size);
}

it("the preset saves what it says and stays near the original; inputs are rounded", async () => {
  const made = async (name: string, steps: unknown[]) => {
    const output = join(folder, name);
    await compress(model, recipeFromObject({ version: 1, steps }), {
      output,
      backend: "wasm",
      threads: 1,
      resume: false,
    });
    return output;
  };
  const steps = getPreset("fp8-w8a8").recipe.steps;
  const fp8 = await made("fp8", steps);
  const manifest = JSON.parse(await readFile(join(fp8, "nibble.json"), "utf8"));
  expect(manifest.activations.mlp_out).toEqual({
    format: "e4m3",
    bits: 8,
    granularity: "token",
    symmetric: true,
    clip: 1,
  });
  expect(manifest.linears["model.layers.0.mlp.up_proj"]).toMatchObject({
    encoding: "lut",
    bits: 8,
  });
  const weightsOnly = await made("weights", steps.slice(0, 2));
  const [original, full, half] = [
    await logits(model, "wasm"),
    await logits(fp8, "wasm"),
    await logits(weightsOnly, "wasm"),
  ];
  expect(spread(full, original)).toBeLessThan(0.2);
  expect(spread(half, original)).toBeLessThan(spread(full, original));
  expect(spread(await logits(fp8, "reference"), full)).toBeLessThan(1e-5);
  // Integer weights run in front of rounded inputs as well.
  const mixed = await made("mixed", [
    { rtn: { bits: 8, groupSize: 32 } },
    { activations: { format: "e5m2" } },
  ]);
  const coarse = spread(await logits(mixed, "wasm"), original);
  expect(coarse).toBeGreaterThan(spread(full, original) / 2);
  expect(coarse).toBeLessThan(0.5);
});

it("a float format has no other bits, groups, zero or clipping", () => {
  for (const wrong of [{ bits: 4 }, { granularity: 32 }, { sym: false }, { clip: 0.9 }]) {
    const steps = [{ activations: { format: "e4m3", ...wrong } }];
    expect(() => recipeFromObject({ version: 1, steps })).toThrow(/e4m3 has 8 bits/);
  }
});
