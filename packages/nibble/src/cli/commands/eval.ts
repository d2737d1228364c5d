/** `nibble eval`: perplexity, divergence from a reference, zero-shot accuracy of a model as it will run. */

import { UsageError } from "../../core/errors.js";
import { readTextFile } from "../../core/text-file.js";
import {
  activationsOption,
  commaList,
  defined,
  type EngineFlags,
  engineOptions,
  integer,
  kvOption,
  number,
  parseKv,
} from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  ppl?: string;
  ctx: number;
  windows?: number;
  tasks?: string[];
  taskDir?: string;
  limit?: number;
  stride?: number;
  fewShot?: number;
  fewShotFile?: string;
  votes?: number;
  passkey?: number[];
  passkeyDepths?: number[];
  passkeyTrials?: number;
  seed: number;
  reference?: string;
  kv?: string;
  kvCalibration?: string;
  activations?: "f32" | "i8";
}

export const evaluate = defineVerb<Options>({
  name: "eval",
  summary: "measure perplexity, KL divergence and task accuracy",
  examples: [
    "nibble eval small --ppl text.txt --ctx 2048 --windows 8",
    "nibble eval small --ppl text.txt --reference smollm2-135m",
    "nibble eval small --tasks arc_easy,piqa --task-dir tasks --limit 200",
    "nibble eval small --passkey 512,2048 --kv quarot-kv4",
  ],
  define(command) {
    command
      .argument("<model>", "model to measure")
      .option(
        "--ppl <file>",
        "text whose perplexity is measured (.jsonl: each text of the lines {text} from its own start)",
      )
      .option("--ctx <n>", "tokens of a window", integer("--ctx", 2), 2048)
      .option("--windows <n>", "use the first n windows (default: all)", integer("--windows", 1))
      .option(
        "--tasks <ids>",
        "tasks, separated by commas (nibble list tasks)",
        commaList("--tasks"),
      )
      .option("--task-dir <dir>", "folder with <task>.jsonl files")
      .option("--limit <n>", "first n questions of each task", integer("--limit", 1))
      .option(
        "--stride <n>",
        "tokens between the starts of two windows (default: ctx)",
        integer("--stride", 1),
      )
      .option(
        "--few-shot <n>",
        "worked examples in front of each question (default: 0; gsm8k: 5)",
        integer("--few-shot", 0, 64),
      )
      .option("--few-shot-file <file>", "draw the examples from this task file")
      .option(
        "--votes <n>",
        "gsm8k: sampled solutions that vote (self-consistency)",
        integer("--votes", 1, 1000),
      )
      .option(
        "--passkey <lengths>",
        "hide a number in texts of these lengths and ask for it",
        (text: string) => commaList("--passkey")(text).map(integer("--passkey", 64)),
      )
      .option(
        "--passkey-depths <list>",
        "where the number stands, 0 (beginning) to 1 (end) (default: 0,0.25,0.5,0.75,1)",
        (text: string) => commaList("--passkey-depths")(text).map(number("--passkey-depths", 0, 1)),
      )
      .option(
        "--passkey-trials <n>",
        "numbers hidden at each length and depth (default: 5)",
        integer("--passkey-trials", 1),
      )
      .option("--seed <n>", "seed of examples and trials", integer("--seed", 0, 2 ** 32 - 1), 0)
      .option(
        "--reference <model>",
        "also measure KL(reference || model) and top-1 agreement on the text",
      );
    kvOption(command);
    activationsOption(command);
    engineOptions(command);
  },
  async run({ output, onProgress, signal }, [model = ""], options) {
    const { ppl, ctx, windows, tasks, taskDir, limit, reference, seed, stride } = options;
    if (ppl === undefined && tasks === undefined && options.passkey === undefined) {
      throw new UsageError("nothing to measure", {
        hint: "Give --ppl text.txt, --tasks arc_easy, or both.",
      });
    }
    if (reference !== undefined && ppl === undefined) {
      throw new UsageError("--reference compares on a text", { hint: "Add --ppl text.txt." });
    }
    const text = ppl === undefined ? undefined : await readTextFile(ppl);
    const { measureText, measureTasks } = await import("../../eval/measure.js");
    const { measureGeneration, measurePasskey } = await import("../../eval/measure-generation.js");
    const { gsm8k } = await import("../../eval/generation-task.js");
    const { fetchDatasetFile } = await import("../../hub/dataset.js");
    const shared = {
      onProgress,
      signal,
      backend: options.backend,
      ...defined({
        threads: options.threads,
        kv: await parseKv(options.kv, options.kvCalibration),
        activations: options.activations,
      }),
    };
    const taskOptions = {
      ...shared,
      seed,
      fetchDataset: (dataset: string, file: string) => fetchDatasetFile(dataset, file, { signal }),
      ...defined({ taskDir, limit, fewShot: options.fewShot }),
      ...(options.fewShotFile === undefined
        ? {}
        : {
            examples: { text: await readTextFile(options.fewShotFile), file: options.fewShotFile },
          }),
    };
    const chosen = tasks?.filter((id) => id !== gsm8k.id);
    const onText =
      text === undefined
        ? undefined
        : await measureText(model, text, {
            ...shared,
            ctx,
            ...defined({ windows, reference, stride }),
            ...(ppl?.endsWith(".jsonl") ? { jsonLines: ppl } : {}),
          });
    const onTasks =
      chosen === undefined || chosen.length === 0
        ? undefined
        : await measureTasks(model, chosen, taskOptions);
    const onGsm8k = tasks?.includes(gsm8k.id)
      ? await measureGeneration(model, gsm8k, {
          ...taskOptions,
          ...defined({ votes: options.votes }),
        })
      : undefined;
    const onPasskey =
      options.passkey === undefined
        ? undefined
        : await measurePasskey(model, {
            ...shared,
            lengths: options.passkey,
            seed,
            ...defined({ depths: options.passkeyDepths, trials: options.passkeyTrials }),
          });
    // Times differ from run to run: they are told, and kept out of the result, which does not.
    if (onText) output.log(`text: ${onText.tokensPerSecond.toFixed(0)} tokens/s`);
    for (const [id, task] of Object.entries(onTasks ?? {}))
      output.log(`${id}: ${task.rows} rows in ${task.seconds.toFixed(1)} s`);
    if (onGsm8k)
      output.log(`${gsm8k.id}: ${onGsm8k.tokens} tokens in ${onGsm8k.seconds.toFixed(1)} s`);
    return {
      result: {
        ...withoutTimes(onText),
        ...defined({ activations: options.activations }),
        ...(onTasks || onGsm8k
          ? {
              tasks: {
                ...Object.fromEntries(
                  Object.entries(onTasks ?? {}).map(([id, task]) => [id, withoutTimes(task)]),
                ),
                ...(onGsm8k
                  ? { gsm8k: withoutTimes({ accuracy: onGsm8k.exactMatch, ...onGsm8k }) }
                  : {}),
              },
            }
          : {}),
        ...(onPasskey ? { passkey: onPasskey } : {}),
      },
      text: table([
        ...(onText
          ? [
              [
                "perplexity",
                `${onText.perplexity.toFixed(3)} ± ${(onText.perplexity * onText.nllStderr).toFixed(3)}`,
              ],
              [
                "tokens",
                `${onText.tokens} predicted in ${onText.windows} windows of ${onText.ctx}`,
              ],
              ...(onText.bitsPerByte === undefined
                ? []
                : [["bits per byte", onText.bitsPerByte.toFixed(4)]]),
              ...(onText.kl === undefined
                ? []
                : [["KL(reference || model)", `${onText.kl.toFixed(5)} nats`]]),
              ...(onText.topAgreement === undefined
                ? []
                : [["same first choice", `${(100 * onText.topAgreement).toFixed(2)} %`]]),
            ]
          : []),
        ...Object.entries(onTasks ?? {}).map(([id, task]) => [
          id,
          `${percent(task.accuracy)} ± ${percent(task.stderr)}${
            task.accuracyNorm === undefined ? "" : `, normalized ${percent(task.accuracyNorm)}`
          } (${task.n} questions, chance ${percent(task.chance)})`,
        ]),
        ...(onGsm8k
          ? [
              [
                gsm8k.id,
                `${percent(onGsm8k.exactMatch)} ± ${percent(onGsm8k.stderr)}, last number ${percent(onGsm8k.flexibleMatch)} (${onGsm8k.n} questions, ${onGsm8k.votes} votes)`,
              ],
            ]
          : []),
        ...(onPasskey?.cells ?? []).map((cell) => [
          `pass key, ${cell.length} tokens, depth ${percent(cell.depth)}`,
          `${percent(cell.accuracy)} of ${cell.trials}`,
        ]),
      ]),
    };
  },
});

const percent = (share: number) => `${(100 * share).toFixed(2)} %`;

/** A result without what a clock decided. */
function withoutTimes<T extends object>(result: T | undefined) {
  return Object.fromEntries(
    Object.entries(result ?? {}).filter(([key]) => !/^seconds$|PerSecond$/.test(key)),
  );
}
