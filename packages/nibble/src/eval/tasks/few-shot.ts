/**
 * Worked examples in front of a question, joined by blank lines as the harness does. They are drawn (seeded) from a file
 * of their own or from the other items of the task, never the item itself; item i gets the same ones whatever --limit.
 */
import { UsageError } from "../../core/errors.js";
import { Philox } from "../../core/rng.js";
import type { Task, TaskItem } from "./task.js";

export interface FewShot {
  /** Examples a question. */
  count: number;
  seed: number;
  /** Items to draw from. */
  pool: TaskItem[];
  /** True when the pool is the evaluated file itself: an item is then never its own example. */
  own: boolean;
}

/** Text of an example: its context with the answer behind it. */
export function exampleText(task: Task, item: TaskItem): string {
  return task.context(item, item.answer) + task.continuation(item, item.answer);
}

/**
 * The examples' text in front of item `index` (ends with a blank line), or "" without examples.
 * @throws UsageError when the pool is too small
 */
export function fewShotPrefix(task: Task, index: number, shots: FewShot | undefined): string {
  if (!shots || shots.count === 0) return "";
  const { count, pool, own } = shots;
  if (pool.length - (own ? 1 : 0) < count) {
    throw new UsageError(
      `${count} examples are wanted, ${task.id} has only ${pool.length} items to draw from`,
      {
        hint: "lower --few-shot",
      },
    );
  }
  const rng = new Philox(shots.seed, `few-shot/${task.id}/${index}`);
  const taken = new Set<number>(own ? [index] : []);
  let text = "";
  for (let i = 0; i < count; ) {
    const pick = rng.below(pool.length);
    if (taken.has(pick)) continue;
    taken.add(pick);
    text += `${exampleText(task, pool[pick] as TaskItem)}\n\n`;
    i++;
  }
  return text;
}
