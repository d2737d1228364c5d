/** Zero-shot accuracies of an independent implementation of lm-evaluation-harness' scoring, and how ours compare. */
import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { expect } from "vitest";
import { measureTasks } from "../../src/eval/measure.js";
import { sharedFile, smollm2 } from "./locate.js";

const file = sharedFile("golden/zeroshot-smollm2.json");
const tasks = sharedFile("data/zeroshot/arc_easy.jsonl");
export const ZERO_SHOT_NEEDS = {
  "the model": smollm2,
  "zeroshot-smollm2.json": file,
  "the tasks": tasks,
};

export interface GoldenRow {
  task: string;
  n: number;
  acc: number;
  acc_norm: number;
}
export const goldenRows: GoldenRow[] = file ? JSON.parse(readFileSync(file, "utf8")).rows : [];

/** Half a point. */
const TOLERANCE = 0.005;

/** Measures the first questions of a task on the original model; its accuracies must be the golden ones. */
export async function expectGolden(row: GoldenRow): Promise<void> {
  const taskDir = dirname(tasks as string);
  const measured = await measureTasks(smollm2 as string, [row.task], { taskDir, limit: row.n });
  const result = measured[row.task];
  expect(result?.n).toBe(row.n);
  expect(Math.abs((result?.accuracy ?? 0) - row.acc)).toBeLessThanOrEqual(TOLERANCE);
  expect(Math.abs((result?.accuracyNorm ?? 0) - row.acc_norm)).toBeLessThanOrEqual(TOLERANCE);
}
