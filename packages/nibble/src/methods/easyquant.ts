/**
 * EasyQuant (arXiv 2403.02775; no official code): data-free. Weights beyond n standard deviations of the matrix stay exact in
 * a sparse side-car; the others are rounded symmetrically with one scale a row whose range is optimized for the squared
 * error. Outlier positions hold the code of 0, so the side-car holds the weights themselves (f16).
 * Bits per weight: bits + 16 / groupSize + outliers * (16 + 16) + 32 (N + 1) / (N K).
 */
import { z } from "zod";
import { createGint } from "../encodings/gint.js";
import { columnsPerGroup, groupsPerRow, scaleShape } from "../encodings/groups.js";
import { roundFloat } from "../encodings/stored-floats.js";
import type { FloatType, QuantTensor } from "../encodings/types.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import {
  codeBits,
  floatTypeOption,
  groupsOf,
  roundingEstimate,
  sideCarBits,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import type { GridOptions } from "./shared/grid-options.js";
import { checkFinite } from "./shared/group-params.js";
import { sparseDelta } from "./shared/sparse.js";

export interface EasyquantOptions extends Targets {
  bits: number;
  /** Outliers lie at least this many standard deviations from the mean; null: none are kept apart. */
  sigma: number | null;
  /** "search": 64 shrink factors, then closed-form refits. "adam": the paper's gradient steps. */
  optimizer: "search" | "adam";
  /** Adam: step size as a fraction of the mean scale of the matrix (the paper's is absolute), and number of steps. */
  lr: number;
  steps: number;
  groupSize: Exclude<GridOptions["groupSize"], "tensor">;
  scaleType: FloatType;
}

/** Fraction beyond 3 sigma in trained models (the paper measures 0.29 to 0.76 %). */
const TYPICAL_OUTLIERS = 0.005;
const SEARCH_STEPS = 64;
const SMALLEST_SHRINK = 0.3;
const REFITS = 10;
const ROUND = 6755399441055744; // 1.5 * 2^52: adding and subtracting it rounds half to even

/** 1 where |w - mean| >= sigma * standard deviation, both over the matrix. */
export function outlierMask(w: Float32Array, sigma: number | null): Uint8Array {
  const count = w.length;
  const mask = new Uint8Array(count);
  if (sigma === null) return mask;
  let sum = 0;
  for (let i = 0; i < count; i++) sum += w[i] as number;
  const mean = sum / count;
  let squares = 0;
  for (let i = 0; i < count; i++) squares += ((w[i] as number) - mean) ** 2;
  const limit = sigma * Math.sqrt(squares / count);
  if (limit === 0) return mask; // all weights are equal
  for (let i = 0; i < count; i++) mask[i] = Math.abs((w[i] as number) - mean) >= limit ? 1 : 0;
  return mask;
}

/** Code of x, given 1 / s. */
function codeOf(x: number, inverse: number, half: number): number {
  const c = x * inverse + ROUND - ROUND;
  return c < -half ? -half : c >= half ? half - 1 : c;
}

/** Sum of (s c - x)^2 over the values, codes in -half .. half - 1; anything larger than `limit` once that is passed. */
export function gridError(
  values: Float64Array,
  s: number,
  half: number,
  limit = Number.POSITIVE_INFINITY,
): number {
  const inverse = 1 / s;
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const x = values[i] as number;
    const error = s * codeOf(x, inverse, half) - x;
    sum += error * error;
    if ((i & 31) === 31 && sum > limit) return sum;
  }
  return sum;
}

/** dE/ds of `gridError` with codes taken as constant: 2 sum (s c - x) c. */
export function gridGradient(values: Float64Array, s: number, half: number): number {
  const inverse = 1 / s;
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const x = values[i] as number;
    const c = codeOf(x, inverse, half);
    sum += (s * c - x) * c;
  }
  return 2 * sum;
}

/** Least error over shrunk ranges, refitted by s = sum c x / sum c^2 until the codes stay. */
function searchScale(
  values: Float64Array,
  start: number,
  half: number,
  round: (s: number) => number,
): number {
  let best = round(start);
  let least = gridError(values, best, half);
  const consider = (s: number) => {
    const rounded = round(s);
    const error = gridError(values, rounded, half, least);
    if (error >= least) return false;
    best = rounded;
    least = error;
    return true;
  };
  for (let i = 1; i < SEARCH_STEPS; i++) {
    consider(start * (1 - (i / (SEARCH_STEPS - 1)) * (1 - SMALLEST_SHRINK)));
  }
  for (let refit = 0; refit < REFITS; refit++) {
    const inverse = 1 / best;
    let cross = 0;
    let square = 0;
    for (let i = 0; i < values.length; i++) {
      const x = values[i] as number;
      const c = codeOf(x, inverse, half);
      cross += c * x;
      square += c * c;
    }
    if (square === 0 || !consider(cross / square)) break;
  }
  return best;
}

