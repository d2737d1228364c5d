/** Options that every method with integer codes has, with the defaults of the RTN specification. */
import { z } from "zod";
import type { GridRules, Symmetry } from "../../encodings/grid.js";
import { groupsPerRow } from "../../encodings/groups.js";
import type { FloatType, GroupSize } from "../../encodings/types.js";
import type { Estimate, Produced, Shape, Targets } from "../contract.js";

export interface GridOptions extends Omit<GridRules, "scaleType">, Targets {
  groupSize: GroupSize;
  /** "u8": f16 values in 8 bits, one (low, step) a group of columns (encodings/affine-bytes.ts). */
  scaleType: FloatType | "u8";
}

const SCALE_BITS = { u8: 8, f16: 16, bf16: 16, f32: 32 } as const;

const symmetry = z
  .union([z.boolean(), z.enum(["narrow", "gptq", "full"])])
  .transform((value): Symmetry => (value === true ? "narrow" : value));

/** Keys of the options object. Put them into a strictObject and refine it with `checkGrid`. */
export const gridShape = {
  bits: z.int().min(1).max(8).default(4),
  groupSize: z
    .union([z.enum(["channel", "tensor"]), z.int().min(8).multipleOf(8)])
    .default("channel"),
  sym: symmetry.default(false),
  zero: z.enum(["int", "float"]).default("int"),
  range: z.enum(["zero", "raw"]).default("zero"),
  scaleType: z.enum(["f16", "bf16", "f32", "u8"]).default("f16"),
  clip: z.enum(["none", "mse", "hdiag"]).default("none"),
  clipNorm: z.number().min(0.5).max(8).default(2.4),
  clipGrid: z.int().min(2).max(1000).default(100),
  clipMaxShrink: z.number().gt(0).max(1).default(0.8),
  targets: z.array(z.string()).default(["layers.*"]),
  ignore: z.array(z.string()).default([]),
};

/** Combinations that would leave an option without effect, or without meaning. */
export function checkGrid(o: GridOptions, ctx: z.RefinementCtx): void {
  const refuse = (key: keyof GridOptions, message: string) =>
    ctx.addIssue({ code: "custom", path: [key], message });
  if (o.sym === "narrow" && o.bits === 1) refuse("bits", "sym: narrow needs at least 2 bits");
  if (o.sym !== false && o.zero === "float") {
    refuse("zero", "symmetric grids have no zero points to store");
  }
  if (o.scaleType === "u8" && o.groupSize === "tensor") {
    refuse("scaleType", "u8 needs more than one scale: give a groupSize");
  }
  if (o.scaleType === "u8" && o.sym === "full") {
    refuse("scaleType", "u8 holds positive scales; sym: full has negative ones");
  }
  if (o.range === "raw" && (o.sym !== false || o.zero !== "int")) {
    refuse("range", "range: raw needs sym: false and zero: int");
  }
}

export function gridProduces(o: GridOptions): Extract<Produced, { encoding: "gint" }> {
  const zero = o.sym === false ? o.zero : "const";
  const { bits, groupSize, scaleType } = o;
  const scaleBits = SCALE_BITS[scaleType];
  return { encoding: "gint", bits, groupSize, zero, scaleBits };
}

/** Memory of unpacked codes, scales and zeros; flops of the search and of rounding. */
export function gridEstimate({ n, k }: Shape, o: GridOptions): Estimate {
  const scales = n * groupsPerRow(k, o.groupSize);
  const candidates = o.clip === "none" ? 0 : Math.ceil(o.clipMaxShrink * o.clipGrid);
  return { peakBytes: 2 * n * k + 12 * scales, flops: n * k * (3 + 8 * candidates) };
}
