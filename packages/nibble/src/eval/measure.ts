/** What `nibble eval` and quality gates do: open a model as it will run, measure, close. */
import type { OnProgress } from "../core/progress.js";
import type { BackendId } from "../kernels/contract.js";
import type { KvRecipe } from "../model/model.js";
import { type OpenedModel, type OpenOptions, openModel } from "../runtime/open.js";
import { encodeStream, evaluatePerplexity, type PerplexityResult } from "./perplexity.js";
import { tasks } from "./tasks/index.js";
import { loadTaskItems } from "./tasks/source.js";
import { evaluateTask, SCORING_SEQUENCES, type TaskResult } from "./zero-shot.js";

export interface MeasureOptions {
  backend?: "auto" | BackendId;
  threads?: number;
  /** Cache of the measured model (a reference runs with its own). */
  kv?: string | KvRecipe;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

export interface TextOptions extends MeasureOptions {
  ctx: number;
  windows?: number;
  /** Also measure KL(reference || model) and top-1 agreement. */
  reference?: string;
}

export interface TextMeasures extends PerplexityResult {
  backend: string;
  variant: string;
}

/** Perplexity of a text. @throws what openModel and evaluatePerplexity throw */
export async function measureText(
  model: string,
  text: string,
  options: TextOptions,
): Promise<TextMeasures> {
  const { onProgress, signal, ctx, windows, reference: referenceName } = options;
  const opened = await openModel(model, openOptions(options, { maxContext: ctx }));
  let reference: OpenedModel | undefined;
  try {
    const ids = encodeStream(opened, text);
    if (referenceName !== undefined) {
      const { kv: _own, ...rest } = options;
      reference = await openModel(referenceName, openOptions(rest, { maxContext: ctx }));
    }
    const result = await evaluatePerplexity(opened, ids, {
      ctx,
      onWindow: (item, total, perplexity) =>
        onProgress?.({
          type: "step",
          stage: "evaluating",
          item,
          total,
          name: `perplexity ${perplexity.toFixed(3)}`,
        }),
      onWarning: (message) => onProgress?.({ type: "log", level: "warn", message }),
      ...(windows === undefined ? {} : { windows }),
      ...(reference ? { reference } : {}),
      ...(signal ? { signal } : {}),
    });
    const { backend, variant } = opened.compiled.engine;
    return { ...result, backend, variant };
  } finally {
    await reference?.close();
    await opened.close();
  }
}

export interface TasksOptions extends MeasureOptions {
  taskDir?: string;
  limit?: number;
}

/** Accuracy on tasks by id. Unknown ids and missing data are found before the model is opened. */
export async function measureTasks(
  model: string,
  ids: readonly string[],
  options: TasksOptions,
): Promise<Record<string, Omit<TaskResult, "items">>> {
  const { onProgress, signal, taskDir, limit } = options;
  const source = {
    ...(taskDir === undefined ? {} : { taskDir }),
    ...(limit === undefined ? {} : { limit }),
  };
  const chosen = ids.map((id) => tasks.get(id));
  const items = await Promise.all(chosen.map((task) => loadTaskItems(task, source)));
  const opened = await openModel(model, openOptions(options, { sequences: SCORING_SEQUENCES }));
  try {
    const results: Record<string, Omit<TaskResult, "items">> = {};
    for (const [index, task] of chosen.entries()) {
      const { items: _all, ...result } = await evaluateTask(opened, task, items[index] ?? [], {
        onItem: (item, total, accuracy) =>
          onProgress?.({
            type: "step",
            stage: task.id,
            item,
            total,
            name: `accuracy ${(100 * accuracy).toFixed(1)} %`,
          }),
        onWarning: (message) => onProgress?.({ type: "log", level: "warn", message }),
        ...(signal ? { signal } : {}),
      });
      results[task.id] = result;
    }
    return results;
  } finally {
    await opened.close();
  }
}

function openOptions(options: MeasureOptions, own: OpenOptions): OpenOptions {
  const { backend, threads, kv, onProgress, signal } = options;
  return {
    ...own,
    ...(backend === undefined ? {} : { backend }),
    ...(threads === undefined ? {} : { threads }),
    ...(kv === undefined ? {} : { kv }),
    ...(signal ? { signal } : {}),
    ...(onProgress
      ? { log: (message: string) => onProgress({ type: "log", level: "info", message }) }
      : {}),
  };
}
