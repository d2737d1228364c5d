/**
 * Measures several models on the same text and the same questions, and compares all but the first with the first. At most
 * two models are in memory at a time. Each model's answers to a task and its losses on the text are kept when they are
 * finished (kept-parts.ts), so that a run that was stopped goes on. Speed and memory come from a measurement that the
 * caller provides (the command line measures each model in a process of its own, because a peak belongs to a process).
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { UsageError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import { VERSION } from "../core/version.js";
import { selectBackend } from "../kernels/select.js";
import { inspectModel } from "../runtime/inspect.js";
import { loadModel } from "../runtime/load-model.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import {
  type CompareResult,
  type Comparison,
  compareTask,
  compareText,
  type ModelFacts,
  type ModelSpeed,
} from "./compare.js";
import { KeptParts, type PartKey, textHash } from "./kept-parts.js";
import {
  openForTasks,
  openOptions,
  readTasks,
  runTasks,
  type TaskData,
  type TasksOptions,
} from "./measure.js";
import { emptyRecord, encodeStream, evaluatePerplexity, type TargetRecord } from "./perplexity.js";
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
  /** Folder of finished parts; default NIBBLE_HOME/compare. */
  cache?: string;
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
  const stage = (item: number, name: string) =>
    onProgress?.({ type: "step", stage: "comparing", item, total: models.length, name });
  const kept = new KeptParts(options.cache ?? join(nibbleHome(), "compare"));
  const shared = await sharedKey(options);
  const keys: PartKey[] = [];
  for (const model of models) keys.push({ ...shared, model: await identity(model, options) });

  const facts: ModelFacts[] = [];
  const answers: Record<string, TaskResult>[] = [];
  const comparisons: Comparison[] = names.slice(1).map((model) => ({ model, tasks: {} }));
  const losses: { perplexity: number; nll: number; nllStderr: number }[] = [];
  let textFacts: CompareResult["text"];
  const ctx = options.ctx ?? 2048;
  const open = (model: string) =>
    openModel(model, openOptions(options, { maxContext: ctx, sequences: 1 }));
  let baseline: OpenedModel | null = null;
  try {
    for (const [i, model] of models.entries()) {
      const name = names[i] as string;
      const key = keys[i] as PartKey;
      stage(i, name);
      const known = await kept.known<ModelFacts>({ ...key, part: "facts" });
      if (known) facts[i] = { ...known, name };
      const learn = async (opened: OpenedModel) => {
        if (facts[i]) return;
        facts[i] = await factsOf(opened, name, model);
        await kept.keep({ ...key, part: "facts" }, facts[i]);
      };
      if (data.length > 0)
        answers.push(await answersOf(model, data, options, { kept, key, learn }));
      if (text && i > 0) {
        const textKey: PartKey = {
          ...key,
          part: "text",
          baseline: keys[0]?.model,
          text: textHash(text.content),
          ctx,
          windows: options.windows,
          stride: options.stride,
        };
        let part = await kept.known<TextPart>(textKey);
        if (!part) {
          baseline ??= await open(models[0] as string);
          const opened = await open(model);
          try {
            await learn(opened);
            part = await measureAgainst(opened, baseline, text.content, name, { ...options, ctx });
          } finally {
            await opened.close();
          }
          await kept.keep(textKey, part);
        }
        const { record, measured } = part;
        (comparisons[i - 1] as Comparison).text = compareText(record, seed, `${name}/text`);
        if (losses.length === 0) losses.push(summary(record.referenceNll));
        losses.push(summary(record.nll));
        textFacts = { file: text.file, sha256: textHash(text.content), ...measured };
      }
      if (!facts[i]) {
        const opened = await open(model);
        if (i === 0 && text) baseline = opened;
        try {
          await learn(opened);
        } finally {
          if (opened !== baseline) await opened.close();
        }
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

/** Losses of a model and the baseline on the same targets, and on what. */
interface TextPart {
  record: TargetRecord;
  measured: { ctx: number; windows: number; tokens: number; stride?: number };
}

async function measureAgainst(
  opened: OpenedModel,
  baseline: OpenedModel,
  content: string,
  name: string,
  { ctx, windows, stride, signal, onProgress }: CompareOptions,
): Promise<TextPart> {
  const record = emptyRecord();
  const result = await evaluatePerplexity(opened, encodeStream(opened, content), {
    reference: baseline,
    record,
    ...(ctx === undefined ? {} : { ctx }),
    ...(windows === undefined ? {} : { windows }),
    ...(stride === undefined ? {} : { stride }),
    ...(signal ? { signal } : {}),
    onWindow: (item, total, perplexity) =>
      onProgress?.({
        type: "step",
        stage: `comparing ${name}`,
        item,
        total,
        name: `perplexity ${perplexity.toFixed(3)}`,
      }),
    onWarning: (message) => onProgress?.({ type: "log", level: "warn", message }),
  });
  const measured = {
    ctx: result.ctx,
    windows: result.windows,
    tokens: result.tokens,
    ...(result.stride === undefined ? {} : { stride: result.stride }),
  };
  return { record, measured };
}

/** Answers of a model to the tasks; it is opened for those that are not known. */
async function answersOf(
  model: string,
  data: TaskData[],
  options: CompareOptions,
  parts: { kept: KeptParts; key: PartKey; learn: (opened: OpenedModel) => Promise<void> },
): Promise<Record<string, TaskResult>> {
  const { kept, key, learn } = parts;
  const { fewShot = 0, seed = 0 } = options;
  const keyOf = ({ task, items, pool }: TaskData): PartKey => ({
    ...key,
    part: "task",
    task: task.id,
    items: textHash(JSON.stringify(items)),
    ...(fewShot > 0 ? { fewShot, seed, pool: textHash(JSON.stringify(pool)) } : {}),
  });
  const results: Record<string, TaskResult> = {};
  const missing: TaskData[] = [];
  for (const one of data) {
    const known = await kept.known<TaskResult>(keyOf(one));
    if (known) results[one.task.id] = known;
    else missing.push(one);
  }
  if (missing.length === 0) return results;
  const opened = await openForTasks(model, missing, options);
  try {
    await learn(opened);
    for (const [t, one] of missing.entries()) {
      const own = { ...opened, encoded: [opened.encoded[t] ?? []] };
      const result = (await runTasks(own, [one], options))[one.task.id] as TaskResult;
      await kept.keep(keyOf(one), result);
      results[one.task.id] = result;
    }
  } finally {
    await opened.close();
  }
  return results;
}

/** What decides every part beside the model. Threads do not: results are the same on any number. */
async function sharedKey({ backend, kv, activations }: CompareOptions): Promise<PartKey> {
  const chosen = await selectBackend(backend ?? "auto", () => {});
  const calibration =
    typeof kv === "object" && kv.calibration !== undefined
      ? { calibration: textHash((await readFile(kv.calibration)).toString("base64")) }
      : {};
  return {
    version: VERSION,
    backend: [chosen.id, (await chosen.status()).variant],
    kv: typeof kv === "object" ? { ...kv, ...calibration } : kv,
    activations,
  };
}

/** Hashes of a model's tensors and tokenizer, and the name that reports give it. */
async function identity(name: string, { onProgress, signal }: CompareOptions): Promise<unknown> {
  const model = await loadModel(name, {
    ...(onProgress ? { onProgress } : {}),
    ...(signal ? { signal } : {}),
  });
  try {
    const { source, files } = model;
    return {
      id: source.id,
      content: source.artifact ?? (await source.sha256()),
      files: [...files].map(([file, bytes]) => [
        file,
        textHash(Buffer.from(bytes).toString("latin1")),
      ]),
    };
  } finally {
    await model.close();
  }
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
  const { bytes, parameters, bitsPerWeight, format } = await inspectModel(source);
  const { k, v } = opened.kv;
  return {
    name,
    source: opened.model.source.id,
    fileBytes: bytes,
    parameters,
    bitsPerWeight: bitsPerWeight.whole,
    format,
    weightBytes: opened.compiled.weightBytes,
    kv:
      k.codec === v.codec ? `${k.codec}${k.hadamard ? " rotated" : ""}` : `${k.codec} / ${v.codec}`,
    backend: `${opened.compiled.engine.backend} ${opened.compiled.engine.variant}`,
  };
}
