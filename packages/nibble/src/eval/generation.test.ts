import { describe, expect, it } from "vitest";
import { FakeRunner, fakeEncode, fakeLogits, fakeOpened } from "../../test/support/fake-model.js";
import { Runner } from "../runtime/runner.js";
import { generateBatch, greedy } from "./batch-generate.js";
import { evaluateGeneration, gsm8k, parseGenerationItems, vote } from "./generation-task.js";
import { evaluatePasskey, passkeyChart, passkeyPrompt } from "./passkey.js";

describe("generateBatch", () => {
  it("gives the greedy continuation of each prompt, whatever the batch", async () => {
    const alone = (prompt: number[], n: number) => {
      const all = [...prompt];
      for (let i = 0; i < n; i++) all.push(greedy(fakeLogits(all)));
      return all.slice(prompt.length);
    };
    const prompts = [[1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 4], [5, 6, 7]];
    for (const [maxRows, sequences] of [
      [3, 2],
      [16, 4],
      [5, 3],
    ] as const) {
      const runner = new FakeRunner({ maxRows, maxLogitRows: Math.min(4, maxRows), sequences });
      const requests = prompts.map((prompt, i) => ({
        prompt,
        limit: 4 + i,
        choose: greedy,
        ends: () => false,
      }));
      const out = await generateBatch(runner, requests);
      expect(out).toEqual(prompts.map((prompt, i) => alone(prompt, 4 + i)));
      expect(runner.tables.reserved.every((r) => r === 0)).toBe(true);
    }
  });
  it("stops where the request says", async () => {
    const runner = new FakeRunner();
    const [tokens] = await generateBatch(runner, [
      { prompt: [1, 2], limit: 9, choose: greedy, ends: (t) => t.length === 2 },
    ]);
    expect(tokens).toHaveLength(2);
  });
});

describe("gsm8k", () => {
  it("reads answers as the harness does", () => {
    expect(gsm8k.strict("so 4 + 3 = 7\n#### 1,234.")).toBe("1234");
    expect(gsm8k.strict("the answer is 7")).toBeNull();
    expect(gsm8k.flexible("first 3, then it costs $1,250.")).toBe("1250");
    expect(gsm8k.flexible("-5 it is")).toBe("-5");
    expect(gsm8k.flexible("no number …")).toBeNull();
  });
  it("votes: the most frequent answer, the first of equals, null only without answers", () => {
    expect(vote(["1", "2", null, "2"])).toEqual({ answer: "2", share: 0.5 });
    expect(vote(["1", "2"]).answer).toBe("1");
    expect(vote([null])).toEqual({ answer: null, share: 0 });
  });
  it("names file and line of a bad item", () => {
    const good = '{"question": "q", "answer": "a #### 4"}';
    expect(parseGenerationItems(gsm8k, good, "g")).toHaveLength(1);
    expect(() =>
      parseGenerationItems(gsm8k, `${good}\n{"question": "q", "answer": "4"}`, "g.jsonl"),
    ).toThrow(/^g\.jsonl:2: has no "answer"/);
    expect(() => parseGenerationItems(gsm8k, '{"answer": "#### 4"}', "g.jsonl")).toThrow(
      /g\.jsonl:1: has no text/,
    );
  });
  it("runs, the same twice, and asks for what it needs", async () => {
    const items = [{ question: "1 + 1?", answer: "#### 2" }];
    const open = () => fakeOpened(new FakeRunner({ maxContext: 400 }));
    const options = { fewShot: 1, pool: items, maxTokens: 8, votes: 3 };
    const a = await evaluateGeneration(open(), gsm8k, items, options);
    const b = await evaluateGeneration(open(), gsm8k, items, options);
    expect({ ...a, seconds: 0 }).toEqual({ ...b, seconds: 0 });
    expect(a).toMatchObject({ n: 1, votes: 3, fewShot: 1 });
    await expect(evaluateGeneration(open(), gsm8k, items)).rejects.toThrow(/5 examples are wanted/);
    await expect(
      evaluateGeneration(open(), gsm8k, items, { ...options, maxTokens: 390 }),
    ).rejects.toThrow(/no room/);
  });
});

describe("passkey", () => {
  const count = (text: string) => fakeEncode(text).length;
  it("prompts have the length and depth that were asked for", () => {
    for (const depth of [0, 0.5, 1]) {
      const prompt = passkeyPrompt(count, 1200, depth, "12345");
      expect(count(prompt)).toBeLessThanOrEqual(1200);
      expect(count(prompt)).toBeGreaterThan(1100);
      expect(prompt.indexOf("12345") / prompt.length).toBeGreaterThan(0.75 * depth);
      expect(prompt.indexOf("12345") / prompt.length).toBeLessThan(0.25 + 0.75 * depth);
    }
    expect(() => passkeyPrompt(count, 100, 0, "12345")).toThrow(/no room for a pass key/);
  });
  it("covers lengths and depths and draws them", async () => {
    const model = fakeOpened(new FakeRunner({ maxRows: 64, maxContext: 800 }));
    const result = await evaluatePasskey(model, { lengths: [400, 700], depths: [0, 1], trials: 2 });
    expect(result.cells.map(({ length, depth }) => [length, depth])).toEqual([
      [400, 0],
      [400, 1],
      [700, 0],
      [700, 1],
    ]);
    expect(result.trials).toBe(8);
    expect(passkeyChart(result, "m")).toMatch(/^<svg/);
    await expect(evaluatePasskey(model, { lengths: [900] })).rejects.toThrow(/not within the 800/);
  });
  it("prompts of caches that run them as a whole are answered one by one, up to the first wrong token", async () => {
    // Reads the number unless it stands in the first half of the text; says the second half of late numbers wrongly.
    const text: number[] = [];
    let [prompts, steps] = [0, 0];
    const letters = (ids: ArrayLike<number>) => String.fromCharCode(...Array.from(ids));
    const runner: Runner = Object.create(Runner.prototype, {
      prefillsAlone: { value: true },
      model: { value: { maxContext: 800 } },
      tables: { value: { sequences: 1, reserve() {}, truncate: () => text.splice(0) } },
      prefill: {
        value: async (_: number, ids: number[]) => {
          prompts++;
          text.push(...ids);
        },
      },
      step: {
        value: async ({ tokens }: { tokens: number[] }) => {
          steps++;
          text.push(...tokens);
        },
      },
      logits: {
        value: () => {
          const all = letters(text);
          const hidden = all.search(/[0-9]{5}/);
          const said = all.slice(all.lastIndexOf(" is") + 3);
          const key = all.slice(hidden, hidden + 5);
          const right =
            hidden > 0.3 * all.length && !(hidden > 0.8 * all.length && said.length > 3);
          const logits = new Float32Array(200);
          logits[right ? ` ${key}`.charCodeAt(said.length) : 63] = 1;
          return logits;
        },
      },
    });
    const opened = { ...fakeOpened(new FakeRunner({ maxContext: 800 })), runner };
    const result = await evaluatePasskey(opened, {
      lengths: [700],
      depths: [0, 0.5, 1],
      trials: 2,
    });
    expect(result.cells.map(({ accuracy }) => accuracy)).toEqual([0, 1, 0]);
    expect(prompts).toBe(6);
    // The first trials end at once, the next say six tokens, the last four and a wrong one.
    expect(steps).toBe(2 * (0 + 5 + 4));
    expect(text).toEqual([]);
  });
});
