/**
 * SqueezeLLM (arXiv 2306.07629): every row gets a table of 2^bits values, the centroids of a k-means weighted by how much the
 * loss depends on each weight; the most sensitive and the largest weights stay exact in a sparse side-car.
 * The paper's sensitivity is the Fisher diagonal (squared gradients per weight). Without gradients it is the diagonal of
 * the Hessian of the layer, sum x^2 of each input, the same for all rows ("hdiag", said in the report), or 1 ("none").
 * Bits per weight: bits + 16 * 2^bits / K + outliers * (16 + 16) + 32 (N + 1) / (N K).
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { packCodes } from "../encodings/packed-codes.js";
import { storeFloats } from "../encodings/stored-floats.js";
import { TableRounder } from "../encodings/table-codes.js";
import type { Lut, QuantTensor } from "../encodings/types.js";
import { kmeans1d } from "../linalg/kmeans-1d.js";
import { risingOrder, valueAtRank } from "../linalg/order.js";
import { defineMethod, NO_NEEDS, type SiteStatsView, type Targets } from "./contract.js";
import { columnImportance } from "./rtn.js";
import { codeBits, sideCarBits, targetShape, targetsOf } from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";
import { sparseDelta } from "./shared/sparse.js";

export interface SqueezeOptions extends Targets {
  bits: number;
  /** Fraction of weights kept exact because they are the most sensitive. */
  sensitivity: number;
  /** Fraction kept exact because they are the largest. */
  outliers: number;
  /** Instead of a fraction: |w| beyond max(|q1 - r (q3 - q1)|, |q3 + r (q3 - q1)|), the official rule. */
  outlierRange: number | null;
  fisher: "hdiag" | "none";
  kmeans: "lloyd" | "dp";
  iters: number;
  tableType: "f16" | "f32";
}

/**
 * Marks outliers of w [n, k]: first the most sensitive weights, then the largest ones.
 * @param sensitivity [k], shared by the rows, so equal ones are ranked by magnitude; or null
 */
export function squeezeOutliers(
  w: Float32Array,
  n: number,
  k: number,
  sensitivity: Float64Array | null,
  o: Pick<SqueezeOptions, "sensitivity" | "outliers" | "outlierRange">,
): Uint8Array {
  const mask = new Uint8Array(n * k);
  const sizes = w.map(Math.abs);
  let left = sensitivity ? Math.floor(w.length * o.sensitivity) : 0;
  if (sensitivity) {
    const columns = risingOrder(Float32Array.from(sensitivity)).reverse();
    for (const c of columns) {
      if (left === 0) break;
      const column = Float32Array.from({ length: n }, (_, r) => -(sizes[r * k + c] as number));
      for (const r of risingOrder(column)) {
        if (left === 0) break;
        mask[r * k + c] = 1;
        left--;
      }
    }
  }
  let threshold = Number.POSITIVE_INFINITY;
  if (o.outlierRange !== null) threshold = quartileThreshold(w, o.outlierRange);
  else {
    const count = Math.floor(w.length * o.outliers);
    if (count > 0) threshold = valueAtRank(sizes, w.length - count);
  }
  // Zeros are exact anyway.
  if (threshold > 0) {
    for (let i = 0; i < sizes.length; i++) if ((sizes[i] as number) >= threshold) mask[i] = 1;
  }
  return mask;
}

function quartileThreshold(w: Float32Array, range: number): number {
  const sorted = w.slice().sort();
  const quantile = (q: number) => {
    const at = q * (sorted.length - 1);
    const low = sorted[Math.floor(at)] as number;
    return low + (at % 1) * ((sorted[Math.ceil(at)] as number) - low);
  };
  const q1 = quantile(0.25);
  const q3 = quantile(0.75);
  return Math.max(Math.abs(q1 - range * (q3 - q1)), Math.abs(q3 + range * (q3 - q1)));
}

