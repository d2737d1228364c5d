/**
 * Preflight: checks a recipe against a model and estimates what it will cost. Loads headers, applies the transforms (they
 * record folds and read nothing), asks each method what it produces and what it needs. No weight is read.
 */
import { totalmem } from "node:os";
import { ResourceError } from "../core/errors.js";
import { defaultThreads, formatBytes } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { Philox } from "../core/rng.js";
import { kvPreset } from "../kv/presets.js";
import { resolveKv } from "../kv/recipe.js";
import { kvBytes } from "../kv/size.js";
import type { MethodKind, ModelMethod } from "../methods/contract.js";
import type { Model } from "../model/model.js";
import type { ParameterSpec } from "../model/roles.js";
import { loadModel } from "../runtime/load-model.js";
import { applyActivations, assignModules, stepsOf } from "./assign.js";
import { recipeToJson } from "./load.js";
import type { Recipe } from "./schema.js";
import { storedBits } from "./stored-bits.js";

export interface PlannedStep {
  id: string;
  kind: MethodKind;
  /** Modules the step changes; 0 for steps that change the model description. */
  modules: number;
  /** Stored bits per weight of its modules, scales included; null for steps without modules. */
  bitsPerWeight: number | null;
}

export interface Plan {
  model: string;
  parameters: number;
  /** All parameters in f32. */
  sourceBytes: number;
  outputBytes: number;
  bitsPerWeight: { linears: number; whole: number };
  cacheBytesPerToken: number;
  /** Estimate of the peak resident memory of `compress`. */
  peakBytes: number;
  flops: number;
  /** flops at `ASSUMED_FLOPS` a thread: the order of magnitude. */
  seconds: number;
  /** Where calibration text comes from, or null when no step needs any. */
  calibration: string | null;
  steps: PlannedStep[];
  recipe: Record<string, unknown>;
  warnings: string[];
}

/** What one thread of a present-day processor does in these loops, floating-point operations per second. */
const ASSUMED_FLOPS = 20e9;
/** The process itself: Node, code, buffers of the kernels. */
const PROCESS_BYTES = 150 * 2 ** 20;

/** @throws RecipeError for a recipe that does not fit the model, ResourceError when memory cannot suffice */
export async function plan(
  source: string,
  recipe: Recipe,
  options: { onProgress?: OnProgress; signal?: AbortSignal } = {},
): Promise<Plan> {
  const model = await loadModel(source, options);
  try {
    const result = await planModel(model, recipe);
    if (result.peakBytes > totalmem()) {
      throw new ResourceError(
        `about ${formatBytes(result.peakBytes)} of memory are needed, this machine has ${formatBytes(totalmem())}`,
        { hint: "Use fewer --samples or a smaller --seqlen, or a larger machine." },
        "memory",
      );
    }
    return result;
  } finally {
    await model.close();
  }
}

/**
 * Refuses a recipe whose estimated peak is above a limit.
 * @throws ResourceError code "memory" that says what would help
 */
export async function checkMemory(
  source: string,
  recipe: Recipe,
  maxBytes: number,
  options: { signal?: AbortSignal } = {},
): Promise<void> {
  const { peakBytes, calibration } = await plan(source, recipe, options);
  if (peakBytes <= maxBytes) return;
  throw new ResourceError(
    `about ${formatBytes(peakBytes)} of memory are needed, --max-memory allows ${formatBytes(maxBytes)}`,
    {
      hint: calibration
        ? "Use fewer --samples or a smaller --seqlen; their hidden states are what grows."
        : "Blocks are already read one by one; the artifact itself must fit.",
    },
    "memory",
  );
}

