/**
 * NF4 with double quantization (QLoRA, arXiv 2305.14314; bitsandbytes): 4-bit codes of a table with the quantiles of a
 * normal distribution, a scale (largest magnitude) per group of 64, the scales themselves in 8 bits. No data.
 * Groups belong to rows; where 64 divides K they are bitsandbytes' blocks of the flattened tensor.
 * Bits per weight: 4 + s / groupSize with s = 8.125 (dq8), 16 (f16) or 32 (f32); 4.127 by default.
 */
import { z } from "zod";
import { TableParams, type TableRules } from "../encodings/table-params.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import {
  codeBits,
  floatTypeOption,
  groupSizeOption,
  groupsOf,
  roundingEstimate,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";

export interface Nf4Options extends Targets {
  /** "fp4": bitsandbytes' own FP4, which is not E2M1. */
  table: "nf4" | "fp4";
  groupSize: TableRules["groupSize"];
  scale: TableRules["scaleType"];
}

const SCALE_BITS = { dq8: 8.125, f16: 16, bf16: 16, f32: 32 };
const tableName = (o: Nf4Options) => (o.table === "fp4" ? "fp4-bnb" : "nf4");

export const nf4 = defineMethod<Nf4Options>({
  id: "nf4",
  kind: "weights",
  title: "NF4 (QLoRA)",
  paper: "arXiv:2305.14314",
  summary: "4-bit NormalFloat with double-quantized scales, 4.127 bits a weight; no data.",
  options: z.strictObject({
    table: z.enum(["nf4", "fp4"]).default("nf4"),
    groupSize: groupSizeOption.default(64),
    scale: z.union([z.literal("dq8"), floatTypeOption]).default("dq8"),
    ...targetShape,
  }),
  needs: () => NO_NEEDS,
  produces: (o) => ({ encoding: "lut", bits: 4, groupSize: o.groupSize, table: tableName(o) }),
  storedBits: (shape, o) => codeBits(shape, 4) + groupsOf(shape, o.groupSize) * SCALE_BITS[o.scale],
  estimate: (shape, o) => roundingEstimate(shape, o.groupSize, 4),
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, o) {
    checkFinite(weight, path);
    const params = new TableParams(
      {
        table: tableName(o),
        groupSize: o.groupSize,
        twoScale: false,
        scaleType: o.scale,
        ties: "lower",
        clip: null,
      },
      n,
      k,
      path,
    );
    params.fitAll(weight);
    return { tensor: params.toTensor(params.encode(weight)) };
  },
});
