import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type BuiltTensor, buildGguf, type Entry } from "../../test/support/gguf-builder.js";
import { CHATML, tinyTokenizer } from "../../test/support/tiny-tokenizer.js";
import { bufferSource } from "../core/byte-source.js";
import { FormatError, ModelError, NibbleError } from "../core/errors.js";
import { buildModel } from "../model/load.js";
import { type LazyTensor, parameter } from "../model/model.js";
import { inverseFrequencies } from "../model/rope.js";
import { Tokenizer } from "../model/tokenizer.js";
import { openGgufModel } from "./gguf-model.js";

const D = 16;
const F = 24;
const HEADS = 4;
const KV = 2;
const HD = 4;
const V = 10;

/** Values that tell row and column. */
const matrix = (rows: number, columns: number, seed: number) =>
  Float32Array.from(
    { length: rows * columns },
    (_, i) => seed + Math.floor(i / columns) + (i % columns) / 64,
  );

/** llama.cpp's row order: row 2j + h of a head is HF row h * size / 2 + j. */
function permute(values: Float32Array, width: number, heads: number): Float32Array {
  const size = values.length / width / heads;
  const out = new Float32Array(values.length);
  for (let head = 0; head < heads; head++) {
    for (let j = 0; j < size / 2; j++) {
      for (const h of [0, 1]) {
        const from = (head * size + (h * size) / 2 + j) * width;
        out.set(values.subarray(from, from + width), (head * size + 2 * j + h) * width);
      }
    }
  }
  return out;
}

const q = matrix(HEADS * HD, D, 100);
const k = matrix(KV * HD, D, 200);
const bias = matrix(1, HEADS * HD, 300);

function metadata(arch = "llama", extra: Record<string, Entry> = {}): Record<string, Entry> {
  return {
    "general.architecture": ["string", arch],
    [`${arch}.context_length`]: ["u32", 128],
    [`${arch}.embedding_length`]: ["u32", D],
    [`${arch}.block_count`]: ["u32", 1],
    [`${arch}.feed_forward_length`]: ["u32", F],
    [`${arch}.attention.head_count`]: ["u32", HEADS],
    [`${arch}.attention.head_count_kv`]: ["u32", KV],
    [`${arch}.attention.layer_norm_rms_epsilon`]: ["f32", 1e-5],
    [`${arch}.rope.freq_base`]: ["f32", 500000],
    ...extra,
  };
}

function tensors(
  arch = "llama",
  extra: Record<string, BuiltTensor> = {},
): Record<string, BuiltTensor> {
  const order = arch === "llama" ? permute : (values: Float32Array) => values;
  const norm = { ne: [D], data: matrix(1, D, 1) };
  return {
    "token_embd.weight": { ne: [D, V], data: matrix(V, D, 1) },
    "blk.0.attn_norm.weight": norm,
    "blk.0.attn_q.weight": { ne: [D, HEADS * HD], data: order(q, D, HEADS) },
    "blk.0.attn_k.weight": { ne: [D, KV * HD], data: order(k, D, KV) },
    "blk.0.attn_v.weight": { ne: [D, KV * HD], data: matrix(KV * HD, D, 3) },
    "blk.0.attn_output.weight": { ne: [HEADS * HD, D], data: matrix(D, HEADS * HD, 4) },
    "blk.0.ffn_norm.weight": norm,
    "blk.0.ffn_gate.weight": { ne: [D, F], data: matrix(F, D, 5) },
    "blk.0.ffn_up.weight": { ne: [D, F], data: matrix(F, D, 6) },
    "blk.0.ffn_down.weight": { ne: [F, D], data: matrix(D, F, 7) },
    "output_norm.weight": norm,
    ...extra,
  };
}

const load = (bytes: Uint8Array) => openGgufModel(bufferSource(bytes, "m.gguf"));
async function modelOf(bytes: Uint8Array) {
  const { config, source, files, id } = await load(bytes);
  return buildModel(config, source, files, id);
}

