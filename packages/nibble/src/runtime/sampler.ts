/**
 * Picks the next token from logits: repetition penalty, temperature, top-k, top-p, min-p, in the order of the
 * transformers library. Deterministic: the draw is a counter-based random number of (seed, step).
 */
import { NumericError, UsageError } from "../core/errors.js";
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
  const check = (
    name: string,
    value: number | undefined,
    ok: (v: number) => boolean,
    range: string,
  ) => {
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

/**
 * Index of the largest logit.
 * @throws NumericError when no logit is a finite number: any token would be an answer that the model did not give
 */
function likeliest(logits: Float32Array): number {
  const best = argmax(logits);
  if (!Number.isFinite(logits[best])) {
    throw new NumericError("the logits are not finite", {
      hint: "The model's weights, its cache or its quantization overflow; try more bits or another backend.",
    });
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
    if (temperature === 0) return likeliest(logits);
    const u = new Philox(this.#options.seed, "sampler", step).uniform();
    return this.#draw(logits, u);
  }

  /**
   * The distribution that `next` draws from [vocab], penalty, temperature and filters applied; greedy: all of it on one
   * token. For speculative decoding, where two models' distributions are compared.
   */
  distribution(logits: Float32Array, seen: Iterable<number>): Float64Array {
    const { temperature, repetitionPenalty } = this.#options;
    if (repetitionPenalty !== 1) penalize(logits, seen, repetitionPenalty);
    const out = new Float64Array(logits.length);
    if (temperature === 0) {
      out[likeliest(logits)] = 1;
      return out;
    }
    const { weights, kept, mass } = this.#weights(logits);
    if (kept) for (const token of kept) out[token] = (weights[token] as number) / mass;
    else
      for (let token = 0; token < out.length; token++)
        out[token] = (weights[token] as number) / mass;
    return out;
  }

  /** Whether equal logits always give the same token. */
  get deterministic(): boolean {
    return this.#options.temperature === 0;
  }

  get seed(): number {
    return this.#options.seed;
  }

  /** Inverse of the cumulative distribution at u, over the tokens that survive the filters. */
  #draw(logits: Float32Array, u: number): number {
    const { weights, kept, mass, best } = this.#weights(logits);
    return pick(weights, kept, mass * u, best);
  }

  /** Weights relative to the likeliest token, the tokens that survive the filters (null: all) and their sum. */
  #weights(logits: Float32Array) {
    const { temperature, topK, topP, minP } = this.#options;
    const best = likeliest(logits);
    const max = logits[best] as number;
    const weights = new Float64Array(logits.length);
    let total = 0;
    for (let token = 0; token < logits.length; token++) {
      const weight = Math.exp(((logits[token] as number) - max) / temperature);
      weights[token] = weight;
      total += weight;
    }
    if (topK === 0 && topP === 1 && minP === 0) return { weights, kept: null, mass: total, best };
    let kept = mostLikely(weights, total, topK, topP);
    if (minP > 0) kept = kept.filter((token) => (weights[token] as number) >= minP);
    const mass = kept.reduce((sum, token) => sum + (weights[token] as number), 0);
    return { weights, kept, mass, best };
  }
}

/** First token (of `tokens`, null: all) at which the running sum of weights exceeds `goal`. */
export function pick(
  weights: Float64Array,
  tokens: number[] | null,
  goal: number,
  fallback: number,
): number {
  let left = goal;
  const count = tokens ? tokens.length : weights.length;
  for (let i = 0; i < count; i++) {
    const token = tokens ? (tokens[i] as number) : i;
    left -= weights[token] as number;
    if (left < 0) return token;
  }
  return fallback;
}

/**
 * Tokens by falling weight (the largest weight is 1; ties by id) until topK of them, then until their share of the mass
 * reaches topP. Sorting a whole vocabulary takes longer than a decoding step, so only tokens above a floor are sorted, and
 * the floor falls until they suffice.
 */
function mostLikely(weights: Float64Array, total: number, topK: number, topP: number): number[] {
  for (const floor of [1e-3, 1e-6, 0]) {
    const list: number[] = [];
    let mass = 0;
    for (let token = 0; token < weights.length; token++) {
      if ((weights[token] as number) >= floor) {
        list.push(token);
        mass += weights[token] as number;
      }
    }
    const enough = topK > 0 ? list.length >= topK : mass >= topP * total;
    if (!enough && floor > 0) continue;
    list.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
    const first = topK > 0 ? list.slice(0, topK) : list;
    if (topP === 1) return first;
    const whole =
      topK > 0 ? first.reduce((sum, token) => sum + (weights[token] as number), 0) : total;
    let reached = 0;
    const end = first.findIndex((token) => {
      reached += weights[token] as number;
      return reached >= topP * whole;
    });
    return end < 0 ? first : first.slice(0, end + 1);
  }
  return [];
}

function penalize(logits: Float32Array, seen: Iterable<number>, penalty: number): void {
  for (const token of new Set(seen)) {
    const value = logits[token];
    if (value !== undefined) logits[token] = value > 0 ? value / penalty : value * penalty;
  }
}
