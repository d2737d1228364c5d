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
  /**
   * How much of the drift of the inputs to make up for (GPTAQ, arXiv:2504.02692): 0 is GPTQ, which aims at W x for the inputs
   * x that the quantized blocks before give; 1 aims at what W gave for the original inputs.
   */
  asymmetric: number;
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

/**
 * W += amount * W D H^-1, D = E[(y - x) x^T]: the weight that gives on the inputs x what W gave on the original inputs y, as
 * nearly as any can. Quantizing it under H is what is left of || Q x - W y ||^2.
 */
async function absorbDrift(
  weight: Float32Array,
  n: number,
  k: number,
  { u, order }: HessianFactor,
  stats: SiteStatsView,
  amount: number,
  { engineLinalg }: SolveContext,
): Promise<void> {
  const drift = stats.drift as Float64Array;
  // In processing order, as U is; drift holds x (y - x)^T.
  const d = new Float32Array(k * k);
  const at = (i: number) => (order ? (order[i] as number) : i);
  for (let i = 0; i < k; i++) {
    for (let j = 0; j < k; j++) d[j * k + i] = (drift[at(i) * k + at(j)] as number) / stats.count;
  }
  const whole = (data: Float32Array) => ({ data, offset: 0, stride: k });
  const product = async (a: Float32Array, b: Float32Array, transB = false) => {
    const c = new Float32Array(n * k);
    const size = { rows: n, cols: k, inner: k };
    await engineLinalg.gemm({ ...size, a: whole(a), b: whole(b), transB, c: whole(c) });
    return c;
  };
  const w = order ? permuteColumns(weight, n, k, order) : weight;
  const moved = await product(await product(await product(w, d), u, true), u);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      (weight[r * k + at(c)] as number) += amount * (moved[r * k + c] as number);
    }
  }
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
  if (o.asymmetric > 0 && stats.drift) {
    await absorbDrift(weight, n, k, factor as HessianFactor, stats, o.asymmetric, ctx);
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
      asymmetric: z.number().min(0).max(1).default(0),
      staleGroups: z.boolean().default(true),
    })
    .superRefine(checkGrid)
    .superRefine((o, ctx) => {
      if (o.asymmetric > 0 && (o.propagate === "original" || o.trueSequential)) {
        const message = "needs propagate: quantized and trueSequential: false";
        ctx.addIssue({ code: "custom", path: ["asymmetric"], message });
      }
    }),
  needs: (o) => ({
    ...NO_NEEDS,
    calibration: true,
    hessian: true,
    ...(o.asymmetric > 0 && { drift: true }),
  }),
  produces: (o) => ({
    ...gridProduces(o),
    ...(groupPlan(o, Number.POSITIVE_INFINITY).permuted && { perm: true }),
  }),
  estimate(shape, o) {
    const { n, k } = shape;
    const grid = gridEstimate(shape, o);
    // Hessian copy f64, factor f32, a permuted weight, errors of a block.
    const peakBytes =
      grid.peakBytes +
      12 * k * k +
      (o.asymmetric > 0 ? 4 * k * k + 12 * n * k : 0) +
      (o.actOrder ? 4 * n * k : 0) +
      4 * n * o.blockSize;
    return { peakBytes, flops: grid.flops + (4 / 3) * k ** 3 + n * k * k };
  },
  targets: ({ targets, ignore }) => ({ targets, ignore }),
  schedule: ({ propagate, trueSequential }) => ({ propagate, trueSequential }),
  solve,
});