/** Quantizes w [n, k] with the sensitivity [k] of its columns (null: all equal). */
export function squeeze(
  w: Float32Array,
  n: number,
  k: number,
  sensitivity: Float64Array | null,
  o: SqueezeOptions,
): QuantTensor & { main: Lut } {
  const size = 2 ** o.bits;
  const mask = squeezeOutliers(w, n, k, sensitivity, o);
  const tables = new Float32Array(n * size);
  const codes = new Uint8Array(n * k);
  const weights = new Float64Array(k);
  for (let r = 0; r < n; r++) {
    const row = w.slice(r * k, (r + 1) * k);
    for (let c = 0; c < k; c++) {
      // Removed weights attract nothing, but have a code: that of the value nearest to 0.
      const removed = mask[r * k + c];
      if (removed) row[c] = 0;
      weights[c] = removed ? 0 : sensitivity ? (sensitivity[c] as number) : 1;
    }
    const centroids = kmeans1d(row, weights, {
      clusters: size,
      method: o.kmeans,
      iterations: o.iters,
    });
    const table = storeFloats(Float32Array.from(centroids), o.tableType, [size]).data;
    tables.set(table, r * size);
    const rounder = new TableRounder(table, "lower");
    for (let c = 0; c < k; c++) codes[r * k + c] = rounder.code(row[c] as number);
  }
  const tensor: QuantTensor & { main: Lut } = {
    n,
    k,
    main: {
      kind: "lut",
      bits: o.bits,
      codes: packCodes(codes, o.bits, n, k),
      table: {
        rowsPerTile: 1,
        colsPerTile: k,
        classes: 1,
        values: { type: o.tableType, shape: [n, 1, size], data: tables },
      },
      groupSize: "channel",
    },
    pre: [],
    post: [],
  };
  // Against the stored table, so that table and side-car add up to the weight.
  const decoded = (i: number) => tables[Math.floor(i / k) * size + (codes[i] as number)] as number;
  const csr = sparseDelta(mask, n, k, (i) => (w[i] as number) - decoded(i));
  if (csr) tensor.csr = csr;
  return tensor;
}

/** Diagonal of the Hessian per token. */
function sensitivityOf(stats: SiteStatsView | null, k: number, path: string): Float64Array {
  const diagonal = columnImportance(stats, k, path);
  const count = stats?.count ?? 0;
  if (!diagonal.every((x) => Number.isFinite(x)) || !(count > 0)) {
    throw new NumericError("the Hessian holds NaN or infinities, or no token reached this layer", {
      place: path,
      hint: "Use other calibration text.",
    });
  }
  return diagonal.map((x) => x / count);
}

/** Of the official settings. */
const TYPICAL_OUTLIERS = 0.0045;
const fraction = z.number().min(0).max(0.5);

export const squeezellm = defineMethod<SqueezeOptions>({
  id: "squeezellm",
  kind: "weights",
  title: "SqueezeLLM",
  paper: "arXiv:2306.07629",
  summary: "3 or 4-bit tables per row, fitted to what matters; 0.45 % of the weights stay exact.",
  options: z.strictObject({
    bits: z.int().min(2).max(8).default(4),
    sensitivity: fraction.default(0.0005),
    outliers: fraction.default(0.004),
    outlierRange: z.number().min(0).nullable().default(null),
    fisher: z.enum(["hdiag", "none"]).default("hdiag"),
    kmeans: z.enum(["lloyd", "dp"]).default("lloyd"),
    iters: z.int().min(1).max(1000).default(50),
    tableType: z.enum(["f16", "f32"]).default("f16"),
    ...targetShape,
  }),
  needs: (o) =>
    o.fisher === "none" ? NO_NEEDS : { ...NO_NEEDS, calibration: true, hessian: true },
  produces: (o) => ({
    encoding: "lut",
    bits: o.bits,
    groupSize: "channel",
    table: "row",
    csr: o.sensitivity > 0 || o.outliers > 0 || o.outlierRange !== null,
  }),
  storedBits({ n, k }, o) {
    const table = n * 2 ** o.bits * (o.tableType === "f32" ? 32 : 16);
    // The quartile rule decides by the weights themselves.
    const kept = o.outlierRange === null ? o.sensitivity + o.outliers : TYPICAL_OUTLIERS;
    return codeBits({ n, k }, o.bits) + table + sideCarBits({ n, k }, kept);
  },
  estimate: ({ n, k }, o) => ({
    peakBytes: 10 * n * k + 4 * n * 2 ** o.bits,
    flops: n * k * (o.kmeans === "dp" ? 8 * 2 ** o.bits * Math.log2(k) : 200),
  }),
  targets: targetsOf,
  async solve(weight, { n, k, path }, stats, o) {
    checkFinite(weight, path);
    const sensitivity = o.fisher === "none" ? null : sensitivityOf(stats, k, path);
    const tensor = squeeze(weight, n, k, sensitivity, o);
    const { table } = tensor.main;
    if ("values" in table && !table.values.data.every((x) => Number.isFinite(x))) {
      throw new NumericError("a weight does not fit in f16", {
        place: path,
        hint: "Use tableType: f32.",
      });
    }
    if (!sensitivity) return { tensor };
    return {
      tensor,
      notes: ["sensitivity: diagonal of the layer's Hessian, not the Fisher information"],
    };
  },
});
