/** Places the parts of a model in an arena: embedding and head, one layer's projections, the edges of the residual stream. */
import { ModelError } from "../core/errors.js";
import { decode } from "../encodings/quant-tensor.js";
import type { Arena } from "../graph/arena.js";
import { EPILOGUE } from "../kernels/ops.js";
import type { ProgramBuilder } from "../kernels/program.js";
import { hadamardOrder } from "../linalg/hadamard.js";
import type { ModelConfig } from "./config.js";
import {
  type Buffers,
  type PlacedBlock,
  type PlacedLinear,
  type PlacedMlp,
  type PlacedTransform,
  REGISTER,
  type SiteRecipe,
} from "./lower.js";
import { isTied, type Model, type OnlineTransform, type Parameter, parameter } from "./model.js";
import { fusable, type LoadedWeight, placeWeights } from "./place-weights.js";
import { SITES, type Site } from "./roles.js";

/** Reads the weight and bias of a parameter. */
export async function loadWeight(source: Parameter, dense = false): Promise<LoadedWeight> {
  const [n = 0, k = 0] = source.spec.shape;
  const bias = source.bias ? await source.bias.read() : null;
  const { path } = source.spec;
  const { weight } = source;
  if (!("quant" in weight)) return { n, k, bias, path, dense: await weight.read() };
  const quant = await weight.quant();
  return dense
    ? { n, k, bias, path, dense: decode(quant), pre: quant.pre }
    : { n, k, bias, path, quant };
}

export interface PlacedEmbedding {
  embed: PlacedLinear;
  head: PlacedLinear;
  /** Bytes of the embedding table when it is not the head. */
  embedBytes: number;
}

/** How weights are placed for calibration: everything decoded to f32, so that any encoding runs on the f32 kernels. */
export interface PlaceOptions {
  dense?: boolean;
}

export async function placeEmbedding(
  arena: Arena,
  builder: ProgramBuilder,
  model: Model,
): Promise<PlacedEmbedding> {
  const place = async (path: string) =>
    placeWeights(arena, builder, [await loadWeight(parameter(model, path))]);
  const before = arena.usedBytes;
  const embed = await place("embed");
  const embedBytes = arena.usedBytes - before;
  if (isTied(model)) return { embed, head: embed, embedBytes };
  const head = await place("head");
  return { embed, head, embedBytes };
}

/** Place of a norm gain; -1 when all ones (a fused norm): multiplying by 1 is exact and would only cost time. */
async function placeGain(arena: Arena, model: Model, path: string): Promise<number> {
  const { weight } = parameter(model, path);
  if ("quant" in weight) throw new ModelError(`${path} cannot be quantized`);
  const gain = await weight.read();
  return gain.every((g) => g === 1) ? -1 : arena.place(gain);
}

function hasAsymmetricInputs(sites: Record<Site, SiteRecipe>): boolean {
  return SITES.some((site) => sites[site].quantizer?.symmetric === false);
}

/** Projections of one layer. */
export async function placeLayer(
  arena: Arena,
  builder: ProgramBuilder,
  model: Model,
  layer: number,
  cacheLayer: number,
  sites: Record<Site, SiteRecipe>,
  options: PlaceOptions = {},
): Promise<PlacedBlock> {
  const { config } = model;
  const base = `layers.${layer}`;
  const load = (role: string) => loadWeight(parameter(model, `${base}.${role}`), options.dense);
  const codeSums = hasAsymmetricInputs(sites);
  const place = (...parts: LoadedWeight[]) => placeWeights(arena, builder, parts, { codeSums });
  const qkvParts = await Promise.all(["q", "k", "v"].map(load));
  const qkv = fusable(qkvParts) ? [place(...qkvParts)] : qkvParts.map((part) => place(part));
  const o = place(await load("o"));

  const mlp = async (prefix: string): Promise<PlacedMlp> => {
    const [gate, up] = await Promise.all([load(`${prefix}gate`), load(`${prefix}up`)]);
    const gateUp =
      fusable([gate, up]) && gate.n % 16 === 0
        ? placeWeights(arena, builder, [gate, up], { interleaved: true, codeSums })
        : { gate: place(gate), up: place(up) };
    return { gateUp, down: place(await load(`${prefix}down`)) };
  };
  let mlpPart: PlacedBlock["mlp"];
  if (config.experts) {
    const router = place(await load("router"));
    const experts: PlacedMlp[] = [];
    for (let e = 0; e < config.experts.count; e++) experts.push(await mlp(`experts.${e}.`));
    mlpPart = { router, experts, perToken: config.experts.perToken };
  } else mlpPart = await mlp("");

  return {
    cacheLayer,
    slidingWindow: config.slidingWindow[layer] ?? null,
    inputNormAt: await placeGain(arena, model, `${base}.inputNorm`),
    postNormAt: await placeGain(arena, model, `${base}.postNorm`),
    queryGainAt: config.qkNorm ? await placeQkGain(arena, model, `${base}.qNorm`) : -1,
    keyGainAt: config.qkNorm ? await placeQkGain(arena, model, `${base}.kNorm`) : -1,
    qkv,
    o,
    mlp: mlpPart,
    sites,
  };
}

