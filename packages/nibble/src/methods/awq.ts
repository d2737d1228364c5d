/**
 * AWQ (arXiv 2306.00978; llm-awq): inputs with large activations are scaled up in the weights before rounding, by one exponent
 * per site found by grid search; then the range of each group is clipped where that lowers the output error, and the result is
 * rounded to nearest with AWQ's own grid (the range need not contain 0). Scales fold into norms, v and up.
 * Departures from the official code: errors are taken from the Gram matrix of all calibration tokens, tr(E H E^T), instead of
 * sampled tokens, and q, k, v / gate, up are judged by their own outputs, not by those of attention and MLP.
 * Bits per weight: bits + (16 + z) / groupSize, z = bits, or 0 for sym.
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { columnsPerGroup } from "../encodings/groups.js";
import type { EngineLinalg } from "../linalg/engine-linalg.js";
import {
  defineMethod,
  type SiteScale,
  type SiteStatsView,
  type SiteView,
  type SolveContext,
  type Targets,
} from "./contract.js";
import { targetShape, targetsOf } from "./shared/common-options.js";
import {
  checkGrid,
  type GridOptions,
  gridEstimate,
  gridProduces,
  gridShape,
} from "./shared/grid-options.js";
import { checkFinite, GroupParams } from "./shared/group-params.js";
import { multiplyColumns } from "./shared/site-scale.js";

export interface AwqOptions extends Targets {
  bits: number;
  groupSize: number | "channel";
  /** false is the official zero_point. */
  sym: GridOptions["sym"];
  scaleType: GridOptions["scaleType"];
  /** "act": s = a^alpha (official). "duo": a^alpha / w^(1 - alpha) (AutoAWQ). "none": clip only. */
  scaling: "act" | "duo" | "none";
  /** Exponents tried: i / nGrid. */
  nGrid: number;
  clip: boolean;
  /** Ranges tried: 1 - i / clipGrid for i < clipGrid * clipMaxShrink. */
  clipGrid: number;
  clipMaxShrink: number;
  /** v -> o with fewer KV heads than heads: left out (official), or one scale for the heads that share a row of v. */
  gqa: "skip" | "shared";
}

/** Smallest scale before normalization, and terms that keep AutoAWQ's quotients finite. */
const SMALLEST_SCALE = 1e-4;
const DUO_EPSILON = 1e-4;
const AMAX_EPSILON = 1e-6;

/** The grid that the result is rounded to. */
function grid(o: AwqOptions): GridOptions {
  const { bits, groupSize, sym, scaleType, targets, ignore } = o;
  const range = sym === false ? "raw" : "zero";
  const search = { clip: "none", clipNorm: 2, clipGrid: 2, clipMaxShrink: 1 } as const;
  return { bits, groupSize, sym, scaleType, targets, ignore, zero: "int", range, ...search };
}

/** E[x x^T] [k, k] in f32, both triangles. */
async function gramOf(
  stats: SiteStatsView,
  k: number,
  path: string,
  ctx: SolveContext,
): Promise<Float32Array> {
  const { hessian, count } = stats;
  if (!hessian || !(count > 0)) {
    throw new NumericError("AWQ needs the statistics of the inputs", {
      place: path,
      hint: "Give calibration text, or use rtn.",
    });
  }
  return ctx.memo(stats, "awq:gram", async () => {
    const gram = new Float32Array(k * k);
    for (let i = 0; i < k; i++) {
      for (let j = i; j < k; j++) {
        const value = (hessian[i * k + j] as number) / count;
        gram[i * k + j] = value;
        gram[j * k + i] = value;
      }
    }
    return gram;
  });
}

