/**
 * What a cache codec and a retention policy are. A codec says how sealed rows of one plane (keys or values of one KV head)
 * are coded; a policy says which rows exist and never touches bytes. Neither knows pages, sequences or the engine.
 * Names and order of events follow docs/kv-cache.md. One method is one file in codecs/ or retention/ and one line in the
 * table beside it.
 */
import type { z } from "zod";
import type { CalibrationSamples } from "../observers/kv-samples.js";

/** Which rows a plane codec is for. */
export type PlaneName = "k" | "v";

/** Where a codec instance works; one instance serves all sequences of one layer and KV head. */
export interface PlaneInfo {
  plane: PlaneName;
  headDim: number;
  layer: number;
  kvHead: number;
  /** Seed of the cache recipe; codecs that draw numbers derive a stream from it, layer and kvHead. */
  seed: number;
  /** Tensors of a calibration artifact for this layer and head (names hold the plane: "k.low"); null when none was given. */
  calibration: ReadonlyMap<string, Float32Array> | null;
}

export interface CodecCaps {
  /** Tokens of a sealed group; 1 = any token can be sealed. */
  group: number;
  /** When the exact tail holds `when` rows, the oldest `take` rows are sealed (0: all but `keep`), `keep` stay. */
  flush: { when: number; keep: number; take: number };
  /** Whether a row is sealed before the query of its own step attends to it. */
  sealTiming: "beforeAttend" | "afterAttend";
  /** Keys are stored before or after RoPE (k plane only). */
  keyFrame: "pre" | "post";
  /** Hadamard of headDim on keys at append and on queries before scoring (R3); here and nowhere else. */
  headTransform?: "hadamard";
  /** One slot of a sealed group can be overwritten in place. */
  slotRewrite: boolean;
  /** encode() gives a variable part besides the fixed bytes. */
  variableBytes: boolean;
  /** Statistics that encode() wants of the rows it seals. */
  stats?: StatRequest;
}

/** What is known of the rows that are sealed. */
export interface SealInfo {
  /** Slot number of the first row, counted over the life of the stream. */
  firstSlot: number;
  /** Tokens the stream has seen so far. */
  length: number;
  /** Largest attention probability each row received from the last `lastRows` queries [n]; when caps.stats asks for it. */
  attention: Float32Array | null;
}

/** The coder of one plane of one layer and head. Deterministic: same rows and info, same bytes. */
export interface PlaneCodec {
  readonly caps: CodecCaps;
  /** Fixed bytes of one group (a multiple of 4, so that f32 and i32 views fit); the page holds nothing else of it. */
  readonly groupBytes: number;
  /**
   * Codes n = caps.group rows [n, headDim] into dst [groupBytes], which may hold anything before.
   * @returns the variable part, null when there is none
   */
  encode(rows: Float32Array, n: number, dst: Uint8Array, info: SealInfo): Uint8Array | null;
  /** Decodes the first n rows into out [n, headDim]. */
  decode(src: Uint8Array, variable: Uint8Array | null, n: number, out: Float32Array): void;
}

/** A tensor of a calibration artifact: [kvHeads, n] holds a row for each head, [n] serves all heads of the layer. */
export interface CalibrationTensor {
  name: string;
  shape: readonly number[];
  data: Float32Array;
}

/** A codec of the registry. `Options` is what its entry in a kv recipe holds, with every default filled in. */
export interface KvCodecDefinition<Options = unknown> {
  readonly id: string;
  readonly title: string;
  readonly paper: string;
  readonly summary: string;
  readonly options: z.ZodType<Options, unknown>;
  /** Planes it may serve. */
  readonly planes: readonly PlaneName[];
  /** Names of the calibration tensors it cannot do without; empty: calibration-free. */
  readonly needs?: readonly string[];
  /**
   * Name of the packed kernels that run this codec with these options, null or absent when there are none. Keys and values
   * run in the engine when theirs are the same.
   */
  kernels?(options: Options): string | null;
  /** Stored bits per element of a sealed group, parameters included, for accounting tests; null where it varies. */
  bitsPerElement(options: Options, headDim: number): number | null;
  /** @throws RecipeError when the options do not fit the head size, or calibration is missing */
  create(options: Options, info: PlaneInfo): PlaneCodec;
  /** The tensors of one plane of one layer; codecs that calibration serves. */
  calibrate?(options: Options, plane: PlaneName, samples: CalibrationSamples): CalibrationTensor[];
}

/** Statistics of attention that a policy or codec asks for. */
export type StatRequest =
  | { kind: "none" }
  /** Sum over the query rows (and query heads of the group) of the probability each slot received. */
  | { kind: "colSumProb" }
  /** Largest probability of each slot over the last `lastRows` query rows and the heads of the group. */
  | { kind: "colMaxProb"; lastRows: number }
  /** The scaled logits themselves, one row per query row and query head of the group. */
  | { kind: "rawLogits" };

