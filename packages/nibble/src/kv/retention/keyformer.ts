/**
 * Keyformer (arXiv:2403.09054): as H2O, but a slot is scored by a softmax of the logits with Gumbel noise, at a
 * temperature that rises with every generated token; both make up for the probability mass of tokens already dropped.
 * Attention itself stays as it is. State: 8 bytes a live token and KV head; temperature and noise are functions of the
 * position, so there is nothing else to save or to roll back.
 *
 * `recent` counts the token that comes next, as in the official code. That code bars the token that leaves the window from
 * ever becoming a key token (its two masks are one column apart); here it competes with the others.
 */
import { z } from "zod";
import { Philox } from "../../core/rng.js";
import { type AttentionStats, defineRetention, type RetentionPlan } from "../contract.js";
import { budgetSchema, budgetTokens, shareOf, slotsToEvict } from "./budget.js";
import { SlotScores } from "./slot-scores.js";

interface Options {
  budget: number;
  recentShare: number;
  tauInit: number;
  tauEnd: number;
  maxNewTokens: number;
  noise: boolean;
  seed?: number | undefined;
}

/** Temperature for the row at `position`: tauInit in the prompt, tauEnd from the maxNewTokens-th new token on. */
export function temperature(
  options: Pick<Options, "tauInit" | "tauEnd" | "maxNewTokens">,
  position: number,
  promptLength: number,
): number {
  const { tauInit, tauEnd, maxNewTokens } = options;
  const step = Math.min(Math.max(0, position - promptLength + 1), maxNewTokens);
  return tauInit + (step * (tauEnd - tauInit)) / maxNewTokens;
}

/** Blocks of the random stream set aside for one query row of one head: four slots each. */
const ROW_BLOCKS = 2 ** 20;

/**
 * Adds softmax((logits + noise) / tau) of every row to `out` [live]. Masked slots (-Infinity) get nothing.
 * @param noise name of the stream of this layer and KV head; null: no noise
 */
function addScores(
  out: Float64Array,
  stats: AttentionStats,
  options: Options,
  noise: { seed: number; name: string } | null,
): void {
  const { live, rows, position, promptLength, heads = 1, logits } = stats;
  if (!logits) throw new Error("Keyformer was given no logits");
  const row = new Float64Array(live);
  for (let r = 0; r < rows; r++) {
    const at = position - rows + 1 + r;
    const tau = temperature(options, at, promptLength);
    for (let h = 0; h < heads; h++) {
      const offset = (r * heads + h) * live;
      const rng = noise && new Philox(noise.seed, noise.name, (at * heads + h) * ROW_BLOCKS);
      // Slots of later rows are masked.
      let end = live;
      while (logits[offset + end - 1] === Number.NEGATIVE_INFINITY) end--;
      let max = Number.NEGATIVE_INFINITY;
      for (let i = 0; i < end; i++) {
        // One word a slot, masked or not: the number of a slot does not depend on what else is visible.
        const gumbel = rng ? -Math.log(-Math.log((rng.uint32() + 0.5) / 2 ** 32)) : 0;
        const x = ((logits[offset + i] as number) + gumbel) / tau;
        row[i] = x;
        if (x > max) max = x;
      }
      let sum = 0;
      for (let i = 0; i < end; i++) {
        const e = Math.exp((row[i] as number) - max);
        row[i] = e;
        sum += e;
      }
      for (let i = 0; i < end; i++) out[i] = (out[i] as number) + (row[i] as number) / sum;
    }
  }
}

export const keyformer = defineRetention<Options>({
  id: "keyformer",
  title: "Keyformer",
  paper: "arXiv:2403.09054",
  summary: "Keeps recent tokens and key tokens chosen by a noisy softmax of the logits.",
  options: z.strictObject({
    /** Share of the prompt (up to 1) or number of tokens. */
    budget: budgetSchema.refine((value) => value > 0, "expected more than 0").default(0.6),
    /** Part of the budget for the last tokens, the one to come included. */
    recentShare: z.number().min(0).max(1).default(0.3),
    tauInit: z.number().positive().default(1),
    tauEnd: z.number().positive().default(2),
    /** New tokens over which the temperature goes from tauInit to tauEnd. */
    maxNewTokens: z.number().int().min(1).default(512),
    /** false: no Gumbel noise. */
    noise: z.boolean().default(true),
    /** Default: the seed of the cache. */
    seed: z.number().int().min(0).optional(),
  }),
  granularity: "head",
  positions: "absolute",
  prefixShareable: false,
  stats: () => ({ kind: "rawLogits" }),
  create(options, stream) {
    const scores = new SlotScores();
    const noise = options.noise
      ? {
          seed: options.seed ?? stream.seed,
          // The 0 names the stream that the figures of docs/kv-cache.md were measured with.
          name: `keyformer/0/${stream.layer}/${stream.kvHead}`,
        }
      : null;
    return {
      afterAttend(stats): RetentionPlan | null {
        const added = new Float64Array(stats.live);
        addScores(added, stats, options, noise);
        scores.add(added, stats.rows, stats.more);
        if (stats.more) return null;
        const tokens = budgetTokens(options.budget, stats.promptLength);
        const recent = shareOf(options.recentShare, tokens);
        const evict = slotsToEvict(scores.values, {
          first: 0,
          best: tokens - recent,
          last: Math.max(0, recent - 1),
        });
        if (!evict) return null;
        scores.remove(evict);
        return { evict };
      },
      capacity: (promptLength) => budgetTokens(options.budget, promptLength),
      snapshot: () => scores.snapshot(),
      restore: (bytes) => scores.restore(bytes),
      get bytes() {
        return scores.bytes;
      },
    };
  },
});
