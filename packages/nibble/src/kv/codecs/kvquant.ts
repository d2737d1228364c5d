/**
 * KVQuant (arXiv:2401.18079): keys before RoPE with static ranges per channel, values with a range per token, codes of a
 * non-uniform table that calibration fitted, and the largest deviations kept beside them as sparse half floats.
 * Exact first tokens are the cache's `sinks`.
 *
 * Two things differ from the paper, because a cache stream here is one KV head: the range of a value row covers the head's
 * channels instead of all heads of the layer, and the outlier budget of values is shared by the rows of a sealed group
 * (where it narrows their ranges most) instead of being a fixed count a row, which at 64 channels would be 3 % instead of 1 %.
 * Rows are sealed `group` at a time, so up to group - 1 of the newest are exact; `group: 1` codes each at once, as the paper.
 */
import { z } from "zod";
import { RecipeError } from "../../core/errors.js";
import {
  type CodecCaps,
  defineKvCodec,
  type KvCodecDefinition,
  type PlaneCodec,
  type PlaneInfo,
  type SealInfo,
} from "../contract.js";
import {
  align4,
  checkHead,
  lookupWords,
  packWords,
  readHalf,
  throughHalf,
  wordBytes,
  writeHalf,
} from "./code-words.js";
import { fitKvquant } from "./kvquant-fit.js";
import { applySparse, countSparse, packSparse, sparseBytes } from "./sparse-rows.js";

const options = z.strictObject({
  /** Bits of a code. */
  bits: z.union([z.literal(2), z.literal(3), z.literal(4)]).default(3),
  /** Share of elements that stay dense; 1 keeps no outliers. */
  sparsity: z.number().gt(0.5).max(1).default(0.99),
  /** Shift and stretch the decoded table so that mean and spread of calibration data are kept (Q-Norm). */
  qnorm: z.boolean().default(false),
  /** Most outliers of a key row at each end; "auto": the deployed kernels' rule. null: no limit. */
  capOutliers: z
    .union([z.literal("auto"), z.int().min(0)])
    .nullable()
    .default(null),
  /** Rows that are sealed together. */
  group: z.int().min(1).max(32).default(32),
});
export type KvquantOptions = z.output<typeof options>;

/** Fields of the table of one plane. */
interface Table {
  /** Rising. Codes are chosen with it. */
  points: Float32Array;
  /** Codes are read with it: points, or points after Q-Norm. */
  decoded: Float32Array;
  /** Middles of neighbours. */
  limits: Float32Array;
}

export const kvquant: KvCodecDefinition<KvquantOptions> = defineKvCodec<KvquantOptions>({
  id: "kvquant",
  title: "KVQuant",
  paper: "arXiv:2401.18079",
  summary:
    "Keys before RoPE per channel, values per token, non-uniform codes from calibration, 1 % outliers apart.",
  options,
  planes: ["k", "v"],
  needs: ["k.low", "k.high", "k.table", "v.table"],
  bitsPerElement: () => null,
  create: (o, info) => (info.plane === "k" ? new Keys(o, info) : new Values(o, info)),
  calibrate: fitKvquant,
});

function capsOf({ group }: KvquantOptions): CodecCaps {
  return {
    group,
    flush: { when: group, keep: 0, take: group },
    sealTiming: group === 1 ? "beforeAttend" : "afterAttend",
    keyFrame: "pre",
    slotRewrite: false,
    variableBytes: true,
  };
}

/** @throws RecipeError code "kv-calibration" when it is missing or does not fit */
function needed(info: PlaneInfo, name: string, length: number): Float32Array {
  const values = info.calibration?.get(name);
  const place = `layer ${info.layer}, KV head ${info.kvHead}`;
  const hint = "Make a calibration file for this model: nibble calibrate-kv <model> -o file.";
  if (!values) {
    throw new RecipeError(
      `kvquant needs calibration, "${name}" is missing`,
      { place, hint },
      "kv-calibration",
    );
  }
  if (values.length !== length) {
    throw new RecipeError(
      `calibration "${name}" has ${values.length} numbers, expected ${length}`,
      { place, hint: `${hint} The bits must be those of this cache.` },
      "kv-calibration",
    );
  }
  return values;
}

function tableOf(o: KvquantOptions, info: PlaneInfo): Table {
  const points = needed(info, `${info.plane}.table`, 2 ** o.bits).toSorted();
  const [scale, offset] = o.qnorm ? needed(info, `${info.plane}.norm`, 2) : [1, 0];
  return {
    points,
    decoded: points.map((p) => p * (scale as number) + (offset as number)),
    limits: Float32Array.from({ length: points.length - 1 }, (_, i) => {
      return (points[i] + points[i + 1]) / 2;
    }),
  };
}

