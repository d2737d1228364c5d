/**
 * RTN: round to nearest, the baseline of every other method. Each group of input columns of a row gets a scale and, unless
 * symmetric, a zero point; codes are rounded half to even. Conventions of IST-DASLab/gptq `quant.py`.
 * Bits per weight: bits + (16 + z) / groupSize with z = 0 (sym), bits (integer zero) or 16 (float zero).
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { defineMethod, NO_NEEDS, type SiteStatsView, type Solved } from "./contract.js";
import {
  checkGrid,
  type GridOptions,
  gridEstimate,
  gridProduces,
  gridShape,
} from "./shared/grid-options.js";
import { checkFinite, GroupParams } from "./shared/group-params.js";

export type RtnOptions = GridOptions;

/** Rounds a weight [n, k] to its grid. `importance` [k] is needed for clip: hdiag. */
export function roundToNearest(
  weight: Float32Array,
  n: number,
  k: number,
  options: RtnOptions,
  importance: Float64Array | null = null,
): Solved["tensor"] {
  const params = new GroupParams(options, n, k);
  params.fitAll(weight, importance);
  return params.toTensor(params.encode(weight));
}

/** Diagonal of the Hessian, the importance of each input column. @throws NumericError without statistics. */
export function columnImportance(
  stats: SiteStatsView | null,
  k: number,
  path: string,
): Float64Array {
  const hessian = stats?.hessian;
  if (!hessian) {
    throw new NumericError("clip: hdiag needs the statistics of the inputs", {
      place: path,
      hint: "Give calibration text, or use clip: mse.",
    });
  }
  return Float64Array.from({ length: k }, (_, i) => hessian[i * k + i] as number);
}

export const rtn = defineMethod<RtnOptions>({
  id: "rtn",
  kind: "weights",
  title: "Round to nearest",
  paper: "arXiv:2210.17323 (its baseline)",
  summary: "Rounds weights to 1..8-bit integers in seconds, without data.",
  options: z.strictObject(gridShape).superRefine(checkGrid),
  needs: (o) => (o.clip === "hdiag" ? { ...NO_NEEDS, calibration: true, hessian: true } : NO_NEEDS),
  produces: gridProduces,
  estimate: gridEstimate,
  targets: ({ targets, ignore }) => ({ targets, ignore }),
  async solve(weight, { n, k, path }, stats, options) {
    checkFinite(weight, path);
    const importance = options.clip === "hdiag" ? columnImportance(stats, k, path) : null;
    return { tensor: roundToNearest(weight, n, k, options, importance) };
  },
});
