/**
 * Drives a compiled model: writes rows into the arena, sets the registers, runs the program, hands out views of the
 * results. Knows page tables and chunking, nothing of text or sampling.
 */
import { NumericError, UsageError } from "../core/errors.js";
import { LINE } from "../kernels/ops.js";
import { tailLines } from "../kernels/page-layout.js";
import { PageTables, type SequenceTables } from "../kv/cache.js";
import type { CompiledModel } from "../model/compile.js";
import { REGISTER } from "../model/lower.js";
import { ropeTables } from "../model/rope.js";

/** Rows of one run. `sequences[i]` is the cache slot of row i, `positions[i]` its position there. */
export interface Rows {
  tokens: ArrayLike<number>;
  positions: ArrayLike<number>;
  sequences: ArrayLike<number>;
  /** Sequences whose rows are drafts: `keep` says afterwards how many of them stay. */
  drafts?: ReadonlySet<number>;
}

/** Statistics of one row of logits. */
export interface LogitStats {
  argmax: number;
  max: number;
  logSumExp: number;
  target: number;
}

export class Runner {
  readonly model: CompiledModel;
  readonly tables: SequenceTables;
  readonly #vocabRows: number;
  #ropeLength: number;

  /** @param tables default: pages of the engine's own cache */
  constructor(model: CompiledModel, sequences = 1, tables?: SequenceTables) {
    this.model = model;
    this.tables = tables ?? Runner.#pageTables(model, sequences);
    this.#vocabRows = Math.ceil(model.config.vocabSize / 32) * 32;
    this.#ropeLength = model.maxContext;
  }

