/**
 * The cache of one sequence in one layer, and the order of events of a step (docs/kv-cache.md): merge decisions, RoPE and
 * the transform of keys, append, seal where the codec reads its own token back, attend, statistics, evictions, seal.
 */
import { UsageError } from "../../core/errors.js";
import type { AttentionStats, RetentionPlan } from "../contract.js";
import { beginRows, type TileAttender } from "./attender.js";
import { hadamardHead, type RopeTable, rotate } from "./frame.js";
import { type HeadStream, sealRhythm, type TileJob } from "./stream.js";

/** Rows of one sequence: queries, keys and values of all heads before RoPE (after the norms of heads). */
export interface LayerRows {
  rows: number;
  /** [rows, heads * headDim]. */
  queries: Float32Array;
  /** [rows, kvHeads * headDim]; a policy may change them. */
  keys: Float32Array;
  values: Float32Array;
  /** Places in the text, rising. */
  positions: ArrayLike<number>;
}

/** How rows of a step count. */
export type StepMode =
  /** Each row as if it had been fed alone. */
  | { kind: "stepwise" }
  /** Rows see each other and earlier rows of the block exactly; sealing and evictions wait for the last part. */
  | { kind: "block"; total: number; last: boolean }
  /** Drafts: exact, and nothing changes until they are committed. */
  | { kind: "scratch" };

export interface StepContext {
  mode: StepMode;
  /** Tokens of the prompt of the sequence, those to come included. */
  promptLength: number;
}

interface Decision {
  rows: number;
  total: number;
  position: number;
  last: boolean;
  prompt: boolean;
  promptLength: number;
}

/** Most bytes of logits that statistics may hold at once. */
const LOGIT_BYTES = 32 * 2 ** 20;

export class LayerState {
  readonly streams: readonly HeadStream[];
  readonly #rope: RopeTable;
  /** Rows of the block that runs, and what was live before it. */
  #block: { before: number[]; prompt: boolean } | null = null;
  #draft: { positions: number[]; context: StepContext } | null = null;

  constructor(streams: readonly HeadStream[], rope: RopeTable) {
    this.streams = streams;
    this.#rope = rope;
  }

