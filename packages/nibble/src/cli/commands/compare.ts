/** `nibble compare`: models against a baseline on the same text and questions, with intervals; JSON, Markdown, HTML. */
import { execFile } from "node:child_process";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { writeFileAtomic } from "../../core/atomic-write.js";
import { UsageError } from "../../core/errors.js";
import { readTextFile } from "../../core/text-file.js";
import {
  commaList,
  defined,
  type EngineFlags,
  engineOptions,
  integer,
  kvOption,
  number,
  parseKv,
} from "../options.js";
import { defineVerb } from "../verb.js";

interface Options extends EngineFlags {
  ppl?: string;
  ctx: number;
  windows?: number;
  stride?: number;
  tasks?: string[];
  taskDir?: string;
  limit?: number;
  fewShot?: number;
  names?: string[];
  seed: number;
  speed: boolean;
  recovery?: boolean;
  costPerHour?: number;
  scenarios?: string[];
  output?: string;
  html?: string;
  kv?: string;
}

export const compare = defineVerb<Options>({
  name: "compare",
  summary: "compare models with a baseline, with error bars and pictures",
  examples: [
    "nibble compare smollm2-135m small --ppl text.txt -o report",
    "nibble compare smollm2-135m small other --ppl text.txt --tasks arc_easy,piqa --task-dir tasks --html report.html",
    "nibble compare smollm2-135m smoothquant-w8a8 fp8-w8a8 gptq-w4a16-g128 quarot-w4a8kv4 quarot-w4a4kv4 --tasks arc_easy --task-dir tasks --recovery --cost-per-hour 0.10",
  ],
  define(command) {
    command
      .argument("<models...>", "models; the first is the baseline")
      .option("--ppl <file>", "text for perplexity and KL divergence")
      .option("--ctx <n>", "tokens of a window", integer("--ctx", 2), 2048)
      .option("--windows <n>", "use the first n windows (default: all)", integer("--windows", 1))
      .option(
        "--stride <n>",
        "tokens between the starts of windows (default: ctx)",
        integer("--stride", 1),
      )
      .option(
        "--tasks <ids>",
        "tasks, separated by commas (nibble list tasks)",
        commaList("--tasks"),
      )
      .option("--task-dir <dir>", "folder with <task>.jsonl files")
      .option("--limit <n>", "first n questions of each task", integer("--limit", 1))
      .option(
        "--few-shot <n>",
        "worked examples in front of each question",
        integer("--few-shot", 0, 64),
      )
      .option("--names <labels>", "labels of the models, separated by commas", commaList("--names"))
      .option(
        "--seed <n>",
        "seed of the intervals and examples",
        integer("--seed", 0, 2 ** 32 - 1),
        0,
      )
      .option("--no-speed", "do not measure speed and memory")
      .option("--recovery", "also report accuracy recovery, latency, throughput and cost")
      .option(
        "--scenarios <names>",
        "with --recovery: only these of its speed scenarios, separated by commas",
        commaList("--scenarios"),
      )
      .option(
        "--cost-per-hour <price>",
        "price of this machine, for the cost per million tokens",
        number("--cost-per-hour", 0),
      )
      .option(
        "-o, --output <dir>",
        "write compare.json, compare.md, compare.html (and speed.json) there",
      )
      .option("--html <file>", "write the report as one HTML file");
    kvOption(command);
    engineOptions(command);
  },
  async run({ onProgress, signal }, models, options) {
    const { compareModels } = await import("../../eval/compare-run.js");
    const { compareMarkdown } = await import("../../eval/report-markdown.js");
    const { compareHtml } = await import("../../eval/report-html.js");
    const { fetchDatasetFile } = await import("../../hub/dataset.js");
    if (options.costPerHour !== undefined && !options.recovery) {
      throw new UsageError("--cost-per-hour belongs to --recovery", { hint: "Add --recovery." });
    }
    if (options.scenarios !== undefined && !options.recovery) {
      throw new UsageError("--scenarios belongs to --recovery", { hint: "Add --recovery." });
    }
    const { chosenScenarios, measureScenarios } = await import("../../eval/scenarios.js");
    const scenarios = chosenScenarios(options.scenarios);
    const kv = await parseKv(options.kv);
    const { result, speeds } = await compareModels([...models], {
      command: commandLine([...models], options),
      onProgress,
      signal,
      backend: options.backend,
      ctx: options.ctx,
      seed: options.seed,
      fetchDataset: (dataset, file) => fetchDatasetFile(dataset, file, { signal }),
      ...(options.ppl === undefined
        ? {}
        : { text: { content: await readTextFile(options.ppl), file: basename(options.ppl) } }),
      ...(options.speed ? { measureSpeed: (model) => benchInChild(model, options, signal) } : {}),
      ...defined({
        threads: options.threads,
        kv,
        windows: options.windows,
        stride: options.stride,
        tasks: options.tasks,
        taskDir: options.taskDir,
        limit: options.limit,
        fewShot: options.fewShot,
        names: options.names,
      }),
    });
    let markdown = compareMarkdown(result, speeds);
    let html = compareHtml(result, speeds);
    let recovery: unknown;
    if (options.recovery) {
      const { recoveryReport, recoveryMarkdown, recoveryHtml } = await import(
        "../../eval/recovery.js"
      );
      const report = recoveryReport(
        result,
        options.speed
          ? await measureScenarios(
              [...models],
              result.models.map((m) => m.name),
              {
                onProgress,
                signal,
                backend: options.backend,
                ...defined({ threads: options.threads, kv }),
              },
              scenarios,
            )
          : [],
        options.costPerHour,
      );
      markdown += `\n${recoveryMarkdown(report)}`;
      html = html.replace(
        "<h2>How to read this</h2>",
        () => `${recoveryHtml(report, result.command)}<h2>How to read this</h2>`,
      );
      recovery = report;
    }
    const { output } = options;
    if (output !== undefined) {
      await writeFileAtomic(join(output, "compare.json"), `${JSON.stringify(result, null, 1)}\n`);
      if (speeds.length > 0) {
        await writeFileAtomic(join(output, "speed.json"), `${JSON.stringify(speeds, null, 1)}\n`);
      }
      if (recovery)
        await writeFileAtomic(
          join(output, "recovery.json"),
          `${JSON.stringify(recovery, null, 1)}\n`,
        );
      await writeFileAtomic(join(output, "compare.md"), markdown);
      await writeFileAtomic(join(output, "compare.html"), html);
    }
    if (options.html !== undefined) await writeFileAtomic(options.html, html);
    return {
      result: { ...result, speeds, ...(recovery ? { recovery } : {}) },
      text: markdown,
    };
  },
});