  static #pageTables(model: CompiledModel, sequences: number): PageTables {
    const { poolAt, pageLines, tailAt, layers, kvHeads, tailTokens, headDim } = model.cache;
    const page = (id: number) => model.arena.u8(poolAt + id * pageLines, pageLines * LINE);
    const ringLines = layers * kvHeads * tailLines(tailTokens, headDim);
    const ring = (slot: number) => model.arena.u8(tailAt + slot * ringLines, ringLines * LINE);
    return new PageTables(
      model.cache,
      model.cacheTable,
      sequences,
      (from, to) => page(to).set(page(from)),
      (from, to) => ring(to).set(ring(from)),
    );
  }

  /** True when a prompt is to be run by `prefill`, alone: its rows see each other otherwise than rows of steps do. */
  get prefillsAlone(): boolean {
    return false;
  }

  get vocabSize(): number {
    return this.model.config.vocabSize;
  }

  /**
   * Runs rows through all blocks (at most maxRows of them) and gives logits for the rows listed in `logitRows`.
   * Rows of one sequence must come in rising position. Room must have been reserved.
   */
  async step(rows: Rows, logitRows: ArrayLike<number>, blocking = false): Promise<void> {
    const { model } = this;
    if (!model.step) throw new UsageError("the model was compiled for a managed cache");
    this.prepare(rows, logitRows);
    if (blocking) model.engine.runSync(model.step);
    else await model.engine.run(model.step);
  }

  /** Ends the draft of a sequence: its first `length` tokens stay, the rest is as if it had never been run. */
  keep(slot: number, length: number): void {
    this.tables.truncate(slot, length);
  }

  /** Checks and writes the inputs of a run, and sets its registers. */
  protected prepare(rows: Rows, logitRows: ArrayLike<number>): void {
    const { model } = this;
    const n = rows.tokens.length;
    if (n > model.maxRows || logitRows.length > model.maxLogitRows) {
      throw new UsageError(
        `${n} rows with ${logitRows.length} logits exceed ${model.maxRows} and ${model.maxLogitRows}`,
      );
    }
    this.#dynamicRope(rows);
    const { arena, io, registers } = model;
    for (let i = 0; i < n; i++) {
      const token = rows.tokens[i] as number;
      if (!(token >= 0 && token < this.vocabSize)) {
        throw new UsageError(`token id ${token} is not in the vocabulary of ${this.vocabSize}`);
      }
    }
    arena.i32(io.tokensAt, n).set(rows.tokens);
    arena.i32(io.positionsAt, n).set(rows.positions);
    arena.i32(io.sequencesAt, n).set(rows.sequences);
    arena.i32(io.logitIndexAt, logitRows.length).set(logitRows);
    this.tables.wrote(rows.sequences, rows.positions);
    registers[REGISTER.rows] = n;
    registers[REGISTER.logitRows] = logitRows.length;
    registers[REGISTER.statRows] = 0;
    registers[REGISTER.klRows] = 0;
  }

  /** Logits of the i-th listed row [vocabSize]; valid until the next run. */
  logits(i: number): Float32Array {
    const { arena, io } = this.model;
    return arena.f32(io.logitsAt + (i * this.#vocabRows * 4) / LINE, this.vocabSize);
  }

  /** Head on rows of the last step (`targets.length` from row `rows` on, or the listed ones), with log-sum-exp and the logits of `targets`. */
  async score(rows: number | ArrayLike<number>, targets: ArrayLike<number>): Promise<LogitStats[]> {
    const { model } = this;
    const { arena, io, registers } = model;
    const count = targets.length;
    const index = arena.i32(io.logitIndexAt, count);
    for (let i = 0; i < count; i++)
      index[i] = typeof rows === "number" ? rows + i : (rows[i] as number);
    arena.i32(io.targetsAt, count).set(targets);
    registers[REGISTER.rows] = 0;
    registers[REGISTER.logitRows] = count;
    registers[REGISTER.statRows] = count;
    registers[REGISTER.klRows] = 0;
    await model.engine.run(model.head);
    const ints = arena.i32(io.statsAt, count * 4);
    const floats = arena.f32(io.statsAt, count * 4);
    return Array.from({ length: count }, (_, i) => {
      const stats = {
        argmax: ints[4 * i] as number,
        max: floats[4 * i + 1] as number,
        logSumExp: floats[4 * i + 2] as number,
        target: floats[4 * i + 3] as number,
      };
      if (!Number.isFinite(stats.logSumExp)) {
        throw new NumericError("the logits are not finite", {
          hint: "the model's weights or its quantization overflow; try more bits or another backend",
        });
      }
      return stats;
    });
  }

  /**
   * KL(reference || this model) and top-1 agreement for the logit rows of the last `score`.
   * @param reference logits [count, vocabSize] row by row
   */
  async divergence(
    count: number,
    reference: (row: number) => Float32Array,
  ): Promise<{ kl: number; same: boolean }[]> {
    const { model } = this;
    const { arena, io, registers } = model;
    for (let i = 0; i < count; i++) {
      arena
        .f32(io.referenceAt + (i * this.#vocabRows * 4) / LINE, this.vocabSize)
        .set(reference(i));
    }
    registers[REGISTER.rows] = 0;
    registers[REGISTER.logitRows] = 0;
    registers[REGISTER.statRows] = 0;
    registers[REGISTER.klRows] = count;
    await model.engine.run(model.head);
    const out = arena.f32(io.klAt, count * 2);
    return Array.from({ length: count }, (_, i) => ({
      kl: out[2 * i] as number,
      same: out[2 * i + 1] === 1,
    }));
  }

  /** Feeds tokens of one sequence from position `from` in chunks; logits (of the last token) only when asked for. */
  async prefill(
    slot: number,
    tokens: ArrayLike<number>,
    from: number,
    options: {
      logits: boolean;
      signal?: AbortSignal | undefined;
      onChunk?: (done: number) => void;
    },
  ): Promise<void> {
    this.tables.reserve(slot, from + tokens.length);
    for (let start = 0; start < tokens.length; start += this.model.maxRows) {
      options.signal?.throwIfAborted();
      const end = Math.min(start + this.model.maxRows, tokens.length);
      const chunk = Array.prototype.slice.call(tokens, start, end) as number[];
      const last = end === tokens.length && options.logits;
      await this.step(
        {
          tokens: chunk,
          positions: chunk.map((_, i) => from + start + i),
          sequences: new Int32Array(chunk.length).fill(slot),
        },
        last ? [chunk.length - 1] : [],
      );
      options.onChunk?.(end);
    }
  }

  /** Dynamic NTK scaling depends on the length seen so far: its tables are rewritten when a run goes beyond it. */
  #dynamicRope(rows: Rows): void {
    const { config, arena, rope } = this.model;
    if (config.rope.type !== "dynamic") return;
    let length = config.maxPositionEmbeddings;
    for (let i = 0; i < rows.positions.length; i++) {
      length = Math.max(length, (rows.positions[i] as number) + 1);
    }
    if (length === this.#ropeLength) return;
    const { cos, sin } = ropeTables(config, this.model.maxContext, length);
    arena.f32(rope.cosAt, cos.length).set(cos);
    arena.f32(rope.sinAt, sin.length).set(sin);
    this.#ropeLength = length;
  }

  async dispose(): Promise<void> {
    await this.model.dispose();
  }
}
