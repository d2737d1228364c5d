/**
 * GEAR (arXiv:2403.05527): repairs any block codec. Of a block X of `buffer` tokens the largest and smallest values are kept
 * apart (S) and replaced by the mean before the base codec codes the block (Q); what is left is approximated at low rank
 * by power iteration (L = A P^T). Decoded: Q + S + L. `rank: 0` is the outlier-only form, `sparse: 0` is GEAR-L.
 *
 * Outliers: ceil(length * sparse / 2) at each side of a row, where rows are channels along the tokens of the block for keys
 * and tokens along the channels of the head for values. S is stored as the difference to Q, so that it only adds. The
 * newest tokens wait in the exact tail until a block is full (the streaming buffer); blocks are never opened again, and
 * a prompt is cut into the same blocks, so the paper's larger prompt rank is not distinguished.
 */
import { z } from "zod";
import { RecipeError } from "../../core/errors.js";
import { Philox } from "../../core/rng.js";
import { qr } from "../../linalg/qr.js";
import {
  type CodecCaps,
  defineKvCodec,
  type KvCodecDefinition,
  type PlaneCodec,
  type PlaneInfo,
  type PlaneName,
  type SealInfo,
} from "../contract.js";
import { align4, checkHead, readHalf, writeHalf } from "./code-words.js";
import { applySparse, countSparse, packSparse, sparseBytes } from "./sparse-rows.js";

const optionsShape = {
  /** Rank of the low-rank part; 0 leaves it out. */
  rank: z.int().min(0).max(64).default(2),
  /** Iterations; the start is not zero mean, so one is biased. */
  loop: z.int().min(2).max(32).default(3),
  /** Share of values kept apart, both sides together; 0 leaves them out. */
  sparse: z.number().min(0).max(0.5).default(0.02),
  /** Tokens of a block. */
  buffer: z.int().min(1).max(256).default(64),
};

/** A codec id and its options, all filled in. */
type BaseEntry = { codec: string } & Record<string, unknown>;

export interface GearOptions {
  base: BaseEntry;
  rank: number;
  loop: number;
  sparse: number;
  buffer: number;
}

/** GEAR over the codecs of a table. */
export function gearOver(bases: readonly KvCodecDefinition[]): KvCodecDefinition<GearOptions> {
  const known = new Map(bases.map((definition) => [definition.id, definition]));
  const base = z.looseObject({ codec: z.string() }).transform((entry, context): BaseEntry => {
    const { codec, ...rest } = entry;
    const parsed = known.get(codec)?.options.safeParse(rest);
    if (parsed?.success) return { codec, ...(parsed.data as object) };
    for (const { message, path } of parsed?.error.issues ?? [])
      context.addIssue({ code: "custom", message, path: [...path] });
    if (!parsed) {
      const message = `no base codec "${codec}"; known: ${[...known.keys()].join(", ")}`;
      context.addIssue({ code: "custom", message, path: ["codec"] });
    }
    return z.NEVER;
  });
  const open = ({ base: { codec, ...rest } }: GearOptions) => ({
    definition: known.get(codec) as KvCodecDefinition, // parsing refused others
    options: rest as unknown,
  });
  return defineKvCodec<GearOptions>({
    id: "gear",
    title: "GEAR",
    paper: "arXiv:2403.05527",
    summary: "Any block codec, repaired by a low-rank residual and sparse outliers.",
    options: z.strictObject({ base, ...optionsShape }),
    planes: ["k", "v"],
    bitsPerElement(o, headDim) {
      const { definition, options } = open(o);
      const bits = definition.bitsPerElement(options, headDim);
      return bits === null || o.sparse > 0
        ? null
        : bits + (16 * o.rank * (o.buffer + headDim)) / (o.buffer * headDim);
    },
    create(o, info) {
      const { definition, options } = open(o);
      return new GearPlane(o, info, definition.create(options, info));
    },
    calibrate(o, plane, samples) {
      const { definition, options } = open(o);
      return definition.calibrate?.(options, plane, samples) ?? [];
    },
  });
}

