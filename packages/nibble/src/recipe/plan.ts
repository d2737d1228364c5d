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
import { type MemoryPlan, planMemory } from "./memory-plan.js";
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
  /** Estimate of the peak resident memory of `compress`, without a limit. */
  peakBytes: number;
  /** The same with its cause, the smallest peak that --max-memory can be met with, and what that puts on disk. */
  memory: MemoryPlan;
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

/** @throws RecipeError for a recipe that does not fit the model, ResourceError when memory cannot suffice */
export async function plan(
  source: string,
  recipe: Recipe,
  options: { onProgress?: OnProgress; signal?: AbortSignal } = {},
): Promise<Plan> {
  const model = await loadModel(source, options);
  try {
    const result = await planModel(model, recipe);
    const { smallest } = result.memory;
    if (smallest.bytes > totalmem()) {
      throw new ResourceError(
        `about ${formatBytes(smallest.bytes)} of memory are needed at least (${smallest.name}), this machine has ${formatBytes(totalmem())}`,
        { hint: "Use cheaper methods, or a larger machine." },
        "memory",
      );
    }
    return result;
  } finally {
    await model.close();
  }
}

/**
 * Whether a run must keep on disk what it can to stay within a limit. `model` is not changed.
 * @throws ResourceError code "memory" when even that is not enough, with the smallest limit that is
 */
export async function fitMemory(
  model: Model,
  recipe: Recipe,
  maxBytes: number,
): Promise<{ lean: boolean; memory: MemoryPlan }> {
  const parameters = new Map([...model.parameters].map(([path, own]) => [path, { ...own }]));
  const copy: Model = {
    ...model,
    parameters,
    transforms: [...model.transforms],
    activationOverrides: new Map(model.activationOverrides),
  };
  const { memory } = await planModel(copy, recipe);
  if (memory.peak.bytes <= maxBytes) return { lean: false, memory };
  if (memory.smallest.bytes <= maxBytes) return { lean: true, memory };
  const least = Math.ceil(memory.smallest.bytes / 2 ** 20);
  throw new ResourceError(
    `--max-memory allows ${formatBytes(maxBytes)}; with everything on disk that can be, ${memory.smallest.name} takes about ${least} MiB`,
    {
      hint: `Allow --max-memory ${least}MiB, or take a recipe with cheaper methods (nibble plan shows both peaks).`,
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
  let [outputBits, parameters, flops] = [0, 0, 0];
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
    flops += method.estimate(matrix(spec), options).flops;
  }
  const scalings = recipe.steps.flatMap(({ method, options }) =>
    method.kind === "scaling" ? [method.needs(options)] : [],
  );
  const measures = budget !== null && budget.bits === null && budget.sensitivity === null;
  const calibrated =
    measures ||
    assignments.some(({ method, options }) => method.needs(options).calibration) ||
    scalings.some(({ calibration }) => calibration);
  const { file, samples, seqlen } = recipe.calibration;
  const tokens = calibrated ? samples * seqlen : 0;
  // Statistics and propagation: two passes over the blocks. Self-written text costs one more over the whole model.
  flops += 2 * linears.count * tokens * 2 + (file === null ? 2 * parameters * tokens : 0);
  // One run of 512 tokens a layer, and the reference beside each.
  if (measures) flops += 2 * parameters * 512 * (model.config.numHiddenLayers * 2 + 1);
  const outputBytes = Math.ceil(outputBits / 8);
  const memory = planMemory({
    config: model.config,
    parameters: specs.map((spec) => ({ spec, assignment: byPath.get(spec.path) })),
    scales: {
      calibration: scalings.some((needs) => needs.calibration),
      hessian: scalings.some((needs) => needs.hessian),
    },
    calibration: calibrated ? { samples, seqlen, written: file === null } : null,
    measures,
  });
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
    peakBytes: memory.peak.bytes,
    memory,
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
