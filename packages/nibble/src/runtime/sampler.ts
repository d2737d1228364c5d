/**
 * Picks the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, in the order of the
 * transformers library. Deterministic: the draw is a counter-based random number of (seed, step).
 */
import { UsageError } from "../core/errors.js";
import { Philox } from "../core/rng.js";

export interface SamplingOptions {
  /** 0 = greedy. */
  temperature?: number;
  /** Keep the k most likely; 0 = all. */
  topK?: number;
  /** Keep the smallest set whose probability reaches p; 1 = all. */
  topP?: number;
  /** Drop tokens less likely than minP times the most likely one. */
  minP?: number;
  /** Divide positive and multiply negative logits of tokens seen before (CTRL, arXiv 1909.05858); 1 = off. */
  repetitionPenalty?: number;
  seed?: number;
}

/** @throws UsageError naming the option that is out of range. */
export function checkSampling(options: SamplingOptions): void {
  const check = (name: string, value: number | undefined, ok: (v: number) => boolean, range: string) => {
    if (value !== undefined && !(Number.isFinite(value) && ok(value))) {
      throw new UsageError(`${name} is ${value}, expected ${range}`);
    }
  };
  check("temperature", options.temperature, (v) => v >= 0, "a number >= 0");
  check("topK", options.topK, (v) => v >= 0 && Number.isInteger(v), "an integer >= 0");
  check("topP", options.topP, (v) => v > 0 && v <= 1, "a number in (0, 1]");
  check("minP", options.minP, (v) => v >= 0 && v <= 1, "a number in [0, 1]");
  check("repetitionPenalty", options.repetitionPenalty, (v) => v > 0, "a number > 0");
  check("seed", options.seed, (v) => Number.isInteger(v), "an integer");
}

/** Index of the largest value; the first of equals. */
export function argmax(values: Float32Array): number {
  let best = 0;
  let bestValue = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) {
    const v = values[i] as number;
    if (v > bestValue) {
      bestValue = v;
      best = i;
    }
  }
  return best;
}

export class Sampler {
  readonly #options: Required<SamplingOptions>;
  #step = 0;

  constructor(options: SamplingOptions = {}) {
    checkSampling(options);
    this.#options = {
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      seed: 0,
      ...options,
    };
  }

  /** Whether the argmax of the raw logits is always the answer. */
  get greedy(): boolean {
    return this.#options.temperature === 0 && this.#options.repetitionPenalty === 1;
  }

  /**
   * Next token of `logits` [vocab] (changed in place when a penalty applies).
   * @param seen tokens of prompt and answer so far, for the repetition penalty
   */
  next(logits: Float32Array, seen: Iterable<number>): number {
    const { temperature, repetitionPenalty } = this.#options;
    const step = this.#step++;
    if (repetitionPenalty !== 1) penalize(logits, seen, repetitionPenalty);
    if (temperature === 0) return argmax(logits);
    const candidates = this.#candidates(logits);
    let u = new Philox(this.#options.seed, "sampler", step).uniform();
    for (const { token, probability } of candidates) {
      u -= probability;
      if (u < 0) return token;
    }
    return (candidates[candidates.length - 1] ?? { token: argmax(logits) }).token;
  }

  /** The tokens that survive the filters, most likely first, with probabilities that sum to 1. */
  #candidates(logits: Float32Array): { token: number; probability: number }[] {
    const { temperature, topK, topP, minP } = this.#options;
    const max = logits[argmax(logits)] as number;
    let list: { token: number; probability: number }[] = [];
    let total = 0;
    for (let token = 0; token < logits.length; token++) {
      const probability = Math.exp(((logits[token] as number) - max) / temperature);
      total += probability;
      if (probability > 1e-12) list.push({ token, probability });
    }
    list.sort((a, b) => b.probability - a.probability || a.token - b.token);
    if (topK > 0) list = list.slice(0, topK);
    if (topP < 1) {
      if (topK > 0) total = list.reduce((sum, c) => sum + c.probability, 0);
      let mass = 0;
      const end = list.findIndex((c) => {
        mass += c.probability / total;
        return mass >= topP;
      });
      if (end >= 0) list = list.slice(0, end + 1);
    }
    if (minP > 0) {
      const floor = minP * (list[0]?.probability ?? 0);
      list = list.filter((c) => c.probability >= floor);
    }
    const kept = list.reduce((sum, c) => sum + c.probability, 0);
    return list.map((c) => ({ token: c.token, probability: c.probability / kept }));
  }
}

function penalize(logits: Float32Array, seen: Iterable<number>, penalty: number): void {
  for (const token of new Set(seen)) {
    const value = logits[token];
    if (value !== undefined) logits[token] = value > 0 ? value / penalty : value * penalty;
  }
}
