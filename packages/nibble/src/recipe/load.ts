/** From what the user names (a file, a preset, an object) and the flags beside it to a resolved recipe. */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { RecipeError, UsageError } from "../core/errors.js";
import { getPreset } from "./presets.js";
import { resolveRecipe } from "./resolve.js";
import type { Recipe, RecipeInput } from "./schema.js";
import { parseRecipeText, type RecipeSource, treeSource, withFlags } from "./source.js";

export interface RecipeFlags {
  /** Path of a YAML or JSON file. */
  recipe?: string | undefined;
  preset?: string | undefined;
  /** `key=value`, in order. */
  set?: readonly string[] | undefined;
  /** `pattern=value`, in order; before the recipe's own. */
  override?: readonly string[] | undefined;
  seed?: number | undefined;
  calibration?: string | undefined;
  samples?: number | undefined;
  seqlen?: number | undefined;
  /** Stored bits per weight of the linears: widths are allocated module by module. */
  targetBpw?: number | undefined;
  /** JSON of `nibble sensitivity` that the allocation uses; without it the sensitivity is measured. */
  sensitivity?: string | undefined;
}

/** @throws UsageError unless exactly one of recipe and preset is given; RecipeError for what is wrong inside. */
export async function loadRecipe(flags: RecipeFlags): Promise<Recipe> {
  return applyRunFlags(resolveRecipe(withFlags(await sourceOf(flags), flags)), flags);
}

/** A recipe given as an object, by the same rules. */
export function recipeFromObject(input: RecipeInput, flags: RecipeFlags = {}): Recipe {
  return applyRunFlags(resolveRecipe(withFlags(treeSource(input, "recipe"), flags)), flags);
}

/** The options of a kv step, as a flag gives them. @throws RecipeError whose place is the key behind the flag */
export function kvFromFlag(value: unknown, flag: string): unknown {
  const place = (path: readonly (string | number)[]) => [flag, ...path.slice(3)].join(".");
  const { steps } = resolveRecipe({ tree: { version: 1, steps: [{ kv: value }] }, place });
  return steps[0]?.options;
}

async function sourceOf(flags: RecipeFlags): Promise<RecipeSource> {
  if (flags.recipe !== undefined && flags.preset !== undefined) {
    throw new UsageError("both --recipe and --preset are given", {
      hint: "A preset is a recipe: use one, and --set for what differs.",
    });
  }
  if (flags.preset !== undefined) {
    return treeSource(getPreset(flags.preset).recipe, `preset ${flags.preset}`);
  }
  if (flags.recipe === undefined) {
    throw new UsageError("what to do is missing", {
      hint: "Give --preset quarot-w4a8kv4 (see: nibble list presets) or --recipe file.yaml.",
    });
  }
  let text: string;
  try {
    text = await readFile(flags.recipe, "utf8");
  } catch (cause) {
    throw new RecipeError(`the recipe file cannot be read`, {
      place: flags.recipe,
      hint: "Check the path; presets are named with --preset.",
      cause,
    });
  }
  return parseRecipeText(text, flags.recipe);
}

/** Flags win over the recipe. */
function applyRunFlags(recipe: Recipe, flags: RecipeFlags): Recipe {
  const { calibration } = recipe;
  const bitsPerWeight = flags.targetBpw ?? recipe.budget?.bitsPerWeight;
  if (flags.sensitivity !== undefined && bitsPerWeight === undefined) {
    throw new UsageError("--sensitivity allocates bits under a budget, and there is none", {
      hint: "Add --target-bpw 4.5.",
    });
  }
  const changed = flags.targetBpw !== undefined || flags.sensitivity !== undefined;
  return {
    ...recipe,
    budget:
      changed && bitsPerWeight !== undefined
        ? {
            bitsPerWeight,
            sensitivity: flags.sensitivity ?? recipe.budget?.sensitivity ?? null,
            bits: null,
          }
        : recipe.budget,
    seed: flags.seed ?? recipe.seed,
    calibration: {
      file: flags.calibration ?? calibration.file,
      samples: flags.samples ?? calibration.samples,
      seqlen: flags.seqlen ?? calibration.seqlen,
    },
  };
}

/** The resolved recipe as data, the way an artifact stores it: every default written out, no folders of this machine. */
export function recipeToJson(recipe: Recipe): Record<string, unknown> {
  const { calibration, budget, eval: evaluation } = recipe;
  return {
    version: recipe.version,
    seed: recipe.seed,
    calibration: {
      ...calibration,
      file: calibration.file === null ? null : basename(calibration.file),
    },
    steps: recipe.steps.map((step) => ({ [step.method.id]: step.options })),
    overrides: recipe.overrides.map(({ match, values }) => ({ match, ...values })),
    ...(budget
      ? {
          budget: {
            bitsPerWeight: budget.bitsPerWeight,
            ...(budget.sensitivity ? { sensitivity: basename(budget.sensitivity) } : {}),
            ...(budget.bits ? { bits: budget.bits } : {}),
          },
        }
      : {}),
    ...(evaluation
      ? { eval: { ...evaluation, ...(evaluation.ppl ? { ppl: basename(evaluation.ppl) } : {}) } }
      : {}),
  };
}
