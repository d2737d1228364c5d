import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { bufferSource, sourceFolder } from "../core/byte-source.js";
import { bytesOf } from "../core/dtype.js";
import { FormatError, ModelError, NumericError } from "../core/errors.js";
import { buildModel, memorySource, unusedTensors } from "../model/load.js";
import { isTied, type LazyTensor, parameter } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { parseHfConfig } from "./hf-config.js";
import { openHfFolder } from "./hf-folder.js";
import { type TensorToWrite, writeSafetensors } from "./safetensors-write.js";

const raw = {
  model_type: "qwen2",
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  vocab_size: 5,
  tie_word_embeddings: true,
};
const config = parseHfConfig(raw);
const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));

/** Random tensors of an architecture under their HF names. */
function tensorsOf(facts = config): Map<string, { shape: number[]; data: Float32Array }> {
  const tensors = new Map<string, { shape: number[]; data: Float32Array }>();
  let seed = 1;
  const make = (shape: number[]) => ({
    shape,
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.sin(seed++)),
  });
  for (const spec of parameterSpecs(facts)) {
    if (spec.kind === "head" && facts.tieWordEmbeddings) continue;
    tensors.set(`${spec.module}.weight`, make(spec.shape));
    if (spec.bias) tensors.set(`${spec.module}.bias`, make([spec.shape[0] as number]));
  }
  return tensors;
}

async function safetensors(tensors: ReturnType<typeof tensorsOf>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  const list: TensorToWrite[] = [...tensors].map(([name, { shape, data }]) => ({
    name,
    dtype: "F32",
    shape,
    data: () => bytesOf(data),
  }));
  await writeSafetensors({ write: async (part) => void parts.push(part.slice()) }, list);
  return new Uint8Array(Buffer.concat(parts));
}

async function folderOf(files: Record<string, Uint8Array>) {
  return sourceFolder(Object.entries(files).map(([name, bytes]) => bufferSource(bytes, name)));
}

describe("openHfFolder and buildModel", () => {
  it("facts, weights, biases, side files and hash", async () => {
    const tensors = tensorsOf();
    const weights = await safetensors(tensors);
    const folder = await folderOf({
      "config.json": json(raw),
      "model.safetensors": weights,
      "generation_config.json": json({ eos_token_id: [3] }),
      "tokenizer.json": json({ model: {} }),
      "README.md": json("no"),
    });
    const opened = await openHfFolder(folder, "org/tiny");
    expect(opened.config.eosTokenIds).toEqual([3]);
    expect([...opened.files.keys()].sort()).toEqual(["generation_config.json", "tokenizer.json"]);
    expect(unusedTensors(opened.config, opened.source)).toEqual([]);
    const model = buildModel(opened.config, opened.source, opened.files, opened.id);
    expect(isTied(model)).toBe(true);
    const q = parameter(model, "layers.0.q");
    const values = await (q.weight as LazyTensor).read();
    expect(values).toEqual(tensors.get("model.layers.0.self_attn.q_proj.weight")?.data);
    expect(await q.bias?.read()).toEqual(tensors.get("model.layers.0.self_attn.q_proj.bias")?.data);
    expect(parameter(model, "layers.0.o").bias).toBeNull();
    const embed = tensors.get("model.embed_tokens.weight")?.data;
    const rows = await opened.source.readRows("model.embed_tokens.weight", 2, 4);
    expect(rows).toEqual(embed?.slice(16, 32));
    const expected = createHash("sha256").update(json(raw)).update(weights).digest("hex");
    expect(await model.source.sha256()).toBe(expected);
    expect(model.source.id).toBe("org/tiny");
  });

  it("missing files are named with the way out", async () => {
    await expect(openHfFolder(await folderOf({}))).rejects.toThrow(/config.json is missing/);
    const noWeights = openHfFolder(await folderOf({ "config.json": json(raw) }));
    await expect(noWeights).rejects.toThrow(ModelError);
    const pickle = await folderOf({ "config.json": json(raw), "pytorch_model.bin": json(0) });
    await expect(openHfFolder(pickle)).rejects.toThrow(/pytorch_model.bin.*can run code/);
    const broken = await folderOf({ "config.json": json(3) });
    await expect(openHfFolder(broken)).rejects.toThrow(FormatError);
  });
});

describe("buildModel", () => {
  const build = (tensors: ReturnType<typeof tensorsOf>, facts = config) =>
    buildModel(facts, memorySource(tensors), new Map(), "memory");

  it("names a tensor that is missing", () => {
    const tensors = tensorsOf();
    tensors.delete("model.layers.0.self_attn.k_proj.bias");
    expect(() => build(tensors)).toThrow(/k_proj.bias of shape \[4\] is missing/);
  });
  it("names a wrong shape with both shapes", () => {
    const tensors = tensorsOf();
    tensors.set("model.norm.weight", { shape: [9], data: new Float32Array(9) });
    expect(() => build(tensors)).toThrow(/model.norm.weight has shape \[9\], expected \[8\]/);
  });
  it("an untied head must be there", () => {
    const untied = parseHfConfig({ ...raw, tie_word_embeddings: false });
    expect(() => build(tensorsOf(), untied)).toThrow(/lm_head.weight/);
    expect(isTied(build(tensorsOf(untied), untied))).toBe(false);
  });
  it("NaN and infinity are named with their place when read", async () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const tensors = tensorsOf();
      (tensors.get("model.norm.weight") as { data: Float32Array }).data[5] = bad;
      const norm = parameter(build(tensors), "finalNorm").weight as LazyTensor;
      await expect(norm.read()).rejects.toThrow(NumericError);
      await expect(norm.read()).rejects.toThrow(`tensor model.norm.weight: value 5 is ${bad}`);
    }
  });
  it("hash of tensors in memory depends on values, not on order", async () => {
    const tensors = tensorsOf();
    const reversed = new Map([...tensors].reverse());
    const hash = await build(tensors).source.sha256();
    expect(await build(reversed).source.sha256()).toBe(hash);
    (tensors.get("model.norm.weight") as { data: Float32Array }).data[0] = 7;
    expect(await build(tensors).source.sha256()).not.toBe(hash);
  });
  it("tells tensors that nothing reads", () => {
    const tensors = tensorsOf();
    const one = { shape: [1], data: new Float32Array(1) };
    tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", one);
    tensors.set("model.layers.0.extra.weight", one);
    expect(unusedTensors(config, memorySource(tensors))).toEqual(["model.layers.0.extra.weight"]);
  });
});
