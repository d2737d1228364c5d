/**
 * QuaRot (arXiv:2404.00456; official code spcl/QuaRot): rotations that leave the network's function as it is and spread
 * outliers over all channels, so that weights, activations and cache can be quantized to 4 bits. R1 turns the residual stream,
 * R2 values and attention output per head, R4 the input of down_proj (online); R3 turns queries and keys inside the cache.
 * Needs no data. Where paper and code differ (embeddings are not centred, GQA, ties), the function is preserved.
 */
import { z } from "zod";
import { RecipeError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { type HadamardOrder, hadamardOrder, requireHadamardOrder } from "../linalg/hadamard.js";
import { randomOrthogonal } from "../linalg/qr.js";
import {
  applyMap,
  type ChannelMap,
  foldInput,
  fuseNorms,
  rotateResidual,
  rotateValueOut,
} from "../model/folds.js";
import { isTied, type Model, parameter } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { defineMethod } from "./contract.js";

const ROTATIONS = ["R1", "R2", "R3", "R4"] as const;

export interface QuarotOptions {
  rotations: (typeof ROTATIONS)[number][];
  /** R1: random signs times Hadamard, or a random orthogonal matrix (slower to fold, worse at 4 bits). */
  mode: "hadamard" | "random";
  /** Of the random signs; the recipe's seed unless given. */
  seed?: number | undefined;
  /** What replaces the Hadamard matrix across heads where their number has none. */
  headMix: "auto" | "hadamard" | "none" | "orthogonal" | "full";
  /** How tied embeddings stay exact; without effect on models that are not tied. */
  tied: "online-edge" | "untie" | "dense-edge";
  /** Block size of R4 and headMix full; of R1 only where the hidden size has no Hadamard matrix (R1 costs nothing). */
  blockSize?: number | undefined;
  /** The official code's leftover from LayerNorm models; changes the function. */
  centerEmbeddings: boolean;
}

const refuse = (message: string, hint: string) =>
  new RecipeError(message, { place: "quarot", hint }, "quarot");

/** The transform of a dimension: whole, or in blocks of `blockSize`. */
function orderFor(size: number, blockSize: number | undefined, place: string): HadamardOrder {
  if (blockSize === undefined) return requireHadamardOrder(size, place);
  if (size % blockSize !== 0) {
    throw refuse(`blockSize ${blockSize} does not divide ${size} (${place})`, "Use one that does.");
  }
  return requireHadamardOrder(blockSize, place);
}

/** R1 and the norms: afterwards the residual stream holds T x, T = H D or a random orthogonal matrix. */
async function rotateStream(model: Model, o: QuarotOptions, rng: Philox): Promise<void> {
  const d = model.config.hiddenSize;
  if (isTied(model) && o.tied === "untie") untie(model);
  const tied = isTied(model);
  if (tied && o.centerEmbeddings) {
    throw refuse("centerEmbeddings would change the tied head too", "Use tied: untie.");
  }
  if (tied && o.mode === "random" && o.tied === "online-edge") {
    throw refuse(
      "a random rotation has no fast form to undo at a tied head",
      "Use tied: dense-edge or untie, or mode: hadamard.",
    );
  }
  if (o.centerEmbeddings) foldInput(parameter(model, "embed"), { op: "center" });
  const { finalGain } = await fuseNorms(model);

  if (o.mode === "random") {
    const matrix = randomOrthogonal(d, rng);
    rotateResidual(model, [{ op: "matrix", matrix, count: d }], true);
    if (tied) model.transforms.push(denseEdge(d, finalGain, [{ op: "matrix", matrix, count: d }]));
    return;
  }
  const order = hadamardOrder(d) ?? orderFor(d, o.blockSize, "hidden size");
  const signs = rng.signs(d);
  const maps: ChannelMap[] = [
    { op: "scale", factors: signs },
    { op: "hadamard", order },
  ];
  const online = tied && o.tied === "online-edge";
  if (online && order.n !== d) {
    throw refuse(
      `hidden size ${d} has no Hadamard matrix, so its rotation cannot be undone online`,
      "Use tied: untie or dense-edge.",
    );
  }
  rotateResidual(model, maps, !online);
  if (online) {
    const edge = { op: "edge", size: d, signs } as const;
    model.transforms.push({ ...edge, site: "embed_out" });
    model.transforms.push({ ...edge, site: "head_in", gain: finalGain });
  } else if (tied) model.transforms.push(denseEdge(d, finalGain, maps));
}

/** Gives the head a table of its own, equal to the embedding's. */
function untie(model: Model): void {
  const embed = parameter(model, "embed");
  const spec = parameterSpecs(model.config).find(({ path }) => path === "head");
  if (!spec) throw new Error("the role table has no head");
  model.parameters.set("head", { spec, weight: embed.weight, bias: null });
  model.config.tieWordEmbeddings = false;
}

/** h <- T diag(g) T^T h in front of a tied head whose table is rotated: [d, d], f32. */
function denseEdge(d: number, gain: Float32Array, maps: readonly ChannelMap[]) {
  // Rows of diag(g) T^T: T applied to unit vectors, scaled. Then T along the first axis.
  const matrix = new Float64Array(d * d);
  for (let i = 0; i < d; i++) matrix[i * d + i] = gain[i] as number;
  for (const map of maps) applyMap(map, matrix, d, d, 1);
  for (const map of maps) applyMap(map, matrix, 1, d, d);
  const signs = new Float32Array(d).fill(1);
  return { op: "edge", site: "head_in", size: d, signs, dense: Float32Array.from(matrix) } as const;
}

/** R2: values per head, and the mixing of heads that completes it in front of o. */
function rotateValues(model: Model, o: QuarotOptions, rng: Philox): void {
  const { numHiddenLayers, numAttentionHeads: heads, headDim } = model.config;
  const layers = Array.from({ length: numHiddenLayers }, (_, i) => i);
  const foldOut = (map: ChannelMap) => {
    for (const i of layers) foldInput(parameter(model, `layers.${i}.o`), map);
  };
  if (o.headMix === "full") {
    const order = orderFor(heads * headDim, o.blockSize, "attention output");
    foldOut({ op: "hadamard", order });
    model.transforms.push({ op: "hadamard", site: "attn_out", size: order.n });
    return;
  }
  const perHead = requireHadamardOrder(headDim, "head size");
  for (const i of layers) rotateValueOut(model, i, { op: "hadamard", order: perHead });

  const mix = hadamardOrder(heads);
  if (o.headMix === "hadamard" && !mix) {
    throw refuse(
      `there is no Hadamard matrix of ${heads} heads`,
      "Use headMix: auto, none, orthogonal or full.",
    );
  }
  if (o.headMix === "orthogonal") {
    // Folded as it is stored, in f32.
    const matrix = Float32Array.from(randomOrthogonal(heads, rng));
    foldOut({ op: "matrix", matrix: Float64Array.from(matrix), count: heads, inner: headDim });
    model.transforms.push({ op: "headMix", site: "attn_out", order: heads, matrix });
  } else if (o.headMix !== "none" && mix && heads > 1) {
    foldOut({ op: "hadamard", order: mix, inner: headDim });
    model.transforms.push({ op: "headMix", site: "attn_out", order: heads });
  }
}

/** R3 belongs to the cache: the pass only sets the flag of its K codec. */
function rotateKeys(model: Model): void {
  const { headDim } = model.config;
  if ((headDim & (headDim - 1)) !== 0) {
    throw refuse(
      `R3 needs a head size that is a power of two; this model has ${headDim}`,
      "Use rotations: [R1, R2, R4].",
    );
  }
  const kv = model.kv ?? { k: { codec: "fp32" }, v: { codec: "fp32" } };
  model.kv = { ...kv, k: { ...kv.k, hadamard: true } };
}

/** R4: the input of down, online, and the same transform in the weights. */
function rotateDown(model: Model, o: QuarotOptions): void {
  const order = orderFor(model.config.intermediateSize, o.blockSize, "intermediate size");
  for (const target of model.parameters.values()) {
    if (target.spec.role === "down") foldInput(target, { op: "hadamard", order });
  }
  model.transforms.push({ op: "hadamard", site: "mlp_out", size: order.n });
}

export const quarot = defineMethod<QuarotOptions>({
  id: "quarot",
  kind: "transform",
  title: "QuaRot",
  paper: "arXiv:2404.00456",
  summary:
    "Rotates a model, exactly, so that 4-bit weights, activations and cache become possible.",
  options: z
    .strictObject({
      rotations: z
        .array(z.enum(ROTATIONS))
        .min(1)
        .default([...ROTATIONS]),
      mode: z.enum(["hadamard", "random"]).default("hadamard"),
      seed: z.int().min(0).optional(),
      headMix: z.enum(["auto", "hadamard", "none", "orthogonal", "full"]).default("auto"),
      tied: z.enum(["online-edge", "untie", "dense-edge"]).default("online-edge"),
      blockSize: z.int().min(2).optional(),
      centerEmbeddings: z.boolean().default(false),
    })
    .superRefine((o, ctx) => {
      const needs = (key: keyof QuarotOptions, rotation: (typeof ROTATIONS)[number]) => {
        if (o.rotations.includes(rotation)) return;
        ctx.addIssue({ code: "custom", path: [key], message: `needs ${rotation} in rotations` });
      };
      if (o.mode === "random") needs("mode", "R1");
      if (o.centerEmbeddings) needs("centerEmbeddings", "R1");
      if (o.headMix !== "auto") needs("headMix", "R2");
    }),
  rotatesResidual: ({ rotations }) => rotations.includes("R1"),
  async apply(model, options, ctx) {
    if (model.transforms.length > 0) {
      throw refuse("the model is rotated already", "Use one rotation step in a recipe.");
    }
    const rng = options.seed === undefined ? ctx.rng : new Philox(options.seed);
    const wanted = new Set(options.rotations);
    if (wanted.has("R1")) await rotateStream(model, options, rng.stream("R1"));
    if (wanted.has("R2")) rotateValues(model, options, rng.stream("headMix"));
    if (wanted.has("R3")) rotateKeys(model);
    if (wanted.has("R4")) rotateDown(model, options);
  },
});
