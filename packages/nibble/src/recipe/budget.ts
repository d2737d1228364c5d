/**
 * Mixed precision of a recipe: which width each module gets so that all linears together stay within the budget. The
 * losses come from a file of `nibble sensitivity`, or are measured on the model as it is after its transforms: KL of each
 * layer and of each role rounded alone, shared out among the modules.
 */
import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";
import { writeFileAtomic } from "../core/atomic-write.js";
import { RecipeError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import type { OnProgress } from "../core/progress.js";
import { outputErrors, shareOut, WIDTHS } from "../eval/layer-error.js";
import { roundingLosses } from "../eval/rounding-loss.js";
import { allocateBits, type Sensitivity } from "../eval/sensitivity.js";
import type { Backend, BackendId } from "../kernels/contract.js";
import type { Model } from "../model/model.js";
import type { ParameterSpec } from "../model/roles.js";
import { type Assignment, assignModules } from "./assign.js";
import { mergedOptions } from "./resolve.js";
import type { Recipe } from "./schema.js";
import { storedBits } from "./stored-bits.js";

/** Tokens that sensitivities are measured on. */
const TOKENS = 512;
/** What is measured; results of another measure have other names. */
const MEASURED = "layers-roles";
/** Width and group size at which the layers are rounded one by one. */
const ROUNDING = { bits: 4, groupSize: 64 } as const;

const schema = z.object({
  sensitivities: z.array(
    z.object({
      path: z.string(),
      weights: z.int().positive(),
      loss: z.record(z.string().regex(/^\d+$/), z.number()),
    }),
  ),
});

/** @throws RecipeError for a file that cannot be read or holds no sensitivities */
async function readSensitivities(file: string): Promise<Sensitivity[]> {
  const hint = "Write it with: nibble sensitivity <model> --ppl text.txt -o sensitivity.json";
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch (cause) {
    throw new RecipeError("the sensitivities cannot be read", { place: file, hint, cause });
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data.sensitivities;
  const [issue] = parsed.error.issues;
  throw new RecipeError(`${issue?.path.join(".")}: ${issue?.message}`, { place: file, hint });
}

export interface MeasuringOptions {
  /** What decides the result beside the recipe, for the file that keeps it. */
  id: string;
  windows: readonly Int32Array[];
  backend: Backend;
  threads: number;
  onProgress: OnProgress;
  signal?: AbortSignal;
}

/** Sensitivities of a model as it is; kept under NIBBLE_HOME, so that a run that is resumed does not measure again. */
export async function measureSensitivities(
  model: Model,
  options: MeasuringOptions,
): Promise<Sensitivity[]> {
  const file = join(nibbleHome(), "sensitivity", `${options.id.slice(0, 32)}-${MEASURED}.json`);
  const known = await readFile(file, "utf8").catch(() => null);
  if (known !== null) {
    const parsed = schema.safeParse(JSON.parse(known));
    if (parsed.success) return parsed.data.sensitivities;
  }
  const ids = options.windows.flatMap((window) => [...window]).slice(0, TOKENS);
  const { backend, threads, onProgress, signal } = options;
  const run = { threads, onProgress, ...(signal ? { signal } : {}) };
  const { bits, groupSize } = ROUNDING;
  const errors = await outputErrors(model, ids, { widths: WIDTHS, groupSize }, { ...run, backend });
  const id: BackendId = backend.id;
  const losses = await roundingLosses(model, ids, { bits, groupSize }, { ...run, backend: id });
  const sensitivities = shareOut(errors, losses, bits);
  await mkdir(dirname(file), { recursive: true });
  await writeFileAtomic(file, `${JSON.stringify({ sensitivities })}\n`);
  return sensitivities;
}

/**
 * The recipe with the bits of each module filled in. Modules keep the bits that an override gives them, and those of steps
 * without a choice of bits (they count against the budget as they are).
 * @param specs parameters of the model after its transforms
 * @throws RecipeError when no module has a choice, UsageError code "target-bpw" when the budget is too small
 */
export async function allocateBudget(
  recipe: Recipe,
  specs: readonly ParameterSpec[],
  measure: () => Promise<Sensitivity[]>,
): Promise<Recipe> {
  const { budget } = recipe;
  if (!budget || budget.bits) return recipe;
  const assignments = assignModules(recipe, specs).filter((a) => a.spec.kind === "linear");
  const byPath = new Map(assignments.map((one) => [one.spec.path, one]));
  const sensitivities = budget.sensitivity
    ? await readSensitivities(budget.sensitivity)
    : await measure();

  const choices = new Map<string, Map<number, unknown>>();
  const open: Sensitivity[] = [];
  for (const { path, loss } of sensitivities) {
    const own = byPath.get(path);
    if (!own || own.bitsGiven) continue;
    const widths = new Map<number, unknown>();
    for (const bits of Object.keys(loss).map(Number)) {
      const options = optionsAt(recipe, own, bits);
      if (options !== null) widths.set(bits, options);
    }
    if (widths.size === 0) continue;
    choices.set(path, widths);
    const usable = Object.fromEntries([...widths.keys()].map((bits) => [bits, loss[bits] ?? 0]));
    open.push({ path, weights: elements(own.spec), loss: usable });
  }
  if (open.length === 0) {
    throw new RecipeError(
      "no module of this recipe has a choice of bits, so a budget has nothing to allocate",
      {
        hint: "Use a step with the option bits (rtn, gptq, awq, hqq), and sensitivities of this model.",
      },
    );
  }
  let [total, fixed, free] = [0, 0, 0];
  for (const spec of specs.filter((one) => one.kind === "linear")) {
    total += elements(spec);
    if (choices.has(spec.path)) free += elements(spec);
    else fixed += storedBits(spec, byPath.get(spec.path));
  }
  const stored = (path: string, bits: number) => {
    const { spec, method } = byPath.get(path) as Assignment;
    const options = choices.get(path)?.get(bits);
    return storedBits(spec, { method, options }) / elements(spec) - bits;
  };
  const bits = allocateBits(open, (budget.bitsPerWeight * total - fixed) / free, stored);
  return { ...recipe, budget: { ...budget, bits: Object.fromEntries(bits) } };
}

/** Options of a module at a width, or null when its method cannot store it. */
function optionsAt(recipe: Recipe, own: Assignment, bits: number): unknown {
  const step = recipe.steps[own.step];
  if (!step || typeof (own.options as { bits?: unknown }).bits !== "number") return null;
  try {
    return mergedOptions({ ...step, written: own.options }, { bits }, "budget");
  } catch (error) {
    if (error instanceof RecipeError) return null;
    throw error;
  }
}

function elements(spec: ParameterSpec): number {
  return spec.shape.reduce((product, size) => product * size, 1);
}
