import { describe, expect, it } from "vitest";
import { tinyForward } from "../../test/tiny-forward.js";
import { tinyModel } from "../../test/tiny-model.js";
import { RecipeError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import type { ModelConfig } from "../model/config.js";
import { scalePair } from "../model/folds.js";
import { isTied, type Model, parameter } from "../model/model.js";
import { type QuarotOptions, quarot } from "./quarot.js";

const IDS = [3, 17, 42, 8, 8, 30, 1];

async function rotate(model: Model, options: object = {}, seed = 7): Promise<Model> {
  const parsed = quarot.options.parse(options) as QuarotOptions;
  await quarot.apply(model, parsed, { rng: new Philox(seed), log: () => {} });
  return model;
}

/** Largest difference of logits, relative to the largest logit. */
async function difference(config: Partial<ModelConfig>, options: object): Promise<number> {
  const expected = await tinyForward(tinyModel(config), IDS);
  const actual = await tinyForward(await rotate(tinyModel(config), options), IDS);
  let worst = 0;
  let largest = 0;
  for (const [t, row] of expected.entries()) {
    for (const [i, x] of row.entries()) {
      worst = Math.max(worst, Math.abs(x - (actual[t]?.[i] as number)));
      largest = Math.max(largest, Math.abs(x));
    }
  }
  return worst / largest;
}

const bias = { q: true, k: true, v: true, o: true, mlp: true };
const NINE_HEADS = { numAttentionHeads: 9, numKeyValueHeads: 3, hiddenSize: 72 };
const MODELS: Record<string, Partial<ModelConfig>> = {
  "4 heads, 2 KV heads": {},
  "tied, 9 heads, 3 KV heads": { ...NINE_HEADS, tieWordEmbeddings: true },
  "biases, one KV head": { bias, numKeyValueHeads: 1 },
  "QK-norm": { architecture: "qwen3", qkNorm: true, headDim: 16 },
  "experts, tied": {
    architecture: "mixtral",
    experts: { count: 4, perToken: 2 },
    tieWordEmbeddings: true,
  },
};
const EXACT = 1e-4;

describe.each(Object.entries(MODELS))("%s: logits stay equal within 1e-4", (_, config) => {
  it.each<[string, object]>([
    ["defaults", {}],
    ["R1", { rotations: ["R1"] }],
    ["R2", { rotations: ["R2"] }],
    ["R3", { rotations: ["R3"] }],
    ["R4", { rotations: ["R4"] }],
    ["random R1", { mode: "random", tied: "dense-edge" }],
    ["head mix none", { headMix: "none" }],
    ["head mix orthogonal", { headMix: "orthogonal" }],
    ["head mix full", { headMix: "full" }],
    ["untied", { tied: "untie" }],
    ["dense edge", { tied: "dense-edge" }],
    ["blocks of 8", { blockSize: 8, headMix: "full" }],
  ])("%s", async (_name, options) => {
    expect(await difference(config, options)).toBeLessThan(EXACT);
  });
});

it("a hidden size without a Hadamard matrix is rotated in blocks", async () => {
  const config = { hiddenSize: 100, tieWordEmbeddings: true };
  for (const tied of ["untie", "dense-edge"]) {
    expect(await difference(config, { blockSize: 4, tied })).toBeLessThan(EXACT);
  }
});

describe("what is left in the model", () => {
  const tied = { ...NINE_HEADS, tieWordEmbeddings: true };

  it("norm gains are 1, and every norm but QK-norm is fused", async () => {
    const model = await rotate(tinyModel({ qkNorm: true }));
    for (const { spec, weight } of model.parameters.values()) {
      if (spec.kind !== "norm" || "quant" in weight) continue;
      const ones = (await weight.read()).every((g) => g === 1);
      expect(ones, spec.path).toBe(!spec.path.endsWith("qNorm") && !spec.path.endsWith("kNorm"));
    }
  });

  it("online-edge leaves the tied table alone; untie and dense-edge rotate it", async () => {
    const table = async (model: Model) => {
      const { weight } = parameter(model, "embed");
      return "quant" in weight ? null : weight.read();
    };
    const original = await table(tinyModel(tied));
    const online = await rotate(tinyModel(tied));
    expect(await table(online)).toEqual(original);
    expect(online.transforms.map((t) => `${t.op} ${t.site}`)).toEqual([
      "edge embed_out",
      "edge head_in",
      "hadamard mlp_out",
    ]);
    const untied = await rotate(tinyModel(tied), { tied: "untie" });
    expect(isTied(untied)).toBe(false);
    expect(untied.config.tieWordEmbeddings).toBe(false);
    expect(await table(untied)).not.toEqual(original);
    expect(untied.transforms.some((t) => t.op === "edge")).toBe(false);
    const dense = await rotate(tinyModel(tied), { tied: "dense-edge" });
    expect(isTied(dense)).toBe(true);
    expect(await table(dense)).not.toEqual(original);
  });

  it("head mixing: Hadamard where the heads have one, none for 9 heads", async () => {
    const mixes = async (config: Partial<ModelConfig>, options = {}) =>
      (await rotate(tinyModel(config), options)).transforms.filter((t) => t.site === "attn_out");
    expect(await mixes({})).toEqual([{ op: "headMix", site: "attn_out", order: 4 }]);
    expect(await mixes(NINE_HEADS)).toEqual([]);
    expect(await mixes({}, { headMix: "none" })).toEqual([]);
    expect(await mixes(NINE_HEADS, { headMix: "full" })).toEqual([
      { op: "hadamard", site: "attn_out", size: 72 },
    ]);
    expect(await mixes(NINE_HEADS, { headMix: "orthogonal" })).toMatchObject([
      { op: "headMix", order: 9, matrix: expect.any(Float32Array) },
    ]);
  });

  it("R3 sets the flag of the K codec and keeps the rest of the cache recipe", async () => {
    const model = tinyModel();
    model.kv = { k: { codec: "int4-token", clip: 0.95 }, v: { codec: "int4-token" }, page: 32 };
    await rotate(model);
    expect(model.kv).toEqual({
      k: { codec: "int4-token", clip: 0.95, hadamard: true },
      v: { codec: "int4-token" },
      page: 32,
    });
    expect((await rotate(tinyModel(), { rotations: ["R1"] })).kv).toBeNull();
  });

  it("outliers are spread: the largest entry of a reader shrinks", async () => {
    const peaked = () => {
      const model = tinyModel();
      const embed = parameter(model, "embed");
      const base = embed.weight;
      if ("quant" in base) throw new Error("unreachable");
      embed.weight = {
        shape: base.shape,
        read: async () => (await base.read()).map((x, i) => (i % 36 === 5 ? 50 * x : x)),
      };
      return model;
    };
    const largest = async (model: Model) => {
      const { weight } = parameter(model, "embed");
      return "quant" in weight
        ? 0
        : (await weight.read()).reduce((m, x) => Math.max(m, Math.abs(x)), 0);
    };
    expect(await largest(await rotate(peaked()))).toBeLessThan(0.4 * (await largest(peaked())));
  });

  it("the seed decides the signs; equal seeds give equal bytes", async () => {
    const weights = async (options: object, seed: number) => {
      const { weight } = parameter(await rotate(tinyModel(), options, seed), "layers.0.q");
      return "quant" in weight ? null : weight.read();
    };
    expect(await weights({}, 1)).toEqual(await weights({}, 1));
    expect(await weights({}, 1)).not.toEqual(await weights({}, 2));
    expect(await weights({ seed: 5 }, 1)).toEqual(await weights({ seed: 5 }, 2));
  });

  it("centred embeddings have rows of mean 0 before the rotation, and change the logits", async () => {
    expect(await difference({}, { centerEmbeddings: true })).toBeGreaterThan(1e-3);
  });
});

describe("refusals say what to do", () => {
  it.each<[string, Partial<ModelConfig>, object, RegExp]>([
    ["9 heads", NINE_HEADS, { headMix: "hadamard" }, /no Hadamard matrix of 9 heads/],
    ["no order", { hiddenSize: 36, intermediateSize: 22 }, {}, /order 22/],
    ["block", {}, { blockSize: 16 }, /does not divide 40/],
    ["random", { tieWordEmbeddings: true }, { mode: "random" }, /random rotation/],
    ["centre", { tieWordEmbeddings: true }, { centerEmbeddings: true }, /tied head/],
    [
      "online blocks",
      { tieWordEmbeddings: true, hiddenSize: 100 },
      { rotations: ["R1"], blockSize: 4 },
      /cannot be undone online/,
    ],
    ["head size", { headDim: 12 }, {}, /power of two/],
  ])("%s", async (_, config, options, message) => {
    await expect(rotate(tinyModel(config), options)).rejects.toThrow(message);
  });

  it("a second rotation and options without their rotation", async () => {
    const model = await rotate(tinyModel());
    await expect(rotate(model)).rejects.toThrow(RecipeError);
    for (const options of [
      { rotations: ["R4"], mode: "random" },
      { rotations: ["R1"], headMix: "full" },
      { rotations: [] },
      { rotation: ["R1"] },
    ]) {
      expect(quarot.options.safeParse(options).success).toBe(false);
    }
  });
});

it("scalePair keeps the logits", async () => {
  const config = { numKeyValueHeads: 4, bias };
  const expected = await tinyForward(tinyModel(config), IDS);
  const model = tinyModel(config);
  const scales = Float64Array.from(new Philox(1).normals(32), (x) => Math.exp(x));
  scalePair(parameter(model, "layers.1.v"), parameter(model, "layers.1.o"), scales);
  const actual = await tinyForward(model, IDS);
  for (const [t, row] of expected.entries()) {
    for (const [i, x] of row.entries()) expect(actual[t]?.[i]).toBeCloseTo(x, 4);
  }
});