/** Index of the nearest point; the lower one of two equally near. */
function nearest(limits: Float32Array, x: number): number {
  let code = 0;
  while (code < limits.length && x > limits[code]) code++;
  return code;
}

/** The codes of a group and their sparse part; what the two planes share. */
abstract class Plane implements PlaneCodec {
  readonly caps: CodecCaps;
  readonly groupBytes: number;
  protected readonly d: number;
  protected readonly table: Table;
  protected readonly codes: Uint8Array;
  protected readonly mask: Uint8Array;
  /** First byte behind the codes. */
  protected readonly codesEnd: number;
  protected readonly parameterBytes: number;

  constructor(
    protected readonly o: KvquantOptions,
    info: PlaneInfo,
    rowBytes: number,
  ) {
    checkHead("kvquant", info.headDim, 8);
    this.parameterBytes = o.group * rowBytes;
    this.caps = capsOf(o);
    this.d = info.headDim;
    this.table = tableOf(o, info);
    this.codes = new Uint8Array(o.group * this.d);
    this.mask = new Uint8Array(o.group * this.d);
    this.codesEnd = wordBytes(o.group * this.d, o.bits);
    this.groupBytes = align4(this.codesEnd + o.group * rowBytes);
  }

  abstract encode(
    rows: Float32Array,
    n: number,
    dst: Uint8Array,
    info: SealInfo,
  ): Uint8Array | null;
  abstract decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void;

  protected store(rows: Float32Array, n: number, dst: Uint8Array): Uint8Array | null {
    dst.fill(0, this.codesEnd + this.parameterBytes);
    packWords(this.codes, 0, n * this.d, this.o.bits, dst, 0);
    const count = countSparse(this.mask, n, this.d);
    if (count === 0) return null;
    // The row count leads: decode may be asked for fewer rows than were sealed.
    const variable = new Uint8Array(2 + sparseBytes(n, count));
    variable[0] = n;
    packSparse(this.mask, count, rows, n, this.d, variable, 2);
    return variable;
  }

  protected sparse(variable: Uint8Array | null, n: number, out: Float32Array): void {
    if (variable) applySparse(variable, 2, variable[0], n, this.d, out, false);
  }
}

class Keys extends Plane {
  readonly #low: Float32Array;
  readonly #high: Float32Array;
  readonly #cap: number;
  /** Decoded value of each (channel, code). */
  readonly #wide: Float32Array;

