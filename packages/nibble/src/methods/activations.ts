/**
 * Dynamic quantization of the inputs of linears: per token or per group of channels, scales found at run time, no
 * calibration. The 4-bit setting of QuaRot (arXiv:2404.00456) is per token, symmetric, clip 0.9. Linears that share an
 * input share its quantizer.
 */
import { z } from "zod";
import { defineMethod } from "./contract.js";

export interface ActivationOptions {
  /** Integers of `bits` bits, or 8-bit floats (W8A8-FP of arXiv:2411.02355) with one symmetric scale a token. */
  format: "int" | "e4m3" | "e5m2";
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
  summary: "Quantizes the inputs of linears to 2..8 bits, or to FP8, while the model runs.",
  options: z
    .strictObject({
      format: z.enum(["int", "e4m3", "e5m2"]).default("int"),
      bits: z.int().min(2).max(8).default(8),
      granularity: z.union([z.literal("token"), z.int().min(32).multipleOf(32)]).default("token"),
      sym: z.boolean().default(true),
      clip: z.number().gt(0).max(1).default(1),
    })
    .superRefine(({ format, ...o }, ctx) => {
      const plain = o.bits === 8 && o.granularity === "token" && o.sym && o.clip === 1;
      if (format === "int" || plain) return;
      ctx.addIssue({
        code: "custom",
        path: ["format"],
        message: `${format} has 8 bits and one symmetric scale a token without clipping`,
      });
    }),
  async apply(model, { format, bits, granularity, sym, clip }) {
    const quantizer = {
      ...(format === "int" ? {} : { format }),
      bits,
      granularity,
      symmetric: sym,
      clip,
    };
    model.activations = {
      attn_in: quantizer,
      attn_out: quantizer,
      mlp_in: quantizer,
      mlp_out: quantizer,
    };
  },
});
