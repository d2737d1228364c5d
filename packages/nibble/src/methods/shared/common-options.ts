/** Options and checks that weight methods share beyond the integer grids of grid-options.ts. */
import { z } from "zod";
import { groupsPerRow } from "../../encodings/groups.js";
import type { FloatType, GroupSize } from "../../encodings/types.js";
import type { Estimate, Shape, Targets } from "../contract.js";

/** Which modules: the linears of every block unless told otherwise. */
export const targetShape = {
  targets: z.array(z.string()).default(["layers.*"]),
  ignore: z.array(z.string()).default([]),
};

export const targetsOf = ({ targets, ignore }: Targets): Targets => ({ targets, ignore });

/** One scale a row, one a group of that many columns, or one for the matrix. */
export const groupSizeOption = z.union([z.enum(["channel", "tensor"]), z.int().min(8)]);

export const floatTypeOption = z.enum(["f16", "bf16", "f32"] satisfies FloatType[]);

/** Bits of the packed codes of a matrix: rows are padded to 64 columns. */
export function codeBits({ n, k }: Shape, bits: number): number {
  return n * Math.ceil(k / 64) * 64 * bits;
}

/** Groups of a matrix. */
export function groupsOf({ n, k }: Shape, groupSize: GroupSize): number {
  return groupSize === "tensor" ? 1 : n * groupsPerRow(k, groupSize);
}

/** Bits of a sparse side-car with f16 values that keeps a fraction of the weights. */
export function sideCarBits({ n, k }: Shape, fraction: number): number {
  return fraction > 0 ? fraction * n * k * (k <= 0x10000 ? 32 : 48) + 32 * (n + 1) : 0;
}

/** Unpacked codes, scales, and `passes` times 3 operations a weight. */
export function roundingEstimate({ n, k }: Shape, groupSize: GroupSize, passes = 1): Estimate {
  return { peakBytes: 2 * n * k + 12 * n * groupsPerRow(k, groupSize), flops: 3 * passes * n * k };
}
