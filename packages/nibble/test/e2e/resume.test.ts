/** A compression that is interrupted at any layer, or killed, continues to the same bytes as one that was not. */
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { InterruptedError } from "../../src/core/errors.js";
import { methods } from "../../src/methods/index.js";
import { recipeFromObject } from "../../src/recipe/load.js";
import { compress } from "../../src/recipe/run.js";

const model = fileURLToPath(new URL("../golden/models/llama-tied", import.meta.url));
const run = { version: 1 as const, calibration: { samples: 4, seqlen: 32 } };
const RECIPES = {
  "QuaRot and GPTQ": [
    "quarot",
    { gptq: { bits: 4, groupSize: 32 } },
    { embeddings: { bits: 8 } },
    { activations: { bits: 8 } },
  ],
  // Scales of earlier layers live in norms and neighbours: a resumed run must fold them again.
  AWQ: [{ awq: { bits: 4, groupSize: 32 } }],
  SmoothQuant: [
    { smoothquant: { sites: ["attn_in", "attn_out", "mlp_in", "mlp_out"] } },
    { rtn: { bits: 8, sym: "narrow" } },
    { activations: { bits: 8 } },
  ],
};

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-resume-"));
  vi.stubEnv("NIBBLE_HOME", join(folder, "home"));
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});

/** Digests of all files but report.json. */
async function bytes(path: string): Promise<Map<string, string>> {
  const files = (await readdir(path)).filter((name) => name !== "report.json");
  return new Map(
    await Promise.all(
      files.map(
        async (name) =>
          [
            name,
            createHash("sha256")
              .update(await readFile(join(path, name)))
              .digest("hex"),
          ] as const,
      ),
    ),
  );
}

it.each(Object.entries(RECIPES))(
  "%s: equal bytes after an interruption at each step, and on any number of threads",
  async (name, steps) => {
    const recipe = recipeFromObject({ ...run, steps });
    const base = join(folder, name);
    const whole = join(base, "whole");
    await compress(model, recipe, { output: whole, backend: "wasm", threads: 2, resume: false });
    const expected = await bytes(whole);

    const oneThread = join(base, "one");
    await compress(model, recipe, {
      output: oneThread,
      backend: "wasm",
      threads: 1,
      resume: false,
    });
    expect(await bytes(oneThread)).toEqual(expected);

    const output = join(base, "resumed");
    let interruptions = 0;
    for (let attempt = 0; attempt < 10; attempt++) {
      const controller = new AbortController();
      let solved = 0;
      const done = await compress(model, recipe, {
        output,
        backend: "wasm",
        threads: 2,
        signal: controller.signal,
        onProgress: (event) => {
          // Every attempt gets one layer further than the one before it.
          if (event.type === "step" && event.stage === "quantizing" && ++solved > attempt)
            controller.abort();
        },
      }).then(
        () => true,
        (error: unknown) => {
          expect(error instanceof InterruptedError || (error as Error).name === "AbortError").toBe(
            true,
          );
          interruptions++;
          return false;
        },
      );
      if (done) break;
      // Nothing half-written stands where the artifact will be.
      expect(await readdir(base)).not.toContain("resumed");
    }
    expect(interruptions).toBeGreaterThan(0);
    expect(await bytes(output)).toEqual(expected);
  },
);

/** Every solver: state that was written to disk after one layer gives the same bytes as solving all at once. */
const solvers = [...methods].filter(({ kind }) => kind === "weights").map(({ id }) => id);
it.each(solvers)("%s: a run stopped after the first layer continues to equal bytes", async (id) => {
  const recipe = recipeFromObject({ ...run, steps: [id] });
  const base = join(folder, `solver-${id}`);
  const common = { backend: "wasm" as const, threads: 1 };
  await compress(model, recipe, { ...common, output: join(base, "whole"), resume: false });
  const output = join(base, "resumed");
  const controller = new AbortController();
  const stopped = compress(model, recipe, {
    ...common,
    output,
    signal: controller.signal,
    onProgress: (event) => {
      if (event.type === "step" && event.stage === "quantizing") controller.abort();
    },
  });
  await expect(stopped).rejects.toThrow();
  await compress(model, recipe, { ...common, output });
  expect(await bytes(output)).toEqual(await bytes(join(base, "whole")));
});
