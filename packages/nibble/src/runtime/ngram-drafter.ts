/**
 * Prompt lookup: what followed the last time when the text ended with the same few tokens. No model, no cost; pays where
 * answers repeat their prompt (summaries, edits, code) or themselves.
 */
import type { Draft, Drafter } from "./speculate.js";

export interface NgramOptions {
  /** Longest and shortest run of tokens that is looked up; default 4 and 2. */
  longest?: number;
  shortest?: number;
}

export class NgramDrafter implements Drafter {
  readonly #longest: number;
  readonly #shortest: number;

  constructor({ longest = 4, shortest = 2 }: NgramOptions = {}) {
    this.#longest = longest;
    this.#shortest = shortest;
  }

  propose(context: readonly number[], count: number): Draft {
    const end = context.length;
    let best = 0;
    let follows = -1;
    // From the newest occurrence back; a longer match beats a newer one.
    for (let at = end - 1; at >= this.#shortest && best < this.#longest; at--) {
      let match = 0;
      while (
        match < this.#longest &&
        match < at &&
        context[at - 1 - match] === context[end - 1 - match]
      )
        match++;
      if (match > best && match >= this.#shortest) {
        best = match;
        follows = at;
      }
    }
    if (follows < 0) return { tokens: [] };
    // A text that repeats with a short period is continued periodically.
    const period = end - follows;
    return {
      tokens: Array.from({ length: count }, (_, i) => context[follows + (i % period)] as number),
    };
  }
}
