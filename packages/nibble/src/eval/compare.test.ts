import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { compareTask, compareText, isNearChance, verdict } from "./compare.js";
import type { TaskResult } from "./zero-shot.js";

const rng = new Philox(1, "compare");
const n = 1024;
const base = Array.from(rng.normals(n), (x) => 3 + x);

function task(correct: boolean[], choices = correct.map(Number)): TaskResult {
  const accuracy = correct.filter(Boolean).length / correct.length;
  return {
    accuracy,
    stderr: Math.sqrt((accuracy * (1 - accuracy)) / (correct.length - 1)),
    n: correct.length,
    chance: 0.25,
    fewShot: 0,
    rows: 0,
    rowsPerSecond: 0,
    seconds: 0,
    truncated: 0,
    items: correct.map((c, i) => ({
      correct: c,
      correctNorm: c,
      choice: choices[i] as number,
      logLikelihoods: [],
    })),
  };
}

describe("compareText", () => {
  it("a model against itself: no difference, no divergence", () => {
    const zeros = new Array<number>(n).fill(0);
    const same = new Array<boolean>(n).fill(true);
    const result = compareText({ nll: base, referenceNll: base, kl: zeros, same }, 0, "self");
    expect(result.deltaPerplexity).toEqual({ value: 0, low: 0, high: 0 });
    expect(result.perplexityRatio).toEqual({ value: 1, low: 1, high: 1 });
    expect(result.kl).toEqual({ mean: { value: 0, low: 0, high: 0 }, median: 0, p99: 0, max: 0 });
    expect(result.topAgreement.value).toBe(1);
  });

  it("finds a small loss that is far below the spread of single targets", () => {
    const noise = rng.normals(n);
    const nll = base.map((x, i) => x + 0.02 + 0.05 * (noise[i] as number));
    const kl = base.map((_, i) => 0.01 * (1 + (i % 7)));
    const result = compareText(
      { nll, referenceNll: base, kl, same: base.map((_, i) => i % 10 !== 0) },
      0,
      "x",
    );
    expect(result.deltaPerplexity.low).toBeGreaterThan(0);
    expect(verdict(result.deltaPerplexity, false)).toBe("worse");
    expect(result.perplexityRatio.value).toBeCloseTo(
      result.perplexity.model / result.perplexity.baseline,
      10,
    );
    expect(result.kl.median).toBeCloseTo(0.04, 10);
    expect(result.kl.max).toBeCloseTo(0.07, 10);
    expect(result.topAgreement.value).toBeCloseTo(0.9, 2);
  });

  it("needs a reference", () => {
    expect(() => compareText({ nll: base, referenceNll: [], kl: [], same: [] }, 0, "")).toThrow(
      /needs a reference/,
    );
  });
});

describe("compareTask", () => {
  const before = Array.from({ length: 200 }, (_, i) => i % 2 === 0);
  it("counts flips and changed choices apart", () => {
    // 10 lost, 4 gained, 3 other wrong choices.
    const after = before.map((c, i) => (i < 20 && c ? false : i < 8 && !c ? true : c));
    const choices = after.map(Number);
    for (const i of [101, 103, 105]) choices[i] = 2;
    const result = compareTask(task(before), task(after, choices));
    expect(result.mcNemar).toMatchObject({ lost: 10, gained: 4, method: "exact" });
    expect(result.flips).toBeCloseTo(14 / 200, 12);
    expect(result.changed).toBeCloseTo(17 / 200, 12);
    expect(result.delta.value).toBeCloseTo(-6 / 200, 12);
    expect(verdict(result.delta, true)).toBe("no difference shown");
  });
  it("two models with equal accuracy may still disagree", () => {
    const result = compareTask(task(before), task(before.map((c) => !c)));
    expect(result.delta.value).toBe(0);
    expect(result.flips).toBe(1);
    expect(result.mcNemar.pValue).toBeGreaterThan(0.9);
  });
  it("marks tasks on which the baseline only guesses", () => {
    expect(isNearChance(0.27, 0.02, 0.25)).toBe(true);
    expect(isNearChance(0.35, 0.02, 0.25)).toBe(false);
    expect(isNearChance(0.01, 0.02, 0)).toBe(false);
  });
  it("refuses unequal numbers of questions", () => {
    expect(() => compareTask(task([true]), task([true, false]))).toThrow(/cannot be compared/);
  });
});

describe("verdict", () => {
  it("claims only what the interval excludes", () => {
    expect(verdict({ value: 1, low: 0.1, high: 2 }, true)).toBe("better");
    expect(verdict({ value: 1, low: 0.1, high: 2 }, false)).toBe("worse");
    expect(verdict({ value: 1, low: -0.1, high: 2 }, false)).toBe("no difference shown");
  });
});
