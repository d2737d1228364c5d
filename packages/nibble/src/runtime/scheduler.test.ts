import { afterEach, describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { Philox } from "../core/rng.js";
import { type OpenedModel, type OpenOptions, openLoaded } from "./opened.js";
import { createSession, type GenerateOptions, type Session } from "./session.js";

const opened: OpenedModel[] = [];
afterEach(async () => {
  for (const model of opened.splice(0)) await model.close();
});
async function open(options: OpenOptions): Promise<OpenedModel> {
  const model = await openLoaded(tinyModel({ maxPositionEmbeddings: 256 }), {
    backend: "reference",
    threads: 1,
    maxRows: 40,
    ...options,
  });
  opened.push(model);
  return model;
}
const prompt = (name: string, length: number) =>
  Array.from({ length }, (_, i) => new Philox(1, name, i).below(50));
async function tokensOf(session: Session, ids: number[], options: GenerateOptions) {
  const tokens: number[] = [];
  for await (const piece of session.generate(ids, options)) tokens.push(piece.token);
  return tokens;
}

const REQUESTS: { ids: number[]; options: GenerateOptions }[] = [
  { ids: prompt("a", 5), options: { maxTokens: 30 } },
  { ids: prompt("b", 90), options: { maxTokens: 10, temperature: 0.8, seed: 3 } },
  { ids: prompt("c", 33), options: { maxTokens: 25, speculate: "ngram", draftTokens: 3 } },
  { ids: prompt("d", 1), options: { maxTokens: 40, temperature: 1.5, topK: 7, seed: 9 } },
];

describe("sessions that generate at the same time", () => {
  for (const kv of ["fp32", "quarot-kv4"]) {
    it(`give the tokens that each gives alone, in fewer runs (${kv})`, async () => {
      const single = await open({ kv, sequences: 1 });
      const alone: number[][] = [];
      for (const { ids, options } of REQUESTS) {
        const session = createSession(single);
        session.reset();
        alone.push(await tokensOf(session, ids, options));
      }
      const many = await open({ kv, sequences: 4 });
      const together = await Promise.all(
        REQUESTS.map(({ ids, options }, slot) => tokensOf(createSession(many, slot), ids, options)),
      );
      expect(together).toEqual(alone);
      // The longest answer has 40 tokens; the prompts fill the rows that decoding leaves.
      expect(many.scheduler.runs).toBeLessThan(50);
      expect(single.scheduler.runs).toBeGreaterThan(95);
    });
  }

  it("the logits of a batch equal those of singles bit for bit", async () => {
    const many = await open({ sequences: 4 });
    const lengths = [3, 41, 17, 60];
    for (const [slot, length] of lengths.entries()) many.runner.tables.reserve(slot, length);
    const batch = await Promise.all(
      lengths.map((length, slot) =>
        many.scheduler.feed({ slot, tokens: prompt(`${slot}`, length), from: 0, logits: 2 }),
      ),
    );
    const single = await open({ sequences: 1 });
    for (const [slot, length] of lengths.entries()) {
      single.runner.tables.truncate(0, 0);
      single.runner.tables.reserve(0, length);
      const tokens = prompt(`${slot}`, length);
      for (let i = 0; i < length; i++) {
        const [row] = await single.scheduler.feed({
          slot: 0,
          tokens: [tokens[i] as number],
          from: i,
          logits: 1,
        });
        if (i >= length - 2) expect(batch[slot]?.[i - length + 2]).toEqual(row);
      }
    }
  });

  it("one that rests does not hold up the others", async () => {
    const many = await open({ sequences: 2 });
    const resting = createSession(many, 0).generate(prompt("r", 4), { maxTokens: 50 });
    await resting.next();
    const tokens = await tokensOf(createSession(many, 1), prompt("s", 4), { maxTokens: 8 });
    expect(tokens.length).toBe(8);
    await resting.return(undefined);
    expect((await tokensOf(createSession(many, 0), prompt("t", 4), { maxTokens: 3 })).length).toBe(
      3,
    );
  });

  it("one that fails or is aborted leaves the others alone", async () => {
    const many = await open({ sequences: 3, maxContext: 128 });
    const abort = new AbortController();
    const results = await Promise.allSettled([
      tokensOf(createSession(many, 0), prompt("x", 20), { maxTokens: 12 }),
      tokensOf(createSession(many, 1), prompt("y", 129), { maxTokens: 12 }),
      (async () => {
        const generation = createSession(many, 2).generate(prompt("z", 20), {
          maxTokens: 100,
          signal: abort.signal,
        });
        for await (const _ of generation) abort.abort(new Error("enough"));
      })(),
    ]);
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "rejected"]);
    expect(results[1]).toMatchObject({ reason: { code: "context-full" } });
    expect(results[2]).toMatchObject({ reason: { message: "enough" } });
    // The slots are usable again.
    for (const slot of [1, 2]) {
      const tokens = await tokensOf(createSession(many, slot), prompt("w", 9), { maxTokens: 4 });
      expect(tokens.length).toBe(4);
    }
  });
});

describe("sharing", () => {
  it("a fork continues as the original would, and neither changes the other", async () => {
    for (const kv of ["fp32", "quarot-kv4"]) {
      const many = await open({ kv, sequences: 3, sharePrefixes: false });
      const ids = prompt("f", 45);
      const first = createSession(many, 0);
      await tokensOf(first, ids, { maxTokens: 1 });
      const used = many.runner.tables.usedPages;
      const forks = [1, 2].map((slot) => first.fork(slot));
      expect(many.runner.tables.usedPages).toBe(used);
      const [a, b, c] = await Promise.all([
        tokensOf(first, ids, { maxTokens: 20, temperature: 1, seed: 1 }),
        tokensOf(forks[0] as Session, ids, { maxTokens: 20, temperature: 1, seed: 2 }),
        tokensOf(forks[1] as Session, ids, { maxTokens: 20, temperature: 1, seed: 1 }),
      ]);
      expect(c).toEqual(a);
      expect(b).not.toEqual(a);
      const fresh = await open({ kv, sequences: 1 });
      expect(
        await tokensOf(createSession(fresh), ids, { maxTokens: 20, temperature: 1, seed: 2 }),
      ).toEqual(b);
      expect(() => first.fork(1)).toThrow(expect.objectContaining({ code: "usage" }));
    }
  });

  it("a prompt that begins like an earlier one takes its pages, and the answer is the same", async () => {
    for (const kv of ["fp32", "quarot-kv4"]) {
      const many = await open({ kv, sequences: 2 });
      const common = prompt("common", 70);
      const ask = [...common, 1, 2, 3];
      const first = createSession(many, 0);
      await tokensOf(first, [...common, 9, 9], { maxTokens: 5 });
      first.reset();
      const second = createSession(many, 1);
      const tokens = await tokensOf(second, ask, { maxTokens: 12 });
      expect(second.summary?.reusedTokens).toBe(64);
      const cold = await open({ kv, sequences: 1 });
      const session = createSession(cold);
      expect(await tokensOf(session, ask, { maxTokens: 12 })).toEqual(tokens);
      expect(session.summary?.reusedTokens).toBe(0);
    }
  });
});
