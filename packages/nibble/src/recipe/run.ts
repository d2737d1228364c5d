/**
 * `compress`: a model and a recipe in, an artifact out. Transforms are recorded as folds, weights are read, solved and
 * saved layer by layer, the artifact is written beside its place and renamed.
 */
import { createHash } from "node:crypto";
import { resolve } from "node:path";
import { temporary } from "../core/atomic-write.js";
import { ModelError } from "../core/errors.js";
import { defaultThreads, formatBytes, peakRssBytes } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { Philox } from "../core/rng.js";
import { VERSION } from "../core/version.js";
import { saveArtifact, saveReport } from "../formats/nibble.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import type { ModelMethod, ScalingMethod } from "../methods/contract.js";
import type { Model } from "../model/model.js";
import { BlockRunner } from "../observers/block-runner.js";
import { createKernelLinalg } from "../observers/kernel-linalg.js";
import { loadModel } from "../runtime/load-model.js";
import { applyActivations, assignModules, stepsOf } from "./assign.js";
import { allocateBudget, measureSensitivities } from "./budget.js";
import { calibrationWindows } from "./calibration-windows.js";
import { recipeToJson } from "./load.js";
import { spilledText } from "./memory-plan.js";
import { fitMemory } from "./plan.js";
import { quantizeModel, type SolveRecord } from "./quantize-model.js";
import { type DiskState, fingerprint, noState, openDiskState, openStateFolder } from "./resume.js";
import type { Recipe } from "./schema.js";

