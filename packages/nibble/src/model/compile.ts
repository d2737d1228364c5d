/**
 * Compiles a model: places every weight in an engine's arena (tensor by tensor, never two copies of more than one layer's
 * projections) and lowers the forward pass to one flat program. Registers choose what a run does: how many rows go
 * through the blocks, for how many of them logits, statistics or divergences are wanted.
 */
import { ModelError, ResourceError } from "../core/errors.js";
import { Arena } from "../graph/arena.js";
import { type Backend, type Engine, type LoadedProgram, PANEL_GRAIN } from "../kernels/contract.js";
import { type CacheField, EPILOGUE, LINE } from "../kernels/ops.js";
import { ProgramBuilder } from "../kernels/program.js";
import { scratchLines } from "../kernels/scratch.js";
import { allocateBuffers } from "./buffers.js";
import type { ModelConfig } from "./config.js";
import { BlockLowering, type PlacedBlock, REGISTER } from "./lower.js";
import type { Model } from "./model.js";
import { isTied } from "./model.js";
import { edgeEmitters, maxGroups, placeLayer } from "./place-model.js";
import { type PreparedWeights, placeModel } from "./placement.js";

export interface CompileOptions {
  backend: Backend;
  threads: number;
  /** Cache descriptor from planCache (its places are filled in here) and its sizes. */
  cache: {
    descriptor: Record<CacheField, number>;
    poolLines: number;
    tableBytes: number;
    tailLines: number;
  };
  /**
   * The cache is managed outside of the engine: the program is cut at every layer's attention, and `cache` serves nothing.
   */
  managed?: boolean;
  /** Positions a sequence may reach. */
  maxContext: number;
  /** Rows of one run; longer prompts go in chunks. */
  maxRows?: number;
  /** Rows that get logits at once. */
  maxLogitRows?: number;
  /** Weights that earlier processes placed; used by backends that can map them. */
  prepared?: PreparedWeights;
  onLayer?: (layer: number, layers: number) => void;
  signal?: AbortSignal;
}

/** Where the host writes inputs and reads outputs. */
export interface IoPlaces {
  tokensAt: number;
  positionsAt: number;
  sequencesAt: number;
  /** Final hidden rows, ready for the head [maxRows, hiddenSize]. */
  hiddenAt: number;
  /** Row numbers that get logits. */
  logitIndexAt: number;
  logitsAt: number;
  targetsAt: number;
  statsAt: number;
  referenceAt: number;
  klAt: number;
}

/** A model cut at its attentions: what runs between them, and attention over one decoded tile. */
export interface LayerPrograms {
  /** Tokens -> residual. */
  embed: LoadedProgram;
  /** Per layer: residual -> q, k, v; and attention output and residual -> residual. */
  input: LoadedProgram[];
  output: LoadedProgram[];
  /** Residual -> hidden rows and logits. */
  finish: LoadedProgram;
  residualAt: number;
  qkvAt: number;
  ldQkv: number;
  attentionAt: number;
  /** f32 [headDim] per layer, -1 without QK norm. */
  gains: { queryAt: number; keyAt: number }[];
  tile: {
    slots: number;
    queryAt: number;
    keysAt: number;
    valuesAt: number;
    rangesAt: number;
    stateAt: number;
    logitsAt: number;
    plain: LoadedProgram;
    withLogits: LoadedProgram;
  };
}

/** Slots of a tile: small enough to stay in the caches of a core, large enough to make a run worth its start. */
const TILE_SLOTS = 512;