class GearPlane implements PlaneCodec {
  readonly caps: CodecCaps;
  readonly groupBytes: number;
  readonly #o: GearOptions;
  readonly #plane: PlaneName;
  readonly #d: number;
  readonly #base: PlaneCodec;
  /** Rows and bytes of a group of the base codec, groups of a block. */
  readonly #baseRows: number;
  readonly #baseBytes: number;
  readonly #rank: number;
  readonly #factorsAt: number;
  /** Start of the power iteration [headDim, rank]. */
  readonly #start: Float64Array;
  readonly #filled: Float32Array;
  readonly #dense: Float32Array;
  readonly #mask: Uint8Array;

  constructor(o: GearOptions, info: PlaneInfo, base: PlaneCodec) {
    this.#o = o;
    this.#plane = info.plane;
    const d = info.headDim;
    if (o.sparse > 0) checkHead("gear with outliers", d, 1);
    this.#d = d;
    this.#base = base;
    const { caps } = base;
    if (o.buffer % caps.group !== 0) {
      throw new RecipeError(
        `gear: a buffer of ${o.buffer} tokens is no multiple of the base codec's group of ${caps.group}`,
        { hint: `Use a buffer of ${Math.ceil(o.buffer / caps.group) * caps.group}.` },
        "kv-gear-buffer",
      );
    }
    this.#baseRows = caps.group;
    this.#baseBytes = this.#base.groupBytes;
    this.#rank = Math.min(o.rank, o.buffer, d);
    this.#factorsAt = (o.buffer / caps.group) * this.#baseBytes;
    this.groupBytes = align4(this.#factorsAt + 2 * this.#rank * (o.buffer + d));
    this.caps = {
      group: o.buffer,
      flush: { when: o.buffer, keep: 0, take: o.buffer },
      sealTiming: "afterAttend",
      keyFrame: caps.keyFrame,
      ...(caps.headTransform ? { headTransform: caps.headTransform } : {}),
      slotRewrite: false,
      variableBytes: caps.variableBytes || o.sparse > 0,
      ...(caps.stats ? { stats: caps.stats } : {}),
    };
    const rng = new Philox(info.seed, `gear/${info.layer}/${info.kvHead}/${info.plane}`);
    this.#start = Float64Array.from({ length: d * this.#rank }, () => rng.uniform());
    this.#filled = new Float32Array(o.buffer * d);
    this.#dense = new Float32Array((Math.max(o.buffer, this.#rank) + 1) * d);
    this.#mask = new Uint8Array(o.buffer * d);
  }

  encode(rows: Float32Array, n: number, dst: Uint8Array, info: SealInfo): Uint8Array | null {
    const d = this.#d;
    dst.fill(0);
    const filled = this.#filled.subarray(0, n * d);
    const dense = this.#dense.subarray(0, n * d);
    filled.set(rows.subarray(0, n * d));
    this.#mask.fill(0);
    if (this.#o.sparse > 0) {
      if (this.#plane === "k") for (let c = 0; c < d; c++) this.#outliers(filled, c, d, n);
      else for (let t = 0; t < n; t++) this.#outliers(filled, t * d, 1, d);
    }
    const parts = this.#encodeBase(filled, n, dst, info);
    this.#decodeBase(dst, parts, n, dense);
    // Residual of Q + S; zero where S is exact.
    const residual = new Float64Array(n * d);
    for (let i = 0; i < n * d; i++) {
      const difference = rows[i] - dense[i];
      dense[i] = difference;
      if (this.#mask[i] === 0) residual[i] = difference;
    }
    this.#factor(residual, n, dst);
    return this.#joinVariable(parts, dense, n);
  }

  decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void {
    const base = this.#base;
    const d = this.#d;
    let at = 0;
    for (let t = 0, group = 0; t < n; t += this.#baseRows, group++) {
      let part: Uint8Array | null = null;
      if (variable && base.caps.variableBytes) {
        const length = variable[at] | (variable[at + 1] << 8);
        part = length > 0 ? variable.subarray(at + 2, at + 2 + length) : null;
        at += 2 + length + (length & 1);
      }
      const count = Math.min(this.#baseRows, n - t);
      base.decode(
        src.subarray(group * this.#baseBytes, (group + 1) * this.#baseBytes),
        part,
        count,
        out.subarray(t * d, (t + count) * d),
      );
    }
    this.#addLowRank(src, n, out);
    if (variable && this.#o.sparse > 0) {
      const start = variable.length - 4;
      const sparseAt = variable[start] | (variable[start + 1] << 8);
      applySparse(variable, sparseAt, variable[start + 2] + 1, n, d, out, true);
    }
  }

  /** Marks the ends of one vector of `filled` and puts the mean of the vector in their place. */
  #outliers(filled: Float32Array, from: number, step: number, length: number): void {
    const each = Math.min(Math.ceil((length * this.#o.sparse) / 2), length >> 1);
    const order = Array.from({ length }, (_, i) => i).sort(
      (a, b) => filled[from + a * step] - filled[from + b * step] || a - b,
    );
    let mean = 0;
    for (let i = 0; i < length; i++) mean += filled[from + i * step] / length;
    for (let i = 0; i < each; i++) {
      for (const index of [order[i], order[length - 1 - i]]) {
        const place = from + index * step;
        this.#mask[place] = 1;
        filled[place] = mean;
      }
    }
  }

  #encodeBase(
    filled: Float32Array,
    n: number,
    dst: Uint8Array,
    info: SealInfo,
  ): (Uint8Array | null)[] {
    const parts: (Uint8Array | null)[] = [];
    const d = this.#d;
    for (let t = 0; t < n; t += this.#baseRows) {
      const count = Math.min(this.#baseRows, n - t);
      const at = parts.length * this.#baseBytes;
      parts.push(
        this.#base.encode(
          filled.subarray(t * d, (t + count) * d),
          count,
          dst.subarray(at, at + this.#baseBytes),
          {
            firstSlot: info.firstSlot + t,
            length: info.length,
            attention: info.attention?.subarray(t, t + count) ?? null,
          },
        ),
      );
    }
    return parts;
  }

  #decodeBase(src: Uint8Array, parts: (Uint8Array | null)[], n: number, out: Float32Array): void {
    const d = this.#d;
    for (const [group, part] of parts.entries()) {
      const t = group * this.#baseRows;
      const count = Math.min(this.#baseRows, n - t);
      const at = group * this.#baseBytes;
      this.#base.decode(
        src.subarray(at, at + this.#baseBytes),
        part,
        count,
        out.subarray(t * d, (t + count) * d),
      );
    }
  }

  /** Power iteration on E [n, d]; A [buffer, rank] and P [d, rank] go behind the base groups as halves. */
  #factor(e: Float64Array, n: number, dst: Uint8Array): void {
    const d = this.#d;
    const rank = Math.min(this.#rank, n);
    if (rank === 0) return;
    let p: Float64Array = new Float64Array(d * rank);
    for (let i = 0; i < d; i++)
      for (let k = 0; k < rank; k++) p[i * rank + k] = this.#start[i * this.#rank + k];
    let a: Float64Array = new Float64Array(n * rank);
    for (let iteration = 1; iteration <= this.#o.loop; iteration++) {
      const last = iteration === this.#o.loop;
      if (last) p = qr(p, d, rank).q;
      a = product(e, p, n, d, rank);
      if (last) a = qr(a, n, rank).q;
      p = transposedProduct(e, a, n, d, rank);
      if (!last) normalizeColumns(p, d, rank);
    }
    for (let t = 0; t < n; t++) {
      for (let k = 0; k < rank; k++)
        writeHalf(dst, this.#factorsAt + 2 * (t * this.#rank + k), a[t * rank + k]);
    }
    const at = this.#factorsAt + 2 * this.#o.buffer * this.#rank;
    for (let k = 0; k < rank; k++) {
      for (let c = 0; c < d; c++) writeHalf(dst, at + 2 * (k * d + c), p[c * rank + k]);
    }
  }

  #addLowRank(src: Uint8Array, n: number, out: Float32Array): void {
    const d = this.#d;
    const rank = this.#rank;
    if (rank === 0) return;
    const at = this.#factorsAt + 2 * this.#o.buffer * rank;
    // The scratch of encode holds P meanwhile: [rank, d].
    const p = this.#dense;
    for (let i = 0; i < rank * d; i++) p[i] = readHalf(src, at + 2 * i);
    // Two ranks a pass; an odd rank ends with a column of zeros.
    if (rank % 2 === 1) p.fill(0, rank * d, (rank + 1) * d);
    for (let t = 0; t < n; t++) {
      const row = t * d;
      for (let k = 0; k < rank; k += 2) {
        const a = readHalf(src, this.#factorsAt + 2 * (t * rank + k));
        const b = k + 1 < rank ? readHalf(src, this.#factorsAt + 2 * (t * rank + k + 1)) : 0;
        const one = k * d;
        const two = one + d;
        for (let c = 0; c < d; c++) out[row + c] += a * p[one + c] + b * p[two + c];
      }
    }
  }

  /** [u16 length, base part]..., sparse part, [u16 start of the sparse part, rows - 1, 0]. */
  #joinVariable(parts: (Uint8Array | null)[], delta: Float32Array, n: number): Uint8Array | null {
    const hasParts = this.#base.caps.variableBytes;
    const hasSparse = this.#o.sparse > 0;
    if (!hasParts && !hasSparse) return null;
    let length = 0;
    if (hasParts)
      for (const part of parts) length += 2 + (part ? part.length + (part.length & 1) : 0);
    const sparseAt = length;
    const count = hasSparse ? countSparse(this.#mask, n, this.#d) : 0;
    if (hasSparse) length += sparseBytes(n, count) + 4;
    const out = new Uint8Array(length);
    let at = 0;
    for (const part of hasParts ? parts : []) {
      const size = part?.length ?? 0;
      out[at] = size & 0xff;
      out[at + 1] = size >>> 8;
      if (part) out.set(part, at + 2);
      at += 2 + size + (size & 1);
    }
    if (hasSparse) {
      packSparse(this.#mask, count, delta, n, this.#d, out, sparseAt);
      out.set([sparseAt & 0xff, sparseAt >>> 8, n - 1, 0], length - 4);
    }
    return out;
  }
}

/** E [n, d] times P [d, r]. */
function product(e: Float64Array, p: Float64Array, n: number, d: number, r: number): Float64Array {
  const a = new Float64Array(n * r);
  for (let t = 0; t < n; t++) {
    for (let c = 0; c < d; c++) {
      const x = e[t * d + c];
      if (x === 0) continue;
      for (let k = 0; k < r; k++) a[t * r + k] += x * p[c * r + k];
    }
  }
  return a;
}

/** E^T [d, n] times A [n, r]. */
function transposedProduct(
  e: Float64Array,
  a: Float64Array,
  n: number,
  d: number,
  r: number,
): Float64Array {
  const p = new Float64Array(d * r);
  for (let t = 0; t < n; t++) {
    for (let c = 0; c < d; c++) {
      const x = e[t * d + c];
      if (x === 0) continue;
      for (let k = 0; k < r; k++) p[c * r + k] += x * a[t * r + k];
    }
  }
  return p;
}

/** Columns to length 1, so that powers of large residuals stay finite; directions are what counts. */
function normalizeColumns(p: Float64Array, d: number, r: number): void {
  for (let k = 0; k < r; k++) {
    let largest = 0;
    for (let c = 0; c < d; c++) largest = Math.max(largest, Math.abs(p[c * r + k]));
    if (largest > 0) for (let c = 0; c < d; c++) p[c * r + k] /= largest;
  }
}
