/**
 * Drives a model whose cache is managed: between the two halves of every block the cache appends, seals, attends and evicts
 * (kv/streams), in the order of docs/kv-cache.md. Rows of a step count as if fed one by one; `prefill` does what the recipe says.
 */
import { ResourceError, UsageError } from "../core/errors.js";
import type { LoadedProgram } from "../kernels/contract.js";
import { normRow } from "../kernels/reference/norm.js";
import type { SequenceTables } from "../kv/cache.js";
import type { ResolvedKv } from "../kv/recipe.js";
import type { LayerRows, StepMode } from "../kv/streams/layer.js";
import { type Calibration, ManagedCache } from "../kv/streams/managed.js";
import type { CompiledModel, LayerPrograms } from "../model/compile.js";
import { REGISTER } from "../model/lower.js";
import { runProgram } from "./run-program.js";
import { type Rows, Runner } from "./runner.js";
import { EngineAttender } from "./tile-attender.js";

/** The view of a managed cache that sessions and measurements share with the packed one. */
class ManagedTables implements SequenceTables {
  readonly cache: ManagedCache;
  readonly #maxContext: number;

  constructor(cache: ManagedCache, maxContext: number) {
    this.cache = cache;
    this.#maxContext = maxContext;
  }

  get sequences(): number {
    return this.cache.sequences;
  }
  length(slot: number): number {
    return this.cache.length(slot);
  }

  reserve(slot: number, length: number): void {
    if (length > this.#maxContext) {
      throw new ResourceError(
        `the cache holds ${this.#maxContext} tokens, ${length} are needed`,
        { hint: "open the model with a larger --max-context" },
        "context-full",
      );
    }
    this.cache.expect(slot, length);
  }

  keepable(slot: number, length: number): number {
    return Math.min(length, this.cache.keepable(slot, length));
  }
  truncate(slot: number, length: number): void {
    this.cache.truncate(slot, length);
  }
  fork(from: number, to: number): void {
    this.cache.fork(from, to);
  }
  wrote(): void {}
  get usedPages(): number {
    let pages = 0;
    for (const pool of this.cache.pools.values()) pages += pool.usedPages;
    return pages;
  }
}

/** Rows of one sequence in a run, by their number in it. */
interface Part {
  sequence: number;
  rows: number[];
}

export class ManagedRunner extends Runner {
  readonly cache: ManagedCache;
  readonly #layers: LayerPrograms;
  readonly #attender: EngineAttender;
  readonly #kv: ResolvedKv;
  /** Lengths without their drafts of the sequences that have one. */
  readonly #committed = new Map<number, number>();
  /** Attention output of one sequence of a run. */
  #out = new Float32Array(0);

  constructor(
    model: CompiledModel,
    kv: ResolvedKv,
    sequences: number,
    calibration: Calibration | null = null,
  ) {
    const { layers, arena, config, maxContext } = model;
    if (!layers) throw new UsageError("the model was not compiled for a managed cache");
    const half = config.headDim / 2;
    const rope = {
      cos: arena.f32(model.rope.cosAt, maxContext * half),
      sin: arena.f32(model.rope.sinAt, maxContext * half),
      half,
    };
    const cache = new ManagedCache(kv, config, rope, sequences, calibration);
    super(model, sequences, new ManagedTables(cache, maxContext));
    this.cache = cache;
    this.#layers = layers;
    this.#attender = new EngineAttender(model, layers);
    this.#kv = kv;
  }

  override get prefillsAlone(): boolean {
    return this.#kv.prefill !== "stepwise";
  }

  override async step(rows: Rows, logitRows: ArrayLike<number>): Promise<void> {
    const parts = new Map<number, Part>();
    for (let i = 0; i < rows.sequences.length; i++) {
      const sequence = rows.sequences[i] as number;
      const part = parts.get(sequence) ?? { sequence, rows: [] };
      part.rows.push(i);
      parts.set(sequence, part);
    }
    for (const { sequence, rows: own } of parts.values()) {
      this.#inOrder(sequence, rows.positions[own[0] as number] as number);
    }
    this.prepare(rows, logitRows);
    for (const slot of rows.drafts ?? []) this.#committed.set(slot, this.cache.length(slot));
    const n = rows.tokens.length;
    const { embed, input, output, finish } = this.#layers;
    await this.#run(embed, n);
    for (let layer = 0; layer < input.length; layer++) {
      await this.#run(input[layer] as LoadedProgram, n);
      for (const part of parts.values()) {
        const kind = rows.drafts?.has(part.sequence) ? "scratch" : "stepwise";
        await this.#attend(layer, part, rows.positions, { kind });
      }
      await this.#run(output[layer] as LoadedProgram, n);
    }
    this.model.registers[REGISTER.logitRows] = logitRows.length;
    await this.#run(finish, n);
  }

  /** Drafted rows were exact and unknown to policies; those that stay are counted and sealed now. */
  override keep(slot: number, length: number): void {
    const before = this.#committed.get(slot);
    if (before === undefined) {
      super.keep(slot, length);
      return;
    }
    this.#committed.delete(slot);
    for (const layer of this.cache.layers(slot)) layer.commit(length - before);
  }