describe("llama", () => {
  it("facts, tied embedding, tokenizer files, hash of the file", async () => {
    const bytes = buildGguf(
      metadata("llama", tinyTokenizer({ "tokenizer.chat_template": ["string", CHATML] })),
      tensors(),
    );
    const model = await modelOf(bytes);
    expect(model.config).toMatchObject({
      architecture: "llama",
      vocabSize: V,
      headDim: HD,
      numKeyValueHeads: KV,
      rmsNormEps: 1e-5,
      tieWordEmbeddings: true,
      rope: { type: "default", theta: 500000 },
      bosTokenId: 1,
      eosTokenIds: [2, 0],
    });
    expect([...model.files.keys()].sort()).toEqual([
      "chat_template.jinja",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    expect(model.source.id).toBe("m.gguf");
    expect(await model.source.sha256()).toBe(createHash("sha256").update(bytes).digest("hex"));
    expect(model.config.raw).toMatchObject({ model_type: "llama", rope_theta: 500000 });
  });

  it("rows of q and k in HF order, whole and any range, others untouched", async () => {
    const { source } = await load(buildGguf(metadata(), tensors()));
    const name = (role: string) => `model.layers.0.self_attn.${role}_proj.weight`;
    expect(source.shape(name("q"))).toEqual([HEADS * HD, D]);
    expect(await source.read(name("q"))).toEqual(q);
    expect(await source.read(name("k"))).toEqual(k);
    for (let from = 0; from <= KV * HD; from++) {
      for (let to = from; to <= KV * HD; to++) {
        expect(await source.readRows(name("k"), from, to)).toEqual(k.slice(from * D, to * D));
      }
    }
    expect(await source.readRows("model.embed_tokens.weight", 3, 5)).toEqual(
      matrix(V, D, 1).slice(3 * D, 5 * D),
    );
    expect(await source.read("model.layers.0.mlp.down_proj.weight")).toEqual(matrix(D, F, 7));
    await expect(source.readRows(name("q"), 0, 99)).rejects.toThrow(FormatError);
    await expect(source.read("x")).rejects.toThrow(/no tensor x/);
  });

  it("biases and an untied head", async () => {
    const biases = Object.fromEntries(
      [
        ["attn_q", permute(bias, 1, HEADS)],
        ["attn_k", matrix(1, KV * HD, 8)],
        ["attn_v", matrix(1, KV * HD, 8)],
        ["attn_output", matrix(1, D, 8)],
      ].map(([name, data]) => [
        `blk.0.${name}.bias`,
        { ne: [data?.length ?? 0], data } as BuiltTensor,
      ]),
    );
    const head = { ne: [D, V], data: matrix(V, D, 9) };
    const model = await modelOf(
      buildGguf(metadata(), tensors("llama", { ...biases, "output.weight": head })),
    );
    expect(await parameter(model, "layers.0.q").bias?.read()).toEqual(bias);
    expect(model.config.tieWordEmbeddings).toBe(false);
    expect(await (parameter(model, "head").weight as LazyTensor).read()).toEqual(head.data);
  });

  it("stacked experts are a Mixtral", async () => {
    const count = 3;
    const stack = (rows: number, columns: number, seed: number) => ({
      ne: [columns, rows, count],
      data: matrix(rows * count, columns, seed),
    });
    const list = tensors("llama", {
      "blk.0.ffn_gate_inp.weight": { ne: [D, count], data: matrix(count, D, 1) },
      "blk.0.ffn_gate_exps.weight": stack(F, D, 10),
      "blk.0.ffn_up_exps.weight": stack(F, D, 20),
      "blk.0.ffn_down_exps.weight": stack(D, F, 30),
    });
    for (const name of ["gate", "up", "down"]) delete list[`blk.0.ffn_${name}.weight`];
    const facts = metadata("llama", {
      "llama.expert_count": ["u32", count],
      "llama.expert_used_count": ["u32", 2],
    });
    const model = await modelOf(buildGguf(facts, list));
    expect(model.config).toMatchObject({
      architecture: "mixtral",
      experts: { count, perToken: 2 },
    });
    expect(model.config.slidingWindow).toEqual([null]);
    const down = parameter(model, "layers.0.experts.2.down").weight as LazyTensor;
    expect(await down.read()).toEqual(matrix(D * count, F, 30).slice(2 * D * F));
    const up = parameter(model, "layers.0.experts.0.up").weight as LazyTensor;
    expect(await up.read()).toEqual(matrix(F, D, 20));
  });
});

describe("other families", () => {
  it("qwen2: biases, rows as they are; qwen3: norms of q and k", async () => {
    const biases = Object.fromEntries(
      ["q", "k", "v"].map((role) => {
        const size = role === "q" ? HEADS * HD : KV * HD;
        return [`blk.0.attn_${role}.bias`, { ne: [size], data: matrix(1, size, 8) }];
      }),
    );
    const qwen2 = await modelOf(buildGguf(metadata("qwen2"), tensors("qwen2", biases)));
    expect(await (parameter(qwen2, "layers.0.q").weight as LazyTensor).read()).toEqual(q);
    expect(await parameter(qwen2, "layers.0.k").bias?.read()).toEqual(matrix(1, KV * HD, 8));
    const norms = {
      "blk.0.attn_q_norm.weight": { ne: [HD], data: matrix(1, HD, 1) },
      "blk.0.attn_k_norm.weight": { ne: [HD], data: matrix(1, HD, 2) },
    };
    const facts = metadata("qwen3", { "qwen3.attention.key_length": ["u32", HD] });
    const qwen3 = await modelOf(buildGguf(facts, tensors("qwen3", norms)));
    expect(qwen3.config.qkNorm).toBe(true);
    expect(await (parameter(qwen3, "layers.0.kNorm").weight as LazyTensor).read()).toEqual(
      matrix(1, HD, 2),
    );
  });
  it("a sliding window makes it a Mistral", async () => {
    const facts = metadata("llama", { "llama.attention.sliding_window": ["u32", 32] });
    const { config } = await load(buildGguf(facts, tensors()));
    expect([config.architecture, config.slidingWindow]).toEqual(["mistral", [32]]);
  });
});

describe("position embeddings", () => {
  const ropeOf = async (extra: Record<string, Entry>, list: Record<string, BuiltTensor> = {}) =>
    (await load(buildGguf(metadata("llama", extra), tensors("llama", list)))).config.rope;
  it("linear and yarn from keys", async () => {
    const type: Entry = ["string", "linear"];
    expect(
      await ropeOf({ "llama.rope.scaling.type": type, "llama.rope.scaling.factor": ["f32", 4] }),
    ).toMatchObject({ type: "linear", parameters: { factor: 4 } });
    expect(
      await ropeOf({
        "llama.rope.scaling.type": ["string", "yarn"],
        "llama.rope.scaling.factor": ["f32", 2],
        "llama.rope.scaling.original_context_length": ["u32", 64],
      }),
    ).toMatchObject({
      type: "yarn",
      parameters: { factor: 2, original_max_position_embeddings: 64 },
    });
    expect((await ropeOf({ "llama.rope.scaling.type": ["string", "none"] })).type).toBe("default");
  });

  const big = { headDim: 128, maxPositionEmbeddings: 131072 };
  /** A file of head size 128 with the given divisors. */
  const factorFile = (factors: Float32Array) => {
    const facts = metadata("llama", {
      "llama.embedding_length": ["u32", 128],
      "llama.attention.head_count": ["u32", 1],
      "llama.attention.head_count_kv": ["u32", 1],
      "llama.context_length": ["u32", 131072],
    });
    const list: Record<string, BuiltTensor> = {
      "token_embd.weight": { ne: [128, 2], data: new Float32Array(256) },
      "rope_freqs.weight": { ne: [factors.length], data: factors },
    };
    return buildGguf(facts, list);
  };
  const plain = inverseFrequencies({
    ...big,
    rope: { type: "default", theta: 500000, parameters: {} },
  });

  it.each([8, 32])(
    "llama3 parameters come back from the stored divisors, factor %d",
    async (factor) => {
      const parameters = {
        factor,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 8192,
      };
      const rope = { type: "llama3" as const, theta: 500000, parameters };
      const { inverse } = inverseFrequencies({ ...big, rope });
      const factors = Float32Array.from(inverse, (f, i) => (plain.inverse[i] as number) / f);
      const { config, ropeFactors } = await load(factorFile(factors));
      expect(config.rope).toEqual(rope);
      expect(ropeFactors).toEqual(factors);
    },
  );
  it("other divisors are kept as they are", async () => {
    const factors = Float32Array.from({ length: 64 }, (_, i) => 1 + (i % 7) / 3);
    const { config } = await load(factorFile(factors));
    expect(config.rope.type).toBe("longrope");
    const { inverse, attentionFactor } = inverseFrequencies(config);
    expect(attentionFactor).toBe(1);
    for (let i = 0; i < 64; i++) {
      const expected = (plain.inverse[i] as number) / (factors[i] as number);
      expect((inverse[i] as number) / expected).toBeCloseTo(1, 12);
    }
  });
  it("impossible divisors are refused", async () => {
    await expect(load(factorFile(new Float32Array(64)))).rejects.toThrow(FormatError);
    await expect(load(factorFile(new Float32Array(3).fill(1)))).rejects.toThrow(/64 positive/);
  });
});

describe("refused", () => {
  it.each<[string, Uint8Array, RegExp]>([
    [
      "architecture",
      buildGguf({ "general.architecture": ["string", "mamba"] }),
      /"mamba" is not supported/,
    ],
    [
      "part of several",
      buildGguf(metadata("llama", { "split.count": ["u16", 3] }), tensors()),
      /one part/,
    ],
    [
      "key",
      buildGguf(metadata("llama", { "llama.logit_scale": ["f32", 2] }), tensors()),
      /logit_scale/,
    ],
    [
      "tensor",
      buildGguf(
        metadata(),
        tensors("llama", { "blk.0.attn_sinks.weight": { ne: [1], data: new Uint8Array(4) } }),
      ),
      /attn_sinks.weight is not part/,
    ],
    [
      "partial rotary",
      buildGguf(metadata("llama", { "llama.rope.dimension_count": ["u32", 2] }), tensors()),
      /dimension_count is 2/,
    ],
    [
      "rope type",
      buildGguf(metadata("llama", { "llama.rope.scaling.type": ["string", "magic"] }), tensors()),
      /"magic"/,
    ],
    [
      "per-layer sizes",
      buildGguf(
        metadata("llama", { "llama.feed_forward_length": ["array", "i32", [24, 32]] }),
        tensors(),
      ),
      /differs between layers/,
    ],
  ])("%s by name", async (_, bytes, message) => {
    await expect(load(bytes)).rejects.toThrow(ModelError);
    await expect(load(bytes)).rejects.toThrow(message);
  });
  it("missing keys and tensors are named", async () => {
    await expect(load(buildGguf({}))).rejects.toThrow(/general.architecture: is missing/);
    const facts = metadata();
    delete facts["llama.block_count"];
    await expect(load(buildGguf(facts, tensors()))).rejects.toThrow(/block_count: is missing/);
    const list = tensors();
    delete list["blk.0.attn_v.weight"];
    await expect(modelOf(buildGguf(metadata(), list))).rejects.toThrow(/v_proj.weight.*is missing/);
    await expect(load(buildGguf(metadata(), {}))).rejects.toThrow(/token_embd/);
  });
});

it("random damage to a whole model gives typed errors or a model, never anything else", async () => {
  const valid = buildGguf(metadata("llama", tinyTokenizer()), tensors());
  // Most bytes are token texts; the facts before and the tensor list behind deserve more hits.
  const at = fc.oneof(
    fc.nat(valid.length - 1),
    fc.nat(600),
    fc.nat(900).map((n) => valid.length - 1 - n),
  );
  const change = fc.record({ at, to: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 255)) });
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (list) => {
      const bytes = new Uint8Array(valid);
      for (const { at: place, to } of list) bytes[place] = to;
      try {
        const model = await modelOf(bytes);
        for (const { weight } of model.parameters.values()) await (weight as LazyTensor).read();
        if (model.files.size > 0) Tokenizer.fromFiles(model.files).encode("hello 12");
      } catch (error) {
        expect(error).toBeInstanceOf(NibbleError);
      }
    }),
    { numRuns: 200 },
  );
});
