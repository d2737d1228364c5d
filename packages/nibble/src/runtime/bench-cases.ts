/**
 * Speed of an opened model in several situations. All cases are measured in turn, round by round, with the machine's own
 * ceilings between the rounds, so that a machine whose speed drifts disturbs all of them alike.
 */
import { UsageError } from "../core/errors.js";
import { peakRssBytes } from "../core/memory.js";
import { Philox } from "../core/rng.js";
import type { Ceilings } from "../kernels/ceilings.js";
import { type Work, workCounter } from "./bench-work.js";
import type { OpenedModel } from "./opened.js";

export type BenchCase =
  /** A prompt of `tokens` tokens, with the logits of its last one. */
  | { kind: "prefill"; tokens: number }
  /**
   * `steps` runs on a cache of `depth` tokens: each takes `rows` rows of each of `batch` sequences and gives logits for
   * all. One row: decoding, the cache grows. More: how speculative decoding checks its drafts, always at the same place.
   */
  | { kind: "decode"; steps: number; depth: number; batch: number; rows: number };

export interface CaseResult {
  case: BenchCase;
  /** Median, best and slowest round. */
  tokensPerSecond: number;
  tokensPerSecondBest: number;
  tokensPerSecondMin: number;
  /** Seconds of the prompt, or of one run; median. */
  seconds: number;
  /** What a token reads (weights and cache; a prompt reads weights once a chunk) and computes. */
  bytesPerToken: number;
  opsPerToken: number;
  /** Rates of the best round. */
  gbPerSecond: number;
  gops: number;
  /** The shortest time that the ceilings allow, over the time of the best round. Null when no ceiling is known. */
  shareOfRoofline: number | null;
}

export interface CasesResult {
  cases: CaseResult[];
  /** Best of all rounds. */
  ceilings: Ceilings;
  /** Peak resident memory of the process before ceilings were measured: these read a buffer larger than the caches. */
  peakBytes: number;
}