/** The plan of a loaded model. Transforms, activations and cache of the recipe are recorded in `model`. */
export async function planModel(model: Model, recipe: Recipe): Promise<Plan> {
  const warnings: string[] = [];
  const log = (message: string) => warnings.push(message);
  const apply = (method: ModelMethod<unknown>, options: unknown, target: Model) =>
    method.apply(target, options, { rng: new Philox(recipe.seed, method.id), log });
  for (const step of stepsOf(recipe, "transform")) {
    await apply(step.method as ModelMethod<unknown>, step.options, model);
  }
  const specs = [...model.parameters.values()].map((parameter) => parameter.spec);
  const assignments = assignModules(recipe, specs);
  await applyActivations(model, recipe, apply, log);
  for (const step of stepsOf(recipe, "kv")) {
    await apply(step.method as ModelMethod<unknown>, step.options, model);
  }

  const byPath = new Map(assignments.map((assignment) => [assignment.spec.path, assignment]));
  const linears = { bits: 0, count: 0 };
  let [outputBits, parameters, peakSolver, flops] = [0, 0, 0, 0];
  for (const { spec, bias } of model.parameters.values()) {
    const count = elements(spec);
    const bits = storedBits(spec, byPath.get(spec.path));
    parameters += count;
    outputBits += bits + (bias ? (spec.shape[0] ?? 0) * 32 : 0);
    if (spec.kind === "linear") {
      linears.bits += bits;
      linears.count += count;
    }
  }
  const { budget } = recipe;
  if (budget && !budget.bits) {
    // Not allocated yet: the allocation will use what the budget allows.
    const allowed = budget.bitsPerWeight * linears.count;
    outputBits += allowed - linears.bits;
    linears.bits = allowed;
  }
  for (const { spec, method, options } of assignments) {
    const cost = method.estimate(matrix(spec), options);
    peakSolver = Math.max(peakSolver, cost.peakBytes + elements(spec) * 4);
    flops += cost.flops;
  }
  const measures = budget !== null && budget.bits === null && budget.sensitivity === null;
  const calibrated =
    measures ||
    assignments.some(({ method, options }) => method.needs(options).calibration) ||
    recipe.steps.some(
      ({ method, options }) => method.kind === "scaling" && method.needs(options).calibration,
    );
  const { file, samples, seqlen } = recipe.calibration;
  const tokens = calibrated ? samples * seqlen : 0;
  // Statistics and propagation: two passes over the blocks. Self-written text costs one more over the whole model.
  flops += 2 * linears.count * tokens * 2 + (file === null ? 2 * parameters * tokens : 0);
  // One run of 512 tokens a layer, and the reference beside each.
  if (measures) flops += 2 * parameters * 512 * (model.config.numHiddenLayers * 2 + 1);
  const outputBytes = Math.ceil(outputBits / 8);
  const block = blockBytes(specs);
  const hidden = tokens * model.config.hiddenSize * 4;
  const writing = calibrated && file === null ? parameters * 4 : 0;
  const working = outputBytes + 2 * block + peakSolver + 2 * hidden;
  const kv = resolveKv(model.kv ?? kvPreset("fp32"), model.config);
  const seconds = flops / (ASSUMED_FLOPS * defaultThreads());
  return {
    model: model.source.id,
    parameters,
    sourceBytes: parameters * 4,
    outputBytes,
    bitsPerWeight: {
      linears: linears.count > 0 ? linears.bits / linears.count : 0,
      whole: outputBits / parameters,
    },
    cacheBytesPerToken: (kvBytes(kv, model.config, 64) - kvBytes(kv, model.config, 32)) / 32,
    peakBytes: PROCESS_BYTES + Math.max(working, writing),
    flops,
    seconds,
    calibration: calibrated
      ? `${samples} windows of ${seqlen} tokens, ${file === null ? "written by the model" : file}`
      : null,
    steps: recipe.steps.map(({ method }, index) => {
      const own = assignments.filter(({ step }) => step === index);
      const bits = own.reduce((sum, one) => sum + storedBits(one.spec, one), 0);
      const count = own.reduce((sum, one) => sum + elements(one.spec), 0);
      return {
        id: method.id,
        kind: method.kind,
        modules: own.length,
        bitsPerWeight: count > 0 ? bits / count : null,
      };
    }),
    recipe: recipeToJson(recipe),
    warnings,
  };
}

function elements(spec: ParameterSpec): number {
  return spec.shape.reduce((product, size) => product * size, 1);
}

function matrix(spec: ParameterSpec): { n: number; k: number } {
  const [n = 1, k = 1] = spec.shape;
  return { n, k };
}

/** Largest decoder block in f32. */
function blockBytes(specs: readonly ParameterSpec[]): number {
  const layers = new Map<number, number>();
  for (const spec of specs) {
    if (spec.layer === null) continue;
    layers.set(spec.layer, (layers.get(spec.layer) ?? 0) + elements(spec) * 4);
  }
  return Math.max(0, ...layers.values());
}