/** Adam on the scale from `start`; the best scale on the way, so never worse than the start. */
function adamScale(
  values: Float64Array,
  start: number,
  half: number,
  round: (s: number) => number,
  step: number,
  steps: number,
): number {
  let best = round(start);
  let least = gridError(values, best, half);
  let s = start;
  let m = 0;
  let v = 0;
  for (let t = 1; t <= steps; t++) {
    const g = gridGradient(values, s, half);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    if (v === 0) break;
    s -= (step * (m / (1 - 0.9 ** t))) / (Math.sqrt(v / (1 - 0.999 ** t)) + 1e-12);
    if (!(s > 0)) break;
    const rounded = round(s);
    const error = gridError(values, rounded, half);
    if (error < least) {
      best = rounded;
      least = error;
    }
  }
  return best;
}

/** Quantizes w [n, k]. */
export function quantizeEasy(
  w: Float32Array,
  n: number,
  k: number,
  o: EasyquantOptions,
): QuantTensor {
  const half = 2 ** (o.bits - 1);
  const mask = outlierMask(w, o.sigma);
  const width = columnsPerGroup(k, o.groupSize);
  const groups = groupsPerRow(k, o.groupSize);
  const smallest = o.scaleType === "f16" ? 2 ** -24 : 2 ** -126;
  const round = (s: number) => roundFloat(s, o.scaleType) || smallest;
  const [scaleRows, scaleColumns] = scaleShape(n, k, o.groupSize);
  const scale = new Float32Array(scaleRows * scaleColumns).fill(1);
  const normal: Float64Array[] = [];
  const starts = new Float64Array(scale.length);
  for (let r = 0; r < n; r++) {
    for (let g = 0; g < groups; g++) {
      const kept: number[] = [];
      for (let c = g * width; c < Math.min(k, (g + 1) * width); c++) {
        if (!mask[r * k + c]) kept.push(w[r * k + c] as number);
      }
      const top = kept.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      starts[normal.length] = top / (half - 1);
      normal.push(Float64Array.from(kept));
    }
  }
  const meanStart = starts.reduce((sum, s) => sum + s, 0) / starts.length;
  for (const [p, values] of normal.entries()) {
    const start = starts[p] as number;
    // Nothing but zeros and outliers: any scale does.
    if (start === 0) continue;
    scale[p] =
      o.optimizer === "search"
        ? searchScale(values, start, half, round)
        : adamScale(values, start, half, round, o.lr * meanStart, o.steps);
  }
  const codes = new Uint8Array(n * k);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < k; c++) {
      const i = r * k + c;
      const s = scale[r * groups + Math.floor(c / width)] as number;
      codes[i] = half + (mask[i] ? 0 : codeOf(w[i] as number, 1 / s, half));
    }
  }
  const { bits, groupSize, scaleType } = o;
  const main = createGint({ n, k, bits, groupSize, codes, scale, scaleType, zero: half });
  const tensor: QuantTensor = { n, k, main, pre: [], post: [] };
  const csr = sparseDelta(mask, n, k, (i) => w[i] as number);
  if (csr) tensor.csr = csr;
  return tensor;
}

export const easyquant = defineMethod<EasyquantOptions>({
  id: "easyquant",
  kind: "weights",
  title: "EasyQuant",
  paper: "arXiv:2403.02775",
  summary: "4-bit rows without data: outliers stay exact, each row's range is optimized.",
  options: z.strictObject({
    bits: z.int().min(2).max(8).default(4),
    sigma: z.number().gt(0).nullable().default(3),
    optimizer: z.enum(["search", "adam"]).default("search"),
    lr: z.number().gt(0).max(1).default(0.02),
    steps: z.int().min(1).max(10000).default(150),
    groupSize: z.union([z.literal("channel"), z.int().min(8)]).default("channel"),
    scaleType: floatTypeOption.default("f16"),
    ...targetShape,
  }),
  needs: () => NO_NEEDS,
  produces: ({ bits, groupSize, sigma }) => ({
    encoding: "gint",
    bits,
    groupSize,
    zero: "const",
    csr: sigma !== null,
  }),
  storedBits(shape, { bits, groupSize, scaleType, sigma }) {
    const scales = groupsOf(shape, groupSize) * (scaleType === "f32" ? 32 : 16);
    return (
      codeBits(shape, bits) + scales + sideCarBits(shape, sigma === null ? 0 : TYPICAL_OUTLIERS)
    );
  },
  estimate(shape, o) {
    const { peakBytes, flops } = roundingEstimate(
      shape,
      o.groupSize,
      o.optimizer === "search" ? 75 : o.steps * 2,
    );
    return { peakBytes: peakBytes + 9 * shape.n * shape.k, flops };
  },
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, o) {
    checkFinite(weight, path);
    return { tensor: quantizeEasy(weight, n, k, o) };
  },
});
