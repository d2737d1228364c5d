/**
 * QAQ (arXiv:2403.04643): every token of a head gets as many bits, keys and values apart, as a bound on the error of
 * attention asks for: values by the largest attention the token received lately, keys by the length of the text and the
 * norm of the queries. Outliers are kept apart as half floats. Decided once, when a token leaves the exact tail.
 *
 * The quantizer is the paper's: 2^n levels of (max - min) / 2^n about the MEAN, clamped, so a skewed row clips on its long
 * side. `rule: "repo"` is the official code (one bit fewer and about twice the error of `rule: "paper"`).
 */
import { z } from "zod";
import { FormatError, RecipeError } from "../../core/errors.js";
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
import { applySparse, countSparse, packSparse, sparseBytes } from "./sparse-rows.js";

const options = z.strictObject({
  /** What shares one scale and one width: a head's row. The wider levels of the paper need statistics of all heads. */
  level: z.enum(["head", "layer", "token"]).default("head"),
  /** Share of a row kept apart, both sides together. */
  outliers: z.number().min(0).max(0.5).default(0.01),
  /** Query rows whose attention counts; the newest window - 1 tokens keep full width. */
  window: z.int().min(1).max(64).default(5),
  /** Tolerated error of attention: of probabilities for keys, of outputs for values (the authors search 1 to 30 on 7B models). */
  targetErrorK: z.number().gt(0).default(0.1),
  targetErrorV: z.number().gt(0).default(0.1),
  /** Fewest and most bits of a token. */
  bits: z
    .tuple([z.int().min(0).max(4), z.int().min(0).max(4)])
    .refine(([low, high]) => low <= high, "the fewest bits are more than the most")
    .default([0, 4]),
  /** Squared norm of a query, 90 % quantile: of a calibration file, or a number (the authors search with 300). */
  qNorm: z.union([z.literal("calibrated"), z.number().gt(0)]).default("calibrated"),
  rule: z.enum(["repo", "paper"]).default("repo"),
  /** Levels about zero instead of the mean. */
  symmetric: z.boolean().default(false),
});
export type QaqOptions = z.output<typeof options>;

/** Tokens that are sealed together. */
const GROUP = 32;

export const qaq: KvCodecDefinition<QaqOptions> = defineKvCodec<QaqOptions>({
  id: "qaq",
  title: "QAQ",
  paper: "arXiv:2403.04643",
  summary: "0 to 4 bits a token and head, as many as a bound on the attention error asks for.",
  options,
  planes: ["k", "v"],
  bitsPerElement: () => null,
  create: (o, info) => new QaqPlane(o, info),
  calibrate: (_, plane, { kvHeads, queryNorm }) =>
    plane === "k" ? [{ name: "q.norm", shape: [kvHeads, 1], data: queryNorm }] : [],
});

/** Largest error a token may have, in the units of the rule; Infinity when nothing attends to it. */
export function tolerance(
  o: Pick<QaqOptions, "rule" | "targetErrorK" | "targetErrorV">,
  seen: { length: number } & ({ queryNorm: number } | { attention: number }),
): number {
  const t = seen.length;
  // The code folds sqrt(12), the paper's step for a standard deviation, into the error.
  const fold = o.rule === "repo" ? 12 : 1;
  if ("attention" in seen) return (Math.sqrt(fold / t) * o.targetErrorV) / seen.attention;
  const growth = t > 1 ? t ** 3 / (t - 1) : Number.POSITIVE_INFINITY;
  return Math.sqrt((fold / seen.queryNorm) * Math.log(growth * o.targetErrorK ** 2 + 1));
}

/** Bits for a row whose dense values span `range`, before the limits of the options. */
export function bitsFor(rule: QaqOptions["rule"], range: number, error: number): number {
  return rule === "repo"
    ? Math.ceil(Math.log2(range / (2 * error) + 1))
    : Math.ceil(Math.log2(range / (2 * Math.sqrt(3) * error)));
}

class QaqPlane implements PlaneCodec {
  readonly caps: CodecCaps;
  readonly groupBytes: number;
  readonly #o: QaqOptions;
  readonly #d: number;
  /** null for values. */
  readonly #queryNorm: number | null;
  readonly #codes: Uint8Array;
  readonly #mask: Uint8Array;
  readonly #bits = new Uint8Array(GROUP);
  readonly #levels = new Float32Array(16);

  constructor(o: QaqOptions, info: PlaneInfo) {
    if (o.level !== "head") {
      throw new RecipeError(
        `qaq: level "${o.level}" is not available, a cache stream sees one KV head`,
        { hint: 'Use level: "head".' },
        "qaq-level",
      );
    }
    checkHead("qaq", info.headDim, 8);
    this.#o = o;
    this.#d = info.headDim;
    this.#queryNorm = info.plane === "k" ? queryNorm(o, info) : null;
    this.#codes = new Uint8Array(GROUP * info.headDim);
    this.#mask = new Uint8Array(GROUP * info.headDim);
    // A byte for the width, halves for centre and scale.
    this.groupBytes = align4(GROUP * 5);
    const keep = o.window - 1;
    this.caps = {
      group: GROUP,
      flush: { when: GROUP + keep, keep, take: GROUP },
      sealTiming: "afterAttend",
      keyFrame: "post",
      slotRewrite: false,
      variableBytes: true,
      ...(info.plane === "v" ? { stats: { kind: "colMaxProb", lastRows: o.window } } : {}),
    };
  }

