/** `nibble inspect`: what a model or a weight file holds; reads headers only. */
import { stat } from "node:fs/promises";
import { formatBytes, formatCount } from "../../core/memory.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

export const inspect = defineVerb({
  name: "inspect",
  summary: "show architecture, tensors and bits per weight",
  examples: [
    "nibble inspect smollm2-135m",
    "nibble inspect small --json",
    "nibble inspect weights.safetensors",
  ],
  define(command) {
    command.argument("<model>", "model, .gguf or .safetensors file");
  },
  async run({ onProgress, signal, output }, [name = ""]) {
    const { inspectFile, inspectModel } = await import("../../runtime/inspect.js");
    const isFile = name.endsWith(".safetensors") && (await stat(name)).isFile();
    const report = isFile
      ? await inspectFile(name)
      : await inspectModel(name, { onProgress, signal });
    for (const warning of report.warnings) output.warn(warning);
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
            : ` (${report.bitsPerWeight.linears.toFixed(3)} in linears)`),
      ].join("\n"),
    };
  },
});
