/**
 * Measures several models on the same text and the same questions, and compares all but the first with the first. At most
 * two models are in memory at a time. Speed and memory come from a measurement that the caller provides (the command line
 * measures each model in a process of its own, because a peak belongs to a process).
 */

import { UsageError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import { VERSION } from "../core/version.js";
import { inspectModel } from "../runtime/inspect.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import {
  type CompareResult,
  type Comparison,
  compareTask,
  compareText,
  type ModelFacts,
  type ModelSpeed,
} from "./compare.js";
import { openForTasks, openOptions, readTasks, runTasks, type TasksOptions } from "./measure.js";
import { emptyRecord, encodeStream, evaluatePerplexity } from "./perplexity.js";
import { mean } from "./statistics.js";
import type { TaskResult } from "./zero-shot.js";

export interface CompareOptions extends TasksOptions {
  /** Text for perplexity and divergence. */
  text?: { content: string; file: string };
  ctx?: number;
  windows?: number;
  stride?: number;
  tasks?: string[];
  /** Labels instead of the models' names. */
  names?: string[];
  /** Shell form of the command, printed in the report. */
  command: string;
  /** Speed and peak memory of a model; left out, reports have none. */
  measureSpeed?: (model: string) => Promise<Omit<ModelSpeed, "name">>;
}

export interface CompareOutcome {
  result: CompareResult;
  speeds: ModelSpeed[];
}

/** Short names: the last part of each path, with a number where two are equal. */
export function labels(models: readonly string[]): string[] {
  const short = models.map(
    (m) =>
      m
        .replace(/\/+$/, "")
        .split("/")
        .pop()
        ?.replace(/\.gguf$/, "") || m,
  );
  return short.map((name, i) => {
    const before = short.slice(0, i).filter((other) => other === name).length;
    return before === 0 ? name : `${name} (${before + 1})`;
  });
}

