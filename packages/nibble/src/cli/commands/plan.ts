/** `nibble plan`: checks a recipe against a model and estimates size, memory and time; reads no weights. */
import { formatBytes, formatCount, formatSeconds } from "../../core/memory.js";
import { type RecipeOptions, recipeOptions } from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

export const plan = defineVerb<RecipeOptions>({
  name: "plan",
  summary: "check a recipe and estimate size, memory and time",
  examples: [
    "nibble plan smollm2-135m --preset quarot-w4a4kv4",
    "nibble plan ./model --recipe recipe.yaml --set steps.gptq.bits=3",
  ],
  define(command) {
    command.argument("<model>", "model to compress");
    recipeOptions(command);
  },
  async run({ output, onProgress, signal }, [model = ""], options) {
    const { loadRecipe } = await import("../../recipe/load.js");
    const recipe = await loadRecipe(options);
    const { plan: planRecipe } = await import("../../recipe/plan.js");
    const { spilledText } = await import("../../recipe/memory-plan.js");
    const result = await planRecipe(model, recipe, { onProgress, signal });
    for (const warning of result.warnings) output.warn(warning);
    return {
      result,
      text: [
        table([
          ["step", "kind", "modules", "bits/weight"],
          ...result.steps.map((step) => [
            step.id,
            step.kind,
            step.modules === 0 ? "" : step.modules,
            step.bitsPerWeight === null ? "" : step.bitsPerWeight.toFixed(3),
          ]),
        ]),
        "",
        table([
          ["parameters", formatCount(result.parameters)],
          ["source", formatBytes(result.sourceBytes)],
          [
            "artifact",
            `${formatBytes(result.outputBytes)}, ${result.bitsPerWeight.whole.toFixed(3)} bits per weight`,
          ],
          ["linears", `${result.bitsPerWeight.linears.toFixed(3)} bits per weight`],
          ["cache", `${formatBytes(result.cacheBytesPerToken)} per token`],
          ["peak memory", `about ${formatBytes(result.peakBytes)} (${result.memory.peak.name})`],
          [
            "with --max-memory",
            `down to ${formatBytes(result.memory.smallest.bytes)} (${result.memory.smallest.name})`,
          ],
          ["then on disk", spilledText(result.memory)],
          ["time", `about ${formatSeconds(result.seconds)} (${formatCount(result.flops)}FLOP)`],
          ["calibration", result.calibration ?? "not needed"],
        ]),
      ].join("\n"),
    };
  },
});