/** QK-norm gains stay even when all ones: their presence tells the kernel to normalize. */
async function placeQkGain(arena: Arena, model: Model, path: string): Promise<number> {
  const { weight } = parameter(model, path);
  if ("quant" in weight) throw new ModelError(`${path} cannot be quantized`);
  return arena.place(await weight.read());
}

/** Site recipes; matrices of equal transforms are placed once. */
export function placeSites(
  arena: Arena,
  model: Model,
): (layer: number) => Record<Site, SiteRecipe> {
  const placed = new Map<OnlineTransform, PlacedTransform>();
  const width = (site: Site) => siteWidth(model.config, site);
  const one = (transform: OnlineTransform, site: Site): PlacedTransform => {
    const known = placed.get(transform);
    if (known) return known;
    const result = placeTransform(arena, model.config, transform, width(site));
    placed.set(transform, result);
    return result;
  };
  const recipes = Object.fromEntries(
    SITES.map((site) => [
      site,
      {
        transforms: model.transforms.filter((t) => t.site === site).map((t) => one(t, site)),
        quantizer: model.activations[site] ?? null,
      },
    ]),
  ) as Record<Site, SiteRecipe>;
  // Per-layer exceptions (overrides of the activations step) replace the quantizer only.
  return (layer) => {
    const exceptions = model.activationOverrides.get(layer);
    if (!exceptions) return recipes;
    return Object.fromEntries(
      SITES.map((site) => [
        site,
        site in exceptions
          ? { ...recipes[site], quantizer: exceptions[site] ?? null }
          : recipes[site],
      ]),
    ) as Record<Site, SiteRecipe>;
  };
}

export function siteWidth(config: ModelConfig, site: Site): number {
  if (site === "attn_out") return config.numAttentionHeads * config.headDim;
  return site === "mlp_out" ? config.intermediateSize : config.hiddenSize;
}

function placeTransform(
  arena: Arena,
  config: ModelConfig,
  transform: OnlineTransform,
  width: number,
): PlacedTransform {
  if (transform.op === "edge")
    throw new Error("an edge belongs to the residual stream, not to a site");
  if (transform.op === "headMix" && transform.matrix) {
    return {
      op: "mixHeads",
      count: transform.order,
      inner: config.headDim,
      matrixAt: arena.place(transform.matrix),
    };
  }
  const size = transform.op === "headMix" ? transform.order : transform.size;
  const inner = transform.op === "headMix" ? config.headDim : 1;
  const { orderK, orderM, matrixAt } = placeHadamard(arena, size);
  return {
    op: "hadamard",
    blocks: width / (size * inner),
    orderK,
    orderM,
    inner,
    matrixAt,
    norm: 1 / Math.sqrt(size),
  };
}

function placeHadamard(
  arena: Arena,
  size: number,
): { orderK: number; orderM: number; matrixAt: number } {
  const order = hadamardOrder(size);
  if (!order) {
    throw new ModelError(`there is no known Hadamard matrix of order ${size}`, {
      hint: "set blockSize to a power of two that divides it",
    });
  }
  return {
    orderK: order.k,
    orderM: order.m,
    matrixAt: order.k > 1 ? arena.place(order.signs) : -1,
  };
}

/** One end of the residual stream. */
interface PlacedEdge {
  dense: PlacedLinear | null;
  hadamard: { orderK: number; orderM: number; matrixAt: number } | null;
  signsAt: number;
  gainAt: number;
}

/** The final norm, and the rotations at both ends of the residual stream (tied embeddings under QuaRot). */
export interface PlacedEdges {
  finalGainAt: number;
  input: PlacedEdge | null;
  output: PlacedEdge | null;
}