  encode(rows: Float32Array, n: number, dst: Uint8Array, info: SealInfo): Uint8Array | null {
    const d = this.#d;
    const o = this.#o;
    dst.fill(0);
    let codeBytes = 0;
    for (let t = 0; t < n; t++) {
      this.#markOutliers(rows, t);
      const { low, high, mean } = this.#dense(rows, t);
      const reach = o.symmetric ? 2 * Math.max(Math.abs(low), Math.abs(high)) : high - low;
      const bits = this.#width(reach, t, info);
      const centre = o.symmetric ? 0 : throughHalf(mean);
      const scale = throughHalf(reach / 2 ** bits);
      dst[t] = bits;
      writeHalf(dst, GROUP + 4 * t, centre);
      writeHalf(dst, GROUP + 4 * t + 2, scale);
      this.#bits[t] = bits;
      codeBytes += wordBytes(d, bits);
      const half = 2 ** bits / 2;
      for (let i = t * d; i < (t + 1) * d; i++) {
        const code = bits > 0 && scale > 0 ? Math.round((rows[i] - centre) / scale) : 0;
        this.#codes[i] = bits > 0 ? Math.max(-half, Math.min(half - 1, code)) + half : 0;
      }
    }
    const outliers = countSparse(this.#mask, n, d);
    const variable = new Uint8Array(codeBytes + (codeBytes & 1) + sparseBytes(n, outliers) + 4);
    let at = 0;
    for (let t = 0; t < n; t++) {
      packWords(this.#codes, t * d, d, this.#bits[t], variable, at);
      at += wordBytes(d, this.#bits[t]);
    }
    at += at & 1;
    packSparse(this.#mask, outliers, rows, n, d, variable, at);
    variable.set([at & 0xff, at >>> 8, n, 0], variable.length - 4);
    return variable;
  }

  decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void {
    if (!variable) throw new FormatError("a qaq group without its variable part");
    const d = this.#d;
    const levels = this.#levels;
    let at = 0;
    for (let t = 0; t < n; t++) {
      const bits = src[t];
      const centre = readHalf(src, GROUP + 4 * t);
      if (bits === 0) {
        out.fill(centre, t * d, (t + 1) * d);
        continue;
      }
      if (bits > 4) throw new FormatError(`a token of qaq has ${bits} bits, there are at most 4`);
      const scale = readHalf(src, GROUP + 4 * t + 2);
      const count = 1 << bits;
      for (let j = 0; j < count; j++) levels[j] = (j - count / 2) * scale + centre;
      lookupWords(variable, at, d, bits, levels, 0, out, t * d);
      at += wordBytes(d, bits);
    }
    const end = variable.length - 4;
    const sparseAt = variable[end] | (variable[end + 1] << 8);
    applySparse(variable, sparseAt, variable[end + 2], n, d, out, false);
  }

  #width(reach: number, t: number, { firstSlot, length, attention }: SealInfo): number {
    const o = this.#o;
    const [fewest, most] = o.bits;
    // Too young to have been looked at by `window` queries.
    if (length - (firstSlot + t) < o.window) return most;
    if (this.#queryNorm === null && !attention) {
      throw new Error("qaq needs the attention that sealed values received");
    }
    const seen =
      this.#queryNorm === null
        ? { length, attention: attention?.[t] ?? 0 }
        : { length, queryNorm: this.#queryNorm };
    const wanted = bitsFor(o.rule, reach, tolerance(o, seen));
    return Math.max(fewest, Math.min(most, Number.isNaN(wanted) ? most : wanted));
  }

  /** Half of the share at each end of a row, at least one when there is a share at all (as the ranks of the code). */
  #markOutliers(rows: Float32Array, t: number): void {
    const d = this.#d;
    const start = t * d;
    const mask = this.#mask.fill(0, start, start + d);
    const each = Math.ceil((this.#o.outliers / 2) * d);
    if (each === 0) return;
    const row = rows.subarray(start, start + d);
    const order = Uint32Array.from(row.keys()).sort((a, b) => row[a] - row[b] || a - b);
    // A constant row has none: every value would be at both ends.
    if (row[order[0]] === row[order[d - 1]]) return;
    for (let i = 0; i < each; i++) {
      mask[start + order[i]] = 1;
      mask[start + order[d - 1 - i]] = 1;
    }
  }

  /** Extremes and mean of what is not marked. */
  #dense(rows: Float32Array, t: number): { low: number; high: number; mean: number } {
    let [low, high, sum, count] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0];
    for (let i = t * this.#d; i < (t + 1) * this.#d; i++) {
      if (this.#mask[i] === 1) continue;
      low = Math.min(low, rows[i]);
      high = Math.max(high, rows[i]);
      sum += rows[i];
      count++;
    }
    return count > 0 ? { low, high, mean: sum / count } : { low: 0, high: 0, mean: 0 };
  }
}

/** @throws RecipeError code "kv-calibration" */
function queryNorm(o: QaqOptions, info: PlaneInfo): number {
  if (o.qNorm !== "calibrated") return o.qNorm;
  const norm = info.calibration?.get("q.norm")?.[0];
  if (norm !== undefined && norm > 0) return norm;
  throw new RecipeError(
    'qaq needs calibration: "q.norm" is missing',
    {
      place: `layer ${info.layer}, KV head ${info.kvHead}`,
      hint: "Make a calibration file (nibble calibrate-kv), or give qNorm as a number, such as 300.",
    },
    "kv-calibration",
  );
}