/** The command that makes the report again: everything that decides its numbers, nothing else. */
function commandLine(models: string[], options: Options): string {
  const quote = (word: string) =>
    /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
  const flags: [string, unknown][] = [
    ["--names", options.names?.join(",")],
    ["--ppl", options.ppl],
    ["--ctx", options.ppl === undefined ? undefined : options.ctx],
    ["--windows", options.windows],
    ["--stride", options.stride],
    ["--tasks", options.tasks?.join(",")],
    ["--task-dir", options.taskDir],
    ["--limit", options.limit],
    ["--few-shot", options.fewShot],
    ["--kv", options.kv],
    ["--backend", options.backend === "auto" ? undefined : options.backend],
    ["--seed", options.seed],
  ];
  const words = flags.flatMap(([flag, value]) =>
    value === undefined ? [] : [flag, String(value)],
  );
  if (!options.speed) words.push("--no-speed");
  if (options.threads !== undefined) words.push("--threads", String(options.threads));
  if (options.recovery) words.push("--recovery");
  if (options.scenarios) words.push("--scenarios", options.scenarios.join(","));
  if (options.costPerHour !== undefined) words.push("--cost-per-hour", String(options.costPerHour));
  return ["nibble", "compare", ...models, ...words].map(quote).join(" ");
}

/** Speed in a process of its own, so that its peak memory is the model's. */
async function benchInChild(model: string, options: Options, signal: AbortSignal) {
  const entry = process.argv[1];
  if (entry === undefined)
    throw new UsageError("the command line cannot start itself", { hint: "Add --no-speed." });
  const args = ["bench", model, "--json", "--rounds", "3", "--backend", options.backend];
  if (options.threads !== undefined) args.push("--threads", String(options.threads));
  if (options.kv !== undefined) args.push("--kv", options.kv);
  const { stdout } = await promisify(execFile)(process.execPath, [entry, ...args], {
    signal,
    maxBuffer: 1 << 24,
  });
  const { result } = JSON.parse(stdout) as { result: Record<string, number> };
  return {
    prefillTokensPerSecond: result.prefillTokensPerSecond as number,
    decodeTokensPerSecond: result.decodeTokensPerSecond as number,
    peakBytes: result.peakBytes as number,
    threads: result.threads as number,
  };
}