/** @throws UsageError for fewer than two models or nothing to measure; whatever opening and measuring throw */
export async function compareModels(
  models: string[],
  options: CompareOptions,
): Promise<CompareOutcome> {
  const { text, tasks = [], seed = 0, onProgress } = options;
  if (models.length < 2)
    throw new UsageError("compare takes at least two models, the first is the baseline");
  if (!text && tasks.length === 0) {
    throw new UsageError("nothing to compare on", {
      hint: "Give --ppl text.txt, --tasks arc_easy, or both.",
    });
  }
  const names = options.names ?? labels(models);
  if (names.length !== models.length || new Set(names).size !== names.length) {
    throw new UsageError(
      `${models.length} models need as many different names, got ${names.join(", ")}`,
    );
  }
  const data = await readTasks(tasks, options);
  const facts: ModelFacts[] = [];
  const answers: Record<string, TaskResult>[] = [];
  const comparisons: Comparison[] = names.slice(1).map((model) => ({ model, tasks: {} }));
  const losses: { perplexity: number; nll: number; nllStderr: number }[] = [];
  const stage = (item: number, name: string) =>
    onProgress?.({ type: "step", stage: "comparing", item, total: models.length, name });

  let textFacts: CompareResult["text"];
  const ctx = options.ctx ?? 2048;
  const shape = { maxContext: ctx, sequences: 1 };
  let baseline: OpenedModel | null = null;
  try {
    for (const [i, model] of models.entries()) {
      stage(i, names[i] as string);
      if (data.length > 0) {
        const opened = await openForTasks(model, data, options);
        try {
          answers.push(await runTasks(opened, data, options));
          if (!text) facts.push(await factsOf(opened, names[i] as string, model));
        } finally {
          await opened.close();
        }
      }
      if (!text) continue;
      const opened = await openModel(model, openOptions(options, shape));
      facts.push(await factsOf(opened, names[i] as string, model));
      if (i === 0) {
        baseline = opened;
        continue;
      }
      try {
        const record = emptyRecord();
        const measured = await evaluatePerplexity(opened, encodeStream(opened, text.content), {
          ctx,
          reference: baseline as OpenedModel,
          record,
          ...(options.windows === undefined ? {} : { windows: options.windows }),
          ...(options.stride === undefined ? {} : { stride: options.stride }),
          ...(options.signal ? { signal: options.signal } : {}),
          onWindow: (item, total, ppl) =>
            onProgress?.({
              type: "step",
              stage: `comparing ${names[i]}`,
              item,
              total,
              name: `perplexity ${ppl.toFixed(3)}`,
            }),
          onWarning: (message) => onProgress?.({ type: "log", level: "warn", message }),
        });
        (comparisons[i - 1] as Comparison).text = compareText(record, seed, `${names[i]}/text`);
        if (losses.length === 0) losses.push(summary(record.referenceNll));
        losses.push(summary(record.nll));
        const { windows, tokens, stride } = measured;
        const hash = sha256();
        hash.update(new TextEncoder().encode(text.content));
        textFacts = {
          file: text.file,
          sha256: hash.digest(),
          ctx: measured.ctx,
          windows,
          tokens,
          ...(stride === undefined ? {} : { stride }),
        };
      } finally {
        await opened.close();
      }
    }
  } finally {
    await baseline?.close();
  }
  for (const [c, comparison] of comparisons.entries()) {
    for (const { task } of data) {
      comparison.tasks[task.id] = compareTask(
        answers[0]?.[task.id] as TaskResult,
        answers[c + 1]?.[task.id] as TaskResult,
      );
    }
  }
  const speeds: ModelSpeed[] = [];
  if (options.measureSpeed) {
    for (const [i, model] of models.entries()) {
      onProgress?.({
        type: "step",
        stage: "measuring speed",
        item: i,
        total: models.length,
        name: names[i] as string,
      });
      speeds.push({ name: names[i] as string, ...(await options.measureSpeed(model)) });
    }
  }
  stage(models.length, "done");
  return {
    speeds,
    result: {
      version: VERSION,
      seed,
      command: options.command,
      ...(textFacts ? { text: textFacts } : {}),
      tasks: data.map(({ task, items }) => ({
        id: task.id,
        n: items.length,
        fewShot: options.fewShot ?? 0,
      })),
      models: facts.map((fact, i) => ({
        ...fact,
        ...(losses[i] ?? {}),
        tasks: Object.fromEntries(
          Object.entries(answers[i] ?? {}).map(([id, r]) => [id, scores(r)]),
        ),
      })),
      comparisons,
    },
  };
}

function summary(nll: number[]): { perplexity: number; nll: number; nllStderr: number } {
  const m = mean(nll);
  const squares = nll.reduce((sum, x) => sum + (x - m) ** 2, 0);
  const nllStderr = nll.length > 1 ? Math.sqrt(squares / (nll.length - 1) / nll.length) : 0;
  return { perplexity: Math.exp(m), nll: m, nllStderr };
}

function scores({ accuracy, stderr, accuracyNorm, stderrNorm, n, chance }: TaskResult) {
  return {
    accuracy,
    stderr,
    ...(accuracyNorm === undefined || stderrNorm === undefined ? {} : { accuracyNorm, stderrNorm }),
    n,
    chance,
  };
}

/** What is to be said of an opened model beside its quality. */
export async function factsOf(
  opened: OpenedModel,
  name: string,
  source: string,
): Promise<ModelFacts> {
  const { bytes, parameters, bitsPerWeight } = await inspectModel(source);
  const { k, v } = opened.kv;
  return {
    name,
    source: opened.model.source.id,
    fileBytes: bytes,
    parameters,
    bitsPerWeight: bitsPerWeight.whole,
    weightBytes: opened.compiled.weightBytes,
    kv:
      k.codec === v.codec ? `${k.codec}${k.hadamard ? " rotated" : ""}` : `${k.codec} / ${v.codec}`,
    backend: `${opened.compiled.engine.backend} ${opened.compiled.engine.variant}`,
  };
}
