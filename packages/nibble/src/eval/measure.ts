/**
 * What `nibble eval` and quality gates do: open a model as it will run and as the measurement needs it, measure, close.
 */
import { FormatError } from "../core/errors.js";
import type { OnProgress } from "../core/progress.js";
import type { BackendId } from "../kernels/contract.js";
import type { KvRecipe } from "../model/model.js";
import { Tokenizer } from "../model/tokenizer.js";
import { loadModel } from "../runtime/load-model.js";
import { type OpenedModel, type OpenOptions, openModel } from "../runtime/open.js";
import type { Alternative } from "./batch-score.js";
import {
  encodeStream,
  evaluatePerplexity,
  evaluateTexts,
  type PerplexityResult,
  type TargetRecord,
} from "./perplexity.js";
import { tasks as registry } from "./tasks/index.js";
import { jsonLines, parseItems } from "./tasks/items.js";
import { type FetchDataset, loadTaskItems } from "./tasks/source.js";
import type { Task, TaskItem } from "./tasks/task.js";
import { encodeTask, evaluateTask, SCORING_SEQUENCES, type TaskResult } from "./zero-shot.js";

export interface MeasureOptions {
  onProgress?: OnProgress;
  signal?: AbortSignal;
  backend?: "auto" | BackendId;
  threads?: number;
  /** Cache of the measured model (a reference runs with its own). */
  kv?: string | KvRecipe;
  /** Inputs of integer linears of a model that quantizes none itself (a reference runs with f32). */
  activations?: "f32" | "i8";
}

export interface TextOptions extends MeasureOptions {
  ctx?: number;
  windows?: number;
  stride?: number;
  /** Another model: KL(reference || model) and top-1 agreement on the same targets. Its cache is its own. */
  reference?: string;
  /** The text is JSON lines; every `text` is predicted from its own start. The value is the file's name for messages. */
  jsonLines?: string;
  record?: TargetRecord;
}

export interface TextMeasures extends PerplexityResult {
  backend: string;
  variant: string;
}

export interface TasksOptions extends MeasureOptions {
  taskDir?: string;
  limit?: number;
  /** Examples in front of every question, drawn with `seed` from `examples` (a task file's text) or the task's own items. */
  fewShot?: number;
  examples?: { text: string; file: string };
  seed?: number;
  fetchDataset?: FetchDataset;
}

/** Options for openModel out of options for a measurement. */
export function openOptions(options: MeasureOptions, own: OpenOptions): OpenOptions {
  const { onProgress, signal, backend, threads, kv, activations } = options;
  return {
    ...own,
    ...(onProgress
      ? { log: (line) => onProgress({ type: "log", level: "info", message: line }) }
      : {}),
    ...(signal ? { signal } : {}),
    ...(backend ? { backend } : {}),
    ...(threads !== undefined ? { threads } : {}),
    ...(kv !== undefined ? { kv } : {}),
    ...(activations !== undefined ? { activations } : {}),
  };
}

/** Texts of a jsonl file: the field `text` of each line. @throws FormatError naming file and line */
export function textsOfLines(text: string, file: string): string[] {
  return Array.from(jsonLines(text, file), ({ line, value }) => {
    const found = (value as { text?: unknown } | null)?.text;
    if (typeof found !== "string") {
      throw new FormatError(
        'has no text "text"',
        { place: `${file}:${line}`, hint: 'each line is {"text": string}' },
        "text-data",
      );
    }
    return found;
  });
}

/** Perplexity of a text. @throws what openModel and evaluatePerplexity throw */
export async function measureText(
  model: string,
  text: string,
  options: TextOptions = {},
): Promise<TextMeasures> {
  const ctx = options.ctx ?? 2048;
  const texts = options.jsonLines === undefined ? null : textsOfLines(text, options.jsonLines);
  const own = { maxContext: ctx, sequences: 1 };
  const opened = await openModel(model, openOptions(options, own));
  let reference: OpenedModel | null = null;
  try {
    if (options.reference !== undefined) {
      const { kv: _ownCache, activations: _ownInputs, ...others } = options;
      reference = await openModel(options.reference, openOptions(others, own));
    }
    const { windows, stride, record, signal, onProgress } = options;
    const settings = {
      ctx,
      ...(windows !== undefined ? { windows } : {}),
      ...(stride !== undefined ? { stride } : {}),
      ...(record ? { record } : {}),
      ...(signal ? { signal } : {}),
      ...(reference ? { reference } : {}),
      onWindow: (item: number, total: number, perplexity: number) =>
        onProgress?.({
          type: "step",
          stage: "evaluating",
          item,
          total,
          name: `perplexity ${perplexity.toFixed(3)}`,
        }),
      onWarning: (message: string) => onProgress?.({ type: "log", level: "warn", message }),
    };
    const result = texts
      ? await evaluateTexts(
          opened,
          texts.map((one) => encodeStream(opened, one)),
          settings,
        )
      : await evaluatePerplexity(opened, encodeStream(opened, text), settings);
    const { backend, variant } = opened.compiled.engine;
    return { ...result, backend, variant };
  } finally {
    await reference?.close();
    await opened.close();
  }
}

