/**
 * What a method is. Recipes, command-line help, schema, plan and conformance tests ask a definition what it declares and
 * never what it is called. Weight methods are solvers: pure in (weight, statistics, options, rng), they end as a QuantTensor.
 */
import type { z } from "zod";
import type { Definition } from "../core/registry.js";
import type { Philox } from "../core/rng.js";
import type { GroupSize, QuantTensor } from "../encodings/types.js";
import type { EngineLinalg } from "../linalg/engine-linalg.js";
import type { Model } from "../model/model.js";

export type MethodKind = "transform" | "weights" | "activations" | "kv" | "embeddings";

/** What a solver reads besides the weight; drives the pipeline and the memory preflight. */
export interface Needs {
  /** Activations of the model on calibration text. */
  calibration: boolean;
  /** Gram matrix of each site. */
  hessian: boolean;
  /** Mean and maximum of |x| per input channel. */
  absStats: boolean;
  gradients: boolean;
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
  /** Sum of |x| per channel [k]. */
  readonly sumAbs?: Float64Array;
  /** Maximum of |x| per channel [k]. */
  readonly maxAbs?: Float32Array;
}

/** How a tensor will be stored; formats and kernels say whether they can. */
export type Produced =
  | {
      encoding: "gint";
      bits: number;
      groupSize: GroupSize;
      zero: "const" | "int" | "float";
      /** True when a permutation of the input columns is stored with the tensor. */
      perm?: boolean;
    }
  | { encoding: "lut"; bits: number; groupSize: GroupSize; table: string }
  | { encoding: "dense"; type: "f32" | "f16" | "bf16" };

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
  estimate(shape: Shape, options: Options): Estimate;
  targets(options: Options): Targets;
  schedule?(options: Options): Schedule;
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
  /** Changes `model` in place. Weights are folded lazily: nothing is read here. */
  apply(model: Model, options: Options, ctx: TransformContext): Promise<void>;
}

/** A method of any kind, as the registry holds it; `options.parse()` makes what its functions take. */
export type Method = SolverMethod<unknown> | ModelMethod<unknown>;

/** Types a definition; the options of its functions follow from the schema. */
export function defineMethod<Options>(method: SolverMethod<Options>): SolverMethod<Options>;
export function defineMethod<Options>(method: ModelMethod<Options>): ModelMethod<Options>;
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