  override async prefill(
    slot: number,
    tokens: ArrayLike<number>,
    from: number,
    options: {
      logits: boolean;
      signal?: AbortSignal | undefined;
      onChunk?: (done: number) => void;
    },
  ): Promise<void> {
    this.#inOrder(slot, from);
    this.tables.reserve(slot, from + tokens.length);
    if (this.#kv.prefill === "stepwise") return super.prefill(slot, tokens, from, options);
    const ids = Array.from(tokens);
    const part = this.#kv.prefill === "chunked" ? this.model.maxRows : ids.length;
    for (let start = 0; start < ids.length; start += part) {
      const end = Math.min(start + part, ids.length);
      const last = end === ids.length && options.logits;
      await this.#block(slot, ids.slice(start, end), from + start, last, options.signal);
      options.onChunk?.(end);
    }
  }

  /**
   * One block of a prompt, layer by layer: all its rows go through a layer before any goes through the next, so only
   * one layer holds exact keys and values.
   */
  async #block(
    slot: number,
    ids: number[],
    from: number,
    logits: boolean,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { arena, maxRows, config } = this.model;
    const { embed, input, output, finish, residualAt } = this.#layers;
    const width = config.hiddenSize;
    const total = ids.length;
    const residual = new Float32Array(total * width);
    const positions = Int32Array.from({ length: total }, (_, i) => from + i);
    for (let start = 0; start < total; start += maxRows) {
      const end = Math.min(start + maxRows, total);
      const rows = {
        tokens: ids.slice(start, end),
        positions: positions.subarray(start, end),
        sequences: new Int32Array(end - start).fill(slot),
      };
      this.prepare(rows, []);
      await this.#run(embed, end - start);
      residual.set(arena.f32(residualAt, (end - start) * width), start * width);
    }
    for (let layer = 0; layer < input.length; layer++) {
      signal?.throwIfAborted();
      const state = this.cache.layers(slot)[layer];
      const most = Math.min(maxRows, state?.blockRows(total) ?? maxRows);
      for (let start = 0; start < total; start += most) {
        const n = Math.min(most, total - start);
        const view = arena.f32(residualAt, n * width);
        view.set(residual.subarray(start * width, (start + n) * width));
        await this.#run(input[layer] as LoadedProgram, n);
        const rows = Array.from({ length: n }, (_, i) => i);
        const mode = { kind: "block", total, last: start + n === total } as const;
        const own = positions.subarray(start, start + n);
        await this.#attend(layer, { sequence: slot, rows }, own, mode);
        await this.#run(output[layer] as LoadedProgram, n);
        residual.set(view, start * width);
      }
    }
    if (!logits) return;
    arena.f32(residualAt, width).set(residual.subarray((total - 1) * width));
    arena.i32(this.model.io.logitIndexAt, 1)[0] = 0;
    this.model.registers[REGISTER.logitRows] = 1;
    await this.#run(finish, 1);
  }

  async #run(program: LoadedProgram, rows: number): Promise<void> {
    this.model.registers[REGISTER.rows] = rows;
    const running = runProgram(this.model.engine, program, rows);
    if (running) await running;
  }

  /** Cache and attention of one layer for the rows of one sequence. */
  async #attend(
    layer: number,
    { sequence, rows }: Part,
    positions: ArrayLike<number>,
    mode: StepMode,
  ): Promise<void> {
    const { arena, config } = this.model;
    const { numAttentionHeads: heads, headDim } = config;
    const width = heads * headDim;
    const state = this.cache.layers(sequence)[layer];
    if (!state) throw new UsageError(`cache slot ${sequence} has no layer ${layer}`);
    const input = this.#rowsOf(layer, rows, positions);
    if (this.#out.length < rows.length * width) this.#out = new Float32Array(rows.length * width);
    const context = { mode, promptLength: this.cache.promptLength(sequence) };
    await state.step(input, context, this.#attender, this.#out);
    const target = arena.f32(this.#layers.attentionAt, ((rows.at(-1) ?? 0) + 1) * width);
    rows.forEach((row, i) => {
      target.set(this.#out.subarray(i * width, (i + 1) * width), row * width);
    });
  }

  /** Queries, keys and values of some rows of the run, with the norms of heads that the model asks for. */
  #rowsOf(layer: number, rows: number[], positions: ArrayLike<number>): LayerRows {
    const { arena, config } = this.model;
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim, rmsNormEps } = config;
    const { qkvAt, ldQkv, gains } = this.#layers;
    const qkv = arena.f32(qkvAt, ((rows.at(-1) ?? 0) + 1) * ldQkv);
    const [q, kv] = [heads * headDim, kvHeads * headDim];
    const queries = new Float32Array(rows.length * q);
    const keys = new Float32Array(rows.length * kv);
    const values = new Float32Array(rows.length * kv);
    rows.forEach((row, i) => {
      const at = row * ldQkv;
      queries.set(qkv.subarray(at, at + q), i * q);
      keys.set(qkv.subarray(at + q, at + q + kv), i * kv);
      values.set(qkv.subarray(at + q + kv, at + q + 2 * kv), i * kv);
    });
    const own = gains[layer];
    for (const [target, gainAt] of [
      [queries, own?.queryAt ?? -1],
      [keys, own?.keyAt ?? -1],
    ] as const) {
      if (gainAt < 0) continue;
      const gain = arena.f32(gainAt, headDim);
      for (let at = 0; at < target.length; at += headDim) {
        normRow(target, at, target, at, headDim, -1, Math.fround(rmsNormEps));
        for (let d = 0; d < headDim; d++) {
          target[at + d] = (target[at + d] as number) * (gain[d] as number);
        }
      }
    }
    return {
      rows: rows.length,
      queries,
      keys,
      values,
      positions: Int32Array.from(rows, (row) => positions[row] as number),
    };
  }

  /** A sequence grows at its end; rows that begin earlier replace what was there, when the cache can give it back. */
  #inOrder(sequence: number, position: number): void {
    const length = this.cache.length(sequence);
    if (position === length) return;
    if (position < length && this.cache.keepable(sequence, position) === position) {
      this.cache.truncate(sequence, position);
      return;
    }
    throw new UsageError(
      `sequence ${sequence} has ${length} tokens, the next is not at ${position}`,
      {
        hint: "truncate the sequence to where the new rows begin",
      },
    );
  }
}
