/** `nibble eval`: perplexity, divergence from a reference, zero-shot accuracy of a model as it will run. */
import { readTextFile } from "../../core/text-file.js";
import { UsageError } from "../../core/errors.js";
import {
  commaList,
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
  ppl?: string;
  ctx: number;
  windows?: number;
  tasks?: string[];
  taskDir?: string;
  limit?: number;
  reference?: string;
  kv?: string;
}

export const evaluate = defineVerb<Options>({
  name: "eval",
  summary: "measure perplexity, KL divergence and task accuracy",
  examples: [
    "nibble eval small --ppl text.txt --ctx 2048 --windows 8",
    "nibble eval small --ppl text.txt --reference smollm2-135m",
    "nibble eval small --tasks arc_easy,piqa --task-dir tasks --limit 200",
  ],
  define(command) {
    command
      .argument("<model>", "model to measure")
      .option("--ppl <file>", "text whose perplexity is measured")
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
        "--reference <model>",
        "also measure KL(reference || model) and top-1 agreement on the text",
      );
    kvOption(command);
    engineOptions(command);
  },
  async run({ output, onProgress, signal }, [model = ""], options) {
    const { ppl, ctx, windows, tasks, taskDir, limit, reference } = options;
    if (ppl === undefined && tasks === undefined) {
      throw new UsageError("nothing to measure", {
        hint: "Give --ppl text.txt, --tasks arc_easy, or both.",
      });
    }
    if (reference !== undefined && ppl === undefined) {
      throw new UsageError("--reference compares on a text", { hint: "Add --ppl text.txt." });
    }
    const text = ppl === undefined ? undefined : await readTextFile(ppl);
    const { measureText, measureTasks } = await import("../../eval/measure.js");
    const shared = {
      onProgress,
      signal,
      backend: options.backend,
      ...defined({ threads: options.threads, kv: await parseKv(options.kv) }),
    };
    const onText =
      text === undefined
        ? undefined
        : await measureText(model, text, { ...shared, ctx, ...defined({ windows, reference }) });
    const onTasks =
      tasks === undefined
        ? undefined
        : await measureTasks(model, tasks, { ...shared, ...defined({ taskDir, limit }) });
    if (ppl !== undefined)
      output.onProgress({ type: "log", level: "debug", message: `text: ${ppl}` });
    return {
      result: { ...onText, ...(onTasks ? { tasks: onTasks } : {}) },
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
      ]),
    };
  },
});

const percent = (share: number) => `${(100 * share).toFixed(2)} %`;