export interface CompressOptions {
  /** Folder of the artifact. */
  output: string;
  backend?: "auto" | BackendId;
  threads?: number;
  /** Keep solved layers under NIBBLE_HOME so that a killed run continues; default true. */
  resume?: boolean;
  /**
   * Bytes that the process may use. When the plan needs more, hidden states of the calibration text and solved tensors
   * are kept on disk beside the output; the artifact is the same to the byte. A model that was given as an object cannot
   * read its quantized weights any more after such a run: open the artifact.
   */
  maxMemory?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

export interface CompressResult {
  output: string;
  sha256: string;
  bitsPerWeight: { linears: number; whole: number };
  bytes: number;
  parameters: number;
  seconds: number;
  peakBytes: number;
  backend: string;
  calibration: { tokens: number; source: string } | null;
  layers: SolveRecord[];
}

/**
 * @throws RecipeError, ModelError, NumericError, ResourceError (also when `maxMemory` is too small) naming place and next step; InterruptedError after an
 * abort, with every finished layer saved
 */
export async function compress(
  source: string | Model,
  written: Recipe,
  options: CompressOptions,
): Promise<CompressResult> {
  let recipe = written;
  const started = performance.now();
  const onProgress = options.onProgress ?? (() => {});
  const log = (message: string, level: "info" | "warn" = "info") =>
    onProgress({ type: "log", level, message });
  const output = resolve(options.output);
  const threads = options.threads ?? defaultThreads();
  const model =
    typeof source === "string"
      ? await loadModel(source, {
          onProgress,
          ...(options.signal ? { signal: options.signal } : {}),
        })
      : source;
  let unresumed: DiskState | null = null;
  try {
    if ([...model.parameters.values()].some((p) => "quant" in p.weight)) {
      throw new ModelError(`${model.source.id} is already quantized`, {
        hint: "compress the original model; quantizing twice only adds error",
      });
    }
    let lean = false;
    if (options.maxMemory !== undefined) {
      const fit = await fitMemory(model, recipe, options.maxMemory);
      lean = fit.lean;
      if (lean)
        log(`on disk to stay within ${formatBytes(options.maxMemory)}: ${spilledText(fit.memory)}`);
    }
    const backend = await selectBackend(options.backend ?? "auto", (line) => log(line));
    const status = await backend.status();
    const backendName = `${backend.id} ${status.variant ?? ""}`.trim();

    await applyTransforms(model, recipe, log);
    const specs = [...model.parameters.values()].map((p) => p.spec);
    let windows: Int32Array[] | null = null;
    const calibrate = async () =>
      (windows ??= await calibrationWindows(
        model,
        { ...recipe.calibration, seed: recipe.seed },
        { ...options, threads, onProgress },
      ));
    recipe = await allocateBudget(recipe, specs, async () =>
      measureSensitivities(model, {
        id: fingerprint({
          model: await model.source.sha256(),
          transforms: recipeToJson({ ...recipe, steps: stepsOf(recipe, "transform") }),
          calibration: hashTokens(await calibrate()),
          backend: backendName,
          version: VERSION,
        }),
        windows: await calibrate(),
        backend,
        threads,
        onProgress,
        ...(options.signal ? { signal: options.signal } : {}),
      }),
    );
    const assignments = new Map(
      assignModules(recipe, specs).map(({ spec, method, options: own }) => [
        spec.path,
        { method, options: own },
      ]),
    );
    await applyModelSteps(model, recipe, log);

    const scalings = stepsOf(recipe, "scaling").map(({ method, options: own }) => ({
      method: method as ScalingMethod<unknown>,
      options: own,
    }));
    const calibrates = [...assignments.values(), ...scalings].some(
      (a) => a.method.needs(a.options).calibration,
    );
    const tokens = calibrates ? await calibrate() : [];
    const recipeJson = recipeToJson(recipe);
    const id = fingerprint({
      model: await model.source.sha256(),
      recipe: recipeJson,
      calibration: hashTokens(tokens),
      backend: backendName,
      version: VERSION,
    });
    const warn = (line: string) => log(line, "warn");
    const beside = temporary(output);
    const state =
      options.resume !== false
        ? await openDiskState(id, warn)
        : lean
          ? await openStateFolder(`${beside}-solved`, warn)
          : null;
    if (options.resume === false) unresumed = state;
    const linalg = await createKernelLinalg(backend, threads, largestShape(model));
    let layers: SolveRecord[];
    try {
      layers = await quantizeModel(model, {
        assignments,
        scalings,
        seed: recipe.seed,
        linalg,
        createRunner: (keepOriginal) =>
          BlockRunner.create(model, {
            keepOriginal,
            backend,
            threads,
            windows: tokens,
            cache: (tokens, sequences) =>
              planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
            ...(lean ? { spillTo: `${beside}-hidden` } : {}),
            ...(options.signal ? { signal: options.signal } : {}),
          }),
        state: state ?? noState,
        lean,
        onProgress,
        ...(options.signal ? { signal: options.signal } : {}),
      });
    } finally {
      await linalg.dispose();
    }
    onProgress({ type: "step", stage: "writing", item: 0, total: 1, name: "artifact" });
    const saved = await saveArtifact(output, model, {
      version: VERSION,
      backend: backendName,
      recipe: recipeJson,
      seed: recipe.seed,
    });
    const result: CompressResult = {
      output,
      ...saved,
      seconds: (performance.now() - started) / 1000,
      peakBytes: peakRssBytes(),
      backend: backendName,
      calibration: calibrates
        ? {
            tokens: tokens.length * (tokens[0]?.length ?? 0),
            source: recipe.calibration.file ? "file" : "written by the model",
          }
        : null,
      layers,
    };
    const { output: _place, ...measured } = result;
    await saveReport(output, { version: VERSION, ...measured });
    await state?.remove();
    onProgress({ type: "step", stage: "writing", item: 1, total: 1, name: "artifact" });
    return result;
  } finally {
    await unresumed?.remove();
    if (typeof source === "string") await model.close();
  }
}

/** Transforms in recipe order; they record folds and read nothing. */
async function applyTransforms(
  model: Model,
  recipe: Recipe,
  log: (line: string) => void,
): Promise<void> {
  for (const [index, step] of stepsOf(recipe, "transform").entries()) {
    const method = step.method as ModelMethod<unknown>;
    await method.apply(model, step.options, {
      rng: new Philox(recipe.seed, `${method.id}:${index}`),
      log,
    });
  }
}

/** Activation quantizers and cache recipe. */
async function applyModelSteps(
  model: Model,
  recipe: Recipe,
  log: (line: string) => void,
): Promise<void> {
  const apply = (method: ModelMethod<unknown>, options: unknown, target: Model) =>
    method.apply(target, options, { rng: new Philox(recipe.seed, method.id), log });
  await applyActivations(model, recipe, apply, log);
  for (const step of stepsOf(recipe, "kv")) {
    await apply(step.method as ModelMethod<unknown>, step.options, model);
  }
}

function hashTokens(windows: Int32Array[]): string {
  const hash = createHash("sha256");
  for (const window of windows)
    hash.update(new Uint8Array(window.buffer, window.byteOffset, window.byteLength));
  return hash.digest("hex");
}

/** Rows and columns of the largest linear of a block: what the solvers' linear algebra must hold. */
function largestShape(model: Model): { n: number; k: number } {
  let n = 1;
  let k = 1;
  for (const { spec } of model.parameters.values()) {
    if (spec.kind !== "linear") continue;
    n = Math.max(n, spec.shape[0] ?? 1);
    k = Math.max(k, spec.shape[1] ?? 1);
  }
  return { n, k };
}
