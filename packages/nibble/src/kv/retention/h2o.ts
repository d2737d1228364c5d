/**
 * H2O, the heavy-hitter oracle (arXiv:2306.14048): the last `recent` tokens stay, and of the others the `heavy` ones that
 * drew the most attention so far. Without training or calibration; 8 bytes of state a live token and KV head.
 * What is evicted is gone (the real-drop code, not the masking simulation): weak at exact retrieval. Scores are sums of
 * probabilities over all query rows and, with grouped queries, over the query heads that share the KV head.
 */
import { z } from "zod";
import { defineRetention, type RetentionPlan } from "../contract.js";
import { budgetSchema, budgetTokens, slotsToEvict } from "./budget.js";
import { SlotScores } from "./slot-scores.js";

export const h2o = defineRetention({
  id: "h2o",
  title: "H2O",
  paper: "arXiv:2306.14048",
  summary: "Keeps recent tokens and those with the largest accumulated attention.",
  options: z
    .strictObject({
      /** Share of the prompt (up to 1) or number of tokens. */
      heavy: budgetSchema.default(0.1),
      recent: budgetSchema.default(0.1),
      /** First tokens that always stay, on top of both budgets. */
      sinks: z.number().int().min(0).default(0),
      /** avg: divided by the number of query rows that saw the token, against the bias towards early ones. */
      score: z.enum(["sum", "avg"]).default("sum"),
    })
    .refine(({ heavy, recent }) => heavy + recent > 0, {
      message: "heavy and recent are both 0: nothing would stay",
    }),
  granularity: "head",
  positions: "absolute",
  prefixShareable: false,
  stats: () => ({ kind: "colSumProb" }),
  create({ heavy, recent, sinks, score }) {
    const scores = new SlotScores();
    return {
      afterAttend({ columns, rows, more, promptLength }): RetentionPlan | null {
        if (!columns) throw new Error("H2O was given no column sums");
        scores.add(columns, rows, more);
        if (more) return null;
        const evict = slotsToEvict(score === "avg" ? scores.averages() : scores.values, {
          first: sinks,
          best: budgetTokens(heavy, promptLength),
          last: budgetTokens(recent, promptLength),
        });
        if (!evict) return null;
        scores.remove(evict);
        return { evict };
      },
      capacity: (promptLength) =>
        sinks + budgetTokens(heavy, promptLength) + budgetTokens(recent, promptLength),
      snapshot: () => scores.snapshot(),
      restore: (bytes) => scores.restore(bytes),
      get bytes() {
        return scores.bytes;
      },
    };
  },
});
