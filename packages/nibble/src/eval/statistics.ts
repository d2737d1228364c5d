/**
 * Uncertainty of evaluation results: paired bootstrap intervals (Efron 1979; percentile form), McNemar's test for two
 * models on the same questions (McNemar 1947), quantiles. Everything random is a named Philox stream of a seed.
 */
import { UsageError } from "../core/errors.js";
import { Philox } from "../core/rng.js";

/** A number with its interval. */
export interface Estimate {
  value: number;
  low: number;
  high: number;
}

export interface BootstrapOptions {
  seed?: number;
  /** Name of the stream, so that two intervals of one report draw independently. */
  stream?: string;
  resamples?: number;
  /** Two-sided, e.g. 0.95. */
  confidence?: number;
}

const RESAMPLES = 2000;

/** Quantile of sorted values, linear between neighbours (R's type 7, numpy's default). */
export function quantileSorted(sorted: ArrayLike<number>, p: number): number {
  if (sorted.length === 0) return Number.NaN;
  const at = p * (sorted.length - 1);
  const below = Math.floor(at);
  const a = sorted[below] as number;
  const b = sorted[Math.min(below + 1, sorted.length - 1)] as number;
  return a + (b - a) * (at - below);
}

/** Quantiles of values in any order. */
export function quantiles(values: ArrayLike<number>, ps: number[]): number[] {
  const sorted = Float64Array.from(values).sort();
  return ps.map((p) => quantileSorted(sorted, p));
}

/** Mean, 0 for nothing. */
export function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] as number;
  return values.length > 0 ? sum / values.length : 0;
}

/**
 * Interval of a statistic of sums over units that are drawn with replacement. The statistic sees the mean over the drawn
 * units of every column, so ratios and differences of two models keep their pairing.
 * @param columns one array of equal length per quantity, element u belonging to unit u
 * @param statistic of the means of the columns
 */
export function bootstrap(
  columns: ArrayLike<number>[],
  statistic: (means: number[]) => number,
  options: BootstrapOptions = {},
): Estimate {
  const units = columns[0]?.length ?? 0;
  if (units === 0 || columns.some((c) => c.length !== units)) {
    throw new UsageError("a bootstrap needs at least one unit and columns of one length");
  }
  const { seed = 0, stream = "", resamples = RESAMPLES, confidence = 0.95 } = options;
  if (!(confidence > 0 && confidence < 1))
    throw new UsageError(`confidence is ${confidence}, expected 0 to 1`);
  const value = statistic(columns.map(mean));
  if (units === 1) return { value, low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY };
  const rng = new Philox(seed, `bootstrap/${stream}`);
  const draws = new Float64Array(resamples);
  const sums = new Float64Array(columns.length);
  for (let r = 0; r < resamples; r++) {
    sums.fill(0);
    for (let i = 0; i < units; i++) {
      const unit = rng.below(units);
      for (let c = 0; c < columns.length; c++) {
        sums[c] = (sums[c] as number) + ((columns[c] as ArrayLike<number>)[unit] as number);
      }
    }
    draws[r] = statistic(Array.from(sums, (s) => s / units));
  }
  draws.sort();
  const tail = (1 - confidence) / 2;
  return { value, low: quantileSorted(draws, tail), high: quantileSorted(draws, 1 - tail) };
}

/**
 * Sums of consecutive values in blocks. Losses of neighbouring tokens depend on each other, so intervals over tokens
 * resample blocks (Künsch 1989) and not single tokens. A short last block joins its neighbour.
 */
export function blockSums(
  values: ArrayLike<number>,
  block: number,
): { sums: Float64Array; counts: Float64Array } {
  const blocks = Math.max(1, Math.floor(values.length / block));
  const sums = new Float64Array(blocks);
  const counts = new Float64Array(blocks);
  for (let i = 0; i < values.length; i++) {
    const b = Math.min(Math.floor(i / block), blocks - 1);
    sums[b] = (sums[b] as number) + (values[i] as number);
    counts[b] = (counts[b] as number) + 1;
  }
  return { sums, counts };
}

/**
 * Interval of the difference of two paired proportions (after - before) from the discordant pairs: the adjusted Wald form
 * of Bonett and Price (2012). Unlike a bootstrap it does not shrink to a point when no answer differs.
 */
export function pairedProportion(lost: number, gained: number, n: number): Estimate {
  const a = (lost + 1) / (n + 2);
  const b = (gained + 1) / (n + 2);
  const half = 1.959963984540054 * Math.sqrt((a + b - (b - a) ** 2) / (n + 2));
  const value = (gained - lost) / n;
  return { value, low: Math.max(-1, b - a - half), high: Math.min(1, b - a + half) };
}

/** log n!, exact sums up to 1000, then Stirling's series (error below 1e-12). */
function logFactorial(n: number): number {
  if (n > 1000) {
    return (
      n * Math.log(n) - n + 0.5 * Math.log(2 * Math.PI * n) + 1 / (12 * n) - 1 / (360 * n ** 3)
    );
  }
  let sum = 0;
  for (let i = 2; i <= n; i++) sum += Math.log(i);
  return sum;
}

/** Two-sided exact binomial probability of k or fewer of n at p = 1/2, doubled, at most 1. */
export function binomialTwoSided(k: number, n: number): number {
  const logHalf = n * Math.log(0.5);
  let sum = 0;
  for (let i = 0; i <= Math.min(k, n - k); i++) {
    sum += Math.exp(logFactorial(n) - logFactorial(i) - logFactorial(n - i) + logHalf);
  }
  return Math.min(1, 2 * sum);
}

/** erfc(x) for x >= 0: the power series of erf up to 2.5, Laplace's continued fraction beyond; relative error < 1e-10. */
function erfc(x: number): number {
  if (x < 2.5) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * sum; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = x;
  for (let n = 60; n >= 1; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / (Math.sqrt(Math.PI) * fraction);
}

/** P(chi-square with one degree of freedom > x). */
export function chiSquareTail(x: number): number {
  return x <= 0 ? 1 : erfc(Math.sqrt(x / 2));
}

export interface McNemar {
  /** Right in the first model, wrong in the second. */
  lost: number;
  /** Wrong in the first, right in the second. */
  gained: number;
  /** Two-sided probability of a split at least this uneven when both are equally good. */
  pValue: number;
  method: "exact" | "chi-square";
}

/** Discordant pairs below this number are judged by the exact binomial. */
const EXACT_BELOW = 50;

/** McNemar's test on paired answers: exact binomial for few discordant pairs, else chi-square with Edwards' correction. */
export function mcNemar(before: ArrayLike<boolean>, after: ArrayLike<boolean>): McNemar {
  if (before.length !== after.length) throw new UsageError("paired answers must have one length");
  let lost = 0;
  let gained = 0;
  for (let i = 0; i < before.length; i++) {
    if (before[i] && !after[i]) lost++;
    if (!before[i] && after[i]) gained++;
  }
  const n = lost + gained;
  if (n < EXACT_BELOW) {
    return {
      lost,
      gained,
      pValue: n === 0 ? 1 : binomialTwoSided(Math.min(lost, gained), n),
      method: "exact",
    };
  }
  const statistic = Math.max(0, Math.abs(lost - gained) - 1) ** 2 / n;
  return { lost, gained, pValue: chiSquareTail(statistic), method: "chi-square" };
}
