/**
 * SparseGPT (arXiv 2301.00774): one-shot pruning with GPTQ's error feedback. Columns are swept in blocks; in each block the
 * weights with the smallest w^2 / U_cc^2 over all rows go (or n of every m inputs of a row), and the columns that follow make
 * up for the error. Stored as a bitmap and the remaining values, which are rounded to their stored type inside the sweep.
 * Bits per weight: 1 + 16 * (1 - sparsity).
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { bitmapDense } from "../encodings/dense-codec.js";
import { roundFloat } from "../encodings/stored-floats.js";
import type { FloatType } from "../encodings/types.js";
import type { EngineLinalg } from "../linalg/engine-linalg.js";
import { risingOrder, valueAtRank } from "../linalg/order.js";
import { sweep } from "../linalg/sweep.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import { floatTypeOption, targetShape, targetsOf } from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";
import { hessianFactor } from "./shared/hessian-factor.js";
import {
  bitmapBits,
  checkSparsity,
  parsePattern,
  patternOption,
  type SparsityPattern,
  sparsityOption,
} from "./shared/sparsity.js";
import { wandaMask } from "./wanda.js";

export interface SparsegptOptions extends Targets {
  sparsity: number;
  pattern: SparsityPattern;
  percDamp: number;
  blockSize: number;
  type: FloatType;
}

/**
 * Prunes w [n, k] (destroyed).
 * @param u upper factor [k, k] of the inverse Hessian
 * @returns the pruned weight, and its squared output error under the Hessian
 */
export async function pruneSweep(
  w: Float32Array,
  n: number,
  k: number,
  u: Float32Array,
  o: Pick<SparsegptOptions, "sparsity" | "pattern" | "blockSize" | "type">,
  linalg: EngineLinalg,
): Promise<{ weight: Float32Array; loss: number }> {
  const pattern = parsePattern(o.pattern);
  const drop = new Uint8Array(n * k);
  const out = new Float32Array(n * k);
  const scoresOf = (from: number, to: number) => {
    const width = to - from;
    const scores = new Float32Array(n * width);
    for (let r = 0; r < n; r++) {
      for (let c = 0; c < width; c++) {
        const d = u[(from + c) * k + from + c] as number;
        scores[r * width + c] = ((w[r * k + from + c] as number) / d) ** 2;
      }
    }
    return scores;
  };
  const loss = await sweep(
    w,
    n,
    k,
    u,
    {
      blockSize: pattern ? pattern.of : o.blockSize,
      alignment: pattern ? pattern.of : 0,
      onBlock(from, to) {
        const width = to - from;
        const scores = scoresOf(from, to);
        if (pattern) {
          // A ragged last group loses its share.
          const count = Math.floor((pattern.prune * width) / pattern.of);
          for (let r = 0; r < n; r++) {
            for (const i of risingOrder(scores, r * width, width).subarray(0, count))
              drop[r * k + from + i] = 1;
          }
        } else if (o.sparsity > 0) {
          const limit = valueAtRank(scores, Math.floor(scores.length * o.sparsity));
          for (let i = 0; i < scores.length; i++) {
            if ((scores[i] as number) > limit) continue;
            drop[Math.floor(i / width) * k + from + (i % width)] = 1;
          }
        }
      },
      quantizeColumn(column, rowFrom, rowTo, values) {
        for (let r = rowFrom; r < rowTo; r++) {
          const i = r * k + column;
          const kept = drop[i] ? 0 : roundFloat(values[r - rowFrom] as number, o.type);
          values[r - rowFrom] = kept;
          out[i] = kept;
        }
      },
    },
    linalg,
  );
  return { weight: out, loss };
}

export const sparsegpt = defineMethod<SparsegptOptions>({
  id: "sparsegpt",
  kind: "weights",
  title: "SparseGPT",
  paper: "arXiv:2301.00774",
  summary: "Prunes half of the weights and lets the rest make up for it; stored sparse.",
  options: z
    .strictObject({
      sparsity: sparsityOption,
      pattern: patternOption,
      percDamp: z.number().gt(0).max(1).default(0.01),
      blockSize: z.int().min(1).max(4096).default(128),
      type: floatTypeOption.default("f16"),
      ...targetShape,
    })
    .superRefine(checkSparsity),
  needs: () => ({ ...NO_NEEDS, calibration: true, hessian: true }),
  produces: ({ type }) => ({ encoding: "dense", type, codec: "bitmap" }),
  storedBits: (shape, o) => bitmapBits(shape, o),
  estimate: ({ n, k }, o) => ({
    peakBytes: 9 * n * k + 12 * k * k + 8 * n * o.blockSize,
    flops: (4 / 3) * k ** 3 + n * k * k,
  }),
  targets: targetsOf,
  async solve(weight, { n, k, path }, stats, o, ctx) {
    checkFinite(weight, path);
    if (!stats?.hessian) {
      throw new NumericError("SparseGPT needs the Hessian of the inputs", {
        place: path,
        hint: "Give calibration text, or use wanda with score: magnitude.",
      });
    }
    const key = `gptq:${o.percDamp}:false`;
    const factor = await ctx.memo(stats, key, () =>
      hessianFactor(stats, k, { percDamp: o.percDamp, actOrder: false }, path, ctx),
    );
    const notes = [...factor.notes];
    for (const c of factor.dead) for (let r = 0; r < n; r++) weight[r * k + c] = 0;
    let pruned: { weight: Float32Array; loss?: number };
    if (factor.u) pruned = await pruneSweep(weight, n, k, factor.u, o, ctx.engineLinalg);
    else {
      notes.push("no inverse Hessian at any damping up to 1; pruned by Wanda's score instead");
      ctx.log(`${path}: ${notes.at(-1)}`);
      const keep = wandaMask(weight, n, k, factor.importance.map(Math.sqrt), {
        ...o,
        variant: false,
      });
      pruned = { weight: weight.map((x, i) => (keep[i] ? x : 0)) };
    }
    const main = bitmapDense(pruned.weight, o.type, n, k);
    checkFinite(main.data, path);
    return {
      tensor: { n, k, main, pre: [], post: [] },
      ...(pruned.loss !== undefined && { loss: pruned.loss }),
      ...(notes.length > 0 && { notes }),
    };
  },
});
