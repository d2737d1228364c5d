/**
 * Ternary weights of BitNet b1.58 (arXiv 2402.17764): t = clamp(round(w / mean|w|), -1, 1), one scale a matrix. A way to
 * store checkpoints that were trained ternary; rounding an ordinary model so ruins it.
 * Bits per weight: 2 + 32 / (N K).
 */
import { z } from "zod";
import { createGint } from "../encodings/gint.js";
import { roundFloat } from "../encodings/stored-floats.js";
import type { FloatType, QuantTensor } from "../encodings/types.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import {
  floatTypeOption,
  roundingEstimate,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";

export interface TernaryOptions extends Targets {
  /** "absmean": scale mean|w|. "absmax": for weights that are already -s, 0, s. */
  scale: "absmean" | "absmax";
  scaleType: FloatType;
}

/** Smallest scale (the paper's epsilon). */
const EPSILON = 1e-5;

/** Ternary tensor of w [n, k]. */
export function ternarize(
  w: Float32Array,
  n: number,
  k: number,
  o: Pick<TernaryOptions, "scale" | "scaleType">,
): QuantTensor {
  let sum = 0;
  let top = 0;
  for (let i = 0; i < w.length; i++) {
    const size = Math.abs(w[i] as number);
    sum += size;
    if (size > top) top = size;
  }
  const scale = roundFloat(
    Math.max(o.scale === "absmax" ? top : sum / w.length, EPSILON),
    o.scaleType,
  );
  // Half to even: |w| / scale = 0.5 rounds to 0.
  const codes = new Uint8Array(w.length);
  for (let i = 0; i < w.length; i++) {
    const x = (w[i] as number) / scale;
    codes[i] = x > 0.5 ? 2 : x < -0.5 ? 0 : 1;
  }
  const main = createGint({
    n,
    k,
    bits: 2,
    groupSize: "tensor",
    codes,
    scale: Float32Array.of(scale),
    scaleType: o.scaleType,
    zero: 1,
  });
  return { n, k, main, pre: [], post: [] };
}

export const ternary = defineMethod<TernaryOptions>({
  id: "ternary",
  kind: "weights",
  title: "Ternary weights (BitNet b1.58)",
  paper: "arXiv:2402.17764",
  summary: "2 bits a weight for models that were trained ternary; no others survive it.",
  options: z.strictObject({
    scale: z.enum(["absmean", "absmax"]).default("absmean"),
    scaleType: floatTypeOption.default("f32"),
    ...targetShape,
  }),
  needs: () => NO_NEEDS,
  produces: () => ({ encoding: "gint", bits: 2, groupSize: "tensor", zero: "const" }),
  estimate: (shape) => roundingEstimate(shape, "tensor"),
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, o) {
    checkFinite(weight, path);
    return { tensor: ternarize(weight, n, k, o) };
  },
});
