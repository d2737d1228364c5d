/** Column groups of an encoding: contiguous in stored order, the last one may be ragged. */
import type { GroupSize } from "./types.js";

/** Columns of a full group: k for "channel" and "tensor". */
export function columnsPerGroup(k: number, groupSize: GroupSize): number {
  return typeof groupSize === "number" ? Math.min(groupSize, k) : k;
}

/** Groups in a row, 1 for "channel" and "tensor". */
export function groupsPerRow(k: number, groupSize: GroupSize): number {
  return Math.ceil(k / columnsPerGroup(k, groupSize));
}

/** Shape of the scales of an [n, k] weight. */
export function scaleShape(n: number, k: number, groupSize: GroupSize): [number, number] {
  return groupSize === "tensor" ? [1, 1] : [n, groupsPerRow(k, groupSize)];
}
