/**
 * Parameters of uniform integer grids: scale and zero point of a group of weights, plain or by clip search. Rules as in
 * the code of GPTQ (arXiv:2210.17323): the range contains 0, rounding is half to even, values are s (c - z) with codes c in
 * 0..2^bits - 1. The scale is rounded to its stored type before anything is computed with it.
 */
import { roundFloat } from "./stored-floats.js";
import type { FloatType } from "./types.js";

/**
 * Symmetric conventions: "narrow" s = amax / (2^(b-1) - 1); "gptq" s = 2 amax / (2^b - 1); "full" s = amax / 2^(b-1) with
 * the sign that gives the largest element the code 0. All have the constant zero 2^(b-1).
 */
export type Symmetry = false | "narrow" | "gptq" | "full";

export interface GridRules {
  /** 1..8, at least 2 for "narrow". */
  bits: number;
  sym: Symmetry;
  /** Zero points of asymmetric grids: integers, or floats of the scale's type. */
  zero: "int" | "float";
  /** "zero": the range contains 0. "raw": it need not (AWQ's rule; integer zeros only). */
  range: "zero" | "raw";
  scaleType: FloatType;
  /** Range search: least sum of |error|^clipNorm ("mse"), or of importance * error^2 ("hdiag"). */
  clip: "none" | "mse" | "hdiag";
  clipNorm: number;
  /** Shrink factors are 1 - i / clipGrid for i < clipMaxShrink * clipGrid. */
  clipGrid: number;
  clipMaxShrink: number;
}

/** Adding and subtracting it rounds an f64 of moderate size half to even. */
const ROUND = 6755399441055744; // 1.5 * 2^52
const SMALLEST_SCALE: Record<FloatType, number> = {
  f16: 2 ** -24,
  bf16: 2 ** -126,
  f32: 2 ** -126,
};

/** Smallest range of the "raw" rule (AWQ). */
const SMALLEST_RAW_RANGE = 1e-5;

/**
 * Finds the grid of one group at a time; the result stands in `scale` and `zero` until the next call.
 */
export class GridFitter {
  scale = 1;
  zero = 0;
  readonly maxCode: number;
  readonly #middle: number;
  /** Steps between 0 and the largest magnitude of a symmetric grid. */
  readonly #levels: number;
  /** Error of each step of the search. */
  readonly #errors: Float64Array;
  /** |fraction|^clipNorm and u^clipNorm ("mse" only). */
  readonly #periodic: Float64Array;
  readonly #powers: Float64Array;
  /** The group being searched, binned by value. */
  #values = new Float64Array(0);
  #binOf = new Uint8Array(0);
  readonly #starts = new Uint32Array(BINS + 2);
  #low = 0;
  #factor = 1;
  /** Float zeros are added before rounding, integer zeros after it (they differ in ties). */
  readonly #floatZero: boolean;

  constructor(readonly rules: GridRules) {
    this.maxCode = 2 ** rules.bits - 1;
    this.#middle = 2 ** (rules.bits - 1);
    this.#levels =
      rules.sym === "gptq"
        ? this.maxCode / 2
        : rules.sym === "full"
          ? this.#middle
          : this.#middle - 1;
    const steps = Math.ceil(rules.clipMaxShrink * rules.clipGrid - 1e-9);
    this.#errors = new Float64Array(steps);
    const searches = rules.clip === "mse";
    this.#periodic = searches ? periodicTable(rules.clipNorm) : new Float64Array(0);
    this.#powers = searches ? powerTable(rules.clipNorm) : new Float64Array(0);
    this.#floatZero = rules.sym === false && rules.zero === "float";
  }

  /** Fits w[at .. at + count). `importance[importanceAt + i]` weighs the error of element i ("hdiag"). */
  fit(
    w: Float32Array,
    at: number,
    count: number,
    importance: Float64Array | null = null,
    importanceAt = 0,
  ): void {
    const raw = this.rules.range === "raw";
    let low = raw ? Number.POSITIVE_INFINITY : 0;
    let high = raw ? Number.NEGATIVE_INFINITY : 0;
    for (let i = at; i < at + count; i++) {
      const x = w[i];
      if (x < low) low = x;
      if (x > high) high = x;
    }
    this.#set(low, high, 1);
    if (this.rules.clip === "none" || (low === 0 && high === 0)) return;
    this.#search(w, at, count, low, high, importance, importanceAt);
  }