  /** Tokens seen. */
  get seen(): number {
    return this.#first.seen;
  }
  get #first(): HeadStream {
    return this.streams[0] as HeadStream;
  }

  /** Rows of a block that may run at once, so that what statistics hold stays small. */
  blockRows(total: number): number {
    let rows = Number.POSITIVE_INFINITY;
    for (const stream of this.streams) {
      if (!stream.statistics.needed) continue;
      const width = (stream.length + total) * stream.statistics.heads * 4;
      rows = Math.min(rows, Math.max(1, Math.floor(LOGIT_BYTES / width)));
    }
    return rows;
  }

  /** True when rows must be decided on one by one, whatever the prefill mode. */
  get merges(): boolean {
    return this.#first.policy.preAppend !== undefined;
  }

  /** Runs rows of one step into out [rows, heads * headDim]. */
  async step(
    input: LayerRows,
    context: StepContext,
    attender: TileAttender,
    out: Float32Array,
  ): Promise<void> {
    const { mode } = context;
    if (mode.kind === "scratch") {
      if (this.merges) {
        throw new UsageError("drafts cannot be added to a cache whose policy merges tokens");
      }
      this.#append(input, 0, input.rows, true);
      await this.#attend(input, 0, input.rows, attender, out, null);
      const positions = Array.from(input.positions).slice(0, input.rows);
      this.#draft = { positions, context };
    } else if (mode.kind === "block" && !this.merges) {
      await this.#blockPart(input, context, mode, attender, out);
    } else if (this.#piecewise) {
      for (let from = 0; from < input.rows; ) {
        const room = Math.min(...this.streams.map((stream) => stream.rowsUntilSeal()));
        const to = Math.min(input.rows, from + room);
        await this.#piece(input, from, to, attender, out);
        from = to;
      }
    } else {
      for (let i = 0; i < input.rows; i++) await this.#single(input, i, context, attender, out);
    }
  }

  /** Accepts a prefix of the draft, or a path through it; its rows now count for policies, and are sealed when due. */
  commit(kept: number | Int32Array): void {
    const draft = this.#draft;
    if (!draft) throw new UsageError("there is no draft to commit");
    this.#draft = null;
    for (const stream of this.streams) {
      const before = stream.committed;
      const rows = stream.accept(kept);
      if (rows.length === 0) continue;
      const last = rows.at(-1) as number;
      stream.statistics.select(rows, before);
      this.#decide(stream, {
        rows: rows.length,
        total: rows.length,
        position: draft.positions[last] as number,
        last: true,
        prompt: before === 0,
        promptLength: draft.context.promptLength,
      });
      stream.seal();
    }
  }

  /** Forgets the draft. */
  rollback(): void {
    this.#draft = null;
    for (const stream of this.streams) stream.rollback();
  }

  /** Rows one by one can be computed several at a time: nothing is decided between them. */
  get #piecewise(): boolean {
    return this.streams.every((stream) => {
      const { policy, statistics, k, v } = stream;
      if (policy.preAppend || policy.afterAttend || statistics.needed) return false;
      return [k, v].every(
        ({ caps }) => sealRhythm(caps).kind !== "batch" || caps.sealTiming === "afterAttend",
      );
    });
  }

  async #piece(
    input: LayerRows,
    from: number,
    to: number,
    attender: TileAttender,
    out: Float32Array,
  ): Promise<void> {
    this.#append(input, from, to, false);
    for (const stream of this.streams) {
      stream.seal("beforeAttend");
      stream.sealAhead(to - from);
    }
    await this.#attend(input, from, to, attender, out, null);
    for (const stream of this.streams) {
      stream.forgetAhead();
      stream.seal();
    }
  }

  async #single(
    input: LayerRows,
    i: number,
    { promptLength }: StepContext,
    attender: TileAttender,
    out: Float32Array,
  ): Promise<void> {
    const prompt = this.seen === 0;
    this.#append(input, i, i + 1, false);
    for (const stream of this.streams) stream.seal("beforeAttend");
    await this.#attend(input, i, i + 1, attender, out, null);
    const position = input.positions[i] as number;
    for (const stream of this.streams) {
      this.#decide(stream, { rows: 1, total: 1, position, last: true, prompt, promptLength });
      stream.seal();
    }
  }

  async #blockPart(
    input: LayerRows,
    { promptLength }: StepContext,
    { total, last }: { total: number; last: boolean },
    attender: TileAttender,
    out: Float32Array,
  ): Promise<void> {
    this.#block ??= {
      before: this.streams.map((stream) => stream.length),
      prompt: this.seen === 0,
    };
    const { before, prompt } = this.#block;
    this.#append(input, 0, input.rows, false);
    const live = before.map((slots) => slots + total);
    await this.#attend(input, 0, input.rows, attender, out, live);
    const position = input.positions[input.rows - 1] as number;
    for (const stream of this.streams) {
      this.#decide(stream, { rows: input.rows, total, position, last, prompt, promptLength });
      if (last) stream.seal();
    }
    if (last) this.#block = null;
  }

  // ---- parts of a step -------------------------------------------------------------------------------------------------

  /** Decisions of the policy, then keys as the cache holds them, then the rows join the stream. */
  #append(input: LayerRows, from: number, to: number, scratch: boolean): void {
    for (const stream of this.streams) {
      const { kvHead, kvHeads, headDim } = stream.spec.info;
      const width = kvHeads * headDim;
      const { caps } = stream.k;
      const rows = to - from;
      const stride = input.keys.length / input.rows;
      const cut = (source: Float32Array) => {
        if (stride === width) return source.slice(from * width, to * width);
        const part = new Float32Array(rows * width);
        for (let i = 0; i < rows; i++) {
          const at = (from + i) * stride + kvHead * headDim;
          part.set(source.subarray(at, at + width), i * width);
        }
        return part;
      };
      const keys = cut(input.keys);
      const values = cut(input.values);
      const positions = Array.from({ length: rows }, (_, i) => input.positions[from + i] as number);
      const decisions = scratch
        ? undefined
        : stream.policy.preAppend?.({
            k: keys,
            v: values,
            rows,
            position: positions[0] as number,
          });
      for (let i = 0; i < rows; i++) {
        for (let head = 0; head < kvHeads; head++) {
          const at = i * width + head * headDim;
          if (caps.keyFrame === "post") {
            rotate(keys, at, keys, at, this.#rope, positions[i] as number);
          }
          if (caps.headTransform) hadamardHead(keys, at, headDim);
        }
      }
      if (!decisions) {
        stream.append(keys, values, positions, { scratch });
        continue;
      }
      for (let i = 0; i < rows; i++) {
        const decision = decisions[i] ?? "append";
        const key = keys.subarray(i * width, (i + 1) * width);
        const value = values.subarray(i * width, (i + 1) * width);
        const position = positions[i] as number;
        if (decision === "append" || stream.committed === 0) stream.append(key, value, [position]);
        else stream.merge(key, value, position, decision.merge);
      }
    }
  }

  /** @param live slots that statistics count, per stream, when rows of the block are still to come */
  async #attend(
    input: LayerRows,
    from: number,
    to: number,
    attender: TileAttender,
    out: Float32Array,
    live: number[] | null,
  ): Promise<void> {
    const rows = to - from;
    if (rows > attender.maxRows) {
      throw new UsageError(`${rows} rows at once, the attender has room for ${attender.maxRows}`);
    }
    const positions = Array.from({ length: rows }, (_, i) => input.positions[from + i] as number);
    const jobs = this.streams.map((stream) => stream.jobs(rows, positions, attender.slots));
    const wanted = this.streams.map((stream) => stream.statistics.needed);
    const anyLogits = wanted.some((want) => want);
    this.streams.forEach((stream, s) => {
      if (wanted[s]) stream.statistics.begin(rows, live?.[s] ?? stream.length);
    });
    beginRows(attender, rows);
    const tiles = Math.max(...jobs.map((list) => list.length));
    const loaded: (number | null | undefined)[] = this.streams.map(() => undefined);
    for (let j = 0; j < tiles; j++) {
      this.streams.forEach((stream, s) => {
        const job = jobs[s]?.[j];
        if (!job) {
          clearRanges(stream, rows, attender);
          return;
        }
        if (loaded[s] !== job.offset) {
          this.#queries(stream, input, from, positions, job.offset, attender);
          loaded[s] = job.offset;
        }
        stream.fill(job, rows, attender);
      });
      const running = attender.run(rows, anyLogits);
      if (running) await running;
      this.streams.forEach((stream, s) => {
        const job: TileJob | undefined = jobs[s]?.[j];
        if (job && wanted[s]) {
          stream.statistics.collect(attender, rows, job.from, stream.spec.info.kvHead);
        }
      });
    }
    for (const stream of this.streams) {
      if (stream.statistics.needed) {
        stream.statistics.settle(attender, rows, stream.spec.info.kvHead);
      }
      if (stream.policy.auxPart) this.#addAux(stream, input, from, positions, attender);
    }
    writeOut(attender, rows, out, from);
  }

  /** Queries of a stream's heads, turned to where the tile's keys expect them. */
  #queries(
    stream: HeadStream,
    input: LayerRows,
    from: number,
    positions: readonly number[],
    offset: number | null,
    attender: TileAttender,
  ): void {
    const { kvHead, kvHeads, headDim } = stream.spec.info;
    const { groupHeads } = stream.spec;
    const width = attender.heads * headDim;
    const base = stream.length - positions.length;
    positions.forEach((position, i) => {
      const place = offset === null ? position : base + i + offset;
      for (let h = kvHead * groupHeads; h < (kvHead + kvHeads) * groupHeads; h++) {
        const at = (from + i) * width + h * headDim;
        const to = i * width + h * headDim;
        rotate(input.queries, at, attender.queries, to, this.#rope, place);
        if (stream.k.caps.headTransform) hadamardHead(attender.queries, to, headDim);
      }
    });
  }

  /** What a policy remembers of evicted rows joins the softmax, head by head. */
  #addAux(
    stream: HeadStream,
    input: LayerRows,
    from: number,
    positions: readonly number[],
    attender: TileAttender,
  ): void {
    const { kvHead, kvHeads, headDim } = stream.spec.info;
    const { groupHeads } = stream.spec;
    const heads = kvHeads * groupHeads;
    const queries = new Float32Array(positions.length * heads * headDim);
    positions.forEach((position, i) => {
      for (let h = 0; h < heads; h++) {
        const at = ((from + i) * attender.heads + kvHead * groupHeads + h) * headDim;
        rotate(input.queries, at, queries, (i * heads + h) * headDim, this.#rope, position);
      }
    });
    const part = stream.policy.auxPart?.(queries, positions.length * heads);
    if (!part) return;
    const { state } = attender;
    for (let q = 0; q < positions.length * heads; q++) {
      const row = Math.floor(q / heads);
      const head = kvHead * groupHeads + (q % heads);
      const s = (row * attender.heads + head) * (headDim + 2);
      const max = Math.max(state[s] as number, part.max[q] as number);
      const a = Math.exp((state[s] as number) - max);
      const b = Math.exp((part.max[q] as number) - max);
      state[s] = max;
      state[s + 1] = (state[s + 1] as number) * a + (part.sum[q] as number) * b;
      for (let d = 0; d < headDim; d++) {
        const old = state[s + 2 + d] as number;
        state[s + 2 + d] = old * a + (part.acc[q * headDim + d] as number) * b;
      }
    }
  }

  /** Statistics of committed rows go to the policy; its plan is carried out. */
  #decide(stream: HeadStream, d: Decision): void {
    const { statistics, policy } = stream;
    if (statistics.needed) statistics.finish(d.rows);
    if (!policy.afterAttend) return;
    const raw = statistics.policy.kind === "rawLogits";
    if (!(d.last || raw)) return;
    const stats: AttentionStats = {
      rows: raw ? d.rows : d.total,
      position: d.position,
      live: d.last ? stream.length : statistics.live,
      prompt: d.prompt,
      more: !d.last,
      promptLength: d.promptLength,
    };
    const columns = d.last ? statistics.takeColumns(stats.live) : undefined;
    if (columns) stats.columns = columns;
    if (raw) {
      stats.logits = statistics.logitsOf(d.rows);
      stats.heads = statistics.heads;
    }
    const plan: RetentionPlan | null = policy.afterAttend(stats);
    if (d.last && plan && plan.evict.length > 0) stream.evict(plan.evict);
  }
}

function clearRanges(stream: HeadStream, rows: number, attender: TileAttender): void {
  const { kvHead, kvHeads } = stream.spec.info;
  for (let m = 0; m < rows; m++) {
    const at = (m * attender.kvHeads + kvHead) * 2;
    attender.ranges.fill(0, at, at + 2 * kvHeads);
  }
}

/** Divides what was accumulated by the sums. */
function writeOut(attender: TileAttender, rows: number, out: Float32Array, from: number): void {
  const { state, heads, headDim } = attender;
  for (let q = 0; q < rows * heads; q++) {
    const s = q * (headDim + 2);
    const inverse = Math.fround(1 / (state[s + 1] as number));
    const to = (from * heads + q) * headDim;
    for (let d = 0; d < headDim; d++) out[to + d] = (state[s + 2 + d] as number) * inverse;
  }
}