export interface CompiledModel {
  readonly config: ModelConfig;
  readonly engine: Engine;
  readonly arena: Arena;
  readonly io: IoPlaces;
  readonly maxRows: number;
  readonly maxLogitRows: number;
  readonly maxContext: number;
  readonly cache: Record<CacheField, number>;
  readonly cacheTable: Int32Array;
  readonly registers: Int32Array;
  readonly rope: { cosAt: number; sinAt: number };
  /** Blocks and head: registers rows, logitRows. null when the cache is managed. */
  readonly step: LoadedProgram | null;
  /** Set when the cache is managed. */
  readonly layers: LayerPrograms | null;
  /** Every program that rows go through, once. */
  readonly programs: readonly LoadedProgram[];
  /** Head (and statistics) only, on hidden rows that the last step left. */
  readonly head: LoadedProgram;
  /** Weights were taken from a file that an earlier process prepared. */
  readonly prepared: boolean;
  /** Bytes of placed weights, embedding and head included. */
  readonly weightBytes: number;
  /** Bytes that a decoded token reads: every linear once, the head once. */
  readonly bytesPerToken: number;
  /**
   * Writes the weights of one layer of another model over this one's: same shapes, same encodings, so that everything
   * keeps its place and the program stays valid. @throws Error when a place would move
   */
  replaceLayer(layer: number, from: Model): Promise<void>;
  dispose(): Promise<void>;
}

/** Upper bound of the arena. Untouched pages cost nothing, so it may be generous. */
function arenaBound(
  model: Model,
  options: CompileOptions,
  maxRows: number,
  maxLogitRows: number,
): number {
  const c = model.config;
  let bytes = 16 * 2 ** 20;
  for (const { spec } of model.parameters.values()) {
    const [n = 1, k = 1] = spec.shape;
    bytes += Math.ceil(n / 32) * 32 * (Math.ceil(k / 32) * 32 * 4.5 + 64) + 4096;
  }
  const wide = Math.max(c.hiddenSize, c.intermediateSize, c.numAttentionHeads * c.headDim);
  bytes += maxRows * wide * 4 * 16;
  bytes += options.maxContext * c.headDim * 4 * 2;
  bytes += 16 * c.numAttentionHeads * Math.ceil(options.maxContext / 128) * (c.headDim + 2) * 4;
  bytes += maxLogitRows * (Math.ceil(c.vocabSize / 32) * 32) * 4 * 2 + 2 ** 20;
  bytes += options.threads * scratchLines(wide, wide) * LINE;
  if (options.managed) {
    const tile = 2 * c.numKeyValueHeads * c.headDim + maxRows * c.numAttentionHeads;
    bytes += tile * TILE_SLOTS * 4 + maxRows * c.numAttentionHeads * (c.headDim + 4) * 4;
  }
  bytes += (options.cache.poolLines + options.cache.tailLines) * LINE + options.cache.tableBytes;
  return Math.ceil(bytes);
}

/**
 * @throws ResourceError when the arena cannot hold the model on this backend; ModelError for encodings or transforms that
 * the kernels cannot run; whatever reading a tensor throws.
 */
