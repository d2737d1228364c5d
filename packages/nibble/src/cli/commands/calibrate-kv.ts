/** `nibble calibrate-kv`: what the codecs of a cache learn from calibration text, as a file that the cache names. */
import { basename } from "node:path";
import { formatBytes, formatSeconds } from "../../core/memory.js";
import { defined, type EngineFlags, engineOptions, integer, parseKv } from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  output: string;
  preset: string;
  calibration?: string;
  samples: number;
  seqlen: number;
  seed: number;
}

export const calibrateKv = defineVerb<Options>({
  name: "calibrate-kv",
  summary: "learn tables and ranges of a quantized KV cache",
  examples: [
    "nibble calibrate-kv smollm2-135m --calibration text.txt -o kv.safetensors",
    "nibble calibrate-kv smollm2-135m --preset qaq --samples 8 --seqlen 512 -o qaq.safetensors",
    `nibble calibrate-kv ./model --preset '{"k":{"codec":"kvquant","bits":4},"v":{"codec":"kvquant","bits":3}}' -o kv.safetensors`,
  ],
  define(command) {
    command
      .argument("<model>", "model whose keys and values are learned from")
      .requiredOption("-o, --output <file>", "safetensors file that is written")
      .option(
        "--preset <name>",
        "cache the file is for: preset name or JSON (nibble list kv)",
        "kvquant-nuq3-1",
      )
      .option("--calibration <file>", "calibration text (default: the model writes its own)")
      .option("--samples <n>", "calibration windows", integer("--samples", 1, 65536), 16)
      .option("--seqlen <n>", "tokens of a window", integer("--seqlen", 2, 1 << 20), 2048)
      .option("--seed <n>", "seed of everything random", integer("--seed", 0, 2 ** 32 - 1), 0);
    engineOptions(command);
  },
  async run({ onProgress, signal }, [model = ""], options) {
    const kv = await parseKv(options.preset, undefined, "--preset");
    const { loadModel } = await import("../../runtime/load-model.js");
    const { calibrateKv: calibrate } = await import("../../recipe/calibrate-kv.js");
    const loaded = await loadModel(model, { onProgress, signal });
    try {
      const { output, samples, seqlen, seed, backend } = options;
      const result = await calibrate(loaded, {
        kv: kv as unknown as Parameters<typeof calibrate>[1]["kv"],
        output,
        file: options.calibration ?? null,
        samples,
        seqlen,
        seed,
        backend,
        onProgress,
        signal,
        ...defined({ threads: options.threads }),
      });
      return {
        result: { ...result, output },
        text: table([
          ["saved", `${basename(output)} (${formatBytes(result.bytes)})`],
          ["cache", `${result.kv.k.codec} keys, ${result.kv.v.codec} values`],
          [
            "tokens",
            `${result.tokens} of text, ${result.sampledTokens} kept of each of ${result.layers} layers`,
          ],
          ["time", formatSeconds(result.seconds)],
          ["sha256", result.sha256],
        ]),
      };
    } finally {
      await loaded.close();
    }
  },
});
