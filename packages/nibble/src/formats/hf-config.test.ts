import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FormatError, ModelError, NibbleError } from "../core/errors.js";
import { parseHfConfig } from "./hf-config.js";

const sizes = {
  hidden_size: 96,
  intermediate_size: 192,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  vocab_size: 320,
};

describe("spellings and defaults", () => {
  it("transformers 5: rope_parameters, dtype, layer_types", () => {
    const config = parseHfConfig({
      model_type: "llama",
      ...sizes,
      num_key_value_heads: 2,
      rope_parameters: { rope_type: "llama3", rope_theta: 5e5, factor: 8 },
      eos_token_id: [2, 3],
    });
    expect(config).toMatchObject({
      architecture: "llama",
      headDim: 16,
      numKeyValueHeads: 2,
      rope: { type: "llama3", theta: 5e5, parameters: { factor: 8 } },
      eosTokenIds: [2, 3],
      bosTokenId: 1,
      tieWordEmbeddings: false,
      qkNorm: false,
      slidingWindow: [null, null],
      experts: null,
    });
  });
  it("transformers 4: rope_theta and rope_scaling, either key of the type, null", () => {
    const rope = (extra: object) => parseHfConfig({ model_type: "llama", ...sizes, ...extra }).rope;
    expect(rope({})).toEqual({ type: "default", theta: 10000, parameters: {} });
    expect(rope({ rope_theta: 1e6, rope_scaling: null })).toMatchObject({ theta: 1e6 });
    expect(rope({ rope_scaling: { type: "linear", factor: 2 } })).toMatchObject({
      type: "linear",
      parameters: { factor: 2 },
    });
    expect(
      rope({ rope_scaling: { rope_type: "yarn", factor: 4, mscale: null } }).parameters,
    ).toEqual({
      factor: 4,
    });
    const su = rope({
      original_max_position_embeddings: 4096,
      rope_scaling: { type: "su", short_factor: [1], long_factor: [2] },
    });
    expect(su.type).toBe("longrope");
    expect(su.parameters.original_max_position_embeddings).toBe(4096);
  });
  it("llama: key-value heads, biases", () => {
    const config = parseHfConfig({ model_type: "llama", ...sizes, attention_bias: true });
    expect(config.numKeyValueHeads).toBe(6);
    expect(config.bias).toEqual({ q: true, k: true, v: true, o: true, mlp: false });
    expect(config.rmsNormEps).toBe(1e-6);
    expect(config.maxPositionEmbeddings).toBe(2048);
    expect(parseHfConfig({ model_type: "llama", ...sizes, mlp_bias: true }).bias.mlp).toBe(true);
    expect(parseHfConfig({ model_type: "llama" })).toMatchObject({
      hiddenSize: 4096,
      numHiddenLayers: 32,
      headDim: 128,
      vocabSize: 32000,
    });
  });
  it("mistral: eight key-value heads, window by default, none when null", () => {
    const base = { model_type: "mistral", ...sizes, num_attention_heads: 8, head_dim: 32 };
    const config = parseHfConfig(base);
    expect(config.numKeyValueHeads).toBe(8);
    expect(config.headDim).toBe(32);
    expect(config.slidingWindow).toEqual([4096, 4096]);
    expect(parseHfConfig({ ...base, sliding_window: null }).slidingWindow).toEqual([null, null]);
    expect(parseHfConfig({ ...base, sliding_window: 64 }).slidingWindow).toEqual([64, 64]);
    expect(parseHfConfig({ ...base, attention_bias: true }).bias.q).toBe(false);
  });
  it("qwen2: biases of q, k, v; window only behind its switch and from its layer on", () => {
    const base = { model_type: "qwen2", ...sizes, num_key_value_heads: 2, sliding_window: 128 };
    expect(parseHfConfig(base).bias).toEqual({ q: true, k: true, v: true, o: false, mlp: false });
    expect(parseHfConfig(base).slidingWindow).toEqual([null, null]);
    const used = { ...base, use_sliding_window: true, max_window_layers: 1 };
    expect(parseHfConfig(used).slidingWindow).toEqual([null, 128]);
    const types = ["sliding_attention", "full_attention"];
    expect(parseHfConfig({ ...used, layer_types: types }).slidingWindow).toEqual([128, null]);
    expect(parseHfConfig(base).eosTokenIds).toEqual([]);
    expect(parseHfConfig(base).bosTokenId).toBeNull();
  });
  it("qwen3: q and k norms, head size of its own", () => {
    const base = { model_type: "qwen3", ...sizes, num_key_value_heads: 2 };
    expect(parseHfConfig(base)).toMatchObject({ qkNorm: true, headDim: 128 });
    expect(parseHfConfig(base).bias.q).toBe(false);
    expect(parseHfConfig({ ...base, attention_bias: true }).bias.o).toBe(true);
  });
  it("mixtral: experts, theta 1e6, no window", () => {
    const config = parseHfConfig({
      model_type: "mixtral",
      ...sizes,
      num_key_value_heads: 2,
      num_local_experts: 4,
      head_dim: null,
    });
    expect(config.experts).toEqual({ count: 4, perToken: 2 });
    expect(config.rope.theta).toBe(1e6);
    expect(config.slidingWindow).toEqual([null, null]);
    expect(config.rmsNormEps).toBe(1e-5);
    expect(config.headDim).toBe(16);
  });
  it("end tokens of both files, once each", () => {
    const raw = { model_type: "llama", ...sizes, eos_token_id: 2 };
    expect(parseHfConfig(raw, { eos_token_id: [7, 2] }).eosTokenIds).toEqual([2, 7]);
    expect(parseHfConfig({ ...raw, eos_token_id: null, bos_token_id: null })).toMatchObject({
      eosTokenIds: [],
      bosTokenId: null,
    });
  });
  it("keeps the source's config", () => {
    const raw = { model_type: "llama", ...sizes, pretraining_tp: 3 };
    expect(parseHfConfig(raw).raw).toBe(raw);
  });
});

