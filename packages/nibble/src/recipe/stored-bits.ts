/** Bits of a module in the artifact, from what its method declares. */
import type { Produced } from "../methods/contract.js";
import type { ParameterSpec } from "../model/roles.js";
import type { Assignment } from "./assign.js";

/** As its method says, or f32 without one. */
export function storedBits(
  spec: ParameterSpec,
  assignment: Pick<Assignment, "method" | "options"> | undefined,
): number {
  const [n = 1, k = 1] = spec.shape;
  if (!assignment) return n * k * 32;
  const { method, options } = assignment;
  const shape = { n, k };
  return method.storedBits?.(shape, options) ?? producedBits(method.produces(options), shape);
}

/** Codes padded to 64 columns (layout tile64), scales and zeros as declared. */
function producedBits(produced: Produced, { n, k }: { n: number; k: number }): number {
  if (produced.encoding === "dense") return n * k * (produced.type === "f32" ? 32 : 16);
  const { bits, groupSize } = produced;
  const groups =
    groupSize === "tensor" ? 1 : n * (groupSize === "channel" ? 1 : Math.ceil(k / groupSize));
  const codes = n * Math.ceil(k / 64) * 64 * bits;
  if (produced.encoding === "lut") return codes + groups * 16;
  const { scaleBits = 16 } = produced;
  // Integer zeros are packed as one row of all groups.
  const zeros = { const: 0, int: Math.ceil(groups / 64) * 64 * bits, float: groups * scaleBits };
  // 8-bit scales, and float zeros, have two f32 for each group of columns.
  const columns = scaleBits === 8 ? (groups / n) * 64 : 0;
  const tables = columns * (produced.zero === "float" ? 2 : 1);
  const scales = groups * scaleBits + tables;
  return codes + scales + zeros[produced.zero] + (produced.perm ? k * 32 : 0);
}
