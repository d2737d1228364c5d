/** A model made ready to run: its cache planned, compiled for a backend. Runs in Node and in the browser. */
import { UsageError } from "../core/errors.js";
import { defaultThreads } from "../core/memory.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { defaultRows, PageTables, planCache } from "../kv/cache.js";
import { FlatImage, type SequenceImage } from "../kv/flat-image.js";
import { PrefixCache } from "../kv/prefix-cache.js";
import { kvPreset } from "../kv/presets.js";
import { completeKv, isFlat, resolveKv } from "../kv/recipe.js";
import { ManagedImage } from "../kv/streams/image.js";
import { type CompiledModel, compileModel } from "../model/compile.js";
import type { KvRecipe, Model } from "../model/model.js";
import type { PreparedWeights } from "../model/placement.js";
import { SITES } from "../model/roles.js";
import { Tokenizer } from "../model/tokenizer.js";
import type { KvCalibration } from "./kv-calibration.js";
import { ManagedRunner } from "./managed-runner.js";
import { Runner } from "./runner.js";
import { Scheduler } from "./scheduler.js";

export interface OpenOptions {
  backend?: "auto" | BackendId;
  threads?: number;
  /** Preset name or description; default: what the artifact says, else the exact fp32 cache. */
  kv?: string | KvRecipe;
  /** What the codecs of the cache learned from calibration text; openModel reads the file that the recipe names. */
  kvCalibration?: KvCalibration;
  /**
   * Inputs of linears of a model whose artifact quantizes none: f32 (default), or 8-bit integers, one symmetric scale a
   * token, in front of integer weights. An approximation that is several times faster in prompts.
   */
  activations?: "f32" | "i8";
  /** Tokens a sequence may reach; default min(the model's own limit, 8192). */
  maxContext?: number;
  /** Sequences alive at once. */
  sequences?: number;
  /** Tokens that all sequences together have room for, shared prefixes counted once; default maxContext for each. */
  cacheTokens?: number;
  /**
   * Prompts begin with the cache pages of earlier ones that began alike; default: when there are several sequences. Caches
   * that hold more than pages (kivi) never do.
   */
  sharePrefixes?: boolean;
  maxRows?: number;
  /** Weights as earlier processes placed them; openModel gives them for artifacts (NIBBLE_PREPARED). */
  prepared?: PreparedWeights | null;
  log?: (line: string) => void;
  onLayer?: (layer: number, layers: number) => void;
  signal?: AbortSignal;
}

/** Where the time of opening went, seconds. */
export interface OpenTimes {
  /** Choosing the backend: loading it and asking its known-answer probe. */
  backendSeconds: number;
  /** Reading, packing and placing weights, and compiling. */
  weightsSeconds: number;
  tokenizerSeconds: number;
}

export interface OpenedModel {
  readonly model: Model;
  readonly compiled: CompiledModel;
  readonly runner: Runner;
  /** Joins the rows of sessions that generate at the same time. */
  readonly scheduler: Scheduler;
  readonly prefixes: PrefixCache | null;
  /** Cache contents of a sequence as bytes. */
  readonly image: SequenceImage;
  readonly tokenizer: Tokenizer | null;
  readonly kv: KvRecipe;
  readonly times: OpenTimes;
  /** What the codecs of the cache learned, when they did. */
  readonly kvCalibration: KvCalibration | null;
  close(): Promise<void>;
}

/**
 * Compiles a loaded model. The model stays open: its tensors are read while it is compiled, and whoever loaded it closes it.
 * @throws ModelError, BackendError, ResourceError with what is wrong and what to do
 */
export async function openLoaded(source: Model, options: OpenOptions = {}): Promise<OpenedModel> {
  const model = withActivations(source, options.activations);
  const kv = resolveKv(
    typeof options.kv === "string"
      ? kvPreset(options.kv)
      : (options.kv ?? model.kv ?? kvPreset("fp32")),
    model.config,
  );
  const threads = options.threads ?? defaultThreads();
  if (!Number.isInteger(threads) || threads < 1 || threads > 256) {
    throw new UsageError(`threads is ${threads}, expected an integer from 1 to 256`);
  }
  const maxContext = options.maxContext ?? Math.min(model.config.maxPositionEmbeddings, 8192);
  const sequences = options.sequences ?? 1;
  const complete = completeKv(kv);
  const flat = isFlat(complete);
  const maxRows = options.maxRows ?? (flat ? defaultRows(kv) : 512);
  const begun = performance.now();
  const backend = await selectBackend(options.backend ?? "auto", options.log ?? (() => {}));
  const chosen = performance.now();
  const compiled = await compileModel(model, {
    backend,
    threads,
    cache: flat
      ? planCache(kv, model.config, {
          tokens: options.cacheTokens ?? maxContext * sequences,
          sequenceTokens: maxContext,
          sequences,
          layers: model.config.numHiddenLayers,
          maxRows,
        })
      : planCache(kvPreset("fp32"), model.config, { tokens: 1, sequences: 1, layers: 1 }),
    managed: !flat,
    maxContext,
    maxRows,
    ...(options.prepared ? { prepared: options.prepared } : {}),
    ...(options.onLayer ? { onLayer: options.onLayer } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const placed = performance.now();
  const tokenizer = model.files.has("tokenizer.json") ? Tokenizer.fromFiles(model.files) : null;
  const tokenized = performance.now();
  const runner = flat
    ? new Runner(compiled, sequences)
    : new ManagedRunner(compiled, complete, sequences, options.kvCalibration?.tensors ?? null);
  const sharePrefixes = options.sharePrefixes ?? sequences > 1;
  return {
    model,
    compiled,
    runner,
    scheduler: new Scheduler(runner),
    prefixes:
      sharePrefixes && runner.tables instanceof PageTables && runner.tables.pagesAreAll
        ? new PrefixCache(runner.tables, JSON.stringify(kv))
        : null,
    image:
      runner instanceof ManagedRunner
        ? new ManagedImage(runner.cache)
        : new FlatImage(compiled.arena, compiled.cache, runner.tables as PageTables),
    tokenizer,
    kv,
    times: {
      backendSeconds: (chosen - begun) / 1000,
      weightsSeconds: (placed - chosen) / 1000,
      tokenizerSeconds: (tokenized - placed) / 1000,
    },
    kvCalibration: options.kvCalibration ?? null,
    close: () => runner.dispose(),
  };
}

/** @throws UsageError for a model whose artifact already says how its inputs are quantized */
function withActivations(model: Model, wanted: "f32" | "i8" | undefined): Model {
  if (wanted === undefined) return model;
  if (Object.keys(model.activations).length > 0 || model.activationOverrides.size > 0) {
    throw new UsageError("the artifact says how its activations are quantized, and runs so", {
      hint: "Leave --activations out, or compress the model without an activations step.",
    });
  }
  if (wanted === "f32") return model;
  const quantizer = { bits: 8, granularity: "token", symmetric: true, clip: 1 } as const;
  const activations = Object.fromEntries(SITES.map((site) => [site, quantizer]));
  return { ...model, activations };
}