/** What a stream is, told to a policy once. */
export interface StreamInfo {
  layer: number;
  /** First KV head of the stream; a stream of granularity "layer" stands for all of them. */
  kvHead: number;
  kvHeads: number;
  headDim: number;
  /** Random streams depend on it, layer and head, never on the slot of a sequence: batches equal singles. */
  seed: number;
}

/**
 * Statistics of one step, over the live slots in the order in which they were appended, whatever place they have in pages;
 * the last of them are those of the step. `rows` query rows were committed in it.
 */
export interface AttentionStats {
  /** Committed rows of this step; 1 while decoding. */
  rows: number;
  /** Position of the last of them. */
  position: number;
  /** Live slots after the step's rows were appended. */
  live: number;
  /** True for the first step of a sequence (its prompt, or the part of it that ran exactly). */
  prompt: boolean;
  /**
   * True when more query rows of the same step follow (a long prompt hands its logits over in parts): the policy only
   * accumulates, its plan is ignored. `live` counts the slots of all rows of the step.
   */
  more: boolean;
  /**
   * Tokens of the prompt, those still to come included when it is fed in parts or one by one (an evaluated text is all
   * prompt): what budgets given as shares are shares of. The same number in every step of a sequence.
   */
  promptLength: number;
  /** colSumProb / colMaxProb: [live]. */
  columns?: Float32Array;
  /**
   * rawLogits: [rows * heads, live], the `heads` query heads of a row together; scaled and masked (-Infinity where a row
   * may not look).
   */
  logits?: Float32Array;
  heads?: number;
}

/** What a policy decides: indices into the live slots, ascending. Everything else stays. */
export interface RetentionPlan {
  evict: Int32Array;
}

/** Contribution to the softmax that is not a row: maximum, sum and accumulated values per query row [rows, headDim]. */
export interface AuxPart {
  max: Float32Array;
  sum: Float32Array;
  acc: Float32Array;
}

/**
 * Rows of one step before RoPE: k, v [rows, kvHeads * headDim] of the stream's KV heads (one of them for granularity
 * "head"). A policy may change them.
 */
export interface PreRopeRows {
  k: Float32Array;
  v: Float32Array;
  rows: number;
  position: number;
}

/**
 * Per row: append it, or merge it into the newest slot: old * oldWeight + row * newWeight, keys as the cache holds them.
 * The slot takes the position of the row. The newest slot of a stream whose policy has preAppend stays exact.
 */
export type RowDecision = "append" | { merge: { oldWeight: number; newWeight: number } };

/** State and decisions of a policy for one stream. */
export interface StreamPolicy {
  preAppend?(rows: PreRopeRows): RowDecision[];
  /** After attention, with committed rows only. null: keep everything. */
  afterAttend?(stats: AttentionStats): RetentionPlan | null;
  /** Each evicted row [kvHeads * headDim] (as attention saw it: decoded, keys after RoPE), before its slot is freed. */
  onEvict?(key: Float32Array, value: Float32Array): void;
  /** Queries [rows, headDim] after RoPE (before any head transform); `rows` counts query rows times query heads. */
  auxPart?(queries: Float32Array, rows: number): AuxPart | null;
  /** Upper bound of live slots after a step, for a prompt of this length; null: grows with the text. */
  capacity(promptLength: number): number | null;
  snapshot(): Uint8Array;
  restore(bytes: Uint8Array): void;
  /** Bytes of state, for accounting. */
  readonly bytes: number;
}

export interface RetentionDefinition<Options = unknown> {
  readonly id: string;
  readonly title: string;
  readonly paper: string;
  readonly summary: string;
  readonly options: z.ZodType<Options, unknown>;
  /** "head": every KV head has live slots of its own. */
  readonly granularity: "layer" | "head";
  /** "slot": a key is seen at its place among the live slots instead of its place in the text. */
  readonly positions: "absolute" | "slot";
  /** False when rows are evicted in place or merged: a shared prefix is copied at the first change. */
  readonly prefixShareable: boolean;
  stats(options: Options): StatRequest;
  create(options: Options, stream: StreamInfo): StreamPolicy;
}

/** One line per codec or policy in a table makes it usable; `define…` keep the option type in the definition. */
export const defineKvCodec = <O>(definition: KvCodecDefinition<O>): KvCodecDefinition<O> =>
  definition;
export const defineRetention = <O>(definition: RetentionDefinition<O>): RetentionDefinition<O> =>
  definition;
