/** `nibble compress`: a recipe or preset applied to a model, saved as an artifact. */
import { basename } from "node:path";
import { formatBytes, formatCount, formatSeconds, parseBytes } from "../../core/memory.js";
import {
  defined,
  type EngineFlags,
  engineOptions,
  type RecipeOptions,
  recipeOptions,
} from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags, RecipeOptions {
  output: string;
  resume: boolean;
  maxMemory?: number;
}

export const compress = defineVerb<Options>({
  name: "compress",
  summary: "make a model small: rotate, quantize, save",
  examples: [
    "nibble compress smollm2-135m --preset quarot-w4a8kv4 -o small",
    "nibble compress ./model --recipe recipe.yaml --calibration text.txt -o small",
    "nibble compress ./model --preset gptq-w4a16-g128 --override 'layers.0-3.*=8' --set steps.gptq.bits=3 -o small",
  ],
  resumable: true,
  define(command) {
    command.argument("<model>", "model to compress");
    command.requiredOption("-o, --output <dir>", "folder of the artifact");
    recipeOptions(command);
    engineOptions(command);
    command.option(
      "--max-memory <size>",
      "stay within this, e.g. 4GiB: what need not be in memory goes to disk",
      parseBytes,
    );
    command.option("--no-resume", "keep no state of unfinished runs, and use none");
  },
  async run({ onProgress, signal }, [model = ""], options) {
    const { loadRecipe } = await import("../../recipe/load.js");
    const recipe = await loadRecipe(options);
    const { checkOutput } = await import("../../recipe/output.js");
    const { compress: run } = await import("../../recipe/run.js");
    const { evaluateRecipe } = await import("../../recipe/gates.js");
    await checkOutput(options.output);
    const engine = { backend: options.backend, ...defined({ threads: options.threads }) };
    const result = await run(model, recipe, {
      output: options.output,
      resume: options.resume,
      ...defined({ maxMemory: options.maxMemory }),
      onProgress,
      signal,
      ...engine,
    });
    const quality = await evaluateRecipe(recipe, {
      artifact: options.output,
      source: model,
      onProgress,
      signal,
      ...engine,
    });
    const { layers, ...summary } = result;
    const notes = layers.flatMap(({ path, notes: own }) => own.map((note) => `${path}: ${note}`));
    return {
      result: { ...summary, layers, ...(quality ? { eval: quality } : {}) },
      text: table([
        ["saved", `${basename(options.output)} (${formatBytes(result.bytes)})`],
        ["parameters", formatCount(result.parameters)],
        [
          "bits per weight",
          `${result.bitsPerWeight.linears.toFixed(3)} in linears, ${result.bitsPerWeight.whole.toFixed(3)} over all`,
        ],
        ["time", formatSeconds(result.seconds)],
        ["peak memory", formatBytes(result.peakBytes)],
        ["backend", result.backend],
        ["sha256", result.sha256],
        ...(quality?.perplexity === undefined
          ? []
          : [["perplexity", quality.perplexity.toFixed(3)]]),
        ...notes.map((note) => ["note", note]),
      ]),
    };
  },
});
