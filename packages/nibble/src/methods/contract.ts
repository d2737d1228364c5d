/**
 * What a method is. Recipes, command-line help, schema, plan and conformance tests ask a definition what it declares and
 * never what it is called. Weight methods are solvers: pure in (weight, statistics, options, rng), they end as a QuantTensor.
 */
import type { z } from "zod";
import type { Definition } from "../core/registry.js";
import type { Philox } from "../core/rng.js";
import type { DenseCodecId, FloatType, GroupSize, QuantTensor } from "../encodings/types.js";
import type { EngineLinalg } from "../linalg/engine-linalg.js";
import type { Model } from "../model/model.js";
import type { Site } from "../model/roles.js";

/** "scaling": exact rescaling of inputs on calibration statistics; comes after transforms and before weights. */
export type MethodKind = "transform" | "scaling" | "weights" | "activations" | "kv" | "embeddings";

/** What a solver reads besides the weight; drives the pipeline and the memory preflight. */
export interface Needs {
  /** Activations of the model on calibration text. */
  calibration: boolean;
  /** Gram matrix of each site. */
  hessian: boolean;
  /** Mean and maximum of |x| per input channel. */
  absStats: boolean;
  gradients: boolean;
  /** How inputs differ from those of the original model (`SiteStatsView.drift`); needs `propagate: quantized`. */
  drift?: boolean;
}

export const NO_NEEDS: Needs = {
  calibration: false,
  hessian: false,
  absStats: false,
  gradients: false,
};

/** Statistics of the inputs of one site, collected behind its online transforms. Linears of a site get the same object. */
export interface SiteStatsView {
  /** Number of tokens. */
  readonly count: number;
  /** Sum of x x^T, [k, k], not divided by anything. Only the upper triangle is read. */
  readonly hessian?: Float64Array;
  /**
   * Sum of x (y - x)^T [k, k], y the input that the original model has at the same token. Sites behind a router have none:
   * there the two models may choose different tokens.
   */
  readonly drift?: Float64Array;
  /** Sum of |x| per channel [k]. */
  readonly sumAbs?: Float64Array;
  /** Maximum of |x| per channel [k]. */
  readonly maxAbs?: Float32Array;
}

/** How a tensor will be stored; formats and kernels say whether they can. `csr`: with a sparse side-car. */
export type Produced =
  | {
      encoding: "gint";
      csr?: boolean;
      bits: number;
      groupSize: GroupSize;
      zero: "const" | "int" | "float";
      /** Of a scale, and of a float zero; 16 unless given. */
      scaleBits?: 8 | 16 | 32;
      /** True when a permutation of the input columns is stored with the tensor. */
      perm?: boolean;
    }
  /** `table`: its name, or "row" for one table a row. */
  | { encoding: "lut"; bits: number; groupSize: GroupSize; table: string; csr?: boolean }
  /** `type`: the widest that may occur. */
  | { encoding: "dense"; type: FloatType; codec?: DenseCodecId };

/** Cost of one linear: working memory beside the f32 weight, and floating-point operations. */
export interface Estimate {
  peakBytes: number;
  flops: number;
}

export interface Shape {
  n: number;
  k: number;
}

/** Which modules a step reaches: globs over role paths. */
export interface Targets {
  targets: string[];
  ignore: string[];
}

/** How the pipeline feeds a solver that needs calibration. */
export interface Schedule {
  /** Inputs of a block: outputs of the blocks already quantized, or of the original ones. */
  propagate: "quantized" | "original";
  /** Quantize {q, k, v}, {o}, {gate, up}, {down} one after another inside a block and collect statistics before each. */
  trueSequential: boolean;
}

export interface SolveContext {
  /** Stream of this tensor. */
  rng: Philox;
  engineLinalg: EngineLinalg;
  log(message: string): void;
  /** Work shared by the linears of a site: made once per (statistics, key) and kept as long as the statistics are. */
  memo<T>(stats: SiteStatsView, key: string, make: () => Promise<T>): Promise<T>;
}

export interface Solved {
  tensor: QuantTensor;
  /**
   * Squared output error per calibration token, summed over the outputs, as the solver estimates it. Comparable
   * between runs of one method on one layer.
   */
  loss?: number;
  /** What the report must say: a fallback that was taken, a raised damping. */
  notes?: string[];
}

/** A linear that reads a site. */
export interface SiteLinear<Options> extends Shape {
  path: string;
  /** f32 [n, k] as it is now, with every scale that was folded before; not to be changed. */
  weight: Float32Array;
  /** Options of this linear, or null when another step (or none) quantizes it: then it is only scaled along. */
  options: Options | null;
}

/** What computes the input of a site, and so takes up 1 / scale. */
export type SiteProducer =
  /** attn_in, mlp_in: the gain [k] of the norm in front. */
  | { kind: "norm" }
  /**
   * attn_out, mlp_out: rows of v or up (and their bias). Channel h * headDim + d comes from row
   * floor(h / repeat) * headDim + d; repeat = query heads per KV head for v, 1 for up (headDim = k).
   */
  | { kind: "rows"; repeat: number; headDim: number }
  /** Nothing can (an online transform stands between): the scale is stored with the linears. */
  | { kind: "none"; why: string };

