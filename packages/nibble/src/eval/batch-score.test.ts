import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FakeRunner, fakeLogits, logSumExp } from "../../test/support/fake-model.js";
import { type Alternative, type Likelihood, scoreGroups, sharedPrefix } from "./batch-score.js";

/** The definition: every token from the full prefix in front of it. */
function direct({ ids, from }: Alternative): Likelihood {
  let logLikelihood = 0;
  let greedy = true;
  for (let i = from; i < ids.length; i++) {
    const logits = fakeLogits(ids.slice(0, i));
    logLikelihood += (logits[ids[i] as number] as number) - logSumExp(logits);
    greedy &&= logits.indexOf(Math.max(...logits)) === ids[i];
  }
  return { logLikelihood, greedy, tokens: ids.length - from };
}

const token = fc.integer({ min: 0, max: 3 });
const group = fc
  .record({
    context: fc.array(token, { minLength: 1, maxLength: 20 }),
    tails: fc.array(fc.array(token, { minLength: 1, maxLength: 9 }), {
      minLength: 1,
      maxLength: 4,
    }),
    cuts: fc.array(fc.nat(), { minLength: 4, maxLength: 4 }),
  })
  .map(({ context, tails, cuts }) =>
    tails.map((tail, i) => {
      const ids = [...context, ...tail];
      return { ids, from: 1 + ((cuts[i] as number) % (ids.length - 1)) };
    }),
  );

describe("scoreGroups", () => {
  it("equals scoring every token from its full prefix, for any grouping, row limit and slots", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(group, { minLength: 1, maxLength: 7 }),
        fc.integer({ min: 1, max: 24 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 4 }),
        async (groups, maxRows, maxLogitRows, sequences) => {
          const runner = new FakeRunner({
            maxRows,
            maxLogitRows: Math.min(maxLogitRows, maxRows),
            sequences,
          });
          const { groups: scores } = await scoreGroups(runner, groups);
          expect(scores).toEqual(groups.map((alternatives) => alternatives.map(direct)));
          expect(runner.tables.reserved.every((r) => r === 0)).toBe(true);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("runs a shared context once and fills its runs", async () => {
    const context = Array.from({ length: 40 }, (_, i) => i % 4);
    const groups = Array.from({ length: 20 }, (_, g) =>
      [0, 1, 2, 3].map((c) => ({ ids: [...context, 10 + g, 20 + c, 30], from: 41 })),
    );
    const runner = new FakeRunner({ maxRows: 64, maxLogitRows: 16, sequences: 12 });
    const result = await scoreGroups(runner, groups);
    // Shared: 41 tokens; each choice has one row of its own (its last token predicts nothing).
    expect(result.rows).toBe(20 * (41 + 4));
    expect(result.rowsUnshared).toBe(20 * 4 * 42);
    const fewest = Math.ceil((20 * 45) / 64);
    expect(runner.steps.length).toBeLessThanOrEqual(fewest + 2);
  });

  it("waits for pages when the pool is too small for all slots", async () => {
    const groups = Array.from({ length: 5 }, (_, g) => [{ ids: [g, 1, 2, 3, 4, 5], from: 2 }]);
    const runner = new FakeRunner({ sequences: 4, room: 11 });
    const { groups: scores } = await scoreGroups(runner, groups);
    expect(scores).toEqual(groups.map((g) => g.map(direct)));
  });

  it("fails with the cache's own error when one group alone does not fit", async () => {
    const runner = new FakeRunner({ room: 4 });
    await expect(
      scoreGroups(runner, [[{ ids: [1, 2, 3, 4, 5, 6], from: 1 }]]),
    ).rejects.toMatchObject({
      code: "context-full",
    });
  });

  it("names the question that cannot be scored", async () => {
    const runner = new FakeRunner();
    await expect(scoreGroups(runner, [[{ ids: [1, 2], from: 2 }]])).rejects.toThrow(
      /question 0: tokens 2/,
    );
    await expect(scoreGroups(runner, [[{ ids: new Array(300).fill(1), from: 2 }]])).rejects.toThrow(
      /opened for 256/,
    );
  });

  it("a prefix of another choice needs no rows of its own", () => {
    const alternatives = [
      { ids: [1, 2, 3], from: 2 },
      { ids: [1, 2, 3, 4], from: 2 },
    ];
    expect(sharedPrefix(alternatives)).toBe(2);
  });
});