  constructor(o: KvquantOptions, info: PlaneInfo) {
    super(o, info, 0);
    const { d } = this;
    this.#low = needed(info, "k.low", d);
    this.#high = needed(info, "k.high", d);
    this.#cap =
      o.capOutliers === "auto"
        ? Math.floor(((1 - o.sparsity) / 2) * d) + 1
        : (o.capOutliers ?? Number.POSITIVE_INFINITY);
    const levels = 2 ** o.bits;
    this.#wide = new Float32Array(d * levels);
    for (let c = 0; c < d; c++) {
      const middle = (this.#high[c] + this.#low[c]) / 2;
      const half = (this.#high[c] - this.#low[c]) / 2;
      for (let j = 0; j < levels; j++)
        this.#wide[c * levels + j] = middle + half * this.table.decoded[j];
    }
  }

  encode(rows: Float32Array, n: number, dst: Uint8Array): Uint8Array | null {
    const { d } = this;
    const sparse = this.o.sparsity < 1;
    for (let t = 0; t < n; t++) {
      for (let c = 0; c < d; c++) {
        const i = t * d + c;
        const x = rows[i];
        const low = this.#low[c];
        const high = this.#high[c];
        const half = (high - low) / 2;
        this.mask[i] = sparse && (x > high || x < low) ? 1 : 0;
        this.codes[i] = half > 0 ? nearest(this.table.limits, (x - (high + low) / 2) / half) : 0;
      }
      if (sparse && this.#cap < d) this.#limit(rows, t);
    }
    return this.store(rows, n, dst);
  }

  /** Keeps the `cap` largest and `cap` smallest outliers of a row, by normalized value; the others stay clipped. */
  #limit(rows: Float32Array, t: number): void {
    const { d } = this;
    const excess = (c: number) => {
      const half = (this.#high[c] - this.#low[c]) / 2 || 1;
      return (rows[t * d + c] - (this.#high[c] + this.#low[c]) / 2) / half;
    };
    for (const side of [1, -1]) {
      const marked: number[] = [];
      for (let c = 0; c < d; c++) {
        if (this.mask[t * d + c] === 1 && side * excess(c) > 0) marked.push(c);
      }
      marked.sort((a, b) => side * (excess(b) - excess(a)) || a - b);
      for (const c of marked.slice(this.#cap)) this.mask[t * d + c] = 0;
    }
  }

  decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void {
    const { bits } = this.o;
    const { d } = this;
    const row = wordBytes(d, bits);
    for (let t = 0; t < n; t++)
      lookupWords(src, t * row, d, bits, this.#wide, 1 << bits, out, t * d);
    this.sparse(variable, n, out);
  }
}

class Values extends Plane {
  /** Lowest and highest dense value of each row. */
  readonly #low: Float64Array;
  readonly #high: Float64Array;
  readonly #levels: Float32Array;

  constructor(o: KvquantOptions, info: PlaneInfo) {
    super(o, info, 4);
    this.#low = new Float64Array(o.group);
    this.#high = new Float64Array(o.group);
    this.#levels = new Float32Array(2 ** o.bits);
  }

  encode(rows: Float32Array, n: number, dst: Uint8Array): Uint8Array | null {
    const { d } = this;
    markValueOutliers(rows, n, d, Math.round((1 - this.o.sparsity) * n * d), this.mask);
    for (let t = 0; t < n; t++) {
      this.#range(rows, t);
      const middle = throughHalf((this.#high[t] + this.#low[t]) / 2);
      const half = throughHalf((this.#high[t] - this.#low[t]) / 2);
      writeHalf(dst, this.codesEnd + 4 * t, middle);
      writeHalf(dst, this.codesEnd + 4 * t + 2, half);
      for (let c = 0; c < d; c++) {
        const x = rows[t * d + c];
        this.codes[t * d + c] = half > 0 ? nearest(this.table.limits, (x - middle) / half) : 0;
      }
    }
    return this.store(rows, n, dst);
  }

  #range(rows: Float32Array, t: number): void {
    let low = Number.POSITIVE_INFINITY;
    let high = Number.NEGATIVE_INFINITY;
    for (let i = t * this.d; i < (t + 1) * this.d; i++) {
      if (this.mask[i] === 1) continue;
      low = Math.min(low, rows[i]);
      high = Math.max(high, rows[i]);
    }
    this.#low[t] = low;
    this.#high[t] = high;
  }

  decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void {
    const levels = this.#levels;
    const { decoded } = this.table;
    const { d } = this;
    const row = wordBytes(d, this.o.bits);
    for (let t = 0; t < n; t++) {
      const middle = readHalf(src, this.codesEnd + 4 * t);
      const half = readHalf(src, this.codesEnd + 4 * t + 2);
      for (let j = 0; j < levels.length; j++) levels[j] = middle + half * decoded[j];
      lookupWords(src, t * row, d, this.o.bits, levels, 0, out, t * d);
    }
    this.sparse(variable, n, out);
  }
}

/**
 * Marks `budget` values of rows [n, d]: always the end of a row whose removal lowers the sum of squared ranges most (ties:
 * the first row, its lower end). A row keeps at least two dense values.
 */
export function markValueOutliers(
  rows: Float32Array,
  n: number,
  d: number,
  budget: number,
  mask: Uint8Array,
): void {
  mask.fill(0, 0, n * d);
  if (budget === 0) return;
  const order = Array.from({ length: n }, (_, t) => {
    const row = rows.subarray(t * d, (t + 1) * d);
    return Uint32Array.from(row.keys()).sort((a, b) => row[a] - row[b] || a - b);
  });
  const from = new Uint32Array(n);
  const to = new Uint32Array(n).fill(d - 1);
  const gains = new Float64Array(2 * n);
  const at = (t: number, rank: number) => rows[t * d + order[t][rank]];
  const update = (t: number) => {
    if (to[t] - from[t] < 2) {
      gains[2 * t] = gains[2 * t + 1] = 0;
      return;
    }
    const range = at(t, to[t]) - at(t, from[t]);
    gains[2 * t] = range ** 2 - (at(t, to[t]) - at(t, from[t] + 1)) ** 2;
    gains[2 * t + 1] = range ** 2 - (at(t, to[t] - 1) - at(t, from[t])) ** 2;
  };
  for (let t = 0; t < n; t++) update(t);
  for (let k = 0; k < budget; k++) {
    let best = 0;
    for (let i = 1; i < gains.length; i++) if (gains[i] > gains[best]) best = i;
    if (!(gains[best] > 0)) return;
    const t = best >> 1;
    mask[t * d + order[t][(best & 1) === 0 ? from[t]++ : to[t]--]] = 1;
    update(t);
  }
}
