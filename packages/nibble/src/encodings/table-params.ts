/**
 * Scales of the groups of a `lut` weight with a named table, and its codes: one scale a group, or two, for positive and for
 * negative weights (AFPQ, arXiv 2311.01792). Scales are rounded to their stored type before codes are computed.
 */
import { NumericError } from "../core/errors.js";
import { decodeDoubleQuant, doubleQuantize } from "./double-quant.js";
import { columnsPerGroup, scaleShape } from "./groups.js";
import { packCodes } from "./packed-codes.js";
import { roundFloat } from "./stored-floats.js";
import { TableRounder } from "./table-codes.js";
import { namedTable } from "./tables.js";
import type { DoubleQuant, FloatType, GroupSize, QuantTensor, StoredFloats } from "./types.js";

export interface TableRules {
  table: string;
  groupSize: GroupSize;
  twoScale: boolean;
  scaleType: FloatType | "dq8";
  /** On the middle between two values: the smaller one, or the even code. */
  ties: "lower" | "even";
  /** Scales are shrunk by 1 - i / 100 for i < 100 * maxShrink, least sum of |error|^norm; null: largest weight. */
  clip: { norm: number; maxShrink: number } | null;
}

export class TableParams {
  readonly rounder: TableRounder;
  readonly values: Float32Array;
  /** Columns of a full group, groups in a row. */
  readonly width: number;
  readonly groups: number;
  /** [n, G], or one for "tensor"; as stored after `fitAll`. */
  readonly scale: Float32Array;
  /** Of negative weights, with twoScale. */
  readonly negative: Float32Array | null;
  readonly #shape: [number, number];
  #dq8: DoubleQuant | null = null;

  constructor(
    readonly rules: TableRules,
    readonly n: number,
    readonly k: number,
    /** Names the weight in errors. */
    readonly path: string,
  ) {
    this.values = namedTable(rules.table).values;
    this.rounder = new TableRounder(this.values, rules.ties);
    this.width = columnsPerGroup(k, rules.groupSize);
    this.groups = Math.ceil(k / this.width);
    this.#shape = scaleShape(n, k, rules.groupSize);
    this.scale = new Float32Array(this.#shape[0] * this.#shape[1]);
    this.negative = rules.twoScale ? new Float32Array(this.scale.length) : null;
  }

  /** Index of a group's scale. */
  at(row: number, group: number): number {
    return this.rules.groupSize === "tensor" ? 0 : row * this.groups + group;
  }

  /** Fits group g of every row from the columns of w [n, k] it covers. Not for dq8, whose scales depend on each other. */
  fitGroup(w: Float32Array, g: number): void {
    const { k, width } = this;
    const from = g * width;
    const count = Math.min(width, k - from);
    if (this.rules.groupSize === "tensor") this.#fit(w, 0, w.length, 0);
    else for (let r = 0; r < this.n; r++) this.#fit(w, r * k + from, count, this.at(r, g));
  }

  /** Fits every group; for dq8, replaces the scales by what they decode to. */
  fitAll(w: Float32Array): void {
    for (let g = 0; g < this.groups; g++) this.fitGroup(w, g);
    if (this.rules.scaleType !== "dq8") return;
    this.#dq8 = doubleQuantize(this.scale);
    this.scale.set(decodeDoubleQuant(this.#dq8));
  }

  /** Nearest code of a weight in the group whose scale stands at `p`. */
  code(x: number, p: number): number {
    const s = x < 0 && this.negative ? this.negative[p] : this.scale[p];
    // A double-quantized scale of a group of zeros may come back as 0 or just below.
    return this.rounder.code(s > 0 ? Math.fround(x / s) : 0);
  }

  /** What a code decodes to. */
  value(code: number, p: number): number {
    const v = this.values[code];
    return Math.fround(v * (v < 0 && this.negative ? this.negative[p] : this.scale[p]));
  }

  /** Nearest codes of w [n, k]. */
  encode(w: Float32Array): Uint8Array {
    const codes = new Uint8Array(w.length);
    const { k, width } = this;
    for (let r = 0; r < this.n; r++) {
      for (let g = 0; g < this.groups; g++) {
        const p = this.at(r, g);
        const end = Math.min(k, (g + 1) * width);
        for (let c = g * width; c < end; c++) codes[r * k + c] = this.code(w[r * k + c], p);
      }
    }
    return codes;
  }

  /** The tensor with these scales and codes [n, k], one byte each. */
  toTensor(codes: Uint8Array): QuantTensor {
    const { n, k, rules } = this;
    const { bits } = namedTable(rules.table);
    const stored = (data: Float32Array): StoredFloats => ({
      type: rules.scaleType === "dq8" ? "f32" : rules.scaleType,
      shape: [...this.#shape],
      data,
      ...(this.#dq8 && { dq8: this.#dq8 }),
    });
    return {
      n,
      k,
      main: {
        kind: "lut",
        bits,
        codes: packCodes(codes, bits, n, k),
        table: { named: rules.table },
        groupSize: rules.groupSize,
        scale: stored(this.scale),
        ...(this.negative && { scaleNegative: stored(this.negative) }),
      },
      pre: [],
      post: [],
    };
  }

  #fit(w: Float32Array, at: number, count: number, p: number): void {
    let high = 0;
    let low = 0;
    for (let i = at; i < at + count; i++) {
      if (w[i] > high) high = w[i];
      if (w[i] < low) low = w[i];
    }
    if (this.negative) {
      // The two sides do not see each other: each is searched on its own.
      this.scale[p] = this.#best(w, at, count, high, 1);
      this.negative[p] = this.#best(w, at, count, -low, -1);
    } else this.scale[p] = this.#best(w, at, count, Math.max(high, -low), 0);
  }

  /** Scale of the weights of one sign (0: of all) whose largest magnitude is `top`. */
  #best(w: Float32Array, at: number, count: number, top: number, sign: -1 | 0 | 1): number {
    const { clip } = this.rules;
    const plain = this.#round(top / this.rounder.max);
    if (!clip || top === 0) return plain;
    let best = plain;
    let least = Number.POSITIVE_INFINITY;
    for (let step = 0; step < Math.ceil(100 * clip.maxShrink - 1e-9); step++) {
      const s = this.#round(((1 - step / 100) * top) / this.rounder.max);
      let sum = 0;
      for (let i = at; i < at + count && sum < least; i++) {
        const x = w[i];
        if (sign * x < 0) continue;
        const error = Math.abs(s * this.values[this.rounder.code(Math.fround(x / s))] - x);
        sum += clip.norm === 2 ? error * error : error ** clip.norm;
      }
      if (sum < least) {
        least = sum;
        best = s;
      }
    }
    return best;
  }

  /** A stored scale, never 0; dq8 is rounded when all are known. */
  #round(scale: number): number {
    const { scaleType } = this.rules;
    if (scaleType === "dq8") return Math.fround(scale);
    if (scale === 0) return 1;
    const rounded = roundFloat(scale, scaleType);
    if (rounded === Number.POSITIVE_INFINITY) {
      throw new NumericError(`a scale of ${scale} does not fit in ${scaleType}`, {
        place: this.path,
        hint: "Use scaleType: f32.",
      });
    }
    return rounded || (scaleType === "f16" ? 2 ** -24 : 2 ** -126);
  }
}
