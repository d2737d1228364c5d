/**
 * GPTQ (arXiv:2210.17323; official code IST-DASLab/gptq): quantizes column by column and lets the columns that follow make
 * up for the error, by the inverse Hessian of the layer's inputs. The result is an ordinary integer grid: bits per weight
 * as RTN (plus 16 / n for a stored permutation).
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { sweep } from "../linalg/sweep.js";
import {
  defineMethod,
  NO_NEEDS,
  type SiteStatsView,
  type SolveContext,
  type Solved,
} from "./contract.js";
import { roundToNearest } from "./rtn.js";
import {
  checkGrid,
  type GridOptions,
  gridEstimate,
  gridProduces,
  gridShape,
} from "./shared/grid-options.js";
import { checkFinite, GroupParams } from "./shared/group-params.js";
import { type HessianFactor, hessianFactor } from "./shared/hessian-factor.js";

export interface GptqOptions extends GridOptions {
  /** Quantize columns in falling order of their Hessian diagonal. */
  actOrder: boolean;
  /** With actOrder: groups of the original columns, fitted before the sweep (no permutation is stored). */
  staticGroups: boolean;
  /** Added to the Hessian's diagonal, as a fraction of its mean. */
  percDamp: number;
  blockSize: number;
  /** Quantize {q, k, v}, {o}, {gate, up}, {down} of a block one after another. */
  trueSequential: boolean;
  propagate: "quantized" | "original";
  /** Fit a group inside a block from weights without the updates of that block, as the official code does. */
  staleGroups: boolean;
}

/** How the groups of a weight are laid out and when they are fitted. */
function groupPlan(o: GptqOptions, k: number) {
  const grouped = typeof o.groupSize === "number" && o.groupSize < k;
  return {
    /** Groups of the permuted columns, fitted during the sweep. */
    dynamic: grouped && !(o.actOrder && o.staticGroups),
    /** Stored codes stay in permuted order. */
    permuted: grouped && o.actOrder && !o.staticGroups,
  };
}

async function solveSweep(
  weight: Float32Array,
  n: number,
  k: number,
  factor: HessianFactor,
  o: GptqOptions,
  ctx: SolveContext,
): Promise<Solved> {
  const { u, order, dead, importance } = factor;
  for (const c of dead) for (let r = 0; r < n; r++) weight[r * k + c] = 0;
  const { dynamic, permuted } = groupPlan(o, k);
  const params = new GroupParams(o, n, k);
  const weights = o.clip === "hdiag" ? importance : null;
  if (!dynamic) params.fitAll(weight, weights);

  const w = order ? permuteColumns(weight, n, k, order) : weight;
  const sweptImportance =
    weights && order ? weights.map((_, i) => weights[order[i] as number] as number) : weights;
  const codes = new Uint8Array(n * k);
  const { fitter, width, rowStride, scale, zero } = params;
  const loss = await sweep(
    w,
    n,
    k,
    u,
    {
      blockSize: o.blockSize,
      alignment: dynamic && !o.staleGroups ? width : 0,
      onBlock(from, to) {
        if (!dynamic) return;
        for (let g = Math.ceil(from / width); g * width < to; g++) {
          params.fitGroup(w, g, sweptImportance);
        }
      },
      quantizeColumn(column, rowFrom, rowTo, values) {
        // Where the code belongs and which group it is in, in stored order.
        const stored = order && !permuted ? (order[column] as number) : column;
        const g = Math.floor(stored / width);
        fitter.quantizeColumn(
          values,
          rowTo - rowFrom,
          scale,
          zero,
          rowFrom * rowStride + g,
          rowStride,
          codes,
          rowFrom * k + stored,
          k,
        );
      },
    },
    ctx.engineLinalg,
  );
  const pre = order && permuted ? [{ op: "perm" as const, index: order }] : [];
  return { tensor: params.toTensor(codes, pre), loss };
}

/** Columns of w [n, k] in the given order, a new array. */
function permuteColumns(w: Float32Array, n: number, k: number, order: Uint32Array): Float32Array {
  const out = new Float32Array(w.length);
  for (let r = 0; r < n; r++) {
    const at = r * k;
    for (let c = 0; c < k; c++) out[at + c] = w[at + (order[c] as number)] as number;
  }
  return out;
}

async function solve(
  weight: Float32Array,
  shape: { n: number; k: number; path: string },
  stats: SiteStatsView | null,
  o: GptqOptions,
  ctx: SolveContext,
): Promise<Solved> {
  const { n, k, path } = shape;
  checkFinite(weight, path);
  if (!stats?.hessian) {
    throw new NumericError("GPTQ needs the Hessian of the inputs", {
      place: path,
      hint: "Give calibration text, or use rtn.",
    });
  }
  const key = `gptq:${o.percDamp}:${o.actOrder}`;
  const factor = await ctx.memo(stats, key, () => hessianFactor(stats, k, o, path, ctx));
  if (!factor.u) {
    const note = `no inverse Hessian at any damping up to 1; rounded to nearest instead`;
    ctx.log(`${path}: ${note}`);
    const importance = o.clip === "hdiag" ? factor.importance : null;
    return { tensor: roundToNearest(weight, n, k, o, importance), notes: [note] };
  }
  const solved = await solveSweep(weight, n, k, factor as HessianFactor, o, ctx);
  return factor.notes.length > 0 ? { ...solved, notes: factor.notes } : solved;
}

export const gptq = defineMethod<GptqOptions>({
  id: "gptq",
  kind: "weights",
  title: "GPTQ",
  paper: "arXiv:2210.17323",
  summary: "4-bit weights with little loss and usable 3-bit, from a short calibration text.",
  options: z
    .strictObject({
      ...gridShape,
      actOrder: z.boolean().default(false),
      staticGroups: z.boolean().default(true),
      percDamp: z.number().gt(0).max(1).default(0.01),
      blockSize: z.int().min(1).max(4096).default(128),
      trueSequential: z.boolean().default(false),
      propagate: z.enum(["quantized", "original"]).default("quantized"),
      staleGroups: z.boolean().default(true),
    })
    .superRefine(checkGrid),
  needs: () => ({ ...NO_NEEDS, calibration: true, hessian: true }),
  produces: (o) => ({
    ...gridProduces(o),
    ...(groupPlan(o, Number.POSITIVE_INFINITY).permuted && { perm: true }),
  }),
  estimate(shape, o) {
    const { n, k } = shape;
    const grid = gridEstimate(shape, o);
    // Hessian copy f64, factor f32, a permuted weight, errors of a block.
    const peakBytes =
      grid.peakBytes + 12 * k * k + (o.actOrder ? 4 * n * k : 0) + 4 * n * o.blockSize;
    return { peakBytes, flops: grid.flops + (4 / 3) * k ** 3 + n * k * k };
  },
  targets: ({ targets, ignore }) => ({ targets, ignore }),
  schedule: ({ propagate, trueSequential }) => ({ propagate, trueSequential }),
  solve,
});
