/** Budgets of retention policies and the choice of what goes, shared by the policies that score slots. */
import { z } from "zod";

/** A number up to 1 is a share of the prompt, a whole number above it a number of tokens. */
export const budgetSchema = z
  .number()
  .min(0)
  .refine((value) => value <= 1 || Number.isInteger(value), {
    message: "expected a share from 0 to 1 or a whole number of tokens above 1",
  });

/** Tokens of a share, rounded down. */
export function shareOf(share: number, tokens: number): number {
  // The tiny addend makes 0.57 of 100 tokens 57, as the percentages of the papers do.
  return Math.floor(share * tokens + 1e-9);
}

/**
 * Tokens of a budget. A share is rounded down as in the papers' codes, but a budget that is not 0 is at least one token:
 * theirs keep nothing at all of a prompt shorter than 1 / share.
 */
export function budgetTokens(budget: number, promptLength: number): number {
  if (budget === 0 || budget > 1) return budget;
  return Math.max(1, shareOf(budget, promptLength));
}

/**
 * What goes when of `scores.length` slots the first `first`, the last `last` and the `best` highest scores between them
 * stay; ties stay at the lower index.
 * @returns indices, ascending; null when everything stays
 */
export function slotsToEvict(
  scores: Float32Array,
  { first, best, last }: { first: number; best: number; last: number },
): Int32Array | null {
  const end = scores.length - last;
  const surplus = end - first - best;
  if (surplus <= 0) return null;
  if (surplus === 1) {
    // The steady state, one token in and one out, is a search for the smallest score.
    let worst = first;
    for (let i = first + 1; i < end; i++) {
      if ((scores[i] as number) <= (scores[worst] as number)) worst = i;
    }
    return Int32Array.of(worst);
  }
  const order = Array.from({ length: end - first }, (_, i) => first + i);
  order.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  return Int32Array.from(order.slice(best)).sort();
}
