/** SmolLM2-135M: zero-shot accuracies against an independent implementation; comparison of a model with itself. */
import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { describe, expect, it } from "vitest";
import { compareModels } from "../../src/eval/compare-run.js";
import { measureTasks } from "../../src/eval/measure.js";
import { requires, sharedFile, smollm2 } from "./locate.js";

const golden = sharedFile("golden/zeroshot-smollm2.json");
const items = sharedFile("data/zeroshot/openbookqa.jsonl");
const text = sharedFile("data/wikitext2-test.txt");
interface Row {
  task: string;
  n: number;
  acc: number;
  acc_norm: number;
}
/** The shortest tasks; the others are measured the same way. */
const TASKS = ["openbookqa"];

describe(
  "zero-shot",
  requires({ "the model": smollm2, "golden accuracies": golden, "task files": items }),
  () => {
    it("accuracies within 0.5 points of an independent implementation's", async () => {
      const { rows } = JSON.parse(readFileSync(golden ?? "", "utf8")) as { rows: Row[] };
      const measured = await measureTasks(smollm2 ?? "", TASKS, {
        taskDir: dirname(items ?? ""),
        limit: 500,
      });
      for (const id of TASKS) {
        const expected = rows.find((row) => row.task === id);
        const found = measured[id];
        expect(found?.n).toBe(expected?.n);
        expect(Math.abs((found?.accuracy ?? 0) - (expected?.acc ?? 1))).toBeLessThanOrEqual(0.005);
        expect(
          Math.abs((found?.accuracyNorm ?? 0) - (expected?.acc_norm ?? 1)),
        ).toBeLessThanOrEqual(0.005);
      }
    });
  },
);

describe("compare", requires({ "the model": smollm2, "a text": text, "task files": items }), () => {
  it("a model with itself: no divergence, full agreement, equal JSON twice", async () => {
    const run = () =>
      compareModels([smollm2 ?? "", smollm2 ?? ""], {
        command: "c",
        names: ["a", "b"],
        text: {
          content: readFileSync(text ?? "", "utf8")
            .replaceAll("\r\n", "\n")
            .slice(0, 4000),
          file: "t",
        },
        ctx: 128,
        windows: 2,
        tasks: ["openbookqa"],
        taskDir: dirname(items ?? ""),
        limit: 8,
      });
    const { result } = await run();
    const [comparison] = result.comparisons;
    expect(comparison?.text?.kl.mean.value).toBeLessThan(1e-6);
    expect(comparison?.text?.topAgreement.value).toBe(1);
    expect(comparison?.text?.deltaPerplexity).toEqual({ value: 0, low: 0, high: 0 });
    expect(comparison?.tasks.openbookqa).toMatchObject({ flips: 0, changed: 0 });
    expect(JSON.stringify((await run()).result)).toBe(JSON.stringify(result));
  });
});