/** Per row r of e [n, width]: e_r G e_r^T, with G = gram[at.. , at..]. `scratch` has the size of e. */
async function quadraticForms(
  e: Float32Array,
  n: number,
  width: number,
  gram: Float32Array,
  k: number,
  at: number,
  scratch: Float32Array,
  linalg: EngineLinalg,
): Promise<Float64Array> {
  await linalg.gemm({
    rows: n,
    cols: width,
    inner: width,
    a: { data: e, offset: 0, stride: width },
    b: { data: gram, offset: at * k + at, stride: k },
    c: { data: scratch, offset: 0, stride: width },
  });
  const sums = new Float64Array(n);
  for (let r = 0; r < n; r++) {
    let sum = 0;
    for (let i = r * width; i < (r + 1) * width; i++)
      sum += (e[i] as number) * (scratch[i] as number);
    sums[r] = sum;
  }
  return sums;
}

/** w <- what it decodes to after rounding, in place. */
function roundTrip(w: Float32Array, params: GroupParams): void {
  params.fitAll(w, null);
  const codes = params.encode(w);
  const { n, k, width, groups, rowStride, scale, zero } = params;
  for (let r = 0; r < n; r++) {
    for (let g = 0; g < groups; g++) {
      const s = scale[r * rowStride + g] as number;
      const z = zero[r * rowStride + g] as number;
      const end = r * k + Math.min(k, (g + 1) * width);
      for (let i = r * k + g * width; i < end; i++) w[i] = s * ((codes[i] as number) - z);
    }
  }
}

/**
 * Scale of a site for one exponent, with max * min = 1.
 * @param magnitude mean |x| of each channel
 * @param weightShare AutoAWQ's mean |w| relative to its group, for "duo"
 */
export function awqScale(
  magnitude: Float64Array,
  alpha: number,
  weightShare: Float64Array | null,
): Float32Array {
  const s = magnitude.map((a, i) => {
    const quotient = weightShare ? (weightShare[i] as number) ** (1 - alpha) + DUO_EPSILON : 1;
    return Math.max(a ** alpha / quotient, SMALLEST_SCALE);
  });
  const norm = Math.sqrt(s.reduce((a, b) => Math.max(a, b)) * s.reduce((a, b) => Math.min(a, b)));
  return Float32Array.from(s, (x) => {
    const scaled = Math.fround(x / norm);
    return Number.isFinite(scaled) && scaled > 0 ? scaled : 1;
  });
}

/** Mean over all rows of |w| / (largest |w| of its group). */
function relativeWeights(site: SiteView<AwqOptions>, groupSize: number | "channel"): Float64Array {
  const { k } = site;
  const width = columnsPerGroup(k, groupSize);
  const sums = new Float64Array(k);
  let rows = 0;
  for (const { weight, n } of site.linears) {
    rows += n;
    for (let r = 0; r < n; r++) {
      for (let from = 0; from < k; from += width) {
        const end = Math.min(k, from + width);
        let top = 0;
        for (let c = from; c < end; c++) top = Math.max(top, Math.abs(weight[r * k + c] as number));
        for (let c = from; c < end; c++) {
          sums[c] =
            (sums[c] as number) + Math.abs(weight[r * k + c] as number) / (top + AMAX_EPSILON);
        }
      }
    }
  }
  return sums.map((x) => x / rows);
}

/** Mean over the query heads that read one row of v, given to each of them. */
function shareHeads(values: Float64Array, repeat: number, headDim: number): Float64Array {
  const span = repeat * headDim;
  return values.map((_, i) => {
    const from = Math.floor(i / span) * span + (i % headDim);
    let sum = 0;
    for (let head = 0; head < repeat; head++) sum += values[from + head * headDim] as number;
    return sum / repeat;
  });
}