export interface EdgeEmitters {
  /** After the embedding lookup. */
  emitInput(builder: ProgramBuilder, buffers: Buffers): void;
  /** Final norm and head edge: residual rows -> hidden rows ready for the head. */
  emitOutput(builder: ProgramBuilder, buffers: Buffers, hiddenAt: number): void;
}

export async function placeEdges(
  arena: Arena,
  builder: ProgramBuilder,
  model: Model,
): Promise<PlacedEdges> {
  const d = model.config.hiddenSize;
  const finalGainAt = await placeGain(arena, model, "finalNorm");
  const place = (t: OnlineTransform): PlacedEdge | null => {
    if (t.op !== "edge") return null;
    if (t.dense) {
      const weight = { n: d, k: d, bias: null, path: t.site, dense: t.dense };
      const dense = placeWeights(arena, builder, [weight]);
      return { dense, hadamard: null, signsAt: -1, gainAt: -1 };
    }
    return {
      dense: null,
      hadamard: placeHadamard(arena, t.size),
      signsAt: arena.place(t.signs),
      gainAt: t.gain ? arena.place(t.gain) : -1,
    };
  };
  const edge = (site: "embed_out" | "head_in") => {
    const found = model.transforms.find((t) => t.op === "edge" && t.site === site);
    return found ? place(found) : null;
  };
  return { finalGainAt, input: edge("embed_out"), output: edge("head_in") };
}

/** Instructions of the edges. */
export function edgeEmitters(
  { finalGainAt, input, output }: PlacedEdges,
  config: ModelConfig,
): EdgeEmitters {
  const d = config.hiddenSize;
  const norm = 1 / Math.sqrt(d);
  const rowsReg = REGISTER.rows;
  return {
    emitInput(b, buffers) {
      if (!input?.hadamard) return;
      b.emit("hadamard", {
        rowsReg,
        srcAt: buffers.residualAt,
        ldSrc: d,
        dstAt: buffers.residualAt,
        ldDst: d,
        blocks: 1,
        ...input.hadamard,
        inner: 1,
        transpose: 0,
        preSignAt: input.signsAt,
        postSignAt: -1,
        normF: norm,
      });
    },
    emitOutput(b, buffers, hiddenAt) {
      const dstAt = output ? buffers.normedAt : hiddenAt;
      b.emit("rmsnorm", {
        rowsReg,
        srcAt: buffers.residualAt,
        ldSrc: d,
        dstAt,
        ldDst: d,
        width: d,
        gainAt: finalGainAt,
        epsilonF: config.rmsNormEps,
      });
      if (output?.dense) {
        b.emit("linearFloat", {
          rowsReg,
          srcAt: dstAt,
          ldSrc: d,
          weightW: output.dense.weight,
          dstAt: hiddenAt,
          ldDst: d,
          epilogue: EPILOGUE.store,
        });
      } else if (output?.hadamard) {
        b.emit("hadamard", {
          rowsReg,
          srcAt: dstAt,
          ldSrc: d,
          dstAt: hiddenAt,
          ldDst: d,
          blocks: 1,
          ...output.hadamard,
          inner: 1,
          transpose: 1,
          preSignAt: -1,
          postSignAt: output.signsAt,
          normF: norm,
        });
        if (output.gainAt >= 0) {
          b.emit("columns", {
            rowsReg,
            srcAt: hiddenAt,
            ldSrc: d,
            dstAt: hiddenAt,
            ldDst: d,
            width: d,
            permAt: -1,
            scaleAt: output.gainAt,
          });
        }
      }
    },
  };
}

/** Largest number of groups along K of any quantized linear or activation. */
export function maxGroups(blocks: PlacedBlock[], config: ModelConfig): number {
  const wide = Math.max(
    config.hiddenSize,
    config.intermediateSize,
    config.numAttentionHeads * config.headDim,
  );
  let smallest = wide;
  const visit = (linear: PlacedLinear) => {
    if (linear.groupSize > 0) smallest = Math.min(smallest, linear.groupSize);
  };
  for (const block of blocks) {
    for (const linear of [...block.qkv, block.o]) visit(linear);
    for (const mlp of "experts" in block.mlp ? block.mlp.experts : [block.mlp]) {
      for (const l of "weight" in mlp.gateUp ? [mlp.gateUp] : [mlp.gateUp.gate, mlp.gateUp.up])
        visit(l);
      visit(mlp.down);
    }
    for (const site of SITES) {
      const granularity = block.sites[site].quantizer?.granularity;
      if (typeof granularity === "number") smallest = Math.min(smallest, granularity);
    }
  }
  return Math.ceil(wide / smallest);
}
