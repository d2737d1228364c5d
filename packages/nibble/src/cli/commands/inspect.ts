/** `nibble inspect`: what a model or a weight file holds; reads headers only. */
import { stat } from "node:fs/promises";
import { writeFileAtomic } from "../../core/atomic-write.js";
import { UsageError } from "../../core/errors.js";
import { formatBytes, formatCount } from "../../core/memory.js";
import { readTextFile } from "../../core/text-file.js";
import { defined, type EngineFlags, engineOptions, integer } from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  plot?: string;
  text?: string;
  layer?: number;
  tokens: number;
}

export const inspect = defineVerb<Options>({
  name: "inspect",
  summary: "show architecture, tensors and bits per weight",
  examples: [
    "nibble inspect smollm2-135m",
    "nibble inspect small --json",
    "nibble inspect weights.safetensors",
    "nibble inspect smollm2-135m --plot pictures.html --text text.txt",
  ],
  define(command) {
    command
      .argument("<model>", "model, .gguf or .safetensors file")
      .option(
        "--plot <file>",
        "draw outliers (of an original model before and after rotation), weights and cache errors (HTML)",
      )
      .option("--text <file>", "text that runs through the model for --plot")
      .option("--layer <n>", "layer to draw (default: the middle one)", integer("--layer", 0))
      .option("--tokens <n>", "tokens of the text", integer("--tokens", 16, 512), 256);
    engineOptions(command);
  },
  async run({ onProgress, signal, output }, [name = ""], options) {
    const { plot, text, layer, tokens } = options;
    if (plot !== undefined && text === undefined) {
      throw new UsageError("--plot needs a text to run through the model", {
        hint: "Add --text text.txt.",
      });
    }
    const { inspectFile, inspectModel } = await import("../../runtime/inspect.js");
    const isFile = name.endsWith(".safetensors") && (await stat(name)).isFile();
    const report = isFile
      ? await inspectFile(name)
      : await inspectModel(name, { onProgress, signal });
    for (const warning of report.warnings) output.warn(warning);
    if (plot !== undefined && text !== undefined) {
      const { modelPictures } = await import("../../eval/model-pictures.js");
      const { figure, htmlPage } = await import("../../eval/report-html.js");
      const pictures = await modelPictures(name, {
        text: await readTextFile(text),
        tokens,
        onProgress,
        signal,
        backend: options.backend,
        ...defined({ layer, threads: options.threads }),
      });
      const again = `nibble inspect ${name} --plot ${plot} --text ${text} --tokens ${tokens}${layer === undefined ? "" : ` --layer ${layer}`}`;
      const body = pictures.map(({ svg }) => figure(svg, again)).join("\n");
      await writeFileAtomic(plot, htmlPage(`Pictures of ${name}`, body));
      output.log(`${pictures.length} pictures in ${plot}`);
    }
    return {
      result: report,
      text: [
        table(
          Object.entries(report.facts)
            .filter(([key]) => key !== "recipe") // long: --json has it
            .map(([key, value]) => [
              key,
              typeof value === "object" ? JSON.stringify(value) : String(value),
            ]),
        ),
        "",
        table([
          ["tensor", "stored as", "shape", "bits/weight", "size"],
          ...report.tensors.map((tensor) => [
            tensor.name,
            tensor.type,
            `[${tensor.shape.join(", ")}]`,
            tensor.bitsPerWeight.toFixed(3),
            formatBytes(tensor.bytes),
          ]),
        ]),
        "",
        `${formatCount(report.parameters)} parameters, ${formatBytes(report.bytes)}, ${report.bitsPerWeight.whole.toFixed(3)} bits per weight` +
          (report.bitsPerWeight.linears === null
            ? ""
            : ` (${report.bitsPerWeight.linears.toFixed(3)} in linears)`) +
          (report.format === null ? "" : `, ${report.format}`),
      ].join("\n"),
    };
  },
});
