/**
 * Wanda (arXiv 2306.11695): one-shot pruning. The score of a weight is |w| times the norm of its input; in every output row
 * the smallest scores go, a given fraction of the row or n of every m inputs. No update of what stays. `score: magnitude`
 * leaves the input norm out. Stored as a bitmap and the remaining values.
 * Bits per weight: 1 + 16 * (1 - sparsity).
 */
import { z } from "zod";
import { bitmapDense } from "../encodings/dense-codec.js";
import type { FloatType } from "../encodings/types.js";
import { risingOrder } from "../linalg/order.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import { columnImportance } from "./rtn.js";
import { floatTypeOption, targetShape, targetsOf } from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";
import {
  bitmapBits,
  checkSparsity,
  parsePattern,
  patternOption,
  type SparsityPattern,
  sparsityOption,
} from "./shared/sparsity.js";

export interface WandaOptions extends Targets {
  score: "wanda" | "magnitude";
  sparsity: number;
  pattern: SparsityPattern;
  /** Rows may differ: each loses the share of its score mass that gives the matrix its sparsity (official use_variant). */
  variant: boolean;
  type: FloatType;
}

/** Bisection of the variant: start, bounds, tolerance and most steps. */
const VARIANT = { start: 0.4, low: 0, high: 0.8, tolerance: 0.001, steps: 60 } as const;

/**
 * Which weights stay (1) of w [n, k].
 * @param norms norm of each input [k], any common factor; null: all equal
 */
export function wandaMask(
  w: Float32Array,
  n: number,
  k: number,
  norms: Float64Array | null,
  o: Pick<WandaOptions, "sparsity" | "pattern" | "variant">,
): Uint8Array {
  const scores = w.map((x, i) => Math.abs(x) * (norms ? (norms[i % k] as number) : 1));
  const keep = new Uint8Array(n * k).fill(1);
  const pattern = parsePattern(o.pattern);
  if (pattern) {
    for (let r = 0; r < n; r++) {
      for (let c = 0; c < k; c += pattern.of) {
        const count = Math.min(pattern.of, k - c);
        const at = r * k + c;
        // A ragged last group loses its share.
        const drop = Math.floor((pattern.prune * count) / pattern.of);
        for (const i of risingOrder(scores, at, count).subarray(0, drop)) keep[at + i] = 0;
      }
    }
    return keep;
  }
  if (o.variant) return variantMask(scores, n, k, o.sparsity);
  const drop = Math.floor(k * o.sparsity);
  for (let r = 0; r < n; r++) {
    for (const i of risingOrder(scores, r * k, k).subarray(0, drop)) keep[r * k + i] = 0;
  }
  return keep;
}

/** Prunes of each row the smallest scores that make up alpha of its sum; alpha is bisected to the matrix's sparsity. */
function variantMask(scores: Float32Array, n: number, k: number, sparsity: number): Uint8Array {
  const order = Array.from({ length: n }, (_, r) => risingOrder(scores, r * k, k));
  /** Cumulative scores of each row in rising order. */
  const sums = order.map((row, r) => {
    let sum = 0;
    return Float64Array.from(row, (i) => {
      sum += scores[r * k + i] as number;
      return sum;
    });
  });
  const pruned = (alpha: number) =>
    sums.map((row) => {
      const limit = alpha * (row[k - 1] ?? 0);
      let low = 0;
      let high = k;
      while (low < high) {
        const middle = (low + high) >> 1;
        if ((row[middle] as number) <= limit) low = middle + 1;
        else high = middle;
      }
      return low;
    });
  let alpha: number = VARIANT.start;
  let low: number = VARIANT.low;
  let high: number = VARIANT.high;
  let counts = pruned(alpha);
  for (let step = 0; step < VARIANT.steps; step++) {
    const got = counts.reduce((sum, c) => sum + c, 0) / (n * k);
    if (Math.abs(got - sparsity) <= VARIANT.tolerance) break;
    if (got > sparsity) high = alpha;
    else low = alpha;
    alpha = (low + high) / 2;
    counts = pruned(alpha);
  }
  const keep = new Uint8Array(n * k).fill(1);
  for (const [r, row] of order.entries()) {
    for (const i of row.subarray(0, counts[r])) keep[r * k + i] = 0;
  }
  return keep;
}

export const wanda = defineMethod<WandaOptions>({
  id: "wanda",
  kind: "weights",
  title: "Wanda",
  paper: "arXiv:2306.11695",
  summary: "Prunes half of the weights in one pass by weight times input norm; stored sparse.",
  options: z
    .strictObject({
      score: z.enum(["wanda", "magnitude"]).default("wanda"),
      sparsity: sparsityOption,
      pattern: patternOption,
      variant: z.boolean().default(false),
      type: floatTypeOption.default("f16"),
      ...targetShape,
    })
    .superRefine((o, ctx) => {
      checkSparsity(o, ctx);
      if (o.variant && o.pattern !== "unstructured") {
        ctx.addIssue({ code: "custom", path: ["variant"], message: "the variant is unstructured" });
      }
    }),
  needs: (o) =>
    o.score === "magnitude" ? NO_NEEDS : { ...NO_NEEDS, calibration: true, hessian: true },
  produces: ({ type }) => ({ encoding: "dense", type, codec: "bitmap" }),
  storedBits: (shape, o) => bitmapBits(shape, o),
  estimate: ({ n, k }) => ({ peakBytes: 12 * n * k, flops: 20 * n * k * Math.log2(k + 1) }),
  targets: targetsOf,
  async solve(weight, { n, k, path }, stats, o) {
    checkFinite(weight, path);
    const norms = o.score === "wanda" ? columnImportance(stats, k, path).map(Math.sqrt) : null;
    const keep = wandaMask(weight, n, k, norms, o);
    for (let i = 0; i < keep.length; i++) if (!keep[i]) weight[i] = 0;
    const main = bitmapDense(weight, o.type, n, k);
    checkFinite(main.data, path);
    return { tensor: { n, k, main, pre: [], post: [] } };
  },
});
