/**
 * Dynamic quantization of the inputs of linears: per token or per group of channels, scales found at run time, no
 * calibration. The 4-bit setting of QuaRot (arXiv:2404.00456) is per token, symmetric, clip 0.9. Linears that share an
 * input share its quantizer.
 */
import { z } from "zod";
import { defineMethod } from "./contract.js";

export interface ActivationOptions {
  bits: number;
  granularity: "token" | number;
  sym: boolean;
  clip: number;
}

export const activations = defineMethod<ActivationOptions>({
  id: "activations",
  kind: "activations",
  title: "Dynamic activation quantization",
  paper: "arXiv:2404.00456",
  summary: "Quantizes the inputs of linears to 2..8 bits while the model runs.",
  options: z.strictObject({
    bits: z.int().min(2).max(8).default(8),
    granularity: z.union([z.literal("token"), z.int().min(32).multipleOf(32)]).default("token"),
    sym: z.boolean().default(true),
    clip: z.number().gt(0).max(1).default(1),
  }),
  async apply(model, { bits, granularity, sym, clip }) {
    const quantizer = { bits, granularity, symmetric: sym, clip };
    model.activations = {
      attn_in: quantizer,
      attn_out: quantizer,
      mlp_in: quantizer,
      mlp_out: quantizer,
    };
  },
});
