/**
 * NeuZip (arXiv 2410.20650): floats with entropy-coded exponents. Lossless by default: each matrix is stored in the
 * narrowest of bf16, f16 and f32 that holds its values exactly. Lossy: bf16 with 7, 3, 1 or 0 mantissa bits. The official
 * stream is nvCOMP's and not a target; ours is rANS (encodings/neuzip.ts). A smaller download, not a faster model.
 * Bits per weight: entropy of the exponents + 1 + mantissa bits, about 10.6 for bf16 (+ 8 / normalizer).
 */
import { z } from "zod";
import { neuzipDense } from "../encodings/dense-codec.js";
import { floatsFromBytes, floatsToBytes } from "../encodings/stored-floats.js";
import type { FloatType } from "../encodings/types.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import { targetShape, targetsOf } from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";

export interface NeuzipMethodOptions extends Targets {
  /** Mantissa bits that are kept. */
  precision: "lossless" | 7 | 3 | 1 | 0;
  /** Weights that share a normalizer, 0 = none; only with 3, 1 or 0 mantissa bits. */
  normalizer: number;
  /** Weights that are decoded together; "row" makes rows readable on their own. */
  chunk: number | "row";
}

/** Entropy of the exponents of normally distributed weights; the estimate takes them to be bf16. */
const EXPONENT_BITS = 2.55;

/** The narrowest type that holds every value exactly. */
export function exactType(values: Float32Array): FloatType {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const fits = (type: FloatType) => {
    const back = floatsFromBytes(floatsToBytes(values, type), type);
    const other = new Uint32Array(back.buffer, back.byteOffset, back.length);
    return bits.every((b, i) => b === other[i]);
  };
  if (bits.every((b) => (b & 0xffff) === 0)) return "bf16";
  return fits("f16") ? "f16" : "f32";
}

export const neuzip = defineMethod<NeuzipMethodOptions>({
  id: "neuzip",
  kind: "weights",
  title: "NeuZip",
  paper: "arXiv:2410.20650",
  summary:
    "Losslessly smaller floats (bf16 in 10.6 bits); optionally fewer mantissa bits. No data.",
  options: z
    .strictObject({
      precision: z
        .union([z.literal("lossless"), z.literal(7), z.literal(3), z.literal(1), z.literal(0)])
        .default("lossless"),
      normalizer: z.union([z.literal(0), z.int().min(16).max(1024)]).default(0),
      chunk: z
        .union([
          z.literal("row"),
          z
            .int()
            .min(64)
            .max(2 ** 24),
        ])
        .default(65536),
      ...targetShape,
    })
    .superRefine((o, ctx) => {
      if (o.normalizer > 0 && (o.precision === "lossless" || o.precision === 7)) {
        ctx.addIssue({
          code: "custom",
          path: ["normalizer"],
          message: "a normalizer needs precision 3, 1 or 0",
        });
      }
    }),
  needs: () => NO_NEEDS,
  produces: (o) => ({
    encoding: "dense",
    type: o.precision === "lossless" ? "f32" : "bf16",
    codec: "neuzip",
  }),
  storedBits({ n, k }, { precision, normalizer }) {
    const mantissa = precision === "lossless" ? 7 : precision;
    return n * k * (EXPONENT_BITS + 1 + mantissa + (normalizer > 0 ? 8 / normalizer : 0));
  },
  estimate: ({ n, k }) => ({ peakBytes: 12 * n * k, flops: 30 * n * k }),
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, o) {
    checkFinite(weight, path);
    const chunk = o.chunk === "row" ? k : o.chunk;
    const notes: string[] = [];
    let values = weight;
    let type: FloatType = "bf16";
    if (o.precision === "lossless") type = exactType(weight);
    else {
      // Rounded to bf16 first, as a bf16 checkpoint would be.
      values = floatsFromBytes(floatsToBytes(weight, "bf16"), "bf16");
      checkFinite(values, path);
      if (values.some((x, i) => x !== weight[i])) notes.push("rounded to bf16 first");
    }
    const precision = o.precision === "lossless" ? {} : { precision: o.precision };
    const main = neuzipDense(values, type, { ...precision, normalizer: o.normalizer, chunk });
    if (o.precision === "lossless") notes.push(`stored as ${type}`);
    return { tensor: { n, k, main, pre: [], post: [] }, notes };
  },
});
