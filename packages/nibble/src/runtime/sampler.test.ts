import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { argmax, Sampler } from "./sampler.js";

const logitsOf = (p: number[]) => Float32Array.from(p, Math.log);

function frequencies(
  p: number[],
  options: ConstructorParameters<typeof Sampler>[0],
  draws = 4000,
): number[] {
  const sampler = new Sampler(options);
  const counts = p.map(() => 0);
  for (let i = 0; i < draws; i++) {
    const token = sampler.next(logitsOf(p), []);
    counts[token] = (counts[token] ?? 0) + 1;
  }
  return counts.map((c) => c / draws);
}

describe("sampler", () => {
  const p = [0.5, 0.25, 0.15, 0.1];

  it("is greedy at temperature 0, the first of equals winning", () => {
    expect(new Sampler().next(Float32Array.of(1, 3, 3, 2), [])).toBe(1);
  });

  it("draws from the distribution (4000 draws, within 0.03)", () => {
    frequencies(p, { temperature: 1, seed: 1 }).forEach((f, i) => {
      expect(Math.abs(f - (p[i] ?? 0))).toBeLessThan(0.03);
    });
  });

  it("temperature sharpens: at 0.5 probabilities are squared and renormalized", () => {
    const squares = p.map((x) => x * x);
    const sum = squares.reduce((a, b) => a + b, 0);
    frequencies(p, { temperature: 0.5, seed: 2 }).forEach((f, i) => {
      expect(Math.abs(f - (squares[i] ?? 0) / sum)).toBeLessThan(0.03);
    });
  });

  it("top-k keeps k tokens, top-p the smallest set that reaches p, min-p drops the unlikely", () => {
    expect(frequencies(p, { temperature: 1, topK: 2 }).map((f) => f > 0)).toEqual([
      true,
      true,
      false,
      false,
    ]);
    expect(frequencies(p, { temperature: 1, topP: 0.8 }).map((f) => f > 0)).toEqual([
      true,
      true,
      true,
      false,
    ]);
    expect(frequencies(p, { temperature: 1, topP: 0.75 }).map((f) => f > 0)).toEqual([
      true,
      true,
      false,
      false,
    ]);
    expect(frequencies(p, { temperature: 1, minP: 0.25 }).map((f) => f > 0)).toEqual([
      true,
      true,
      true,
      false,
    ]);
  });

  it("the floors of the sort do not change the result of top-p", () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ min: -30, max: 30, noNaN: true }), { minLength: 1, maxLength: 60 }),
        fc.double({ min: 0.01, max: 0.999, noNaN: true }),
        fc.integer({ min: 0, max: 1000 }),
        (logits, topP, seed) => {
          const values = Float32Array.from(logits);
          const max = Math.max(...values);
          const weights = Array.from(values, (x) => Math.exp(x - max));
          const total = weights.reduce((a, b) => a + b, 0);
          const order = weights
            .map((_, i) => i)
            .sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0) || a - b);
          const kept = new Set<number>();
          let mass = 0;
          for (const i of order) {
            kept.add(i);
            mass += weights[i] ?? 0;
            if (mass >= topP * total) break;
          }
          expect(kept.has(new Sampler({ temperature: 1, topP, seed }).next(values, []))).toBe(true);
        },
      ),
    );
  });

  it("repetition penalty lowers what was seen, whatever its sign", () => {
    const logits = Float32Array.of(2, 1.9, -1);
    expect(new Sampler({ repetitionPenalty: 1.5 }).next(logits, [0, 2, 0])).toBe(1);
    expect(logits[0]).toBeCloseTo(2 / 1.5, 6);
    expect(logits[2]).toBeCloseTo(-1.5, 6);
  });

  it("same seed, same tokens; options out of range are refused by name", () => {
    const run = (seed: number) => {
      const sampler = new Sampler({ temperature: 1, seed });
      return Array.from({ length: 20 }, () => sampler.next(logitsOf(p), []));
    };
    expect(run(7)).toEqual(run(7));
    expect(run(7)).not.toEqual(run(8));
    expect(() => new Sampler({ topP: 0 })).toThrow(/topP is 0/);
    expect(() => new Sampler({ temperature: -1 })).toThrow(/temperature/);
  });

  it("argmax ignores the order of ties", () => {
    expect(argmax(Float32Array.of(-Infinity, -5, -5))).toBe(1);
  });
});

it("logits that are no numbers are an error, not token 0", () => {
  const broken = () => new Float32Array(8).fill(Number.NaN);
  const numeric = expect.objectContaining({ code: "numeric" });
  for (const options of [{}, { temperature: 1 }, { temperature: 1, topK: 3 }]) {
    const sampler = new Sampler(options);
    expect(() => sampler.next(broken(), [])).toThrow(numeric);
    expect(() => sampler.distribution(broken(), [])).toThrow(numeric);
  }
  expect(new Sampler().next(Float32Array.of(Number.NEGATIVE_INFINITY, -5, Number.NaN), [])).toBe(1);
});
