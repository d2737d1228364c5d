/** A smaller (or more strongly quantized) model that drafts for a larger one with the same vocabulary. */

import { ModelError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import type { OpenedModel } from "./opened.js";
import { argmax, pick, type Sampler } from "./sampler.js";
import type { Draft, Drafter } from "./speculate.js";

/** @throws ModelError when the two models number their tokens differently */
export function checkSameVocabulary(target: OpenedModel, draft: OpenedModel): void {
  const [a, b] = [target.tokenizer, draft.tokenizer];
  const sizes = [target.runner.vocabSize, draft.runner.vocabSize];
  let difference = sizes[0] === sizes[1] ? "" : `${sizes[0]} and ${sizes[1]} tokens`;
  if (difference === "" && a && b) {
    for (let id = 0; id < a.vocabSize && difference === ""; id++) {
      if (a.token(id) !== b.token(id)) difference = `token ${id} differs`;
    }
  }
  if (difference === "") return;
  throw new ModelError(
    `the draft model's vocabulary is not that of the model: ${difference}`,
    { hint: "Draft with a model of the same family, or with --speculate ngram." },
    "draft-vocabulary",
  );
}

export class DraftModel implements Drafter {
  readonly #draft: OpenedModel;
  readonly #slot: number;
  /** Tokens in the draft's cache. */
  #cached: number[] = [];

  /**
   * @param slot cache slot of the draft that this drafter has for itself
   * @throws ModelError when the vocabularies differ
   */
  constructor(target: OpenedModel, draft: OpenedModel, slot = 0) {
    checkSameVocabulary(target, draft);
    this.#draft = draft;
    this.#slot = slot;
  }

  async propose(
    context: readonly number[],
    count: number,
    sampler: Sampler,
    index: number,
  ): Promise<Draft> {
    const { runner, compiled } = this.#draft;
    const room = Math.min(count, compiled.maxContext - context.length + 1);
    if (room <= 0) return { tokens: [] };
    let shared = 0;
    const cached = this.#cached;
    while (
      shared < context.length - 1 &&
      cached[shared] === context[shared] &&
      shared < cached.length
    )
      shared++;
    shared = runner.tables.keepable(this.#slot, shared);
    runner.tables.truncate(this.#slot, shared);
    await runner.prefill(this.#slot, context.slice(shared), shared, { logits: true });
    this.#cached = [...context];

    const seen = [...context];
    const tokens: number[] = [];
    const distributions: Float64Array[] = [];
    for (;;) {
      const logits = runner.logits(0).slice();
      let token: number;
      if (sampler.greedy) token = argmax(logits);
      else {
        const distribution = sampler.distribution(logits, seen);
        const rng = new Philox(sampler.seed, "draft", index + tokens.length);
        token = pick(distribution, null, rng.uniform(), argmax64(distribution));
        distributions.push(distribution);
      }
      tokens.push(token);
      seen.push(token);
      if (tokens.length >= room) break;
      await runner.prefill(this.#slot, [token], this.#cached.length, { logits: true });
      this.#cached.push(token);
    }
    return sampler.deterministic ? { tokens } : { tokens, distributions };
  }
}

function argmax64(values: Float64Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++)
    if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}
