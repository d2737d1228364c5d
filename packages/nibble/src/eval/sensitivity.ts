/**
 * Mixed precision: how many bits each module gets when the average is given. Losses of single modules at several widths are
 * taken to add up; modules are widened in the order of loss saved per bit spent, along the lower convex hull of each
 * module's losses (so that a width that pays off only together with the next one is found).
 */
import { UsageError } from "../core/errors.js";

/** What quantizing one module alone costs, at several widths. */
export interface Sensitivity {
  path: string;
  /** Number of weights. */
  weights: number;
  /** Loss (KL or loss increase, any unit) by bits. */
  loss: Readonly<Record<number, number>>;
}

/** Stored bits per weight of a module beside its codes (scales, zeros, padding), where they differ between modules. */
export type Overhead = number | ((path: string, bits: number) => number);

interface Step {
  module: number;
  from: number;
  to: number;
  /** Bits spent, loss saved. */
  cost: number;
  gain: number;
}

/**
 * Bits of each module, in the order given, such that sum weights (bits + overheadBits) <= target * sum weights.
 * Not worse than any single width that fits. Deterministic: of equal gains per bit the module that comes first wins.
 * @param overheadBits stored bits per weight beside the codes (scales, zeros)
 * @throws UsageError when even the narrowest widths do not fit, or for input that makes no sense
 */
export function allocateBits(
  sensitivities: readonly Sensitivity[],
  targetBitsPerWeight: number,
  overheadBits: Overhead,
): Map<string, number> {
  const widths = sensitivities.map(widthsOf);
  const total = sensitivities.reduce((sum, { weights }) => sum + weights, 0);
  if (!Number.isFinite(targetBitsPerWeight) || Number.isNaN(overheadBits)) {
    throw new UsageError("the target and the overhead must be numbers of bits per weight");
  }
  // A budget that is met exactly must not fail for the rounding of 4.3 * weights.
  const budget = targetBitsPerWeight * total * (1 + 1e-12);
  const chosen = widths.map((list) => list[0] as number);
  let spent = spentBits(sensitivities, chosen, overheadBits);
  if (spent > budget) {
    const least = total > 0 ? spent / total : 0;
    throw new UsageError(
      `${targetBitsPerWeight} bits per weight are not enough: the narrowest widths take ${least.toFixed(3)}`,
      { hint: "Raise --target-bpw, use larger groups, or measure narrower widths." },
      "target-bpw",
    );
  }
  const steps = sensitivities.flatMap((one, module) =>
    hullSteps(one, widths[module] ?? [], module, overheadBits),
  );
  // Sorting is stable, so equal slopes keep module order; slopes of one module fall, so its steps stay in order.
  steps.sort((a, b) => b.gain * a.cost - a.gain * b.cost);
  for (const { module, from, to, cost } of steps) {
    if (chosen[module] !== from || spent + cost > budget) continue;
    chosen[module] = to;
    spent += cost;
  }
  const uniform = bestUniform(sensitivities, widths, budget, overheadBits);
  const better =
    uniform && totalLoss(sensitivities, uniform) < totalLoss(sensitivities, chosen)
      ? uniform
      : chosen;
  return new Map(sensitivities.map(({ path }, i) => [path, better[i] as number]));
}

/** Stored bits per weight of an allocation. */
export function allocatedBitsPerWeight(
  sensitivities: readonly Sensitivity[],
  bits: ReadonlyMap<string, number>,
  overheadBits: Overhead,
): number {
  const chosen = sensitivities.map(({ path }) => bits.get(path) ?? 0);
  const total = sensitivities.reduce((sum, { weights }) => sum + weights, 0);
  return total > 0 ? spentBits(sensitivities, chosen, overheadBits) / total : 0;
}

/** Widths that were measured, rising. */
function widthsOf({ path, weights, loss }: Sensitivity): number[] {
  const list = Object.keys(loss)
    .map(Number)
    .sort((a, b) => a - b);
  const sane =
    list.length > 0 &&
    list.every((bits) => Number.isInteger(bits) && bits > 0 && Number.isFinite(loss[bits])) &&
    Number.isInteger(weights) &&
    weights > 0;
  if (!sane) {
    throw new UsageError(
      "a sensitivity needs a number of weights and a finite loss for each width",
      {
        place: path,
        hint: "Measure it again with `nibble sensitivity`.",
      },
    );
  }
  return list;
}

/** Steps along the lower convex hull of (bits, loss), from the narrowest width; only those that lower the loss. */
function hullSteps(
  { path, weights, loss }: Sensitivity,
  widths: readonly number[],
  module: number,
  overheadBits: Overhead,
): Step[] {
  const steps: Step[] = [];
  let at = 0;
  for (;;) {
    const from = widths[at] as number;
    let best: Step | null = null;
    let next = at;
    for (let j = at + 1; j < widths.length; j++) {
      const to = widths[j] as number;
      const step = {
        module,
        from,
        to,
        cost:
          weights * (storedWidth(path, to, overheadBits) - storedWidth(path, from, overheadBits)),
        gain: (loss[from] as number) - (loss[to] as number),
      };
      // The steepest; of equal slopes the longest, which the others lie on.
      if (step.gain > 0 && (!best || step.gain * best.cost >= best.gain * step.cost)) {
        best = step;
        next = j;
      }
    }
    if (!best) return steps;
    steps.push(best);
    at = next;
  }
}

/** The single width with the least total loss that every module has and that fits, or null. */
function bestUniform(
  sensitivities: readonly Sensitivity[],
  widths: readonly number[][],
  budget: number,
  overheadBits: Overhead,
): number[] | null {
  let best: number[] | null = null;
  for (const bits of widths[0] ?? []) {
    if (!widths.every((list) => list.includes(bits))) continue;
    const chosen = widths.map(() => bits);
    if (spentBits(sensitivities, chosen, overheadBits) > budget) continue;
    if (!best || totalLoss(sensitivities, chosen) < totalLoss(sensitivities, best)) best = chosen;
  }
  return best;
}

function storedWidth(path: string, bits: number, overheadBits: Overhead): number {
  return bits + (typeof overheadBits === "number" ? overheadBits : overheadBits(path, bits));
}

function spentBits(
  sensitivities: readonly Sensitivity[],
  chosen: readonly number[],
  overheadBits: Overhead,
): number {
  return sensitivities.reduce(
    (sum, { path, weights }, i) =>
      sum + weights * storedWidth(path, chosen[i] as number, overheadBits),
    0,
  );
}

function totalLoss(sensitivities: readonly Sensitivity[], chosen: readonly number[]): number {
  return sensitivities.reduce((sum, { loss }, i) => sum + (loss[chosen[i] as number] as number), 0);
}
