/** Pass key retrieval and generation tasks of a model by name: data, opening, measuring, closing. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ModelError } from "../core/errors.js";
import { openModel } from "../runtime/open.js";
import {
  evaluateGeneration,
  type GenerationItem,
  type GenerationResult,
  type GenerationTask,
  parseGenerationItems,
} from "./generation-task.js";
import { type MeasureOptions, openOptions, type TasksOptions } from "./measure.js";
import { evaluatePasskey, type PasskeyResult } from "./passkey.js";
import { parquetRows } from "./tasks/source.js";

export interface GenerationMeasureOptions extends TasksOptions {
  votes?: number;
  maxTokens?: number;
}

/** Room for the prompt of a generation task with its examples, and sequences on their way at once. */
const PROMPT_TOKENS = 1792;
const STREAMS = 16;

/** `<id>.jsonl` (and `<id>_train.jsonl` for the examples) of the task folder, else the hub. */
export async function generationItems(
  task: GenerationTask,
  part: "test" | "train",
  options: TasksOptions,
): Promise<GenerationItem[]> {
  const name = part === "test" ? `${task.id}.jsonl` : `${task.id}_train.jsonl`;
  if (options.taskDir !== undefined) {
    const text = await readFile(join(options.taskDir, name), "utf8").catch(() => null);
    if (text !== null) return parseGenerationItems(task, text, name);
  }
  if (!options.fetchDataset) {
    throw new ModelError(
      `${task.id}: the task folder has no ${name}`,
      { hint: `put ${name} there` },
      "task-missing",
    );
  }
  const file = task.hub[part];
  const rows = await parquetRows(await options.fetchDataset(task.hub.dataset, file), file);
  return parseGenerationItems(
    task,
    rows.map((row) => JSON.stringify(row)).join("\n"),
    `${task.hub.dataset}/${file}`,
  );
}

/** Accuracy on a generation task. */
export async function measureGeneration(
  model: string,
  task: GenerationTask,
  options: GenerationMeasureOptions,
): Promise<Omit<GenerationResult, "items">> {
  const { limit, fewShot = 5, maxTokens = 256, seed = 0, votes = 1, onProgress, signal } = options;
  const items = (await generationItems(task, "test", options)).slice(0, limit);
  const pool = fewShot > 0 ? await generationItems(task, "train", options) : [];
  const opened = await openModel(
    model,
    openOptions(options, { maxContext: PROMPT_TOKENS + maxTokens, sequences: STREAMS }),
  );
  try {
    const { items: _texts, ...result } = await evaluateGeneration(opened, task, items, {
      fewShot,
      pool,
      maxTokens,
      seed,
      votes,
      ...(signal ? { signal } : {}),
      onItem: (item, total) =>
        onProgress?.({ type: "step", stage: "evaluating", item, total, name: task.id }),
    });
    return result;
  } finally {
    await opened.close();
  }
}

export interface PasskeyMeasureOptions extends MeasureOptions {
  lengths: number[];
  depths?: number[];
  trials?: number;
  seed?: number;
}

/** Pass key retrieval. */
export async function measurePasskey(
  model: string,
  options: PasskeyMeasureOptions,
): Promise<PasskeyResult> {
  const { lengths, depths, trials, seed, onProgress, signal } = options;
  const own = { maxContext: Math.max(...lengths), sequences: 4 };
  const opened = await openModel(model, openOptions(options, own));
  try {
    return await evaluatePasskey(opened, {
      lengths,
      ...(depths === undefined ? {} : { depths }),
      ...(trials === undefined ? {} : { trials }),
      ...(seed === undefined ? {} : { seed }),
      ...(signal ? { signal } : {}),
      onTrial: (item, total) =>
        onProgress?.({ type: "step", stage: "evaluating", item, total, name: "pass key" }),
    });
  } finally {
    await opened.close();
  }
}
