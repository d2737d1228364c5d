/** The `eval` part of a recipe: measures the artifact that was saved, compares with the source, checks the gates. */

import { GateError, RecipeError } from "../core/errors.js";
import { readTextFile } from "../core/text-file.js";
import { type MeasureOptions, measureText, type TextMeasures } from "../eval/measure.js";
import type { Recipe } from "./schema.js";

export interface EvaluateRecipeOptions extends MeasureOptions {
  /** Folder of the artifact. */
  artifact: string;
  /** The model it was made from. */
  source: string;
}

export interface RecipeQuality extends TextMeasures {
  /** Of the source, when a reference or a ratio is asked for. */
  sourcePerplexity?: number;
  pplRatio?: number;
}

/**
 * Null when the recipe asks for nothing.
 * @throws GateError (exit code 5) naming gate, value and bound; the artifact is kept
 */
export async function evaluateRecipe(
  recipe: Recipe,
  options: EvaluateRecipeOptions,
): Promise<RecipeQuality | null> {
  const { eval: wanted } = recipe;
  if (!wanted) return null;
  const { ppl, ctx, windows, reference, gates } = wanted;
  if (ppl === undefined) {
    throw new RecipeError("eval needs a text", {
      hint: "Add ppl: text.txt to the eval part of the recipe.",
    });
  }
  const text = await readTextFile(ppl);
  const { artifact, source, ...measure } = options;
  const shared = { ...measure, ctx, ...(windows === undefined ? {} : { windows }) };
  const needsReference = reference || gates.kl !== undefined;
  const quality: RecipeQuality = await measureText(artifact, text, {
    ...shared,
    ...(needsReference ? { reference: source } : {}),
  });
  if (gates.pplRatio !== undefined || reference) {
    const { perplexity } = await measureText(source, text, shared);
    quality.sourcePerplexity = perplexity;
    quality.pplRatio = quality.perplexity / perplexity;
  }
  for (const gate of ["pplRatio", "kl"] as const) {
    const bound = gates[gate];
    const value = quality[gate];
    if (bound === undefined || value === undefined || value <= bound) continue;
    throw new GateError(`quality gate ${gate}: ${value.toFixed(4)} exceeds ${bound}`, {
      hint: "The artifact was kept. Use more bits or smaller groups, or raise the gate.",
    });
  }
  return quality;
}
