/**
 * HQQ, half-quadratic quantization (mobiusml.github.io/hqq_blog, 2023; no paper): data-free. The scale of a group is its
 * range; its float zero point is fitted to a heavy-tailed error, sum |w - r|^p with p < 1, by alternating a shrinkage of
 * the error with a mean. Follows the default ("legacy") loop of the official code, in f64 instead of f16.
 * Bits per weight: bits + 32 / groupSize.
 */
import { z } from "zod";
import { roundFloat } from "../encodings/stored-floats.js";
import type { FloatType } from "../encodings/types.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import {
  floatTypeOption,
  roundingEstimate,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import { type GridOptions, gridShape } from "./shared/grid-options.js";
import { checkFinite, GroupParams } from "./shared/group-params.js";

export interface HqqOptions extends Targets {
  bits: number;
  groupSize: GridOptions["groupSize"];
  scaleType: FloatType;
  /** Exponent of the error, and weight of the quadratic term. */
  p: number;
  beta: number;
  /** beta is multiplied by it after every iteration. */
  kappa: number;
  iters: number;
  /** Stop when the mean error of the matrix does not fall. */
  earlyStop: boolean;
}

/** Groups narrower than this get scale 1; scales are at least 1 / LARGEST_INVERSE. */
const SMALLEST_RANGE = 1e-4;
const LARGEST_INVERSE = 2e4;
/** Adding and subtracting it rounds half to even. */
const ROUND = 6755399441055744; // 1.5 * 2^52

/** sign(x) max(|x| - |x|^(p-1) / beta, 0): soft thresholding by 1 / beta for p = 1. */
export function shrink(x: number, p: number, beta: number): number {
  const size = Math.abs(x);
  if (size === 0) return 0;
  const rest = size - size ** (p - 1) / beta;
  return rest > 0 ? Math.sign(x) * rest : 0;
}

export interface HqqFit {
  params: GroupParams;
  /** Mean |w - r| of the matrix before each update of the zero points. */
  errors: number[];
}

/** Fits scales and zero points of w [n, k]. */
export function fitHqq(w: Float32Array, n: number, k: number, o: HqqOptions): HqqFit {
  const params = new GroupParams(
    {
      ...o,
      sym: false,
      zero: "float",
      range: "raw",
      clip: "none",
      clipNorm: 2,
      clipGrid: 2,
      clipMaxShrink: 1,
    },
    n,
    k,
  );
  const { width, groups, scale, zero, rowStride } = params;
  const maxCode = 2 ** o.bits - 1;
  const zeros = new Float64Array(zero.length);
  // A group is rows x columns [from, to): one row, or all of them for "tensor".
  const perTensor = o.groupSize === "tensor";
  const rows = perTensor ? n : 1;
  const blocks: { p: number; row: number; from: number; to: number }[] = [];
  for (let row = 0; row < n; row += rows) {
    for (let g = 0; g < groups; g++) {
      blocks.push({
        p: row * rowStride + g,
        row,
        from: g * width,
        to: Math.min(k, (g + 1) * width),
      });
    }
  }
  for (const { p, row, from, to } of blocks) {
    let low = Number.POSITIVE_INFINITY;
    let high = Number.NEGATIVE_INFINITY;
    for (let r = row; r < row + rows; r++) {
      for (let i = r * k + from; i < r * k + to; i++) {
        const x = w[i] as number;
        if (x < low) low = x;
        if (x > high) high = x;
      }
    }
    const range = high - low;
    const s = range <= SMALLEST_RANGE ? 1 : Math.max(range / maxCode, 1 / LARGEST_INVERSE);
    scale[p] = roundFloat(s, o.scaleType);
    zeros[p] = -low / (scale[p] as number);
  }

  const errors: number[] = [];
  let { beta } = o;
  for (let iteration = 0; iteration < o.iters; iteration++) {
    // Below this size an error shrinks to 0: |x| > |x|^(p-1) / beta.
    const threshold = beta ** (-1 / (2 - o.p));
    let error = 0;
    for (const { p, row, from, to } of blocks) {
      const s = scale[p] as number;
      const inverse = 1 / s;
      const zp = zeros[p] as number;
      let sum = 0;
      for (let r = row; r < row + rows; r++) {
        for (let i = r * k + from; i < r * k + to; i++) {
          const x = w[i] as number;
          let q = x * inverse + zp + ROUND - ROUND;
          if (q < 0) q = 0;
          else if (q > maxCode) q = maxCode;
          const e = x - (q - zp) * s;
          const size = e < 0 ? -e : e;
          error += size;
          sum += q - (size > threshold ? x - shrink(e, o.p, beta) : x) * inverse;
        }
      }
      zeros[p] = sum / (rows * (to - from));
    }
    errors.push(error / w.length);
    const previous = errors[iteration - 1];
    if (o.earlyStop && previous !== undefined && error / w.length >= previous) break;
    beta *= o.kappa;
  }
  for (const { p } of blocks) zero[p] = roundFloat(zeros[p] as number, o.scaleType);
  return { params, errors };
}

export const hqq = defineMethod<HqqOptions>({
  id: "hqq",
  kind: "weights",
  title: "HQQ",
  paper: "https://mobiusml.github.io/hqq_blog",
  summary: "Data-free 4-bit weights with fitted float zero points, in seconds; not safe at 3 bits.",
  options: z.strictObject({
    bits: gridShape.bits,
    groupSize: gridShape.groupSize.default(64),
    scaleType: floatTypeOption.default("f16"),
    p: z.number().gt(0).max(1).default(0.7),
    beta: z.number().gt(0).default(10),
    kappa: z.number().min(1).max(2).default(1),
    iters: z.int().min(0).max(1000).default(20),
    earlyStop: z.boolean().default(true),
    ...targetShape,
  }),
  needs: () => NO_NEEDS,
  produces: (o) => ({ encoding: "gint", bits: o.bits, groupSize: o.groupSize, zero: "float" }),
  estimate: (shape, o) => roundingEstimate(shape, o.groupSize, 3 * o.iters + 1),
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, o) {
    checkFinite(weight, path);
    const { params } = fitHqq(weight, n, k, o);
    return { tensor: params.toTensor(params.encode(weight)) };
  },
});
