import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { Philox } from "../core/rng.js";
import type { KvRecipe } from "../model/model.js";
import { DraftModel } from "./draft-model.js";
import { ManagedRunner } from "./managed-runner.js";
import { NgramDrafter } from "./ngram-drafter.js";
import { type OpenedModel, openLoaded } from "./opened.js";
import { Sampler, type SamplingOptions } from "./sampler.js";
import { createSession, type GenerateOptions } from "./session.js";
import { type Drafter, verifyDraft } from "./speculate.js";

const VOCABULARY = 12;
const open = (seed: number, kv: string | KvRecipe = "fp32", vocabSize = VOCABULARY) =>
  openLoaded(tinyModel({ vocabSize, maxPositionEmbeddings: 256 }, seed), {
    backend: "reference",
    threads: 1,
    kv,
    maxRows: 64,
  });

let target: OpenedModel;
let other: OpenedModel;
beforeAll(async () => {
  [target, other] = await Promise.all([open(1), open(2)]);
});
afterAll(async () => {
  await Promise.all([target.close(), other.close()]);
});

/** Proposes anything. */
class RandomDrafter implements Drafter {
  readonly #rng = new Philox(5, "drafter");
  propose(_: readonly number[], count: number) {
    const length = this.#rng.below(count + 1);
    return { tokens: Array.from({ length }, () => this.#rng.below(VOCABULARY)) };
  }
}

async function tokensOf(opened: OpenedModel, prompt: number[], options: GenerateOptions) {
  const session = createSession(opened);
  session.reset();
  for await (const _ of session.generate(prompt, options)) void _;
  return { session, summary: session.summary as NonNullable<typeof session.summary> };
}

const PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5];

describe("greedy", () => {
  it("gives the tokens of plain decoding, whatever is drafted and however far ahead", async () => {
    for (const penalty of [1, 1.3]) {
      const plain = await tokensOf(target, PROMPT, { maxTokens: 100, repetitionPenalty: penalty });
      for (const [drafter, draftTokens] of [
        ["ngram", 4],
        ["ngram", 1],
        [new RandomDrafter(), 7],
        [new DraftModel(target, other), 3],
      ] as const) {
        const { session, summary } = await tokensOf(target, PROMPT, {
          maxTokens: 100,
          repetitionPenalty: penalty,
          speculate: drafter,
          draftTokens,
        });
        expect(summary.tokens).toEqual(plain.summary.tokens);
        expect(summary.finish).toBe("length");
        // The cache holds what plain decoding leaves in it.
        expect(session.cachedTokens).toEqual([...PROMPT, ...summary.tokens].slice(0, -1));
        const { passes, accepted } = summary.speculation as { passes: number; accepted: number };
        expect(passes + accepted).toBe(99);
      }
    }
  });

  it("holds over packed caches and ends where plain decoding ends", async () => {
    for (const kv of ["fp16", "quarot-kv4"]) {
      const opened = await open(1, kv);
      const options = { maxTokens: 300, speculate: "ngram" as const, draftTokens: 8 };
      const plain = await tokensOf(opened, PROMPT, { maxTokens: 300 });
      const fast = await tokensOf(opened, PROMPT, options);
      expect(plain.summary.finish).toBe("context");
      expect(fast.summary.tokens).toEqual(plain.summary.tokens);
      expect(fast.summary.finish).toBe("context");
      // The tiny model repeats itself before long, so most drafts hold.
      expect(fast.summary.speculation?.acceptance).toBeGreaterThan(0.5);
      await opened.close();
    }
  });

  it("works on managed caches through commit and rollback", async () => {
    // Nothing is dropped or sealed within a draft: the tokens are those of plain decoding.
    const exact: KvRecipe = { k: { codec: "fp32" }, v: { codec: "fp16" }, sinks: 4 };
    const opened = await open(1, exact);
    expect(opened.runner).toBeInstanceOf(ManagedRunner);
    const plain = await tokensOf(opened, PROMPT, { maxTokens: 60 });
    const options = { maxTokens: 60, speculate: "ngram" as const, draftTokens: 5 };
    const fast = await tokensOf(opened, PROMPT, options);
    expect(fast.summary.tokens).toEqual(plain.summary.tokens);
    expect(fast.session.cachedTokens).toEqual([...PROMPT, ...plain.summary.tokens].slice(0, -1));
    await opened.close();

    // Policies see accepted rows only: the budget holds, and the answer repeats itself.
    for (const retention of [
      { type: "window", sinks: 2, recent: 20 },
      { type: "h2o", heavy: 8, recent: 12 },
      { type: "keyformer", budget: 20 },
    ]) {
      const model = await open(1, { k: { codec: "fp16" }, v: { codec: "fp16" }, retention });
      const random = () => ({ ...options, speculate: new RandomDrafter() });
      const first = await tokensOf(model, PROMPT, random());
      const second = await tokensOf(model, PROMPT, random());
      expect(second.summary.tokens).toEqual(first.summary.tokens);
      expect(first.summary.speculation?.drafted).toBeGreaterThan(50);
      const { cache } = model.runner as ManagedRunner;
      expect(cache.length(0)).toBe(PROMPT.length + 59);
      for (const { streams } of cache.layers(0)) {
        for (const stream of streams) expect(stream.length).toBeLessThanOrEqual(22);
      }
      await model.close();
    }
  });

  it("a draft that is the model itself is always right", async () => {
    const { summary } = await tokensOf(target, PROMPT, {
      maxTokens: 101,
      speculate: new DraftModel(target, await open(1)),
      draftTokens: 4,
    });
    expect(summary.speculation).toMatchObject({ passes: 20, acceptance: 1, tokensPerPass: 5 });
  });

  it("stops at an end token in the middle of an accepted draft", async () => {
    const plain = await tokensOf(target, PROMPT, { maxTokens: 40 });
    const stop = plain.summary.tokens[9] as number;
    const model = tinyModel(
      { vocabSize: VOCABULARY, eosTokenIds: [stop], maxPositionEmbeddings: 512 },
      1,
    );
    const opened = await openLoaded(model, { backend: "reference", threads: 1, maxRows: 64 });
    const expected = plain.summary.tokens.slice(0, plain.summary.tokens.indexOf(stop));
    for (const speculate of [undefined, new DraftModel(opened, target)]) {
      const { session, summary } = await tokensOf(opened, PROMPT, {
        maxTokens: 40,
        draftTokens: 7,
        ...(speculate ? { speculate } : {}),
      });
      expect(summary.tokens).toEqual(expected);
      expect(summary.finish).toBe("stop");
      expect(session.cachedTokens).toEqual([...PROMPT, ...expected]);
    }
    await opened.close();
  });
});

/** Upper 0.1 % point of chi-square with `df` degrees of freedom (Wilson and Hilferty). */
function chiSquareLimit(df: number): number {
  const z = 3.09;
  return df * (1 - 2 / (9 * df) + z * Math.sqrt(2 / (9 * df))) ** 3;
}

function chiSquare(counts: number[], expected: number[]): { value: number; limit: number } {
  const total = counts.reduce((a, b) => a + b, 0);
  let value = 0;
  let cells = 0;
  for (const [i, p] of expected.entries()) {
    if (p === 0) {
      expect(counts[i]).toBe(0);
      continue;
    }
    value += ((counts[i] as number) - total * p) ** 2 / (total * p);
    cells++;
  }
  return { value, limit: chiSquareLimit(cells - 1) };
}

describe("sampling", () => {
  const logitsOf = (name: string) =>
    Float32Array.from(new Philox(3, name).normals(VOCABULARY), (x) => 1.5 * x);

  it("two verified tokens have the joint distribution of plain sampling, for both kinds of draft", () => {
    // The second row depends on the first token, as a model's would.
    const first = logitsOf("first");
    const second = Array.from({ length: VOCABULARY }, (_, t) => logitsOf(`second ${t}`));
    const options: SamplingOptions = { temperature: 0.9, topK: 5 };
    const reference = new Sampler(options);
    const p1 = reference.distribution(first.slice(), []);
    const p2 = second.map((row) => reference.distribution(row.slice(), []));
    const joint = Array.from({ length: VOCABULARY ** 2 }, (_, i) => {
      const a = Math.floor(i / VOCABULARY);
      return (p1[a] as number) * ((p2[a] as Float64Array)[i % VOCABULARY] as number);
    });
    const q1 = reference.distribution(logitsOf("draft"), []);
    const q2 = reference.distribution(logitsOf("draft 2"), []);
    const draw = (weights: Float64Array, u: number) => {
      let left = u;
      return weights.findIndex((w) => {
        left -= w;
        return left < 0;
      });
    };
    for (const certain of [true, false]) {
      const counts = new Array<number>(VOCABULARY ** 2).fill(0);
      for (let seed = 0; seed < 20_000; seed++) {
        const sampler = new Sampler({ ...options, seed });
        const rng = new Philox(seed, "proposal");
        // A certain drafter may well propose what the target never draws.
        const a = certain ? seed % VOCABULARY : draw(q1, rng.uniform());
        const b = certain ? 2 : draw(q2, rng.uniform());
        const draft = {
          tokens: [a, b],
          ...(certain ? {} : { distributions: [q1, q2] }),
        };
        const rows = [first, second[a] as Float32Array, first].map((row) => row.slice());
        const [x, y] = verifyDraft(sampler, draft, rows, [], 0);
        // A rejected first token ends the pass; the next pass begins after it, without a draft.
        const after = second[x as number] as Float32Array;
        const z = y ?? verifyDraft(sampler, { tokens: [] }, [after.slice()], [], 1)[0];
        const cell = (x as number) * VOCABULARY + (z as number);
        counts[cell] = (counts[cell] as number) + 1;
      }
      const { value, limit } = chiSquare(counts, joint);
      expect(value).toBeLessThan(limit);
    }
  });

  it("a whole generation with a draft model has the target's distribution", async () => {
    const options = { temperature: 1.2, topP: 0.95 };
    const session = createSession(target);
    session.reset();
    const sampler = new Sampler(options);
    // Exact distribution of the second answer token: over all first tokens.
    const probe = async (ids: number[]) => {
      target.runner.tables.truncate(0, 0);
      await target.runner.prefill(0, ids, 0, { logits: true });
      return sampler.distribution(target.runner.logits(0).slice(), ids);
    };
    const p1 = await probe(PROMPT);
    const p2 = new Float64Array(VOCABULARY);
    for (let t = 0; t < VOCABULARY; t++) {
      if ((p1[t] as number) === 0) continue;
      const row = await probe([...PROMPT, t]);
      for (const [i, p] of row.entries()) p2[i] = (p2[i] as number) + (p1[t] as number) * p;
    }
    target.runner.tables.truncate(0, 0);
    const drafter = new DraftModel(target, other);
    for (const speculate of [drafter, "ngram"] as const) {
      const counts = new Array<number>(VOCABULARY).fill(0);
      for (let seed = 0; seed < 500; seed++) {
        const pieces: number[] = [];
        for await (const { token } of session.generate(PROMPT, {
          ...options,
          seed,
          maxTokens: 2,
          speculate,
        }))
          pieces.push(token);
        const second = pieces[1] as number;
        counts[second] = (counts[second] as number) + 1;
      }
      const { value, limit } = chiSquare(counts, Array.from(p2));
      expect(value).toBeLessThan(limit);
    }
  });

  it("repeats itself for one seed", async () => {
    const options = { maxTokens: 30, temperature: 1, seed: 4, speculate: "ngram" as const };
    const a = await tokensOf(target, PROMPT, options);
    const b = await tokensOf(target, PROMPT, options);
    const c = await tokensOf(target, PROMPT, { ...options, seed: 5 });
    expect(a.summary.tokens).toEqual(b.summary.tokens);
    expect(c.summary.tokens).not.toEqual(a.summary.tokens);
  });
});

describe("drafters", () => {
  it("n-grams: the longest match wins, then the newest; short periods go on", () => {
    const drafter = new NgramDrafter();
    expect(drafter.propose([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3], 2).tokens).toEqual([4, 9]);
    expect(drafter.propose([2, 3, 7, 8, 2, 3, 5, 6, 2, 3], 2).tokens).toEqual([5, 6]);
    expect(drafter.propose([5, 1, 2, 1, 2], 5).tokens).toEqual([1, 2, 1, 2, 1]);
    expect(drafter.propose([1, 2, 3], 4).tokens).toEqual([]);
    expect(drafter.propose([1], 4).tokens).toEqual([]);
  });

  it("a draft model with other tokens is refused", async () => {
    const odd = await open(1, "fp32", VOCABULARY + 1);
    expect(() => new DraftModel(target, odd)).toThrow(
      expect.objectContaining({ code: "draft-vocabulary" }),
    );
    await odd.close();
    await expect(tokensOf(target, PROMPT, { speculate: "ngram", draftTokens: 33 })).rejects.toThrow(
      /draftTokens is 33/,
    );
  });
});