  /** The grid of the range [low, high] shrunk by p. */
  #set(low: number, high: number, p: number): void {
    const { sym, zero, range, scaleType } = this.rules;
    if (sym !== false) {
      this.zero = this.#middle;
      const amax = Math.max(high, -low);
      const sign = sym === "full" && high > -low ? -1 : 1;
      this.scale = sign * this.#round((p * amax) / this.#levels);
      return;
    }
    if (range === "raw") {
      this.scale = this.#round(Math.max(p * (high - low), SMALLEST_RAW_RANGE) / this.maxCode);
    } else if (low === 0 && high === 0) {
      // Any grid with an exact zero; this is GPTQ's.
      this.scale = zero === "int" ? this.#round(2 / this.maxCode) : 1;
      this.zero = zero === "int" ? this.#middle : 0;
      return;
    } else {
      this.scale = this.#round((p * (high - low)) / this.maxCode);
    }
    const z = (-p * low) / this.scale;
    if (zero === "float") this.zero = roundFloat(z, scaleType);
    else this.zero = Math.min(Math.max(z + ROUND - ROUND, 0), this.maxCode);
  }

  /** A stored scale: never 0, so that dividing by it is safe. */
  #round(scale: number): number {
    if (scale === 0) return 1;
    return roundFloat(scale, this.rules.scaleType) || SMALLEST_SCALE[this.rules.scaleType];
  }

  #search(
    w: Float32Array,
    at: number,
    count: number,
    low: number,
    high: number,
    importance: Float64Array | null,
    importanceAt: number,
  ): void {
    const { clip, clipNorm } = this.rules;
    const weights = clip === "hdiag" ? importance : null;
    const errors = this.#errors;
    const searches = clip === "mse";
    if (searches) this.#sort(w, at, count, low, high);
    const tolerance = 1 + ESTIMATE_TOLERANCE / Math.sqrt(count);
    const widest = this.scale;
    let best = Number.POSITIVE_INFINITY;
    for (let step = 0; step < errors.length; step++) {
      this.#shrink(low, high, step);
      // Sums count in units of the scale. A grid is given up as soon as its sum of positive terms cannot win.
      const ratio = this.scale / widest;
      const unit = searches ? this.#power(ratio) : ratio * ratio;
      const limit = (best * tolerance) / unit;
      const sum = searches
        ? this.#estimate(count, limit)
        : this.#weightedError(w, at, count, weights, importanceAt, limit);
      errors[step] = unit * sum;
      best = Math.min(best, errors[step]);
    }
    // Estimates decide between grids only where they are clearly apart; of the others the exact sum decides.
    const close = best * tolerance;
    let winner = 0;
    let least = Number.POSITIVE_INFINITY;
    for (let step = 0; step < errors.length; step++) {
      if (errors[step] > close) continue;
      let error = errors[step];
      if (searches) {
        this.#shrink(low, high, step);
        error = (this.scale / widest) ** clipNorm * this.#error(count);
      }
      if (error < least) {
        least = error;
        winner = step;
      }
    }
    this.#shrink(low, high, winner);
  }

  #shrink(low: number, high: number, step: number): void {
    this.#set(low, high, 1 - step / this.rules.clipGrid);
  }

  /** Copies a group to #values in rising order of BINS bins; #starts[b] is the first element of bin b. */
  #sort(w: Float32Array, at: number, count: number, low: number, high: number): void {
    if (this.#values.length < count) {
      this.#values = new Float64Array(count);
      this.#binOf = new Uint8Array(count);
    }
    const starts = this.#starts;
    const values = this.#values;
    const binOf = this.#binOf;
    const factor = BINS / (high - low);
    this.#low = low;
    this.#factor = factor;
    starts.fill(0);
    for (let i = 0; i < count; i++) {
      const bin = Math.min((w[at + i] - low) * factor, BINS - 1) | 0;
      binOf[i] = bin;
      starts[bin + 2]++;
    }
    // Counts stand two places up, so that filling turns starts[b + 1] into the end of bin b.
    for (let b = 2; b < starts.length; b++) starts[b] += starts[b - 1];
    for (let i = 0; i < count; i++) values[starts[binOf[i] + 1]++] = w[at + i];
  }

  /**
   * About #error, or something larger than `limit` if it exceeds it. Elements that may be clipped stand at both ends and come
   * first; of the others only the fraction of w / scale matters, so a periodic table gives the error without rounding.
   */
  #estimate(count: number, limit: number): number {
    const { maxCode, zero, scale } = this;
    const values = this.#values;
    const inverse = 1 / scale;
    const bottom = -zero * scale;
    const top = (maxCode - zero) * scale;
    const first = this.#starts[this.#bin(Math.min(bottom, top)) + 1];
    const end = Math.max(first, this.#starts[Math.max(this.#bin(Math.max(bottom, top)), 0)]);
    let sum = 0;
    for (let i = 0; i < first; i++) {
      sum += this.#term(values[i] * inverse);
      if (sum > limit) return sum;
    }
    for (let i = end; i < count; i++) {
      sum += this.#term(values[i] * inverse);
      if (sum > limit) return sum;
    }
    const table = this.#periodic;
    const factor = inverse * PERIOD;
    // Codes are integers offset by an integer zero, or by a float zero's fraction. All values become positive.
    const offset = (zero + 1) * PERIOD;
    const mask = PERIOD - 1;
    let i = first;
    while (i + 4 <= end) {
      // Four sums: one would wait for itself.
      const stop = Math.min(i + 32, end - 3);
      let s0 = 0;
      let s1 = 0;
      let s2 = 0;
      let s3 = 0;
      for (; i < stop; i += 4) {
        s0 += table[(values[i] * factor + offset) & mask];
        s1 += table[(values[i + 1] * factor + offset) & mask];
        s2 += table[(values[i + 2] * factor + offset) & mask];
        s3 += table[(values[i + 3] * factor + offset) & mask];
      }
      sum += s0 + s1 + (s2 + s3);
      if (sum > limit) return sum;
    }
    for (; i < end; i++) sum += table[(values[i] * factor + offset) & mask];
    return sum;
  }

  /** Bin of a value, -1 and BINS for values outside the group's range. */
  #bin(value: number): number {
    return Math.floor(Math.min(Math.max((value - this.#low) * this.#factor, -1), BINS));
  }

  /** Sum of |error / scale|^clipNorm over the group. */
  #error(count: number): number {
    const inverse = 1 / this.scale;
    let sum = 0;
    for (let i = 0; i < count; i++) sum += this.#term(this.#values[i] * inverse);
    return sum;
  }

  /** |error / scale|^clipNorm of x = w / scale. */
  #term(x: number): number {
    const { maxCode, zero } = this;
    const before = this.#floatZero ? zero : 0;
    const c = x + before + ROUND - ROUND + (zero - before);
    return this.#power(Math.abs(Math.min(Math.max(c, 0), maxCode) - zero - x));
  }

  /** u^clipNorm for u >= 0. */
  #power(u: number): number {
    if (!(u < POWER_END)) return u ** this.rules.clipNorm;
    const t = u * POWER_STEP;
    const i = t | 0;
    const y = this.#powers[i];
    return y + (t - i) * (this.#powers[i + 1] - y);
  }

  /** Sum of weight * (error / scale)^2, or something larger than `limit` if it exceeds it. */
  #weightedError(
    w: Float32Array,
    at: number,
    count: number,
    weights: Float64Array | null,
    weightsAt: number,
    limit: number,
  ): number {
    const inverse = 1 / this.scale;
    const { maxCode, zero } = this;
    const before = this.#floatZero ? zero : 0;
    const after = zero - before;
    let sum = 0;
    for (let start = 0; start < count; start += 32) {
      const end = Math.min(start + 32, count);
      for (let i = start; i < end; i++) {
        const x = w[at + i] * inverse;
        const c = x + before + ROUND - ROUND + after;
        const u = Math.min(Math.max(c, 0), maxCode) - zero - x;
        sum += (weights ? weights[weightsAt + i] : 1) * u * u;
      }
      if (sum > limit) return sum;
    }
    return sum;
  }

  /** Codes of values[at .. at + count) on one grid. */
  encode(
    values: Float32Array,
    at: number,
    count: number,
    scale: number,
    zero: number,
    codes: Uint8Array,
    codesAt: number,
  ): void {
    const { maxCode } = this;
    const before = this.#floatZero ? zero : 0;
    const after = zero - before;
    for (let i = 0; i < count; i++) {
      const c = values[at + i] / scale + before + ROUND - ROUND + after;
      codes[codesAt + i] = Math.min(Math.max(c, 0), maxCode);
    }
  }

  /**
   * A column of `count` rows: values[i] goes to the code codes[codesAt + i * codesStride] on the grid scale[at + i * stride],
   * zero[at + i * stride], and is replaced by what the code stands for.
   */
  quantizeColumn(
    values: Float64Array,
    count: number,
    scale: Float32Array,
    zero: Float32Array,
    at: number,
    stride: number,
    codes: Uint8Array,
    codesAt: number,
    codesStride: number,
  ): void {
    const maxCode = this.maxCode;
    const floatZero = this.#floatZero;
    for (let i = 0; i < count; i++) {
      const s = scale[at + i * stride];
      const z = zero[at + i * stride];
      const before = floatZero ? z : 0;
      const c = values[i] / s + before + ROUND - ROUND + (z - before);
      const code = Math.min(Math.max(c, 0), maxCode);
      codes[codesAt + i * codesStride] = code;
      values[i] = Math.fround(s * (code - z));
    }
  }
}

/** Bins between the smallest and the largest weight of a group. */
const BINS = 64;
/** Entries of the periodic table. */
const PERIOD = 8192;
/** Eight standard deviations of the relative error of an estimate over one element (2.95e-4 for p = 2.4). */
const ESTIMATE_TOLERANCE = 2.5e-3;

/** Entries per unit of the power table, and the largest argument it covers. */
const POWER_STEP = 1024;
const POWER_END = 8;

/** u^p at multiples of 1 / POWER_STEP. Interpolation errs by about 5e-6 of a sum of errors, alike for all grids. */
function powerTable(p: number): Float64Array {
  const entries = POWER_STEP * POWER_END + 2;
  return Float64Array.from({ length: entries }, (_, i) => (i / POWER_STEP) ** p);
}

/** |distance to the nearest integer|^p for the fractions (i + 1/2) / PERIOD. */
function periodicTable(p: number): Float64Array {
  return Float64Array.from({ length: PERIOD }, (_, i) => {
    const fraction = (i + 0.5) / PERIOD;
    return Math.min(fraction, 1 - fraction) ** p;
  });
}
