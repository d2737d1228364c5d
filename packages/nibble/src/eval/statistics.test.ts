import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import {
  binomialTwoSided,
  blockSums,
  bootstrap,
  chiSquareTail,
  mcNemar,
  mean,
  pairedProportion,
  quantileSorted,
  quantiles,
} from "./statistics.js";

describe("quantiles", () => {
  it("equal numpy's default on a small example", () => {
    expect(quantiles([4, 1, 3, 2], [0, 0.25, 0.5, 0.75, 1])).toEqual([1, 1.75, 2.5, 3.25, 4]);
    expect(quantileSorted([], 0.5)).toBeNaN();
  });
  it("lie between minimum and maximum and rise with p", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ noNaN: true, min: -1e6, max: 1e6 }), { minLength: 1 }),
        (values) => {
          const [a, b, c] = quantiles(values, [0.1, 0.5, 0.9]) as [number, number, number];
          expect(a).toBeLessThanOrEqual(b);
          expect(b).toBeLessThanOrEqual(c);
          expect(a).toBeGreaterThanOrEqual(Math.min(...values));
          expect(c).toBeLessThanOrEqual(Math.max(...values));
        },
      ),
    );
  });
});

describe("bootstrap", () => {
  it("covers the true mean in about 95 of 100 samples", () => {
    let covered = 0;
    for (let trial = 0; trial < 100; trial++) {
      const sample = new Philox(trial, "sample").normals(60);
      const { low, high } = bootstrap([sample], ([m]) => m as number, {
        resamples: 300,
        stream: `${trial}`,
      });
      if (low <= 0 && high >= 0) covered++;
    }
    expect(covered).toBeGreaterThanOrEqual(86);
  });
  it("gets the width of a normal mean right: 2 * 1.96 / sqrt(n) within 15 %", () => {
    const sample = new Philox(3, "x").normals(400);
    const { low, high } = bootstrap([sample], ([m]) => m as number);
    expect((high - low) / ((2 * 1.96) / 20)).toBeGreaterThan(0.85);
    expect((high - low) / ((2 * 1.96) / 20)).toBeLessThan(1.15);
  });
  it("keeps pairs together: a constant difference has no width", () => {
    const a = new Philox(1, "a").normals(50);
    const b = a.map((v) => v + 0.25);
    const { value, low, high } = bootstrap([a, b], ([x, y]) => (y as number) - (x as number));
    expect(value).toBeCloseTo(0.25, 12);
    expect(low).toBeCloseTo(0.25, 12);
    expect(high).toBeCloseTo(0.25, 12);
  });
  it("same seed and stream, same interval; other stream, another", () => {
    const a = new Philox(1, "a").normals(50);
    const run = (stream: string) =>
      bootstrap([a], ([m]) => m as number, { stream, resamples: 200 });
    expect(run("s")).toEqual(run("s"));
    expect(run("t").low).not.toBe(run("s").low);
  });
  it("says nothing about one unit and refuses none", () => {
    expect(bootstrap([[2]], ([m]) => m as number).high).toBe(Number.POSITIVE_INFINITY);
    expect(() => bootstrap([[]], () => 0)).toThrow(/at least one unit/);
  });
});

describe("blockSums", () => {
  it("keeps the total and joins a short tail to its neighbour", () => {
    const { sums, counts } = blockSums([1, 2, 3, 4, 5, 6, 7], 3);
    expect([...sums]).toEqual([6, 22]);
    expect([...counts]).toEqual([3, 4]);
    expect([...blockSums([1, 2], 5).sums]).toEqual([3]);
  });
});

describe("McNemar", () => {
  const answers = (lost: number, gained: number, both = 10) => {
    const before: boolean[] = [];
    const after: boolean[] = [];
    const push = (n: number, x: boolean, y: boolean) => {
      for (let i = 0; i < n; i++) {
        before.push(x);
        after.push(y);
      }
    };
    push(lost, true, false);
    push(gained, false, true);
    push(both, true, true);
    return mcNemar(before, after);
  };
  it("exact: 1 of 10 discordant pairs has p = 22 / 1024", () => {
    expect(answers(9, 1)).toMatchObject({ lost: 9, gained: 1, method: "exact" });
    expect(answers(9, 1).pValue).toBeCloseTo(22 / 1024, 12);
    expect(answers(5, 5).pValue).toBe(1);
    expect(answers(0, 0).pValue).toBe(1);
  });
  it("chi-square with correction: 59 against 121 (Edwards) is (62 - 1)^2 / 180", () => {
    expect(answers(121, 59).method).toBe("chi-square");
    expect(answers(121, 59).pValue).toBeCloseTo(chiSquareTail(61 ** 2 / 180), 12);
    expect(chiSquareTail(3.841458820694124)).toBeCloseTo(0.05, 12);
    expect(chiSquareTail(6.634896601021213)).toBeCloseTo(0.01, 12);
    expect(chiSquareTail(16) / 6.334248366623988e-5).toBeCloseTo(1, 9);
    expect(chiSquareTail(0)).toBe(1);
  });
  it("both methods agree near the border within 5 %", () => {
    expect(binomialTwoSided(18, 50) / answers(32, 18).pValue).toBeGreaterThan(0.95);
    expect(binomialTwoSided(18, 50) / answers(32, 18).pValue).toBeLessThan(1.05);
    expect(binomialTwoSided(900, 2000)).toBeLessThan(1e-5);
  });
  it("paired proportions: an interval that holds the difference and is never a point", () => {
    const none = pairedProportion(0, 0, 20);
    expect(none.value).toBe(0);
    expect(none.high).toBeCloseTo(1.96 * Math.sqrt(2 / 22 / 22), 3);
    expect(none.low).toBeCloseTo(-none.high, 12);
    const some = pairedProportion(30, 10, 500);
    expect(some.value).toBeCloseTo(-0.04, 12);
    expect(some.low).toBeLessThan(-0.04);
    expect(some.high).toBeLessThan(0);
  });
  it("mean of nothing is 0", () => expect(mean([])).toBe(0));
});
