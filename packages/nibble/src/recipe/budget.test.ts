import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { loadModel } from "../runtime/load-model.js";
import { recipeFromObject } from "./load.js";
import { planModel } from "./plan.js";
import { compress } from "./run.js";

const model = fileURLToPath(new URL("../../test/golden/models/llama-tied", import.meta.url));
const run = { version: 1 as const, calibration: { samples: 2, seqlen: 32 } };
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-budget-"));
  vi.stubEnv("NIBBLE_HOME", join(folder, "home"));
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});

async function made(name: string, recipe: object, flags = {}) {
  const output = join(folder, name);
  const result = await compress(
    model,
    recipeFromObject({ ...run, ...recipe } as Parameters<typeof recipeFromObject>[0], flags),
    { output, backend: "wasm", threads: 1, resume: false },
  );
  const manifest = JSON.parse(await readFile(join(output, "nibble.json"), "utf8"));
  return { result, manifest, bits: manifest.recipe.budget.bits as Record<string, number> };
}

const steps = [{ gptq: { groupSize: 32 } }];

it("spends the budget and no more, module by module, and says so in the artifact", async () => {
  const { result, manifest, bits } = await made("measured", { steps }, { targetBpw: 4.9 });
  expect(result.bitsPerWeight.linears).toBeLessThanOrEqual(4.9);
  expect(result.bitsPerWeight.linears).toBeGreaterThan(4.6);
  expect(new Set(Object.values(bits)).size).toBeGreaterThan(1);
  const stored = manifest.linears["model.layers.0.self_attn.q_proj"] as { bits: number };
  expect(stored.bits).toBe(bits["layers.0.q"]);

  // Measured once: a second run reads what the first one kept, and gives the same bytes.
  expect(await readdir(join(folder, "home", "sensitivity"))).toHaveLength(1);
  const again = await made("again", { steps }, { targetBpw: 4.9 });
  expect(again.result.sha256).toBe(result.sha256);
  // The recipe of the artifact needs no measurement at all.
  const { calibration: _file, ...resolved } = manifest.recipe;
  const repeated = await made("repeated", resolved);
  expect(repeated.result.sha256).toBe(result.sha256);
});

it("reads a file of sensitivities; overrides and ignored modules keep their bits", async () => {
  const file = join(folder, "sensitivity.json");
  const loaded = await loadModel(model);
  const sensitivities = [...loaded.parameters.values()]
    .filter(({ spec }) => spec.kind === "linear")
    .map(({ spec: { path, shape } }, i) => ({
      path,
      weights: (shape[0] ?? 0) * (shape[1] ?? 0),
      loss: { 2: 9 + i, 3: 4, 4: 1, 6: 0.1, 8: 0 },
    }));
  await loaded.close();
  await writeFile(file, JSON.stringify({ sensitivities }));
  const { result, bits, manifest } = await made(
    "file",
    {
      steps: [{ rtn: { groupSize: 32, ignore: ["layers.1.down"] } }, { activations: { bits: 8 } }],
      overrides: [{ match: "layers.0.q", bits: 5 }],
    },
    { targetBpw: 9, sensitivity: file },
  );
  expect(result.bitsPerWeight.linears).toBeLessThanOrEqual(9);
  expect(bits["layers.0.q"]).toBeUndefined();
  expect(bits["layers.1.down"]).toBeUndefined();
  expect(manifest.linears["model.layers.0.self_attn.q_proj"].bits).toBe(5);
  // Bits of weights, not of their inputs.
  expect(manifest.activations.attn_in.bits).toBe(8);
  expect(manifest.activationOverrides).toEqual({});
});

it("refuses what cannot be allocated, and says why", async () => {
  const file = join(folder, "nothing.json");
  await writeFile(file, JSON.stringify({ sensitivities: [] }));
  await expect(made("a", { steps }, { targetBpw: 4.5, sensitivity: file })).rejects.toMatchObject({
    code: "recipe",
    message: expect.stringContaining("no module"),
  });
  await writeFile(file, "{}");
  await expect(made("b", { steps }, { targetBpw: 4.5, sensitivity: file })).rejects.toMatchObject({
    code: "recipe",
    message: expect.stringContaining("nothing.json"),
  });
  await expect(made("c", { steps }, { targetBpw: 1.5 })).rejects.toMatchObject({
    code: "target-bpw",
  });
  await expect(made("d", { steps }, { sensitivity: file })).rejects.toMatchObject({
    hint: "Add --target-bpw 4.5.",
  });
});

it("plans with what the budget allows", async () => {
  const loaded = await loadModel(model);
  const recipe = recipeFromObject({ ...run, steps }, { targetBpw: 3.75 });
  const { bitsPerWeight, calibration } = await planModel(loaded, recipe);
  expect(bitsPerWeight.linears).toBeCloseTo(3.75, 10);
  expect(calibration).toContain("2 windows");
  await loaded.close();
});
