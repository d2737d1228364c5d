/**
 * SmoothQuant (arXiv 2211.10438): moves activation outliers into the weights before 8-bit quantization of both. Per input
 * channel s = max|x|^alpha / max|W|^(1 - alpha); norm gains are divided by s, the linears behind them multiplied. The model
 * computes the same; steps that quantize weights (rtn, 8 bits, one scale a row) and activations (8 bits) follow.
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import type { Site } from "../model/roles.js";
import { defineMethod, NO_NEEDS, type SiteStatsView, type SiteView } from "./contract.js";
import { checkFinite } from "./shared/group-params.js";

export interface SmoothquantOptions {
  /** 0.5 by default; the authors use 0.85 for LLaMA-2 and 3, 0.8 for Mistral. */
  alpha: number;
  /** attn_out (v -> o) and mlp_out (up -> down) are extensions: the official code smooths behind norms only. */
  sites: Site[];
}

/** Floor of weights' maxima and of scales. */
const FLOOR = 1e-5;

/**
 * Scale of each channel.
 * @param maxAbs largest |x| of each channel
 * @param maxWeight largest |W| of each column, over all linears that read the input
 */
export function smoothScale(
  maxAbs: ArrayLike<number>,
  maxWeight: ArrayLike<number>,
  alpha: number,
): Float32Array {
  return Float32Array.from({ length: maxAbs.length }, (_, i) => {
    const w = Math.max(maxWeight[i] as number, FLOOR);
    return Math.max((maxAbs[i] as number) ** alpha / w ** (1 - alpha), FLOOR);
  });
}

/** Largest value over the query heads that read one row of v, given to each of them. */
function shareHeads(values: Float32Array, repeat: number, headDim: number): Float32Array {
  const span = repeat * headDim;
  return values.map((_, i) => {
    const from = Math.floor(i / span) * span + (i % headDim);
    let most = 0;
    for (let head = 0; head < repeat; head++)
      most = Math.max(most, values[from + head * headDim] as number);
    return most;
  });
}

async function prepareSite(
  site: SiteView<SmoothquantOptions>,
  stats: SiteStatsView,
  o: SmoothquantOptions,
) {
  if (!o.sites.includes(site.site)) return null;
  const { k, producer } = site;
  const place = `layers.${site.layer} ${site.site}`;
  if (!stats.maxAbs?.every((x) => Number.isFinite(x))) {
    throw new NumericError("the largest activations are not finite, or were not collected", {
      place,
      hint: "Use other calibration text.",
    });
  }
  const maxWeight = new Float32Array(k);
  for (const { weight, path } of site.linears) {
    checkFinite(weight, path);
    for (let i = 0; i < weight.length; i++) {
      const size = Math.abs(weight[i] as number);
      if (size > (maxWeight[i % k] as number)) maxWeight[i % k] = size;
    }
  }
  const scale = smoothScale(stats.maxAbs, maxWeight, o.alpha);
  return {
    scale: producer.kind === "rows" ? shareHeads(scale, producer.repeat, producer.headDim) : scale,
  };
}

export const smoothquant = defineMethod<SmoothquantOptions>({
  id: "smoothquant",
  kind: "scaling",
  title: "SmoothQuant",
  paper: "arXiv:2211.10438",
  summary: "Evens out activation outliers so that 8-bit weights and activations lose little.",
  options: z.strictObject({
    alpha: z.number().min(0).max(1).default(0.5),
    sites: z
      .array(z.enum(["attn_in", "attn_out", "mlp_in", "mlp_out"]))
      .min(1)
      .default(["attn_in", "mlp_in"]),
  }),
  needs: () => ({ ...NO_NEEDS, calibration: true, absStats: true }),
  scaler: { originalBasis: true, prepareSite },
});
