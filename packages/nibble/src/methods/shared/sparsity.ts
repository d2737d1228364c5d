/** Sparsity patterns of one-shot pruning. */
import { z } from "zod";
import type { FloatType } from "../../encodings/types.js";
import type { Shape } from "../contract.js";

/** "2:4": of every 4 inputs 2 go (official reading: n of m are pruned). */
export type SparsityPattern = "unstructured" | "1:4" | "2:4" | "4:8";

export const patternOption = z
  .enum(["unstructured", "1:4", "2:4", "4:8"] satisfies SparsityPattern[])
  .default("unstructured");

/** Fraction that is pruned; patterns have their own. */
export const sparsityOption = z.number().min(0).max(0.99).default(0.5);

/** A pattern has a sparsity of its own. */
export function checkSparsity(
  o: { sparsity: number; pattern: SparsityPattern },
  ctx: z.RefinementCtx,
): void {
  if (o.pattern !== "unstructured" && o.sparsity !== 0.5) {
    ctx.addIssue({
      code: "custom",
      path: ["sparsity"],
      message: `pattern ${o.pattern} decides the sparsity`,
    });
  }
}

/** Bits of a pruned matrix as bitmap and values. */
export function bitmapBits(
  { n, k }: Shape,
  o: { sparsity: number; pattern: SparsityPattern; type: FloatType },
): number {
  const pattern = parsePattern(o.pattern);
  const density = 1 - (pattern ? pattern.prune / pattern.of : o.sparsity);
  return n * Math.ceil(k / 8) * 8 + n * k * density * (o.type === "f32" ? 32 : 16);
}

/** null for "unstructured". */
export function parsePattern(pattern: SparsityPattern): { prune: number; of: number } | null {
  if (pattern === "unstructured") return null;
  const [prune, of] = pattern.split(":").map(Number) as [number, number]; // two numbers by the type
  return { prune, of };
}
