/** `nibble logits`: raw logits of every position of a token sequence, for comparing with other implementations. */
import { UsageError } from "../../core/errors.js";
import { defined, type EngineFlags, engineOptions, kvOption, parseKv } from "../options.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  ids: number[];
  output: string;
  kv?: string;
  kvCalibration?: string;
}

export const logits = defineVerb<Options>({
  name: "logits",
  summary: "write the logits of a token sequence to a file",
  examples: ["nibble logits small --ids 1,504,3575 -o out.safetensors"],
  define(command) {
    command
      .argument("<model>", "model to run")
      .requiredOption("--ids <list>", "token ids, separated by commas", tokenIds)
      .requiredOption("-o, --output <file>", "safetensors file: tensor logits [n, vocab] f32");
    kvOption(command);
    engineOptions(command);
  },
  async run({ output, signal }, [model = ""], options) {
    const { openModel } = await import("../../runtime/open.js");
    const { allLogits } = await import("../../runtime/logits.js");
    const { saveSafetensors } = await import("../../formats/safetensors-save.js");
    const { ids } = options;
    const opened = await openModel(model, {
      backend: options.backend,
      kv: (await parseKv(options.kv, options.kvCalibration)) ?? "fp32",
      maxContext: Math.max(2, ids.length),
      log: (line) => output.log(line),
      signal,
      ...defined({ threads: options.threads }),
    });
    try {
      const vocab = opened.runner.vocabSize;
      const wrong = ids.find((id) => id >= vocab);
      if (wrong !== undefined) {
        throw new UsageError(`--ids: ${wrong} is not in the vocabulary of ${vocab} tokens`);
      }
      const values = await allLogits(opened.runner, ids, signal);
      const saved = await saveSafetensors(options.output, [
        {
          name: "logits",
          dtype: "F32",
          shape: [ids.length, vocab],
          data: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
        },
      ]);
      return {
        result: { output: options.output, shape: [ids.length, vocab], ...saved },
        text: `logits [${ids.length}, ${vocab}] written to ${options.output}`,
      };
    } finally {
      await opened.close();
    }
  },
});

function tokenIds(text: string): number[] {
  return text.split(",").map((word) => {
    const id = Number(word);
    if (word.trim() === "" || !Number.isInteger(id) || id < 0) {
      throw new UsageError(`--ids: "${word}" is no token id`, {
        hint: "Write them like --ids 1,2,3.",
      });
    }
    return id;
  });
}