/** Output error per token of the site's linears when rounded with input scale s. */
async function siteError(
  site: SiteView<AwqOptions>,
  s: Float32Array | null,
  gram: Float32Array,
  linalg: EngineLinalg,
): Promise<number> {
  const { k } = site;
  const inverse = s?.map((x) => 1 / x);
  let total = 0;
  for (const { weight, n, options } of site.linears) {
    if (!options) continue;
    const e = weight.slice();
    if (s) multiplyColumns(e, s);
    roundTrip(e, new GroupParams(grid(options), n, k));
    if (inverse) multiplyColumns(e, inverse);
    for (let i = 0; i < e.length; i++) e[i] = (e[i] as number) - (weight[i] as number);
    const forms = await quadraticForms(e, n, k, gram, k, 0, new Float32Array(n * k), linalg);
    for (const form of forms) total += form;
  }
  return total;
}

async function prepareSite(
  site: SiteView<AwqOptions>,
  stats: SiteStatsView,
  o: AwqOptions,
  ctx: SolveContext,
): Promise<SiteScale | null> {
  if (o.scaling === "none") return null;
  const { k, producer } = site;
  const place = `layers.${site.layer} ${site.site}`;
  const shared = producer.kind === "rows" && producer.repeat > 1;
  if (shared && o.gqa === "skip") return null;
  for (const { weight, path } of site.linears) checkFinite(weight, path);
  const gram = await gramOf(stats, k, place, ctx);
  const { sumAbs, count } = stats;
  if (!sumAbs) throw new Error(`${place}: sums of |x| were not collected`);
  let magnitude: Float64Array = sumAbs.map((x) => x / count);
  let share = o.scaling === "duo" ? relativeWeights(site, o.groupSize) : null;
  if (shared) {
    magnitude = shareHeads(magnitude, producer.repeat, producer.headDim);
    share = share && shareHeads(share, producer.repeat, producer.headDim);
  }
  const unscaled = await siteError(site, null, gram, ctx.engineLinalg);
  let best: { scale: Float32Array; alpha: number; error: number } | null = null;
  for (let i = 0; i < o.nGrid; i++) {
    const alpha = i / o.nGrid;
    if (alpha === 0 && !share) continue; // every scale is 1
    const scale = awqScale(magnitude, alpha, share);
    const error = await siteError(site, scale, gram, ctx.engineLinalg);
    if (error < (best?.error ?? unscaled)) best = { scale, alpha, error };
  }
  if (!best) return null;
  const ratio = (best.error / unscaled).toFixed(3);
  return {
    scale: best.scale,
    notes: [`${place}: alpha ${best.alpha}, error ${ratio} of unscaled`],
  };
}

/**
 * Clips the groups of w [n, k] in place where that lowers the error of the group's part of the output.
 * @returns the output errors of all groups, before and after
 */
export async function clipGroups(
  w: Float32Array,
  n: number,
  k: number,
  gram: Float32Array,
  o: AwqOptions,
  linalg: EngineLinalg,
): Promise<{ before: Float64Array; after: Float64Array }> {
  const full = columnsPerGroup(k, o.groupSize);
  const groups = Math.ceil(k / full);
  const before = new Float64Array(n * groups);
  const after = new Float64Array(n * groups);
  const steps = Math.ceil(o.clipGrid * o.clipMaxShrink - 1e-9);
  for (let g = 0; g < groups; g++) {
    const from = g * full;
    const width = Math.min(full, k - from);
    const original = new Float32Array(n * width);
    const limits = new Float64Array(n);
    for (let r = 0; r < n; r++) {
      const row = w.subarray(r * k + from, r * k + from + width);
      original.set(row, r * width);
      limits[r] = row.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    }
    const best = limits.slice();
    const params = new GroupParams({ ...grid(o), groupSize: "channel" }, n, width);
    const scratch = new Float32Array(n * width);
    for (let step = 0; step < steps; step++) {
      const shrink = 1 - step / o.clipGrid;
      const e = original.slice();
      if (step > 0) clampRows(e, width, limits, shrink);
      roundTrip(e, params);
      for (let i = 0; i < e.length; i++) e[i] = (e[i] as number) - (original[i] as number);
      const errors = await quadraticForms(e, n, width, gram, k, from, scratch, linalg);
      for (let r = 0; r < n; r++) {
        const p = r * groups + g;
        const error = errors[r] as number;
        if (step === 0) before[p] = error;
        else if (error >= (after[p] as number)) continue;
        after[p] = error;
        best[r] = (limits[r] as number) * shrink;
      }
    }
    clampRows(original, width, best, 1);
    for (let r = 0; r < n; r++) w.set(original.subarray(r * width, (r + 1) * width), r * k + from);
  }
  return { before, after };
}

