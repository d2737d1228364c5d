/**
 * Zero-shot accuracy of SmolLM2-135M-Instruct on the first 500 questions of every task that an independent implementation
 * of lm-evaluation-harness' scoring was run on: within half a point. Some minutes.
 */
import { describe, it } from "vitest";
import { requires } from "../model/locate.js";
import { expectGolden, goldenRows, ZERO_SHOT_NEEDS } from "../model/zero-shot-golden.js";

describe("zero-shot accuracy of SmolLM2-135M", requires(ZERO_SHOT_NEEDS), () => {
  it.each(goldenRows)("$task: $acc, normalized $acc_norm, of $n", expectGolden);
});
