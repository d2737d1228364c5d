/**
 * Speculative decoding (Leviathan et al., arXiv:2211.17192): a cheap drafter proposes the next tokens, the model runs all of
 * them at once and keeps the longest prefix that it agrees with, plus one token of its own. Greedy output is that of plain
 * decoding token for token; sampled output has the same distribution. Random numbers are functions of (seed, index of the
 * output token), so nothing depends on how often a draft failed.
 */
import { Philox } from "../core/rng.js";
import { pick, type Sampler } from "./sampler.js";

export interface Draft {
  tokens: number[];
  /** Distribution each token was drawn from [vocabSize]; none: the drafter was certain (a point mass). */
  distributions?: Float64Array[];
}

/** Proposes continuations. One drafter serves one session. */
export interface Drafter {
  /**
   * At most `count` tokens that may follow `context` (prompt and answer so far); fewer or none are fine.
   * @param sampler how the target chooses: a drafter that draws must use the same temperature and filters
   * @param index number of output tokens before the first proposed one
   */
  propose(
    context: readonly number[],
    count: number,
    sampler: Sampler,
    index: number,
  ): Draft | Promise<Draft>;
}

export interface SpeculationStats {
  /** Runs of the model that verified a draft. */
  passes: number;
  drafted: number;
  accepted: number;
  /** Share of drafted tokens that were accepted. */
  acceptance: number;
  /** Tokens that a run of the model gave on average. */
  tokensPerPass: number;
}

/** The sum of what happened in one generation. */
export class SpeculationCounter {
  passes = 0;
  drafted = 0;
  accepted = 0;
  #tokens = 0;

  /** A run of the model: so many tokens were drafted, so many of them accepted. */
  add(drafted: number, accepted: number): void {
    this.passes++;
    this.drafted += drafted;
    this.accepted += accepted;
    this.#tokens += accepted + 1;
  }

  get stats(): SpeculationStats {
    const { passes, drafted, accepted } = this;
    return {
      passes,
      drafted,
      accepted,
      acceptance: drafted > 0 ? accepted / drafted : 0,
      tokensPerPass: passes > 0 ? this.#tokens / passes : 0,
    };
  }
}

/**
 * What the model makes of a draft.
 * @param logits rows of the model after the last sure token and after each drafted one [draft + 1][vocabSize]; changed in place
 * @param context tokens before the first drafted one
 * @param index output tokens before the first drafted one
 * @returns the accepted tokens and one more: the correction of the first rejected one, or the token after all of them
 */
export function verifyDraft(
  sampler: Sampler,
  draft: Draft,
  logits: readonly Float32Array[],
  context: readonly number[],
  index: number,
): number[] {
  const seen = [...context];
  const out: number[] = [];
  for (let i = 0; i < logits.length; i++) {
    const row = logits[i] as Float32Array;
    const drafted = draft.tokens[i];
    let token: number;
    if (sampler.deterministic) token = sampler.next(row, seen);
    else {
      const rng = new Philox(sampler.seed, "speculate", index + i);
      const target = sampler.distribution(row, seen);
      token = choose(target, drafted, draft.distributions?.[i], rng);
    }
    out.push(token);
    seen.push(token);
    if (token !== drafted) break;
  }
  return out;
}

/**
 * One step of rejection sampling: the drafted token with probability min(1, p / q), else a draw from what p has more than
 * q. Without a draft a draw from p.
 */
function choose(
  p: Float64Array,
  drafted: number | undefined,
  q: Float64Array | undefined,
  rng: Philox,
): number {
  const u = rng.uniform();
  if (drafted !== undefined) {
    const mass = q ? (q[drafted] as number) : 1;
    if (u * mass < (p[drafted] as number)) return drafted;
  }
  const rest =
    drafted === undefined
      ? p
      : p.map((x, token) => {
          if (q) return Math.max(0, x - (q[token] as number));
          return token === drafted ? 0 : x;
        });
  const total = rest.reduce((sum, x) => sum + x, 0);
  // Rounding alone can reject where p and q are equal; then p is what is left to draw from.
  const [weights, sum] = total > 0 ? [rest, total] : [p, p.reduce((a, x) => a + x, 0)];
  const last = weights.findLastIndex((x) => x > 0);
  return pick(weights, null, rng.uniform() * sum, last);
}
