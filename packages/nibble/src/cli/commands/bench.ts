/** `nibble bench`: prompt and decode speed of a model, medians of interleaved rounds. */
import { formatBytes } from "../../core/memory.js";
import {
  defined,
  type EngineFlags,
  engineOptions,
  integer,
  kvOption,
  parseKv,
} from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  prefill: number;
  decode: number;
  depth: number;
  batch: number;
  rounds: number;
  kv?: string;
}

export const bench = defineVerb<Options>({
  name: "bench",
  summary: "measure prompt and decode speed",
  examples: [
    "nibble bench small",
    "nibble bench small --prefill 512 --decode 64 --threads 2 --backend wasm --json",
  ],
  define(command) {
    command
      .argument("<model>", "model to measure")
      .option("--prefill <n>", "tokens of the prompt", integer("--prefill", 1), 512)
      .option("--decode <n>", "tokens decoded one by one", integer("--decode", 1), 64)
      .option("--depth <n>", "tokens in the cache before decoding", integer("--depth", 0), 0)
      .option("--batch <n>", "sequences decoded side by side", integer("--batch", 1, 1024), 1)
      .option("--rounds <n>", "measured rounds after one to warm up", integer("--rounds", 1), 5);
    kvOption(command);
    engineOptions(command);
  },
  async run({ output, onProgress, signal }, [model = ""], options) {
    const { openModel } = await import("../../runtime/open.js");
    const { benchModel } = await import("../../runtime/bench.js");
    const { prefill, decode, depth, batch, rounds } = options;
    const opened = await openModel(model, {
      backend: options.backend,
      maxContext: Math.max(prefill, depth + decode + 1),
      sequences: batch,
      log: (line) => output.log(line),
      signal,
      ...defined({ threads: options.threads, kv: await parseKv(options.kv) }),
    });
    try {
      const result = await benchModel(opened, {
        prefill,
        decode,
        depth,
        batch,
        rounds,
        signal,
        onRound: (item, total) => onProgress({ type: "step", stage: "measuring", item, total }),
      });
      const speed = (median: number, best: number) =>
        `${median.toFixed(1)} tokens/s (best ${best.toFixed(1)})`;
      return {
        result,
        text: table([
          [
            `prefill ${prefill}`,
            speed(result.prefillTokensPerSecond, result.prefillTokensPerSecondBest),
          ],
          [
            `decode ${decode}${depth > 0 ? ` at depth ${depth}` : ""}`,
            speed(result.decodeTokensPerSecond, result.decodeTokensPerSecondBest),
          ],
          ["backend", `${result.backend} ${result.variant}, ${result.threads} threads`],
          ["weights", formatBytes(result.weightBytes)],
          ["peak memory", formatBytes(result.peakBytes)],
        ]),
      };
    } finally {
      await opened.close();
    }
  },
});
