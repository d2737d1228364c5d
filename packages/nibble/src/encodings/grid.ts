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
  readonly #steps: number;
  /** u^clipNorm, or null where plain squares do. */
  readonly #power: Float64Array | null;
  /** Float zeros are added before rounding, integer zeros after it (they differ in ties). */
  readonly #floatZero: boolean;

  constructor(readonly rules: GridRules) {
    this.maxCode = 2 ** rules.bits - 1;
    this.#middle = 2 ** (rules.bits - 1);
    this.#steps = Math.ceil(rules.clipMaxShrink * rules.clipGrid - 1e-9);
    this.#power = rules.clip === "mse" && rules.clipNorm !== 2 ? powerTable(rules.clipNorm) : null;
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
    const { sym, zero, range, scaleType, bits } = this.rules;
    if (sym !== false) {
      this.zero = this.#middle;
      const amax = Math.max(high, -low);
      const levels =
        sym === "gptq" ? this.maxCode / 2 : sym === "full" ? this.#middle : 2 ** (bits - 1) - 1;
      const sign = sym === "full" && high > -low ? -1 : 1;
      this.scale = sign * this.#round((p * amax) / levels);
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
    const { clip, clipNorm, clipGrid } = this.rules;
    const norm = clip === "mse" ? clipNorm : 2;
    const weights = clip === "hdiag" ? importance : null;
    let best = Number.POSITIVE_INFINITY;
    let bestScale = this.scale;
    let bestZero = this.zero;
    for (let step = 0; step < this.#steps; step++) {
      this.#set(low, high, 1 - step / clipGrid);
      const unit = Math.abs(this.scale) ** norm;
      // Errors are sums of positive terms: stop as soon as this grid cannot win.
      const sum = weights
        ? this.#weightedError(w, at, count, weights, importanceAt, best / unit)
        : this.#error(w, at, count, best / unit);
      const error = unit * sum;
      if (error < best) {
        best = error;
        bestScale = this.scale;
        bestZero = this.zero;
      }
    }
    this.scale = bestScale;
    this.zero = bestZero;
  }

  /** Sum of |error / scale|^norm, or something larger than `limit` if it exceeds it. */
  #error(w: Float32Array, at: number, count: number, limit: number): number {
    const table = this.#power;
    const norm = this.rules.clipNorm;
    const inverse = 1 / this.scale;
    const { maxCode, zero } = this;
    const before = this.#floatZero ? zero : 0;
    const after = zero - before;
    let sum = 0;
    for (let start = at; start < at + count; start += 32) {
      const end = Math.min(start + 32, at + count);
      for (let i = start; i < end; i++) {
        const x = w[i] * inverse;
        let c = x + before + ROUND - ROUND + after;
        c = Math.min(Math.max(c, 0), maxCode);
        const u = Math.abs(c - zero - x);
        if (table === null) sum += u * u;
        else if (u < TABLE_END) {
          const t = u * TABLE_STEP;
          const j = t | 0;
          const y = table[j];
          sum += y + (t - j) * (table[j + 1] - y);
        } else sum += u ** norm;
      }
      if (sum > limit) return sum;
    }
    return sum;
  }

  #weightedError(
    w: Float32Array,
    at: number,
    count: number,
    weights: Float64Array,
    weightsAt: number,
    limit: number,
  ): number {
    const inverse = 1 / this.scale;
    const { maxCode, zero } = this;
    const before = this.#floatZero ? zero : 0;
    const after = zero - before;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const x = w[at + i] * inverse;
      let c = x + before + ROUND - ROUND + after;
      c = Math.min(Math.max(c, 0), maxCode);
      const u = c - zero - x;
      sum += weights[weightsAt + i] * u * u;
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

  /** Code of one value on a grid. */
  code(value: number, scale: number, zero: number): number {
    const before = this.#floatZero ? zero : 0;
    const c = value / scale + before + ROUND - ROUND + (zero - before);
    return Math.min(Math.max(c, 0), this.maxCode);
  }
}

/** Entries per unit of the power table, and the largest argument it covers. */
const TABLE_STEP = 2048;
const TABLE_END = 8;

/** u^p at multiples of 1 / TABLE_STEP. Linear interpolation errs by less than 2e-6 of a typical sum of errors. */
function powerTable(p: number): Float64Array {
  return Float64Array.from({ length: TABLE_STEP * TABLE_END + 2 }, (_, i) => (i / TABLE_STEP) ** p);
}
