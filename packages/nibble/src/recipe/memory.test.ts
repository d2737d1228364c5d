/** A limit of memory: what goes to disk, that the artifact does not change by it, and that nothing stays behind. */
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { tinyFolder } from "../../test/support/tiny-folder.js";
import { loadModel } from "../runtime/load-model.js";
import { recipeFromObject } from "./load.js";
import { fitMemory, plan } from "./plan.js";
import { type CompressOptions, compress } from "./run.js";

let folder = "";
let model = "";
let text = "";
const home = process.env.NIBBLE_HOME;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-memory-"));
  process.env.NIBBLE_HOME = join(folder, "home");
  model = join(folder, "model");
  text = join(folder, "text.txt");
  await tinyFolder(model);
  await writeFile(
    text,
    "A limit of memory changes where numbers are kept, and no number. ".repeat(40),
  );
});
beforeEach(() => rm(join(folder, "out"), { recursive: true, force: true }));
afterAll(async () => {
  if (home === undefined) delete process.env.NIBBLE_HOME;
  else process.env.NIBBLE_HOME = home;
  await rm(folder, { recursive: true, force: true });
});

const recipe = (steps: unknown[]) =>
  recipeFromObject(
    { version: 1, calibration: { samples: 6, seqlen: 48 }, steps },
    { calibration: text },
  );

async function run(steps: unknown[], options: Partial<CompressOptions> = {}) {
  const logs: string[] = [];
  const result = await compress(model, recipe(steps), {
    output: join(folder, "out", "artifact"),
    backend: "wasm",
    threads: 1,
    resume: false,
    onProgress: (event) => event.type === "log" && logs.push(event.message),
    ...options,
  });
  return { sha256: result.sha256, logs: logs.join("\n") };
}

/** The smallest limit that the plan names; it must be below what the run takes without one. */
async function smallest(steps: unknown[]): Promise<number> {
  const { memory } = await plan(model, recipe(steps));
  expect(memory.smallest.bytes).toBeLessThan(memory.peak.bytes);
  return Math.ceil(memory.smallest.bytes);
}

const grouped = { groupSize: 32, sym: false };
const embeddings = { embeddings: { bits: 8 } };
it.each([
  ["quarot and gptq", ["quarot", { gptq: grouped }, embeddings]],
  ["gptq that follows drift", [{ gptq: { ...grouped, asymmetric: 0.5 } }, embeddings]],
  ["gptq stage by stage", [{ gptq: { ...grouped, trueSequential: true } }]],
  ["awq, whose scales are folded", [{ awq: grouped }, embeddings]],
  ["smoothquant and squeezellm", ["smoothquant", { squeezellm: { bits: 3 } }]],
  ["neuzip", ["neuzip"]],
])("%s: the same bytes with everything on disk", async (_name, steps) => {
  const free = await run(steps);
  const lean = await run(steps, { maxMemory: await smallest(steps) });
  expect(lean.sha256).toBe(free.sha256);
  expect(lean.logs).toContain("solved tensors");
  expect(free.logs).not.toContain("on disk");
  expect(await readdir(join(folder, "out"))).toEqual(["artifact"]);
});

it("a run that was stopped goes on under a limit, and ends with the same bytes", async () => {
  const steps = ["quarot", { gptq: grouped }, embeddings];
  const free = await run(steps);
  const maxMemory = await smallest(steps);
  const stop = new AbortController();
  const stopped = compress(model, recipe(steps), {
    output: join(folder, "out", "artifact"),
    backend: "wasm",
    threads: 1,
    maxMemory,
    signal: stop.signal,
    onProgress: (event) => event.type === "step" && event.name === "layer 0" && stop.abort(),
  });
  await expect(stopped).rejects.toMatchObject({ code: "interrupted" });
  expect(await readdir(join(folder, "out"))).toEqual(["artifact"]);
  const again = await run(steps, { maxMemory, resume: true });
  expect(again.sha256).toBe(free.sha256);
});

it("refuses what cannot be met, naming the smallest limit that can, before anything is read", async () => {
  const loaded = await loadModel(model);
  try {
    const own = recipe(["quarot", "gptq"]);
    const { memory } = await plan(model, own);
    const refused = await fitMemory(loaded, own, memory.smallest.bytes - 1).catch((e) => e);
    expect(refused).toMatchObject({ code: "memory" });
    const least = /--max-memory (\d+)MiB/.exec(refused.hint)?.[1];
    expect(await fitMemory(loaded, own, Number(least) * 2 ** 20)).toMatchObject({ lean: true });
    expect(await fitMemory(loaded, own, memory.peak.bytes)).toMatchObject({ lean: false });
    // Asking changes nothing: the transforms of the recipe were recorded in a copy.
    expect(loaded.transforms).toEqual([]);
    expect(loaded.parameters.has("head")).toBe(false);
  } finally {
    await loaded.close();
  }
});

it("says what goes to disk, and what text that the model writes would take", async () => {
  const { memory } = await plan(model, recipe(["gptq"]));
  expect(memory.spilled).toEqual([
    { what: "hidden states of the calibration text", bytes: 6 * 48 * 64 * 4 },
    { what: "solved tensors", bytes: expect.any(Number) },
  ]);
  expect((await plan(model, recipe(["rtn"]))).memory.spilled).toHaveLength(1);
  const written = recipeFromObject({
    version: 1,
    calibration: { samples: 64, seqlen: 65536 },
    steps: ["gptq"],
  });
  const own = await plan(model, written);
  expect(own.memory.smallest.name).toContain("--calibration");
});
