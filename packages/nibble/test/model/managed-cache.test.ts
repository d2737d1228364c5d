/** The managed cache behind SmolLM2-135M-Instruct says what the packed one says. */
import { expect, it } from "vitest";
import type { KvRecipe } from "../../src/model/model.js";
import { openModel } from "../../src/runtime/open.js";
import { createSession } from "../../src/runtime/session.js";
import { requires, smollm2 } from "./locate.js";

const PROMPTS = [
  "The capital of France is",
  "Once upon a time there was a small robot. It lived in a",
];

async function greedy(kv: KvRecipe | string): Promise<number[][]> {
  const opened = await openModel(smollm2 as string, { kv, maxContext: 256 });
  try {
    const answers: number[][] = [];
    for (const prompt of PROMPTS) {
      const session = createSession(opened);
      session.reset();
      for await (const _ of session.generate(prompt, { maxTokens: 24, temperature: 0, raw: true }));
      answers.push(session.summary?.tokens ?? []);
    }
    return answers;
  } finally {
    await opened.close();
  }
}

it(
  "greedy answers over an exact cache are those of the packed kernels",
  requires({ "the model": smollm2 }),
  async () => {
    const plane = { codec: "fp32" };
    const packed = await greedy("fp32");
    expect(packed.map((tokens) => tokens.length).every((count) => count > 5)).toBe(true);
    for (const recipe of [{ prefill: "exact" }, { sinks: 4 }] as const) {
      expect(await greedy({ k: plane, v: plane, ...recipe })).toEqual(packed);
    }
  },
);
