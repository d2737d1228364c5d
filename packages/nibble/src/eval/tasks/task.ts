/**
 * What a zero-shot task is: how an item becomes a context and continuations, which measures count, where the data is on
 * the hub. Prompts follow EleutherAI's lm-evaluation-harness, so that numbers compare with published ones.
 */
import type { Definition } from "../../core/registry.js";

/** One line of a task file: `{"question": string, "choices": string[], "answer": index}`. */
export interface TaskItem {
  question: string;
  choices: string[];
  /** Index into `choices`. */
  answer: number;
}

/** A data set on the hub, for tasks that are not in the task folder. */
export interface HubSource {
  /** `org/name` of the data set. */
  dataset: string;
  /** File in the repository: JSON lines, a JSON array or parquet. */
  file: string;
  /** Turns a row into an item. @throws Error saying which field is missing or wrong. */
  convert(row: Record<string, unknown>): TaskItem;
}

/** How an item is judged by the log-likelihoods of its continuations. */
export type TaskMetric =
  /** The likeliest choice is the answer; also with the likelihood divided by the choice's length in characters. */
  | "choice-and-norm"
  /** The likeliest choice is the answer. */
  | "choice"
  /** Every token of the only continuation is the model's first guess. */
  | "greedy";

export interface Task extends Definition {
  /** Where the data set comes from, e.g. "arXiv:1803.05457". */
  readonly paper: string;
  readonly metric: TaskMetric;
  /** Text before the continuation of choice `choice` (most tasks ignore it). */
  context(item: TaskItem, choice: number): string;
  /** Text that is scored, with its leading space. */
  continuation(item: TaskItem, choice: number): string;
  /** Says what is wrong with an item beyond its types, or null. */
  check?(item: TaskItem): string | null;
  readonly hub?: HubSource;
}

/** ` {choice}`: the continuation of nearly every task. */
export function spacedChoice(item: TaskItem, choice: number): string {
  return ` ${item.choices[choice] ?? ""}`;
}

/** `Question: …\nAnswer:`, the prompt of ARC and PIQA. */
export function questionAnswer(item: TaskItem): string {
  return `Question: ${item.question}\nAnswer:`;
}

type TaskDraft = Omit<Task, "continuation"> & Partial<Pick<Task, "continuation">>;

/** Types a task; the continuation defaults to the choice after a space. */
export function defineTask(task: TaskDraft): Task {
  return { continuation: spacedChoice, ...task };
}

/** Field of a hub row as text. @throws Error naming the field. */
export function textField(row: Record<string, unknown>, name: string): string {
  const value = row[name];
  if (typeof value !== "string" || value.trim() === "")
    throw new Error(`field "${name}" is not a text`);
  return value;
}

/** Field of a hub row as a list of texts. @throws Error naming the field. */
export function textsField(row: Record<string, unknown>, name: string): string[] {
  const value = row[name];
  if (!Array.isArray(value) || !value.every((v): v is string => typeof v === "string")) {
    throw new Error(`field "${name}" is not a list of texts`);
  }
  return value;
}
