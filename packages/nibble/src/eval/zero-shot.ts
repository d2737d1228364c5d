/**
 * Zero-shot (and few-shot) accuracy with the scoring of lm-evaluation-harness: the context is scored with each choice as
 * continuation; `accuracy` takes the largest summed log-likelihood, `accuracyNorm` the largest per character of the
 * choice; ties go to the first. Context and continuation are tokenized together and split at the context's own count.
 */
import { UsageError } from "../core/errors.js";
import {
  type Alternative,
  type BatchScoreOptions,
  type Likelihood,
  type ScoringRunner,
  scoreGroups,
} from "./batch-score.js";
import { type FewShot, fewShotPrefix } from "./tasks/few-shot.js";
import type { Task, TaskItem } from "./tasks/task.js";

/** What turning texts into tokens needs of a model. */
export interface EncodingModel {
  readonly tokenizer: { encode(text: string, options: { special: boolean }): number[] } | null;
  readonly model: {
    readonly config: { readonly bosTokenId: number | null; readonly eosTokenIds: number[] };
  };
}

/** What evaluation needs of an opened model. */
export interface ScoringModel extends EncodingModel {
  readonly runner: ScoringRunner;
}

/** Options of openModel that suit scoring: many short questions at once. */
export const SCORING_SEQUENCES = 48;

export interface ZeroShotOptions {
  fewShot?: FewShot;
  /** The items' alternatives where they are encoded already (encodeTask), whole. */
  encoded?: Alternative[][];
  /** Called after every finished question with the accuracy so far. */
  onItem?: (done: number, total: number, accuracy: number) => void;
  onWarning?: (line: string) => void;
  signal?: AbortSignal;
}

export interface TaskResult {
  accuracy: number;
  /** sqrt(acc (1 - acc) / (n - 1)). */
  stderr: number;
  /** Absent for tasks that are scored by `accuracy` alone. */
  accuracyNorm?: number;
  stderrNorm?: number;
  n: number;
  /** Expected accuracy of guessing: the mean of 1 / choices; 0 for `greedy` tasks. */
  chance: number;
  /** Tasks with one continuation: exp of the mean negative log-likelihood of a continuation. */
  perplexity?: number;
  fewShot: number;
  /** Rows run through the model, and per second (head and tokenization included). */
  rows: number;
  rowsPerSecond: number;
  seconds: number;
  /** Items whose context was cut from the left to fit. */
  truncated: number;
  items: ItemResult[];
}

export interface ItemResult {
  correct: boolean;
  correctNorm: boolean;
  /** Chosen index by `accuracy` (for `greedy` tasks 0 = guessed, -1 = not). */
  choice: number;
  logLikelihoods: number[];
}

/** Characters as people (and Python) count them: code points. */
function characters(text: string): number {
  let n = 0;
  for (const _ of text) n++;
  return n;
}

