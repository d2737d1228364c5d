/** `nibble sensitivity`: what quantizing each layer and each module alone costs; JSON for bit allocation, pictures. */
import { writeFileAtomic } from "../../core/atomic-write.js";
import { UsageError } from "../../core/errors.js";
import { readTextFile } from "../../core/text-file.js";
import { defined, type EngineFlags, engineOptions, integer } from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  ppl: string;
  tokens: number;
  bits: number;
  groupSize: number;
  kl: boolean;
  output?: string;
  plot?: string;
}

export const sensitivity = defineVerb<Options>({
  name: "sensitivity",
  summary: "measure what quantizing each layer alone costs",
  examples: [
    "nibble sensitivity smollm2-135m --ppl text.txt -o sensitivity.json --plot sensitivity.html",
    "nibble sensitivity smollm2-135m --ppl text.txt --bits 3 --no-kl",
  ],
  resumable: true,
  define(command) {
    command
      .argument("<model>", "original (unquantized) model")
      .requiredOption("--ppl <file>", "text that runs through the model")
      .option(
        "--tokens <n>",
        "tokens of the text that are used; above 512 whole windows of 512",
        integer("--tokens", 16, 8192),
        512,
      )
      .option("--bits <n>", "width of the rounded layer", integer("--bits", 2, 8), 4)
      .option(
        "--group-size <n>",
        "group size (0: one scale a row)",
        integer("--group-size", 0),
        128,
      )
      .option("--no-kl", "output errors only: one pass instead of one run a layer and role")
      .option(
        "-o, --output <file>",
        "write the result as JSON (its `sensitivities` feed bit allocation)",
      )
      .option("--plot <file>", "write pictures as one HTML file");
    engineOptions(command);
  },
  async run({ onProgress, signal }, [model = ""], options) {
    const { loadModel } = await import("../../runtime/load-model.js");
    const { Tokenizer } = await import("../../model/tokenizer.js");
    const { measureSensitivity } = await import("../../eval/measure-sensitivity.js");
    const { sensitivityPictures } = await import("../../eval/pictures.js");
    const { figure, htmlPage } = await import("../../eval/report-html.js");
    const text = await readTextFile(options.ppl);
    const loaded = await loadModel(model, { onProgress, signal });
    try {
      if (!loaded.files.has("tokenizer.json")) {
        throw new UsageError("this model has no tokenizer, so no text can run through it");
      }
      const ids = Tokenizer.fromFiles(loaded.files)
        .encode(text, { special: true })
        .slice(0, options.tokens);
      if (ids.length < 2) throw new UsageError("the text has fewer than two tokens");
      const groupSize = options.groupSize === 0 ? "channel" : options.groupSize;
      const result = await measureSensitivity(loaded, ids, {
        bits: options.bits,
        groupSize,
        kl: options.kl,
        backend: options.backend,
        onProgress,
        signal,
        ...defined({ threads: options.threads }),
      });
      const { modules, kl } = result;
      if (options.output !== undefined) {
        await writeFileAtomic(options.output, `${JSON.stringify(result, null, 1)}\n`);
      }
      if (options.plot !== undefined) {
        const again = `nibble sensitivity ${model} --ppl ${options.ppl} --tokens ${result.tokens} --bits ${options.bits} --group-size ${options.groupSize}${options.kl ? "" : " --no-kl"}`;
        const body = sensitivityPictures(result, loaded.source.id).map(({ svg }) =>
          figure(svg, again),
        );
        await writeFileAtomic(
          options.plot,
          htmlPage(`Sensitivity of ${loaded.source.id}`, body.join("\n")),
        );
      }
      const worst = [...modules]
        .sort((a, b) => (b.error[options.bits] ?? 0) - (a.error[options.bits] ?? 0))
        .slice(0, 8);
      return {
        result,
        text: [
          ...(kl
            ? [
                table([
                  ["layer", "KL (nats a token)", "Δ NLL"],
                  ...[...kl]
                    .sort((a, b) => b.kl - a.kl)
                    .slice(0, 8)
                    .map((row) => [
                      String(row.layer),
                      row.kl.toExponential(2),
                      row.deltaNll.toFixed(4),
                    ]),
                ]),
                "",
              ]
            : []),
          table([
            ["module", "output error"],
            ...worst.map((m) => [m.path, `${(100 * (m.error[options.bits] ?? 0)).toFixed(2)} %`]),
          ]),
        ].join("\n"),
      };
    } finally {
      await loaded.close();
    }
  },
});