describe("refused by name", () => {
  it.each<[string, object, RegExp]>([
    ["architecture", { model_type: "gemma2" }, /"gemma2" is not supported/],
    ["activation", { hidden_act: "gelu" }, /"gelu" is not supported/],
    ["awq", { quantization_config: { quant_method: "awq" } }, /"awq"/],
    ["unknown method", { quantization_config: { quant_method: "exl9" } }, /"exl9"/],
    ["rope type", { rope_scaling: { type: "mrope" } }, /"mrope" is not supported/],
    ["rope per layer type", { rope_parameters: { full_attention: {} } }, /differ per layer/],
    ["partial rotary", { partial_rotary_factor: 0.5 }, /partial rotary/],
    ["layer type", { layer_types: ["linear_attention", "full_attention"] }, /"linear_attention"/],
  ])("%s", (_, extra, message) => {
    const parse = () => parseHfConfig({ model_type: "llama", ...sizes, ...extra });
    expect(parse).toThrow(ModelError);
    expect(parse).toThrow(message);
  });
  it("the hint names the nearest architecture", () => {
    try {
      parseHfConfig({ model_type: "qwen22" });
      expect.fail("accepted");
    } catch (error) {
      expect((error as ModelError).hint).toMatch(/Nearest: qwen2/);
    }
  });
  it.each<[string, object]>([
    ["no model_type", { model_type: undefined }],
    ["negative size", { hidden_size: -4 }],
    ["text as size", { vocab_size: "320" }],
    ["absurd layers", { num_hidden_layers: 1e7 }],
    ["odd head", { head_dim: 15 }],
    ["head fraction", { num_attention_heads: 7, num_key_value_heads: 7 }],
    ["heads do not divide", { num_key_value_heads: 4 }],
    ["epsilon", { rms_norm_eps: 0 }],
    ["theta", { rope_theta: "1e4" }],
    ["rope parameter", { rope_scaling: { type: "linear", factor: { a: 1 } } }],
    ["rope list", { rope_scaling: [] }],
    ["eos", { eos_token_id: "</s>" }],
    ["tied", { tie_word_embeddings: 1 }],
    ["layer_types length", { layer_types: ["full_attention"] }],
    ["slides without window", { layer_types: ["sliding_attention", "full_attention"] }],
  ])("nonsense: %s", (_, extra) => {
    expect(() => parseHfConfig({ model_type: "llama", ...sizes, ...extra })).toThrow(FormatError);
  });
});

it("any values under the known keys give typed errors or a usable config", () => {
  const keys = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "layer_types",
    "sliding_window",
    "eos_token_id",
    "hidden_act",
    "quantization_config",
    "tie_word_embeddings",
    "num_local_experts",
  ];
  const type = fc.constantFrom("llama", "mistral", "qwen2", "qwen3", "mixtral");
  const values = fc.dictionary(fc.constantFrom(...keys), fc.jsonValue(), { maxKeys: 4 });
  fc.assert(
    fc.property(type, values, (model_type, extra) => {
      try {
        const config = parseHfConfig({ model_type, ...sizes, ...extra });
        expect(config.slidingWindow).toHaveLength(config.numHiddenLayers);
        expect(config.numAttentionHeads % config.numKeyValueHeads).toBe(0);
        expect(config.rope.theta).toBeGreaterThan(1);
      } catch (error) {
        if (!(error instanceof NibbleError)) throw error;
      }
    }),
    { numRuns: 1000 },
  );
});
