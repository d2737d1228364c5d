/** The verbs one after another on a tiny random model: what a user does, without a build, a network or model files. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { runCli } from "../../src/cli/main.js";
import { Philox } from "../../src/core/rng.js";
import { parseHfConfig } from "../../src/formats/hf-config.js";
import { saveSafetensors } from "../../src/formats/safetensors-save.js";
import { parameterSpecs } from "../../src/model/roles.js";
import { tinyFolder } from "../support/tiny-folder.js";

const CONFIG = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 96,
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  hidden_act: "silu",
  rms_norm_eps: 1e-5,
  max_position_embeddings: 128,
  rope_theta: 10000,
  tie_word_embeddings: true,
  bos_token_id: 1,
  eos_token_id: 2,
};

let folder: string;
let model: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-e2e-"));
  model = join(folder, "tiny");
  vi.stubEnv("NIBBLE_HOME", join(folder, "home"));
  const rng = new Philox(1, "tiny");
  const tensors = parameterSpecs(parseHfConfig(CONFIG))
    .filter(({ kind }) => kind !== "head")
    .map(({ module, shape, kind }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const values = Float32Array.from({ length: size }, () =>
        kind === "norm" ? 1 : (rng.uniform() - 0.5) / 4,
      );
      return {
        name: `${module}.weight`,
        dtype: "F32" as const,
        shape,
        data: () => new Uint8Array(values.buffer),
      };
    });
  await saveSafetensors(join(model, "model.safetensors"), tensors);
  await writeFile(join(model, "config.json"), JSON.stringify(CONFIG));
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});

/** Runs a verb with --json: exit code and document. */
async function nibble(...argv: string[]) {
  const out = { stdout: "", stderr: "" };
  const sink = (name: keyof typeof out) => ({
    write(text: string) {
      out[name] += text;
    },
  });
  const streams = { stdout: sink("stdout"), stderr: sink("stderr") };
  const code = await runCli([...argv, "--json"], { streams, environment: {}, signals: false });
  return { code, stderr: out.stderr, ...JSON.parse(out.stdout) };
}

const engine = ["--backend", "reference", "--threads", "1"];

describe("verbs on a tiny model", () => {
  it("plans, compresses, inspects and runs, and says the same about bits each time", async () => {
    const out = join(folder, "small");
    const what = ["--preset", "rtn-w4a16-g128", "--set", "groupSize=32"];
    // Two steps have a groupSize: the name alone is ambiguous.
    expect((await nibble("plan", model, ...what)).code).toBe(2);
    what[3] = "steps.rtn.groupSize=32";

    const planned = await nibble("plan", model, ...what);
    expect(planned.error).toBeUndefined();
    const made = await nibble("compress", model, ...what, ...engine, "-o", out);
    expect(made.error).toBeUndefined();
    const inspected = await nibble("inspect", out);
    expect(made.result.bitsPerWeight.linears).toBeCloseTo(planned.result.bitsPerWeight.linears, 1);
    expect(inspected.result.bitsPerWeight.linears).toBeCloseTo(
      made.result.bitsPerWeight.linears,
      6,
    );
    expect(inspected.result.facts.source).toBe("tiny");
    expect((await readdir(out)).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "nibble.json",
      "report.json",
    ]);
    expect(await readFile(join(out, "nibble.json"), "utf8")).not.toContain(folder);

    const file = join(folder, "logits.safetensors");
    const logits = await nibble("logits", out, "--ids", "1,5,9,44", ...engine, "-o", file);
    expect(logits.result.shape).toEqual([4, 96]);
    const again = await nibble("compress", model, ...what, ...engine, "-o", out);
    expect(again.result.sha256).toBe(made.result.sha256);
  });

  it("rotates without changing what an unquantized model says", async () => {
    const recipe = join(folder, "rotate.yaml");
    await writeFile(recipe, "version: 1\nsteps:\n  - quarot\n");
    const out = join(folder, "rotated");
    const made = await nibble("compress", model, "--recipe", recipe, ...engine, "-o", out);
    expect(made.error).toBeUndefined();
    const read = async (name: string, source: string) => {
      const file = join(folder, `${name}.safetensors`);
      const done = await nibble("logits", source, "--ids", "3,1,4,1,5", ...engine, "-o", file);
      expect(done.error).toBeUndefined();
      const bytes = await readFile(file);
      const start = 8 + Number(bytes.readBigUInt64LE(0));
      return new Float32Array(bytes.buffer.slice(bytes.byteOffset + start));
    };
    const [before, after] = [await read("before", model), await read("after", out)];
    expect(before).toHaveLength(5 * 96);
    const worst = Math.max(...before.map((value, i) => Math.abs(value - (after[i] ?? Number.NaN))));
    expect(worst).toBeLessThan(1e-4);
  });

  it("calibrate-kv says what it cannot learn and leaves no file behind", async () => {
    const file = join(folder, "kv.safetensors");
    const calibrate = (...argv: string[]) => nibble("calibrate-kv", ...argv, ...engine);
    const exact = await calibrate(model, "--preset", "fp16", "-o", file);
    expect(exact).toMatchObject({ code: 2, error: { code: "usage" } });
    expect(exact.error.message).toContain("learns nothing from calibration");
    expect(exact.error.hint).toContain("kvquant");
    const misspelt = await calibrate(model, "--preset", "quarot-kv5", "-o", file);
    expect(misspelt.error.hint).toContain("quarot-kv");
    const samples = await calibrate(model, "--samples", "0", "-o", file);
    expect(samples.error.message).toContain("--samples 0");
    expect((await calibrate(join(folder, "none"), "--preset", "fp16", "-o", file)).code).toBe(3);
    expect((await calibrate(model)).code).toBe(2);
    expect(await readdir(folder)).not.toContain("kv.safetensors");
  });

  it("says where the time to the first token went", async () => {
    const talker = join(folder, "talker");
    await tinyFolder(talker);
    const { result, error } = await nibble(
      "run",
      talker,
      "-p",
      "hello",
      "--raw",
      "-n",
      "2",
      ...engine,
    );
    expect(error).toBeUndefined();
    const parts = [result.backendSeconds, result.weightsSeconds, result.tokenizerSeconds];
    for (const seconds of parts) expect(seconds).toBeGreaterThan(0);
    expect(result.loadSeconds).toBeGreaterThan(parts.reduce((a, b) => a + b));
    expect(result.firstTokenSeconds).toBeGreaterThan(result.startSeconds + result.loadSeconds);
  });

  it("refuses what cannot be done, with code and exit code", async () => {
    const text = join(folder, "text.txt");
    await writeFile(text, "some words");
    const noTokenizer = await nibble("eval", model, "--ppl", text, ...engine);
    expect(noTokenizer.code).toBe(2);
    expect(noTokenizer.error.message).toContain("no tokenizer");
    const token = await nibble("logits", model, "--ids", "96", ...engine, "-o", join(folder, "x"));
    expect(token).toMatchObject({ code: 2, error: { code: "usage" } });
    const twice = join(folder, "small");
    const again = await nibble("compress", twice, "--preset", "none", ...engine, "-o", `${twice}2`);
    expect(again.code).toBe(3);
    expect(again.error.message).toContain("already quantized");
    await writeFile(join(model, "bad.safetensors"), "not a tensor file");
    expect((await nibble("inspect", join(model, "bad.safetensors"))).code).toBe(3);
  });
});
