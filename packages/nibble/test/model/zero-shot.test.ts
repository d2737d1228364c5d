/** What `nibble eval` measures beside perplexity, on SmolLM2-135M-Instruct: a task, pass keys, generation with voting. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { gsm8k } from "../../src/eval/generation-task.js";
import { measureGeneration, measurePasskey } from "../../src/eval/measure-generation.js";
import { requires, smollm2 } from "./locate.js";
import { expectGolden, goldenRows, ZERO_SHOT_NEEDS } from "./zero-shot-golden.js";

describe("zero-shot accuracy of SmolLM2-135M", requires(ZERO_SHOT_NEEDS), () => {
  // The quickest one; `npm run test:acceptance` measures all.
  it.each(goldenRows.filter(({ task }) => task === "openbookqa"))(
    "$task: $acc, normalized $acc_norm, of $n",
    expectGolden,
  );
});

describe("generation on SmolLM2-135M", requires({ "the model": smollm2 }), () => {
  it("finds most pass keys in 256 tokens", async () => {
    const found = await measurePasskey(smollm2 as string, { lengths: [256], trials: 2 });
    expect(found.trials).toBe(10);
    expect(found.accuracy).toBeGreaterThan(0.7);
  });

  it("votes on sampled solutions of sums, the same each time", async () => {
    const taskDir = await mkdtemp(join(tmpdir(), "nibble-gsm8k-"));
    const line = (name: string, a: number, b: number) =>
      JSON.stringify({
        question: `${name} has ${a} apples and buys ${b} more. How many apples are there?`,
        answer: `${a} + ${b} = ${a + b} apples.\n#### ${a + b}`,
      });
    try {
      await writeFile(join(taskDir, "gsm8k.jsonl"), `${line("Tom", 3, 4)}\n${line("Ann", 2, 5)}\n`);
      await writeFile(join(taskDir, "gsm8k_train.jsonl"), `${line("Bob", 1, 7)}\n`);
      const run = async () => {
        const options = { taskDir, fewShot: 1, votes: 3, maxTokens: 48 };
        const { seconds: _times, ...result } = await measureGeneration(
          smollm2 as string,
          gsm8k,
          options,
        );
        return result;
      };
      const result = await run();
      expect(result).toMatchObject({ n: 2, votes: 3, fewShot: 1 });
      // Whether the sums are right is the model's affair; that it answers in the form of the example is ours.
      expect(result.agreement).toBeGreaterThan(0.3);
      expect(await run()).toEqual(result);
    } finally {
      await rm(taskDir, { recursive: true });
    }
  });
});