/** What a task is measured on: the items, and the pool that its examples are drawn from. */
export interface TaskData {
  task: Task;
  items: TaskItem[];
  pool: TaskItem[];
  own: boolean;
}

/** Items of tasks by id, all read and checked before any model is opened. */
export async function readTasks(
  ids: readonly string[],
  options: TasksOptions,
): Promise<TaskData[]> {
  const { examples, limit } = options;
  const out: TaskData[] = [];
  for (const task of ids.map((id) => registry.get(id))) {
    const items = await loadTaskItems(task, {
      ...(options.taskDir !== undefined ? { taskDir: options.taskDir } : {}),
      ...(options.fetchDataset ? { fetchDataset: options.fetchDataset } : {}),
    });
    const pool = examples ? parseItems(task, examples.text, examples.file) : items;
    out.push({
      task,
      items: limit === undefined ? items : items.slice(0, limit),
      pool,
      own: !examples,
    });
  }
  return out;
}

/** A model that is open for tasks, and their items in its tokens (in the order of the tasks). */
export interface OpenedForTasks extends OpenedModel {
  readonly encoded: Alternative[][][];
}

/** Results of tasks on a model that was opened for them. */
export async function runTasks(
  opened: OpenedForTasks,
  data: TaskData[],
  options: TasksOptions = {},
): Promise<Record<string, TaskResult>> {
  const { onProgress, signal } = options;
  const results: Record<string, TaskResult> = {};
  for (const [t, one] of data.entries()) {
    const { task, items } = one;
    const fewShot = shotsOf(one, options);
    results[task.id] = await evaluateTask(opened, task, items, {
      encoded: opened.encoded[t] as Alternative[][],
      ...(fewShot ? { fewShot } : {}),
      ...(signal ? { signal } : {}),
      onItem: (item, total, accuracy) =>
        onProgress?.({
          type: "step",
          stage: "evaluating",
          item,
          total,
          name: `${task.id} ${(100 * accuracy).toFixed(1)} %`,
        }),
      onWarning: (message) => onProgress?.({ type: "log", level: "warn", message }),
    });
  }
  return results;
}

function shotsOf({ pool, own }: TaskData, { fewShot = 0, seed = 0 }: TasksOptions) {
  return fewShot > 0 ? { count: fewShot, seed, pool, own } : undefined;
}

/** Tokens of cache that all sequences together get at most, but for one question that is longer. */
const CACHE_TOKENS = 48 * 1024;
/** Contexts are opened in steps, so that few more or fewer tokens do not matter. */
const CONTEXT_STEP = 64;

/**
 * Opens a model for tasks: as many sequences as help, each with room for the longest question with its examples. Only
 * what exceeds the model's own limit is cut (from the left, with a warning).
 */
export async function openForTasks(
  model: string,
  data: TaskData[],
  options: TasksOptions,
): Promise<OpenedForTasks> {
  const { onProgress, signal } = options;
  // Loading reads no weights.
  const loaded = await loadModel(model, {
    ...(onProgress ? { onProgress } : {}),
    ...(signal ? { signal } : {}),
  });
  try {
    const tokenizer = loaded.files.has("tokenizer.json") ? Tokenizer.fromFiles(loaded.files) : null;
    const encoded = data.map((one) => {
      onProgress?.({ type: "log", level: "debug", message: `${one.task.id}: to tokens` });
      return encodeTask({ tokenizer, model: loaded }, one.task, one.items, shotsOf(one, options));
    });
    let longest = CONTEXT_STEP;
    for (const { ids } of encoded.flat(2)) longest = Math.max(longest, ids.length - 1);
    const maxContext = Math.min(
      loaded.config.maxPositionEmbeddings,
      Math.ceil(longest / CONTEXT_STEP) * CONTEXT_STEP,
    );
    const sequences = Math.max(
      1,
      Math.min(SCORING_SEQUENCES, Math.floor(CACHE_TOKENS / maxContext)),
    );
    const opened = await openModel(loaded, openOptions(options, { maxContext, sequences }));
    return {
      ...opened,
      encoded,
      close: async () => {
        await opened.close();
        await loaded.close();
      },
    };
  } catch (error) {
    await loaded.close();
    throw error;
  }
}

/** A task's result as reports show it: without the single items. */
export type TaskSummary = Omit<TaskResult, "items">;

export function withoutItems({ items: _items, ...summary }: TaskResult): TaskSummary {
  return summary;
}

/** Accuracy of a model on tasks by id. Data is read and checked before the model is opened. */
export async function measureTasks(
  model: string,
  ids: readonly string[],
  options: TasksOptions = {},
): Promise<Record<string, TaskSummary>> {
  return measureTaskData(model, await readTasks(ids, options), options);
}

/** Accuracy of a model on tasks that were read. */
export async function measureTaskData(
  model: string,
  data: TaskData[],
  options: TasksOptions = {},
): Promise<Record<string, TaskSummary>> {
  const opened = await openForTasks(model, data, options);
  try {
    const results = await runTasks(opened, data, options);
    return Object.fromEntries(
      Object.entries(results).map(([id, result]) => [id, withoutItems(result)]),
    );
  } finally {
    await opened.close();
  }
}