/** Row r of e [n, width] clamped to +-limits[r] * shrink. */
function clampRows(e: Float32Array, width: number, limits: Float64Array, shrink: number): void {
  for (let r = 0; r < limits.length; r++) {
    const limit = (limits[r] as number) * shrink;
    for (let i = r * width; i < (r + 1) * width; i++) {
      const x = e[i] as number;
      if (x > limit) e[i] = limit;
      else if (x < -limit) e[i] = -limit;
    }
  }
}

/** q and k are not clipped: their product is what counts. */
const clips = (path: string) => !/\.[qk]$/.test(path);

export const awq = defineMethod<AwqOptions>({
  id: "awq",
  kind: "weights",
  title: "AWQ",
  paper: "arXiv:2306.00978",
  summary:
    "4-bit weights with salient channels scaled up; robust to the choice of calibration text.",
  options: z
    .strictObject({
      bits: z.int().min(2).max(8).default(4),
      groupSize: z.union([z.literal("channel"), z.int().min(8)]).default(128),
      sym: gridShape.sym,
      scaleType: gridShape.scaleType,
      scaling: z.enum(["act", "duo", "none"]).default("act"),
      nGrid: z.int().min(1).max(200).default(20),
      clip: z.boolean().default(true),
      clipGrid: z.int().min(2).max(1000).default(20),
      clipMaxShrink: z.number().gt(0).max(1).default(0.5),
      gqa: z.enum(["skip", "shared"]).default("skip"),
      ...targetShape,
    })
    .superRefine((o, ctx) => checkGrid(grid(o), ctx)),
  needs: (o) => ({
    calibration: true,
    hessian: true,
    absStats: o.scaling !== "none",
    gradients: false,
  }),
  produces: (o) => gridProduces(grid(o)),
  estimate(shape, o) {
    const { n, k } = shape;
    const { peakBytes, flops } = gridEstimate(shape, grid(o));
    const scaling = o.scaling === "none" ? 0 : o.nGrid * 2 * n * k * (k + 10);
    const clip = o.clip
      ? o.clipGrid * o.clipMaxShrink * 2 * n * k * (columnsPerGroup(k, o.groupSize) + 10)
      : 0;
    return { peakBytes: peakBytes + 8 * n * k + 4 * k * k, flops: flops + scaling + clip };
  },
  targets: targetsOf,
  schedule: () => ({ propagate: "original", trueSequential: false }),
  scaler: { originalBasis: true, prepareSite },
  async solve(weight, { n, k, path }, stats, o, ctx) {
    checkFinite(weight, path);
    if (!stats) throw new NumericError("AWQ needs the statistics of the inputs", { place: path });
    const gram = await gramOf(stats, k, path, ctx);
    const original = weight.slice();
    if (o.clip && clips(path)) await clipGroups(weight, n, k, gram, o, ctx.engineLinalg);
    const params = new GroupParams(grid(o), n, k);
    params.fitAll(weight, null);
    const tensor = params.toTensor(params.encode(weight));
    roundTrip(weight, params);
    for (let i = 0; i < weight.length; i++)
      weight[i] = (weight[i] as number) - (original[i] as number);
    const forms = await quadraticForms(
      weight,
      n,
      k,
      gram,
      k,
      0,
      new Float32Array(n * k),
      ctx.engineLinalg,
    );
    return { tensor, loss: forms.reduce((sum, x) => sum + x, 0) };
  },
});