/** Index of the largest value, the first of equals. */
function first(values: number[]): number {
  let best = 0;
  for (let i = 1; i < values.length; i++)
    if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

/**
 * Token ids of context + continuation and where the continuation starts. Blanks at the end of the context go to the
 * continuation, as in the harness: most tokenizers put a blank at the front of the next word.
 * @throws UsageError when nothing is left to score
 */
export function encodePair(
  model: EncodingModel,
  context: string,
  continuation: string,
): Alternative {
  const { tokenizer } = model;
  if (!tokenizer) {
    throw new UsageError("this model has no tokenizer, so a task cannot be scored", {
      hint: "evaluate a folder that holds tokenizer.json",
    });
  }
  const stem = context.trimEnd();
  const tail = context.slice(stem.length) + continuation;
  const ids = tokenizer.encode(stem + tail, { special: true });
  const from = tokenizer.encode(stem, { special: true }).length;
  if (from > 0) return { ids, from };
  // Nothing to condition on: the harness puts the begin-of-text token (else end-of-text) there.
  const { bosTokenId, eosTokenIds } = model.model.config;
  const start = bosTokenId ?? eosTokenIds[0];
  if (start === undefined)
    throw new UsageError("the context is empty and the model has no begin-of-text token");
  return { ids: [start, ...ids], from: 1 };
}

/** A model whose tokenizer remembers the last texts: the choices of a question mostly share their context. */
function remembering(model: EncodingModel): EncodingModel {
  const { tokenizer } = model;
  if (!tokenizer) return model;
  const known = new Map<string, number[]>();
  return {
    model: model.model,
    tokenizer: {
      encode(text, options) {
        const ids = known.get(text) ?? tokenizer.encode(text, options);
        known.set(text, ids);
        return ids;
      },
    },
  };
}

/** Cuts the context from the left so that all rows fit; true when something was cut. */
function fit(alternative: Alternative, maxContext: number): boolean {
  const excess = alternative.ids.length - 1 - maxContext;
  if (excess <= 0) return false;
  alternative.ids = alternative.ids.slice(excess);
  alternative.from = Math.max(1, alternative.from - excess);
  return true;
}

/** sqrt(p (1 - p) / (n - 1)), 0 for a single item. */
export function accuracyStderr(p: number, n: number): number {
  return n > 1 ? Math.sqrt((p * (1 - p)) / (n - 1)) : 0;
}

/** Judges one item by the scores of its alternatives. */
export function judge(task: Task, item: TaskItem, scores: Likelihood[]): ItemResult {
  const logLikelihoods = scores.map((s) => s.logLikelihood);
  if (task.metric === "greedy") {
    const correct = scores[0]?.greedy === true;
    return { correct, correctNorm: correct, choice: correct ? 0 : -1, logLikelihoods };
  }
  const choice = first(logLikelihoods);
  const perCharacter = logLikelihoods.map(
    (l, i) => l / Math.max(1, characters(item.choices[i] ?? "")),
  );
  return {
    correct: choice === item.answer,
    correctNorm: first(perCharacter) === item.answer,
    choice,
    logLikelihoods,
  };
}

/** The alternatives of every item of a task, as long as they are. */
export function encodeTask(
  model: EncodingModel,
  task: Task,
  items: TaskItem[],
  fewShot?: FewShot,
): Alternative[][] {
  return items.map((item, index) => {
    const prefix = fewShotPrefix(task, index, fewShot);
    const encode = remembering(model);
    return item.choices.map((_, c) =>
      encodePair(encode, prefix + task.context(item, c), task.continuation(item, c)),
    );
  });
}

/** Cuts the contexts that do not fit from the left, as the harness does; gives the number of items that were cut. */
export function fitTask(groups: Alternative[][], maxContext: number): number {
  return groups.filter((group) => group.filter((a) => fit(a, maxContext)).length > 0).length;
}

/** Sums up judged items. */
export function summarize(
  task: Task,
  items: TaskItem[],
  judged: ItemResult[],
): Pick<
  TaskResult,
  "accuracy" | "stderr" | "accuracyNorm" | "stderrNorm" | "n" | "chance" | "perplexity"
> {
  const n = judged.length;
  const share = (pick: (item: ItemResult) => boolean) => judged.filter(pick).length / n;
  const accuracy = share((j) => j.correct);
  const accuracyNorm = share((j) => j.correctNorm);
  const greedy = task.metric === "greedy";
  const mean = judged.reduce((sum, j) => sum + (j.logLikelihoods[0] ?? 0), 0) / n;
  return {
    accuracy,
    stderr: accuracyStderr(accuracy, n),
    ...(task.metric === "choice-and-norm"
      ? { accuracyNorm, stderrNorm: accuracyStderr(accuracyNorm, n) }
      : {}),
    n,
    chance: greedy ? 0 : items.reduce((sum, item) => sum + 1 / item.choices.length, 0) / n,
    ...(greedy ? { perplexity: Math.exp(-mean) } : {}),
  };
}

/**
 * Accuracy of a model on the items of a task. Uses all cache slots of the opened model: open it with several
 * (`SCORING_SEQUENCES`), or it runs question by question.
 * @throws UsageError without a tokenizer or for items that cannot be scored
 */
export async function evaluateTask(
  model: ScoringModel,
  task: Task,
  items: TaskItem[],
  options: ZeroShotOptions = {},
): Promise<TaskResult> {
  if (items.length === 0) throw new UsageError(`${task.id} has no items`);
  const started = performance.now();
  const groups = options.encoded ?? encodeTask(model, task, items, options.fewShot);
  const truncated = fitTask(groups, model.runner.model.maxContext);
  if (truncated > 0) {
    options.onWarning?.(
      `${task.id}: ${truncated} of ${items.length} items exceed ${model.runner.model.maxContext} tokens; their contexts were cut from the left`,
    );
  }
  const judged = new Array<ItemResult>(items.length);
  let done = 0;
  let correct = 0;
  const scoreOptions: BatchScoreOptions = {
    onGroup: (i, scores) => {
      const result = judge(task, items[i] as TaskItem, scores);
      judged[i] = result;
      done++;
      if (result.correct) correct++;
      options.onItem?.(done, items.length, correct / done);
    },
    ...(options.signal ? { signal: options.signal } : {}),
  };
  const { rows, seconds } = await scoreGroups(model.runner, groups, scoreOptions);
  return {
    ...summarize(task, items, judged),
    fewShot: options.fewShot?.count ?? 0,
    rows,
    rowsPerSecond: rows / seconds,
    seconds: (performance.now() - started) / 1000,
    truncated,
    items: judged,
  };
}