export interface CasesOptions {
  rounds?: number;
  /** A round that is not counted first; default true. */
  warmup?: boolean;
  /** Measures the machine; called once a round. */
  ceilings?: (() => Promise<Ceilings>) | undefined;
  /** After each case of each round. */
  onStep?: ((done: number, total: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

const UNKNOWN: Ceilings = { int8Gops: null, f32Gflops: null, readGBs: null };

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

/** Positions that a case reaches. */
export function contextOf(item: BenchCase): number {
  if (item.kind === "prefill") return item.tokens;
  return item.depth + (item.rows > 1 ? item.rows : item.steps) + 1;
}

/** Seconds that the ceilings allow at best; null when one that matters is unknown. */
export function rooflineSeconds(work: Work, ceilings: Ceilings): number | null {
  const { int8Gops, f32Gflops, readGBs } = ceilings;
  if (int8Gops === null || f32Gflops === null || readGBs === null) return null;
  return Math.max(work.intOps / int8Gops + work.floatOps / f32Gflops, work.bytes / readGBs) / 1e9;
}

/** Runs cases on one opened model; the caches of its sequences hold anything afterwards. */
class CaseRunner {
  readonly #opened: OpenedModel;
  readonly #tokens: Int32Array;
  /** Tokens that the cache of a slot holds. */
  readonly #filled: number[];
  readonly #signal: AbortSignal | undefined;

  constructor(opened: OpenedModel, cases: readonly BenchCase[], signal: AbortSignal | undefined) {
    const { compiled, runner } = opened;
    this.#opened = opened;
    this.#signal = signal;
    const context = Math.max(...cases.map(contextOf));
    if (context > compiled.maxContext) {
      throw new UsageError(
        `${context} tokens are needed, the model was opened for ${compiled.maxContext}`,
      );
    }
    for (const item of cases) {
      if (item.kind === "prefill") continue;
      const { batch, rows } = item;
      if (batch > runner.tables.sequences) {
        throw new UsageError(
          `batch ${batch} needs as many sequences, the model was opened for ${runner.tables.sequences}`,
        );
      }
      if (batch * rows > compiled.maxLogitRows) {
        throw new UsageError(
          `${batch} sequences of ${rows} rows exceed the ${compiled.maxLogitRows} rows of logits of one run`,
        );
      }
    }
    const rng = new Philox(0, "bench");
    const vocab = compiled.config.vocabSize;
    this.#tokens = Int32Array.from({ length: context }, () => Math.floor(rng.uniform() * vocab));
    this.#filled = new Array<number>(runner.tables.sequences).fill(0);
  }

  /** Seconds of one round of a case. */
  async time(item: BenchCase): Promise<number> {
    return item.kind === "prefill" ? this.#prefill(item) : this.#decode(item);
  }

  /** What one round of a case reads and computes. */
  work(item: BenchCase): Work {
    const { compiled, kv } = this.#opened;
    const counter = workCounter(compiled, kv);
    const total: Work = { intOps: 0, floatOps: 0, bytes: 0 };
    const add = (work: Work) => {
      total.intOps += work.intOps;
      total.floatOps += work.floatOps;
      total.bytes += work.bytes;
    };
    if (item.kind === "prefill") {
      for (let from = 0; from < item.tokens; from += compiled.maxRows) {
        const rows = Math.min(compiled.maxRows, item.tokens - from);
        add(counter.run(from, rows, 1, from + rows === item.tokens ? 1 : 0));
      }
    } else {
      for (let i = 0; i < item.steps; i++) {
        const from = item.depth + (item.rows > 1 ? 0 : i);
        add(counter.run(from, item.rows, item.batch, item.batch * item.rows));
      }
    }
    return total;
  }

  async #prefill({ tokens }: BenchCase & { kind: "prefill" }): Promise<number> {
    const { runner } = this.#opened;
    const started = performance.now();
    await runner.prefill(0, this.#tokens.subarray(0, tokens), 0, {
      logits: true,
      signal: this.#signal,
    });
    const seconds = (performance.now() - started) / 1000;
    this.#filled[0] = Math.max(this.#filled[0] ?? 0, tokens);
    return seconds;
  }

  async #decode(item: BenchCase & { kind: "decode" }): Promise<number> {
    const { steps, depth, batch, rows } = item;
    const { runner } = this.#opened;
    for (let slot = 0; slot < batch; slot++) {
      // A cache that cannot give back the steps of the last round is filled anew.
      const have = Math.min(this.#filled[slot] ?? 0, runner.tables.keepable(slot, depth));
      if (have < depth) {
        runner.tables.truncate(slot, have);
        const missing = this.#tokens.subarray(have, depth);
        await runner.prefill(slot, missing, have, { logits: false, signal: this.#signal });
        this.#filled[slot] = depth;
      }
      runner.tables.reserve(slot, contextOf(item));
    }
    const count = batch * rows;
    const sequences = Array.from({ length: count }, (_, i) => Math.floor(i / rows));
    const logitRows = Array.from({ length: count }, (_, i) => i);
    // Pages of the packed tier are simply written again; a managed cache must be told that the rows do not stay.
    const drafts = new Set(rows > 1 && this.#opened.compiled.layers ? sequences : []);
    const started = performance.now();
    for (let i = 0; i < steps; i++) {
      this.#signal?.throwIfAborted();
      const from = depth + (rows > 1 ? 0 : i);
      const positions = sequences.map((_, row) => from + (row % rows));
      const tokens = positions.map(
        (position, row) =>
          this.#tokens[(position + (sequences[row] as number)) % this.#tokens.length] as number,
      );
      await runner.step({ tokens, positions, sequences, drafts }, logitRows);
      for (const slot of drafts) runner.keep(slot, depth);
    }
    return (performance.now() - started) / 1000;
  }
}

const tokensOf = (item: BenchCase) =>
  item.kind === "prefill" ? item.tokens : item.steps * item.batch * item.rows;

/** @throws UsageError for a case that the model was not opened for */
export async function benchCases(
  opened: OpenedModel,
  cases: readonly BenchCase[],
  options: CasesOptions = {},
): Promise<CasesResult> {
  const rounds = options.rounds ?? 5;
  const runner = new CaseRunner(opened, cases, options.signal);
  const seconds = cases.map(() => [] as number[]);
  const ceilings = { ...UNKNOWN };
  const first = options.warmup === false ? 0 : -1; // the first round warms code and caches
  let peakBytes = 0;
  const total = (rounds - first) * cases.length;
  for (let round = first; round < rounds; round++) {
    for (const [i, item] of cases.entries()) {
      const time = await runner.time(item);
      if (round >= 0) seconds[i]?.push(time);
      options.onStep?.((round - first) * cases.length + i + 1, total);
    }
    peakBytes ||= peakRssBytes();
    const measured = round >= 0 ? await options.ceilings?.() : undefined;
    for (const key of ["int8Gops", "f32Gflops", "readGBs"] as const) {
      const value = measured?.[key] ?? null;
      if (value !== null) ceilings[key] = Math.max(ceilings[key] ?? 0, value);
    }
  }
  const results = cases.map((item, i): CaseResult => {
    const times = seconds[i] ?? [];
    const tokens = tokensOf(item);
    const best = Math.min(...times);
    const work = runner.work(item);
    const roofline = rooflineSeconds(work, ceilings);
    return {
      case: item,
      tokensPerSecond: tokens / median(times),
      tokensPerSecondBest: tokens / best,
      tokensPerSecondMin: tokens / Math.max(...times),
      seconds: median(times) / (item.kind === "prefill" ? 1 : item.steps),
      bytesPerToken: work.bytes / tokens,
      opsPerToken: (work.intOps + work.floatOps) / tokens,
      gbPerSecond: work.bytes / best / 1e9,
      gops: (work.intOps + work.floatOps) / best / 1e9,
      shareOfRoofline: roofline === null ? null : roofline / best,
    };
  });
  return { cases: results, ceilings, peakBytes };
}