export async function compileModel(model: Model, options: CompileOptions): Promise<CompiledModel> {
  const { config } = model;
  const maxRows = options.maxRows ?? 512;
  const maxLogitRows = Math.min(options.maxLogitRows ?? 64, maxRows);
  const arenaBytes = arenaBound(model, options, maxRows, maxLogitRows);
  const engine = await options.backend.createEngine({ arenaBytes, threads: options.threads });
  try {
    const arena = new Arena(engine, arenaBytes);
    const prepared = engine.mapPanels && options.prepared;
    if (prepared) arena.align(PANEL_GRAIN);
    const taken = prepared ? await prepared.take(engine, arena.mark()) : null;
    if (taken) arena.alloc((taken.to - taken.from) * LINE);
    const placement = taken ?? (await placeModel(arena, model, options));
    if (prepared && !taken) prepared.offer(engine, placement);
    // What a file stands for ends at the end of a page.
    if (prepared) arena.align(PANEL_GRAIN);
    const { embedding, blocks, marks, embeddingBytes } = placement;
    const builder = new ProgramBuilder(placement.descriptors);
    const edges = edgeEmitters(placement.edges, config);
    const weightBytes = (placement.to - placement.from) * LINE;
    const layerBytes = ((marks.at(-1) ?? 0) - placement.from) * LINE - embeddingBytes;
    const weightsEnd = arena.usedLines;

    const buffers = allocateBuffers(arena, config, {
      maxRows,
      maxContext: options.maxContext,
      maxGroups: maxGroups(blocks, config),
      maxRank: maxRank(blocks),
    });
    const poolAt = arena.alloc(options.cache.poolLines * LINE);
    const poolEnd = arena.usedLines;
    const cache = {
      ...options.cache.descriptor,
      poolAt,
      tableAt: arena.alloc(options.cache.tableBytes),
      tailAt: options.cache.tailLines > 0 ? arena.alloc(options.cache.tailLines * LINE) : -1,
    };
    const cacheIndex = builder.cache(cache);
    const d = config.hiddenSize;
    const vocabRows = Math.ceil(config.vocabSize / 32) * 32;
    const io: IoPlaces = {
      tokensAt: arena.alloc(maxRows * 4),
      positionsAt: buffers.positionsAt,
      sequencesAt: buffers.sequencesAt,
      hiddenAt: arena.allocF32(maxRows * d),
      logitIndexAt: arena.alloc(maxLogitRows * 4),
      logitsAt: arena.allocF32(maxLogitRows * vocabRows),
      targetsAt: arena.alloc(maxLogitRows * 4),
      statsAt: arena.alloc(maxLogitRows * 16),
      referenceAt: arena.allocF32(maxLogitRows * vocabRows),
      klAt: arena.alloc(maxLogitRows * 8),
    };
    const tilePlaces = options.managed ? placeTile(arena, config, maxRows) : null;
    const wide = buffers.wide;
    const perThread = scratchLines(Math.max(wide, d), wide);
    const scratchAt = arena.alloc(options.threads * perThread * LINE);
    // Buffers have room for the longest chunk; a short prompt uses the start of each.
    engine.sparse?.(weightsEnd, poolAt);
    engine.sparse?.(poolEnd, scratchAt);
    const limits = {
      scratchAt,
      scratchLines: perThread,
      maxRows,
      maxLogitRows,
      arenaLines: arena.usedLines,
    };

    const emitHead = (b: ProgramBuilder) => {
      const headInputAt = buffers.normedAt;
      b.emit("gatherRows", {
        rowsReg: REGISTER.logitRows,
        srcAt: io.hiddenAt,
        ldSrc: d,
        dstAt: headInputAt,
        ldDst: d,
        width: d,
        indexAt: io.logitIndexAt,
      });
      b.emit("linearFloat", {
        rowsReg: REGISTER.logitRows,
        srcAt: headInputAt,
        ldSrc: d,
        weightW: embedding.head.weight,
        dstAt: io.logitsAt,
        ldDst: vocabRows,
        epilogue: EPILOGUE.store,
      });
      b.emit("logitStats", {
        rowsReg: REGISTER.statRows,
        logitsAt: io.logitsAt,
        ldLogits: vocabRows,
        width: config.vocabSize,
        targetsAt: io.targetsAt,
        dstAt: io.statsAt,
      });
      b.emit("klDivergence", {
        rowsReg: REGISTER.klRows,
        referenceAt: io.referenceAt,
        ldReference: vocabRows,
        logitsAt: io.logitsAt,
        ldLogits: vocabRows,
        width: config.vocabSize,
        dstAt: io.klAt,
      });
    };
    // The head program shares the descriptors but starts with its own instructions.
    const headBuilder = builder.fork();
    emitHead(headBuilder);

    const emitEmbed = (b: ProgramBuilder) => {
      b.emit("embed", {
        rowsReg: REGISTER.rows,
        dstAt: buffers.residualAt,
        ldDst: d,
        tokensAt: io.tokensAt,
        tableW: embedding.embed.weight,
      });
      edges.emitInput(b, buffers);
    };
    const emitFinish = (b: ProgramBuilder) => {
      edges.emitOutput(b, buffers, io.hiddenAt);
      emitHead(b);
    };
    const registers = new Int32Array(engine.memory, 0, 256);
    const head = engine.load(headBuilder.build(limits));
    const part = (emit: (b: ProgramBuilder) => void) => {
      const own = builder.fork();
      emit(own);
      return engine.load(own.build(limits));
    };
    const lowering = (b: ProgramBuilder) => new BlockLowering(b, config, buffers, cacheIndex);
    const layers: LayerPrograms | null = tilePlaces && {
      embed: part(emitEmbed),
      input: blocks.map((block) => part((b) => lowering(b).blockInput(block))),
      output: blocks.map((block) => part((b) => lowering(b).blockOutput(block))),
      finish: part(emitFinish),
      residualAt: buffers.residualAt,
      qkvAt: buffers.qkvAt,
      ldQkv: buffers.ldQkv,
      attentionAt: buffers.attentionAt,
      gains: blocks.map(({ queryGainAt, keyGainAt }) => ({
        queryAt: queryGainAt,
        keyAt: keyGainAt,
      })),
      tile: {
        ...tilePlaces,
        plain: part((b) => emitTile(b, config, { ...tilePlaces, logitsAt: -1 })),
        withLogits: part((b) => emitTile(b, config, tilePlaces)),
      },
    };
    const step = layers
      ? null
      : part((b) => {
          emitEmbed(b);
          for (const block of blocks) lowering(b).block(block);
          emitFinish(b);
        });
    const programs = layers
      ? [layers.embed, ...layers.input, ...layers.output, layers.finish]
      : [step as LoadedProgram];
    return {
      config,
      engine,
      arena,
      io,
      maxRows,
      maxLogitRows,
      maxContext: options.maxContext,
      cache,
      cacheTable: arena.i32(cache.tableAt, options.cache.tableBytes / 4),
      registers,
      rope: { cosAt: buffers.cosAt, sinAt: buffers.sinAt },
      step,
      layers,
      programs,
      head,
      prepared: taken !== null,
      weightBytes,
      bytesPerToken:
        layerBytes + (isTied(model) ? embeddingBytes : embeddingBytes - embedding.embedBytes),
      async replaceLayer(layer, from) {
        options.prepared?.withdraw();
        const end = arena.mark();
        arena.reset(marks[layer] as number);
        try {
          const { sites } = blocks[layer] as PlacedBlock;
          await placeLayer(arena, new ProgramBuilder(), from, layer, layer, sites);
          if (arena.mark() !== marks[layer + 1]) throw new Error(`layer ${layer} changed its size`);
        } finally {
          arena.reset(end);
        }
      },
      dispose: () => engine.dispose(),
    };
  } catch (error) {
    await engine.dispose();
    if (error instanceof RangeError) {
      throw new ResourceError(`not enough memory for the model: ${error.message}`, {
        cause: error,
      });
    }
    throw error;
  }
}