export interface SiteView<Options> {
  site: Site;
  layer: number;
  /** Expert of mlp_out in a MoE block, else null. */
  expert: number | null;
  /** Channels of the input. */
  k: number;
  producer: SiteProducer;
  /** Every linear that reads the input: q, k, v; o; gate, up (of all experts); down. */
  linears: SiteLinear<Options>[];
}

/** Weights W diag(scale), inputs x / scale. */
export interface SiteScale {
  /** [k], finite and > 0. Equal for channels that share a producing row, else it is not folded. */
  scale: Float32Array;
  notes?: string[];
}

/**
 * Per-site hook of methods that rescale inputs. For each block in order, before any linear of it is solved, the pipeline
 *  1. observes the block once with the statistics that `needs` names;
 *  2. for each site of `siteOrder` (and each expert's mlp_out) that has a linear of the step, calls `prepareSite` with the
 *     statistics of that site (for mlp_in of a MoE block: the sum over the experts);
 *  3. for a result that is not null calls `applySiteScale` (methods/shared/site-scale.ts), which multiplies the columns of all
 *     linears of the site and of a MoE router, and folds 1 / scale into the producer. Where that cannot be it changes
 *     nothing and returns a `pre` operation: then the pipeline multiplies the columns it hands to `solve` by the scale
 *     and puts the operation first into `tensor.pre` of what every linear of the site is solved to;
 *  4. gives every later reader of these statistics `rescaleStats(stats, scale)`.
 * The block computes the same function before and after, so nothing is observed again. What was folded into norm gains,
 * v and up changes tensors that other steps quantize or that are stored as they are: a resume state must hold the scales.
 */
export interface SiteScaler<Options> {
  /** True when the method may not follow a transform that rotates the residual stream. */
  readonly originalBasis: boolean;
  /** @returns null to leave the site as it is. @throws NumericError naming the site */
  prepareSite(
    site: SiteView<Options>,
    stats: SiteStatsView,
    options: Options,
    ctx: SolveContext,
  ): Promise<SiteScale | null>;
}

export interface TransformContext {
  rng: Philox;
  log(message: string): void;
}

interface MethodBase<Options> extends Definition {
  /** Where it comes from, e.g. "arXiv:2210.17323". */
  readonly paper: string;
  /** One sentence: what a user gets. */
  readonly summary: string;
  readonly options: z.ZodType<Options>;
}

/** Kinds whose work is a tensor. `embeddings` methods are given the embedding and the head. */
export interface SolverMethod<Options> extends MethodBase<Options> {
  readonly kind: "weights" | "embeddings";
  needs(options: Options): Needs;
  produces(options: Options): Produced;
  /** Expected bits of one tensor as stored, where `produces` does not tell: side-cars, tables, codecs. */
  storedBits?(shape: Shape, options: Options): number;
  estimate(shape: Shape, options: Options): Estimate;
  targets(options: Options): Targets;
  schedule?(options: Options): Schedule;
  /**
   * True when no row depends on another: large tables may then be solved in bands of rows, which `stackRows` must be able
   * to put together.
   */
  byRows?(options: Options): boolean;
  /** Rescales the inputs of a site before its linears are solved. */
  readonly scaler?: SiteScaler<Options>;
  /**
   * @param weight f32 [n, k] row-major; the solver may change it
   * @param stats inputs of the site, or null when the options need no calibration
   * @throws NumericError naming `shape.path` for NaN, infinities and impossible shapes
   */
  solve(
    weight: Float32Array,
    shape: Shape & { path: string },
    stats: SiteStatsView | null,
    options: Options,
    ctx: SolveContext,
  ): Promise<Solved>;
}

/** Kinds whose work is the model description: folds, quantizers of sites, the cache recipe. */
export interface ModelMethod<Options> extends MethodBase<Options> {
  readonly kind: "transform" | "activations" | "kv";
  /** True when the residual stream gets another basis, in which no channel is what it was. */
  rotatesResidual?(options: Options): boolean;
  /** Changes `model` in place. Weights are folded lazily: nothing is read here. */
  apply(model: Model, options: Options, ctx: TransformContext): Promise<void>;
}

/** Rescaling alone: the calibration pass runs its `scaler` on every block before the solvers of later steps. */
export interface ScalingMethod<Options> extends MethodBase<Options> {
  readonly kind: "scaling";
  needs(options: Options): Needs;
  readonly scaler: SiteScaler<Options>;
}

/** A method of any kind, as the registry holds it; `options.parse()` makes what its functions take. */
export type Method = SolverMethod<unknown> | ModelMethod<unknown> | ScalingMethod<unknown>;

/** Types a definition; the options of its functions follow from the schema. */
export function defineMethod<Options>(method: SolverMethod<Options>): SolverMethod<Options>;
export function defineMethod<Options>(method: ModelMethod<Options>): ModelMethod<Options>;
export function defineMethod<Options>(method: ScalingMethod<Options>): ScalingMethod<Options>;
export function defineMethod(method: Method): Method {
  return method;
}

/** The memo of a solve context: results live as long as the statistics object they belong to. */
export function createMemo(): SolveContext["memo"] {
  const results = new WeakMap<SiteStatsView, Map<string, Promise<unknown>>>();
  return <T>(stats: SiteStatsView, key: string, make: () => Promise<T>): Promise<T> => {
    const keyed = results.get(stats) ?? new Map<string, Promise<unknown>>();
    results.set(stats, keyed);
    const result = keyed.get(key) ?? make();
    keyed.set(key, result);
    return result as Promise<T>;
  };
}
