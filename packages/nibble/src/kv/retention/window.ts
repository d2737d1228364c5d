/**
 * Attention sinks and a sliding window (StreamingLLM, arXiv:2309.17453): the first `sinks` tokens and the last `recent`
 * ones stay. Text of any length in constant memory, at steady perplexity; what lies between is forgotten. Keys are seen
 * at their place among the live slots, so that no distance exceeds what the model was trained on. No state.
 */
import { z } from "zod";
import { FormatError } from "../../core/errors.js";
import { defineRetention, type RetentionPlan } from "../contract.js";

export const windowRetention = defineRetention({
  id: "window",
  title: "Attention sinks and a window",
  paper: "arXiv:2309.17453",
  summary: "Keeps the first tokens and the last ones; endless text in constant memory.",
  options: z.strictObject({
    sinks: z.number().int().min(0).default(4),
    recent: z.number().int().min(1).default(1020),
  }),
  granularity: "layer",
  positions: "slot",
  // Whole pages fall out of the table of a sequence; what another one shares stays as it is.
  prefixShareable: true,
  stats: () => ({ kind: "none" }),
  create({ sinks, recent }) {
    return {
      afterAttend({ live }): RetentionPlan | null {
        const surplus = live - sinks - recent;
        if (surplus <= 0) return null;
        return { evict: Int32Array.from({ length: surplus }, (_, i) => sinks + i) };
      },
      capacity: () => sinks + recent,
      snapshot: () => new Uint8Array(0),
      restore(bytes) {
        if (bytes.length > 0) {
          throw new FormatError(
            `a window has no state, but ${bytes.length} bytes of it were given`,
          );
        }
      },
      bytes: 0,
    };
  },
});