type TilePlaces = Omit<LayerPrograms["tile"], "plain" | "withLogits">;

function placeTile(arena: Arena, config: ModelConfig, maxRows: number): TilePlaces {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
  const tile = kvHeads * TILE_SLOTS * headDim;
  return {
    slots: TILE_SLOTS,
    queryAt: arena.allocF32(maxRows * heads * headDim),
    keysAt: arena.allocF32(tile),
    valuesAt: arena.allocF32(tile),
    rangesAt: arena.alloc(maxRows * kvHeads * 8),
    stateAt: arena.allocF32(maxRows * heads * (headDim + 2)),
    logitsAt: arena.allocF32(maxRows * heads * TILE_SLOTS),
  };
}

function emitTile(builder: ProgramBuilder, config: ModelConfig, places: TilePlaces): void {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
  builder.emit("attendTile", {
    rowsReg: REGISTER.rows,
    ldQuery: heads * headDim,
    heads,
    kvHeads,
    headDim,
    softmaxScaleF: 1 / Math.sqrt(headDim),
    ...places,
  });
}

function maxRank(blocks: PlacedBlock[]): number {
  let rank = 0;
  for (const block of blocks) {
    if ("experts" in block.mlp && block.mlp.experts.length > 200) {
      throw new ModelError("more than 200 experts a layer are not supported");
    }
    for (const linear of [...block.qkv, block.o]) {
      for (const pair of linear.lowRank) rank = Math.max(rank, pair.rank);
    }
    const mlps = "experts" in block.mlp ? block.mlp.experts : [block.mlp];
    for (const mlp of mlps) {
      const linears = "weight" in mlp.gateUp ? [mlp.gateUp] : [mlp.gateUp.gate, mlp.gateUp.up];
      for (const linear of [...linears, mlp.down]) {
        for (const pair of linear.lowRank) rank = Math.max(rank, pair.rank);
      }
    }
  }
  return rank;
}
