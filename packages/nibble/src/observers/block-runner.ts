/**
 * Streams calibration windows through a model block by block: the hidden states of all windows are kept (in memory, or in
 * a file), the weights of one block at a time are in the arena. `observe` collects the statistics of every site of a block with its current
 * weights; `advance` runs the block as it is now (quantized, if it has been) and moves the hidden states on.
 * Activation quantizers and cache quantization are off, as in the official GPTQ and QuaRot code.
 */
import { ModelError, NumericError } from "../core/errors.js";
import { dropGarbage } from "../core/memory.js";
import { decode } from "../encodings/quant-tensor.js";
import { Arena } from "../graph/arena.js";
import type { Backend, Engine } from "../kernels/contract.js";
import { type CacheField, EPILOGUE, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import { ProgramBuilder } from "../kernels/program.js";
import { scratchLines } from "../kernels/scratch.js";
import { allocateBuffers } from "../model/buffers.js";
import {
  BlockLowering,
  type Buffers,
  type Observe,
  REGISTER,
  type SiteRecipe,
} from "../model/lower.js";
import { type Model, parameter } from "../model/model.js";
import {
  edgeEmitters,
  placeEdges,
  placeLayer,
  placeSites,
  siteWidth,
} from "../model/place-model.js";
import { placeWeights } from "../model/place-weights.js";
import { SITES, type Site } from "../model/roles.js";
import { type RowBand, rowBands } from "../model/row-bands.js";
import { type HiddenStates, hiddenInMemory, hiddenOnDisk } from "./hidden-states.js";

/** Rows of one run. */
export const MAX_ROWS = 512;

export interface SiteStats {
  count: number;
  hessian?: Float64Array;
  /** Sum of x (y - x)^T [k, k], y the input in the original model. */
  drift?: Float64Array;
  sumAbs?: Float64Array;
  maxAbs?: Float32Array;
}

/** Statistics of a block by site; experts have their own behind the router ("mlp_in:3"). */
export type BlockStats = Map<string, SiteStats>;

export function statsKey(site: Site, expert: number | null): string {
  return expert === null ? site : `${site}:${expert}`;
}

/** A run of rows of one block, with the exact cache of the block as it is after them. Views live until the next run. */
export interface CacheChunk {
  rows: number;
  /** Number of the window and place in it of each row. */
  windows: Int32Array;
  positions: Int32Array;
  /** After RoPE [rows, heads * headDim]. */
  queries: Float32Array;
  /** Keys after RoPE of 32 positions from 32 * page on, laid out as keyFloatIndex says. */
  keys(window: number, page: number, kvHead: number): Float32Array;
  /** Values of the same positions [32, headDim]. */
  values(window: number, page: number, kvHead: number): Float32Array;
}

export interface BlockRunnerOptions {
  backend: Backend;
  threads: number;
  /** Token ids; all windows have the same length. */
  windows: Int32Array[];
  /** Keep the hidden states of the original model too, which `observe` needs for the drift. */
  keepOriginal?: boolean;
  /** Exact cache of one layer for `sequences` windows; from planCache. */
  cache: (
    tokens: number,
    sequences: number,
  ) => {
    descriptor: Record<CacheField, number>;
    poolLines: number;
    tableBytes: number;
  };
  /** Keeps hidden states in a file with this prefix (removed at once) instead of memory. Same values. */
  spillTo?: string;
  signal?: AbortSignal;
}

/** A matrix [n, k] that is applied to the inputs of a site. */
export interface Probe {
  site: Site;
  expert: number | null;
  n: number;
  k: number;
  values: Float32Array;
}

export class BlockRunner {
  readonly #model: Model;
  readonly #options: BlockRunnerOptions;
  readonly #engine: Engine;
  readonly #arena: Arena;
  readonly #buffers: Buffers;
  readonly #cache: Record<CacheField, number>;
  /** Of the original model; only with `keepOriginal`. */
  readonly #originalCache: Record<CacheField, number> | null;
  readonly #scratchAt: number;
  readonly #perThread: number;
  readonly #weightsMark: number;
  readonly #seqlen: number;
  readonly #batch: number;
  /** Hidden states of all windows, [windows * seqlen, hiddenSize]. */
  readonly #hidden: HiddenStates;
  /** The same as the original model has them; only with `keepOriginal`. */
  readonly #original: HiddenStates | null;

  private constructor(
    model: Model,
    options: BlockRunnerOptions,
    engine: Engine,
    arenaBytes: number,
    seqlen: number,
    batch: number,
  ) {
    this.#model = model;
    this.#options = options;
    this.#engine = engine;
    this.#seqlen = seqlen;
    this.#batch = batch;
    const { config } = model;
    const arena = new Arena(engine, arenaBytes);
    this.#arena = arena;
    const rows = Math.min(MAX_ROWS, seqlen * batch);
    this.#buffers = allocateBuffers(arena, config, {
      maxRows: rows,
      maxContext: seqlen,
      maxGroups: 1,
      maxRank: 0,
    });
    this.#cache = this.#allocateCache();
    this.#originalCache = options.keepOriginal ? this.#allocateCache() : null;
    this.#perThread = scratchLines(this.#buffers.wide, this.#buffers.wide);
    this.#scratchAt = arena.alloc(engine.threads * this.#perThread * LINE);
    this.#weightsMark = arena.mark();
    const { spillTo, windows } = options;
    const hiddenStates = () =>
      spillTo
        ? hiddenOnDisk(spillTo, config.hiddenSize)
        : hiddenInMemory(windows.length * seqlen, config.hiddenSize);
    this.#hidden = hiddenStates();
    this.#original = options.keepOriginal ? hiddenStates() : null;
  }

  #allocateCache(): Record<CacheField, number> {
    const [arena, seqlen, batch] = [this.#arena, this.#seqlen, this.#batch];
    const { descriptor, poolLines, tableBytes } = this.#options.cache(seqlen * batch, batch);
    const poolAt = arena.alloc(poolLines * LINE);
    const tableAt = arena.alloc(tableBytes);
    const table = arena.i32(tableAt, tableBytes / 4);
    const pages = Math.ceil(seqlen / PAGE_TOKENS);
    for (let s = 0; s < batch; s++) {
      for (let p = 0; p < pages; p++) table[s * descriptor.maxPages + p] = s * pages + p;
    }
    return { ...descriptor, poolAt, tableAt };
  }

  /** Embeds all windows. The caller disposes the runner. */
  static async create(model: Model, options: BlockRunnerOptions): Promise<BlockRunner> {
    const seqlen = options.windows[0]?.length ?? 0;
    if (seqlen === 0) throw new Error("no calibration windows");
    const batch = Math.max(1, Math.min(options.windows.length, Math.floor(MAX_ROWS / seqlen)));
    const { config } = model;
    let [layer, outputs] = [0, 0];
    for (const { spec } of model.parameters.values()) {
      if (spec.layer === 0)
        layer += Math.ceil((spec.shape[0] ?? 1) / 32) * 32 * ((spec.shape[1] ?? 1) * 4 + 64) + 4096;
      if (spec.layer === 0) outputs += Math.ceil((spec.shape[0] ?? 1) / 32) * 32 * MAX_ROWS * 4;
    }
    // Probes have the shapes of a block's linears and outputs of their own; captured inputs are no wider.
    const probed = 2 * layer + outputs;
    for (const site of SITES) {
      const width = siteWidth(config, site);
      const copies = config.experts && site.startsWith("mlp") ? config.experts.count : 1;
      layer += copies * (width * width * 8 + width * 12 + 4096);
      // Inputs of both models side by side, and their gram matrix.
      if (options.keepOriginal && copies === 1)
        layer += MAX_ROWS * pairColumns(width) * 4 + pairColumns(width) ** 2 * 8;
    }
    // Edges of the residual stream are placed while no block is.
    const largest = Math.max(config.hiddenSize ** 2 * 8, layer, probed);
    const cache = options.cache(seqlen * batch, batch);
    const wide = Math.max(
      config.hiddenSize,
      config.intermediateSize,
      config.numAttentionHeads * config.headDim,
    );
    const bytes =
      largest +
      MAX_ROWS * wide * 4 * 20 +
      seqlen * config.headDim * 8 +
      16 * config.numAttentionHeads * Math.ceil(seqlen / 128) * (config.headDim + 2) * 4 +
      cache.poolLines * LINE * (options.keepOriginal ? 2 : 1) +
      (options.keepOriginal ? 2 * MAX_ROWS * config.hiddenSize * 4 : 0) +
      options.threads * scratchLines(wide, wide) * LINE +
      16 * 2 ** 20;
    const arenaBytes = Math.ceil(bytes);
    const engine = await options.backend.createEngine({ arenaBytes, threads: options.threads });
    let runner: BlockRunner | null = null;
    try {
      runner = new BlockRunner(model, options, engine, arenaBytes, seqlen, batch);
      await runner.#embed();
      return runner;
    } catch (error) {
      if (runner) runner.#hidden.close();
      await engine.dispose();
      throw error;
    }
  }

  get engine(): Engine {
    return this.#engine;
  }

  /** Calibration tokens. */
  get tokens(): number {
    return this.#options.windows.length * this.#seqlen;
  }

  /**
   * Statistics of the inputs of one block's sites, with the block's weights as they are now. With `drift` these must be the
   * original weights: the block also runs on the original model's hidden states and moves them on. `lend`: Gram matrices are
   * not copied out of the arena; they are good until the runner runs again.
   */
  async observe(
    layer: number,
    wanted: { hessian: boolean; absStats: boolean; drift?: boolean; lend?: boolean },
  ): Promise<BlockStats> {
    const arena = this.#arena;
    arena.reset(this.#weightsMark);
    const places = new Map<
      string,
      { width: number; gramAt: number; sumAbsAt: number; maxAbsAt: number }
    >();
    const counts = new Map<string, number>();
    const builder = new ProgramBuilder();
    const block = await this.#place(builder, layer);
    const pairs = wanted.drift ? this.#observeOriginal(builder, block) : null;
    const observe: Observe = (site, expert, { rowsReg, srcAt, ldSrc, width }) => {
      const key = statsKey(site, expert);
      const pair = expert === null ? pairs?.get(site) : undefined;
      if (pair) {
        const ld = pairColumns(width);
        this.#emitCopy(builder, srcAt, ldSrc, pair.at, ld, width);
        pair.gramAt = arena.alloc(ld * ld * 8);
        arena.f64(pair.gramAt, ld * ld).fill(0);
        const gram = { srcAt: pair.at, ldSrc: ld, width: ld, gramAt: pair.gramAt };
        builder.emit("gram", { rowsReg, ...gram });
      }
      const gramAt = wanted.hessian ? arena.alloc(width * width * 8) : -1;
      const sumAbsAt = wanted.absStats ? arena.alloc(width * 8) : -1;
      const maxAbsAt = wanted.absStats ? arena.alloc(width * 4) : -1;
      if (gramAt >= 0) {
        arena.f64(gramAt, width * width).fill(0);
        builder.emit("gram", { rowsReg, srcAt, ldSrc, width, gramAt });
      }
      if (sumAbsAt >= 0) {
        arena.f64(sumAbsAt, width).fill(0);
        arena.f32(maxAbsAt, width).fill(0);
        builder.emit("absStats", { rowsReg, srcAt, ldSrc, width, sumAbsAt, maxAbsAt });
      }
      places.set(key, { width, gramAt, sumAbsAt, maxAbsAt });
      counts.set(key, 0);
    };
    new BlockLowering(
      builder,
      this.#model.config,
      this.#buffers,
      builder.cache(this.#cache),
      observe,
    ).block(block);
    const registers = new Int32Array(this.#engine.memory, 0, 256);
    await this.#run(
      builder,
      () => {
        for (const [key, count] of counts) {
          const expert = key.includes(":") ? Number(key.split(":")[1]) : null;
          const register = expert === null ? REGISTER.rows : REGISTER.expertRows + expert;
          counts.set(key, count + (registers[register] as number));
        }
        return null;
      },
      pairs?.get("residual")?.at,
    );
    const stats: BlockStats = new Map();
    for (const [key, { width, gramAt, sumAbsAt, maxAbsAt }] of places) {
      const entry: SiteStats = { count: counts.get(key) ?? 0 };
      if (gramAt >= 0) {
        const gram = arena.f64(gramAt, width * width);
        entry.hessian = wanted.lend ? gram : gram.slice();
        for (let i = 0; i < width; i++) {
          if (!Number.isFinite(entry.hessian[i * width + i])) {
            throw new NumericError(
              `activations of layer ${layer}, ${key} are not finite (channel ${i})`,
              {
                hint: "the model's weights overflow before this layer; check the source model",
              },
            );
          }
        }
      }
      const pair = pairs?.get(key as Site);
      if (pair) entry.drift = driftOf(arena.f64(pair.gramAt, pairColumns(width) ** 2), width);
      if (sumAbsAt >= 0) {
        entry.sumAbs = arena.f64(sumAbsAt, width).slice();
        entry.maxAbs = arena.f32(maxAbsAt, width).slice();
      }
      stats.set(key, entry);
    }
    return stats;
  }

  /**
   * Emits a run of the block on the original model's hidden states, which come and go through the buffer "residual". Inputs
   * of each site that has no router before it are left in the second half of its buffer (`pairColumns` wide).
   */
  #observeOriginal(builder: ProgramBuilder, block: Parameters<BlockLowering["block"]>[0]) {
    const arena = this.#arena;
    const { maxRows, residualAt } = this.#buffers;
    const { config } = this.#model;
    const d = config.hiddenSize;
    if (!this.#originalCache) throw new Error("the runner does not keep the original model");
    const pairs = new Map<Site | "residual", { at: number; gramAt: number }>();
    const at = arena.allocF32(maxRows * d);
    const savedAt = arena.allocF32(maxRows * d);
    pairs.set("residual", { at, gramAt: -1 });
    this.#emitCopy(builder, residualAt, d, savedAt, d, d);
    this.#emitCopy(builder, at, d, residualAt, d, d);
    const observe: Observe = (site, expert, { srcAt, ldSrc, width }) => {
      if (expert !== null) return;
      const ld = pairColumns(width);
      const pair = { at: arena.allocF32(maxRows * ld), gramAt: -1 };
      arena.f32(pair.at, maxRows * ld).fill(0);
      pairs.set(site, pair);
      this.#emitCopy(builder, srcAt, ldSrc, pair.at + (ld * 2) / LINE, ld, width);
    };
    const cache = builder.cache(this.#originalCache);
    new BlockLowering(builder, config, this.#buffers, cache, observe, true).block(block);
    this.#emitCopy(builder, residualAt, d, at, d, d);
    this.#emitCopy(builder, savedAt, d, residualAt, d, d);
    return pairs;
  }

  /** Copies a matrix of all rows and `width` columns. */
  #emitCopy(
    builder: ProgramBuilder,
    srcAt: number,
    ldSrc: number,
    dstAt: number,
    ldDst: number,
    width: number,
  ): void {
    const copy = { srcAt, ldSrc, dstAt, ldDst, width, permAt: -1, scaleAt: -1 };
    builder.emit("columns", { rowsReg: REGISTER.rows, ...copy });
  }

  /** Runs a block with its weights as they are now on the original model's hidden states and moves those on. */
  async advanceOriginal(layer: number): Promise<void> {
    this.#arena.reset(this.#weightsMark);
    const builder = new ProgramBuilder();
    const block = await this.#place(builder, layer);
    const pairs = this.#observeOriginal(builder, block);
    await this.#run(builder, () => null, pairs.get("residual")?.at);
  }

  /**
   * Inputs of the sites of one block themselves, for the first run of rows (up to 512): what a quantizer there would see.
   * Values are [rows, width], row-major. Sites behind a router are left out.
   */
  async capture(
    layer: number,
  ): Promise<Map<Site, { width: number; rows: number; values: Float32Array }>> {
    const arena = this.#arena;
    arena.reset(this.#weightsMark);
    const places = new Map<Site, { width: number; at: number }>();
    const builder = new ProgramBuilder();
    const block = await this.#place(builder, layer);
    const { maxRows } = this.#buffers;
    const observe: Observe = (site, expert, { rowsReg, srcAt, ldSrc, width }) => {
      if (expert !== null) return;
      const at = arena.alloc(maxRows * width * 4);
      builder.emit("columns", {
        rowsReg,
        srcAt,
        ldSrc,
        dstAt: at,
        ldDst: width,
        width,
        permAt: -1,
        scaleAt: -1,
      });
      places.set(site, { width, at });
    };
    new BlockLowering(
      builder,
      this.#model.config,
      this.#buffers,
      builder.cache(this.#cache),
      observe,
    ).block(block);
    const captured = new Map<Site, { width: number; rows: number; values: Float32Array }>();
    const registers = new Int32Array(this.#engine.memory, 0, 256);
    await this.#run(builder, () => {
      const rows = registers[REGISTER.rows] as number;
      for (const [site, { width, at }] of captured.size === 0 ? places : []) {
        captured.set(site, { width, rows, values: arena.f32(at, rows * width).slice() });
      }
      return null;
    });
    return captured;
  }

  /**
   * What matrices give on the inputs of their sites, summed up: for each probe the sum over all tokens and outputs of
   * (X P^T)^2, X the site's inputs with the block's weights as they are now. Runs on the engine, so whole matrices are
   * affordable: samples of outputs miss the few that carry most of the energy.
   */
  async outputEnergy(layer: number, probes: readonly Probe[]): Promise<Float64Array> {
    const arena = this.#arena;
    arena.reset(this.#weightsMark);
    const builder = new ProgramBuilder();
    const block = await this.#place(builder, layer);
    const { maxRows } = this.#buffers;
    const outputs: { probe: number; at: number; width: number; ld: number; rowsReg: number }[] = [];
    const observe: Observe = (site, expert, { rowsReg, srcAt, ldSrc }) => {
      for (const [probe, { n, k, values, ...place }] of probes.entries()) {
        if (place.site !== site || place.expert !== expert) continue;
        const dense = { n, k, bias: null, path: `layers.${layer}, ${site}`, dense: values };
        const weightW = placeWeights(arena, builder, [dense]).weight;
        const ld = Math.ceil(n / 32) * 32;
        const at = arena.allocF32(maxRows * ld);
        builder.emit("linearFloat", {
          rowsReg,
          srcAt,
          ldSrc,
          weightW,
          dstAt: at,
          ldDst: ld,
          epilogue: EPILOGUE.store,
        });
        outputs.push({ probe, at, width: n, ld, rowsReg });
      }
    };
    new BlockLowering(
      builder,
      this.#model.config,
      this.#buffers,
      builder.cache(this.#cache),
      observe,
    ).block(block);
    const energy = new Float64Array(probes.length);
    const registers = new Int32Array(this.#engine.memory, 0, 256);
    await this.#run(builder, () => {
      for (const { probe, at, width, ld, rowsReg } of outputs) {
        const rows = registers[rowsReg] as number;
        const values = arena.f32(at, rows * ld);
        let sum = 0;
        for (let r = 0; r < rows; r++) {
          for (let i = r * ld, end = i + width; i < end; i++) sum += (values[i] as number) ** 2;
        }
        energy[probe] = (energy[probe] as number) + sum;
      }
      return null;
    });
    return energy;
  }

  /**
   * Runs a block with its weights as they are now; its outputs are the inputs of the next one. `visit` sees queries, keys
   * and values on the way; the cache must be fp32.
   */
  async advance(layer: number, visit?: (chunk: CacheChunk) => void): Promise<void> {
    this.#arena.reset(this.#weightsMark);
    const builder = new ProgramBuilder();
    const block = await this.#place(builder, layer);
    new BlockLowering(builder, this.#model.config, this.#buffers, builder.cache(this.#cache)).block(
      block,
    );
    await this.#run(builder, (residual, batch) => {
      visit?.(this.#cacheChunk(batch));
      return residual;
    });
  }

  #cacheChunk(batch: number): CacheChunk {
    const arena = this.#arena;
    const cache = this.#cache;
    const { queryAt, positionsAt, sequencesAt } = this.#buffers;
    const rows = new Int32Array(this.#engine.memory, 0, 256)[REGISTER.rows] as number;
    const { numAttentionHeads, headDim } = this.#model.config;
    const keyFloats = (cache.keyLines * LINE) / 4;
    const pages = Math.ceil(this.#seqlen / PAGE_TOKENS);
    const plane = (window: number, page: number, kvHead: number) =>
      cache.poolAt +
      ((window - batch * this.#batch) * pages + page) * cache.pageLines +
      kvHead * cache.headLines;
    return {
      rows,
      positions: arena.i32(positionsAt, rows),
      windows: arena.i32(sequencesAt, rows).map((s) => batch * this.#batch + s),
      queries: arena.f32(queryAt, rows * numAttentionHeads * headDim),
      keys: (window, page, kvHead) => arena.f32(plane(window, page, kvHead), keyFloats),
      values: (window, page, kvHead) =>
        arena.f32(plane(window, page, kvHead) + cache.keyLines, keyFloats),
    };
  }

  async dispose(): Promise<void> {
    this.#hidden.close();
    this.#original?.close();
    await this.#engine.dispose();
  }

  async #place(builder: ProgramBuilder, layer: number) {
    const model = this.#model;
    const recipes = placeSites(this.#arena, model)(layer);
    const open = Object.fromEntries(
      SITES.map((site) => [site, { transforms: recipes[site].transforms, quantizer: null }]),
    ) as Record<Site, SiteRecipe>;
    return placeLayer(this.#arena, builder, model, layer, 0, open, { dense: true });
  }

  /** Rows of the table are copied as they are, band by band; then the edge of the residual stream, if it has one. */
  async #embed(): Promise<void> {
    const { windows } = this.#options;
    const { config, transforms } = this.#model;
    const d = config.hiddenSize;
    for (const [w, window] of windows.entries()) {
      const position = window.findIndex((token) => token < 0 || token >= config.vocabSize);
      if (position >= 0) {
        throw new ModelError(
          `token ${window[position]} of calibration window ${w} is not one of the model's ${config.vocabSize}`,
          { hint: "tokenizer.json belongs to another model, or has tokens the embedding lacks" },
        );
      }
    }
    for await (const { from, values } of this.#tableBands()) {
      const to = from + values.length / d;
      for (const [w, window] of windows.entries()) {
        for (const [position, token] of window.entries()) {
          if (token < from || token >= to) continue;
          const row = values.subarray((token - from) * d, (token - from + 1) * d);
          this.#hidden.write(w * this.#seqlen + position, row);
        }
      }
      this.#options.signal?.throwIfAborted();
    }
    await dropGarbage();
    if (!transforms.some(({ op, site }) => op === "edge" && site === "embed_out")) {
      this.#keepOriginal();
      return;
    }
    const builder = new ProgramBuilder();
    const placed = await placeEdges(this.#arena, builder, this.#model);
    const edges = edgeEmitters(placed, this.#model.config);
    edges.emitInput(builder, this.#buffers);
    await this.#run(builder, (residual) => residual);
    this.#keepOriginal();
  }

  async *#tableBands(): AsyncGenerator<RowBand> {
    const { weight } = parameter(this.#model, "embed");
    if ("quant" in weight) yield { from: 0, values: decode(await weight.quant()) };
    else yield* rowBands(weight);
  }

  #keepOriginal(): void {
    if (!this.#original) return;
    const rows = this.#options.windows.length * this.#seqlen;
    const d = this.#model.config.hiddenSize;
    for (let from = 0; from < rows; from += MAX_ROWS) {
      const part = new Float32Array(Math.min(MAX_ROWS, rows - from) * d);
      this.#hidden.read(from, part);
      this.#original.write(from, part);
    }
  }

  /**
   * Runs a program over all windows, chunk by chunk; `after` may give the rows that replace the hidden states. Those of the
   * original model pass through the rows at `originalAt`.
   */
  async #run(
    builder: ProgramBuilder,
    after: (residual: Float32Array, batch: number) => Float32Array | null,
    originalAt = -1,
  ): Promise<void> {
    const { maxRows, residualAt, positionsAt, sequencesAt } = this.#buffers;
    const arena = this.#arena;
    const d = this.#model.config.hiddenSize;
    const program = this.#engine.load(
      builder.build({
        scratchAt: this.#scratchAt,
        scratchLines: this.#perThread,
        maxRows,
        arenaLines: arena.usedLines,
      }),
    );
    const registers = new Int32Array(this.#engine.memory, 0, 256);
    const { windows } = this.#options;
    try {
      for (let first = 0; first < windows.length; first += this.#batch) {
        const batch = first / this.#batch;
        const rows = Math.min(this.#batch, windows.length - first) * this.#seqlen;
        for (let start = 0; start < rows; start += maxRows) {
          this.#options.signal?.throwIfAborted();
          const count = Math.min(maxRows, rows - start);
          const positions = arena.i32(positionsAt, count);
          const sequences = arena.i32(sequencesAt, count);
          for (let i = 0; i < count; i++) {
            const row = start + i;
            const inBatch = Math.floor(row / this.#seqlen);
            positions[i] = row % this.#seqlen;
            sequences[i] = inBatch;
          }
          const residual = arena.f32(residualAt, count * d);
          const from = first * this.#seqlen + start;
          const other = originalAt < 0 ? null : arena.f32(originalAt, count * d);
          this.#hidden.read(from, residual);
          if (other) this.#original?.read(from, other);
          registers[REGISTER.rows] = count;
          await this.#engine.run(program);
          if (other) this.#original?.write(from, other);
          const replacement = after(residual, batch);
          if (replacement) this.#hidden.write(from, replacement);
        }
      }
    } finally {
      program.dispose();
    }
  }
}

/** Columns of a buffer with the inputs of both models side by side, each half a whole number of lines. */
function pairColumns(width: number): number {
  const perLine = LINE / 4;
  return 2 * Math.ceil(width / perLine) * perLine;
}

/** Sum of x (y - x)^T from the gram matrix of rows [x | y]; of that only the upper triangle is read. */
function driftOf(gram: Float64Array, width: number): Float64Array {
  const drift = new Float64Array(width * width);
  const ld = pairColumns(width);
  for (let i = 0; i < width; i++) {
    for (let j = 0; j < width; j++) {
      const [p, q] = i < j ? [i, j] : [j, i];
      drift[i * width + j] = (gram[i * ld + ld / 2 + j] as number) - (gram[p * ld + q] as number);
    }
  }
  return drift;
}
