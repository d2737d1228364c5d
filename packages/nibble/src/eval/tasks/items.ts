/**
 * Task items from JSON lines: `{"question": string, "choices": string[], "answer": index}` a line. A bad line is an error
 * with file and line; nothing is skipped, because a score over fewer items than the file has is another score.
 */
import { FormatError } from "../../core/errors.js";
import type { Task, TaskItem } from "./task.js";

const HINT = 'each line is {"question": string, "choices": string[], "answer": index}';

/** What is wrong with a parsed line as an item, or null. */
function itemFault(value: unknown): string | null {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return "is not a JSON object";
  const { question, choices, answer } = value as Record<string, unknown>;
  if (typeof question !== "string") return 'has no text "question"';
  if (!Array.isArray(choices) || choices.length === 0) return 'has no list "choices"';
  for (const [i, choice] of choices.entries()) {
    if (typeof choice !== "string") return `choice ${i} is not a text`;
    if (choice.trim() === "") return `choice ${i} is empty`;
  }
  if (answer === undefined || answer === null) return 'has no "answer"';
  if (typeof answer !== "number" || !Number.isInteger(answer)) {
    return `answer is ${JSON.stringify(answer)}, expected an index`;
  }
  if (answer < 0 || answer >= choices.length) {
    return `answer ${answer} is out of range: there are ${choices.length} choices (0 to ${choices.length - 1})`;
  }
  return null;
}

/**
 * Checks an item of a task. @throws FormatError code "task-data" at `place`.
 */
export function checkItem(task: Task, value: unknown, place: string): TaskItem {
  const fault = itemFault(value);
  if (fault) throw new FormatError(fault, { place, hint: HINT }, "task-data");
  const { question, choices, answer } = value as TaskItem;
  const item = { question, choices, answer };
  if (task.metric !== "greedy" && choices.length < 2) {
    throw new FormatError(
      "has one choice, so there is nothing to choose",
      { place, hint: HINT },
      "task-data",
    );
  }
  const taskFault = task.check?.(item) ?? null;
  if (taskFault) throw new FormatError(taskFault, { place }, "task-data");
  return item;
}

/** Lines of a JSON-lines text with their numbers (from 1); blank lines are skipped. */
export function* jsonLines(
  text: string,
  file: string,
): Generator<{ line: number; value: unknown }> {
  const lines = text.split("\n");
  for (const [i, raw] of lines.entries()) {
    const content = (i === 0 ? raw.replace(/^\uFEFF/, "") : raw).trim();
    if (content === "") continue;
    try {
      yield { line: i + 1, value: JSON.parse(content) as unknown };
    } catch (cause) {
      throw new FormatError(
        `is not valid JSON (${(cause as Error).message})`,
        { place: `${file}:${i + 1}`, hint: "one JSON object a line", cause },
        "task-data",
      );
    }
  }
}

/**
 * Items of a task file. The whole file is checked, also when only the first `limit` items are wanted.
 * @param file name for messages
 * @throws FormatError code "task-data" naming file and line, or the file when it has no items
 */
export function parseItems(task: Task, text: string, file: string, limit?: number): TaskItem[] {
  const items: TaskItem[] = [];
  for (const { line, value } of jsonLines(text, file))
    items.push(checkItem(task, value, `${file}:${line}`));
  if (items.length === 0) {
    throw new FormatError("holds no items", { place: file, hint: HINT }, "task-data");
  }
  return limit === undefined ? items : items.slice(0, limit);
}
