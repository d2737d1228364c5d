/**
 * The managed cache of a model: every codec with every policy. Codecs of each layer and head, page pools that all layers and
 * sequences share, and the states of the sequences. It computes nothing itself: LayerState does, over a TileAttender.
 */
import { UsageError } from "../../core/errors.js";
import type { ModelConfig } from "../../model/config.js";
import { kvCodecs } from "../codecs/index.js";
import type { PlaneCodec, PlaneName, StreamInfo } from "../contract.js";
import type { ResolvedKv } from "../recipe.js";
import { retentions } from "../retention/index.js";
import type { RopeTable } from "./frame.js";
import { LayerState } from "./layer.js";
import { PagePool } from "./pages.js";
import type { PlaneSpec } from "./plane.js";
import { HeadStream, type StreamSpec } from "./stream.js";

/** Calibration tensors of one layer and KV head, by name. */
export type Calibration = (layer: number, kvHead: number) => ReadonlyMap<string, Float32Array>;

export interface CacheBytes {
  /** Pages of keys and of values, variable parts included. */
  k: number;
  v: number;
  /** Exact rows, lists, and the state of policies. */
  meta: number;
  total: number;
}

type Shape = Pick<
  ModelConfig,
  "numHiddenLayers" | "numAttentionHeads" | "numKeyValueHeads" | "headDim" | "slidingWindow"
>;

export class ManagedCache {
  readonly kv: ResolvedKv;
  readonly #config: Shape;
  readonly #rope: RopeTable;
  readonly #codecs: Record<PlaneName, PlaneCodec[][]>;
  readonly #pools = new Map<string, PagePool>();
  readonly #sequences: (LayerState[] | null)[];
  /** Tokens of the prompt of each sequence, which budgets are shares of. */
  readonly #prompts: number[];
  /** Each KV head is a stream of its own. */
  readonly #perHead: boolean;

  constructor(
    kv: ResolvedKv,
    config: Shape,
    rope: RopeTable,
    sequences: number,
    calibration: Calibration | null = null,
  ) {
    this.kv = kv;
    this.#config = config;
    this.#rope = rope;
    this.#perHead = retentions.get(kv.retention.type).granularity === "head";
    this.#sequences = new Array<LayerState[] | null>(sequences).fill(null);
    this.#prompts = new Array<number>(sequences).fill(0);
    const codecs = (plane: PlaneName) =>
      Array.from({ length: config.numHiddenLayers }, (_, layer) =>
        Array.from({ length: config.numKeyValueHeads }, (_, kvHead) => {
          const { codec, ...options } = kv[plane];
          return kvCodecs.get(codec).create(options, {
            plane,
            headDim: config.headDim,
            layer,
            kvHead,
            seed: kv.seed,
            calibration: calibration?.(layer, kvHead) ?? null,
          });
        }),
      );
    this.#codecs = { k: codecs("k"), v: codecs("v") };
  }

  get sequences(): number {
    return this.#sequences.length;
  }

  /** Layers of a sequence; an empty one begins here. */
  layers(sequence: number): LayerState[] {
    const known = this.#sequences[sequence];
    if (known) return known;
    if (known === undefined) throw new UsageError(`cache slot ${sequence} does not exist`);
    const fresh = this.newLayers();
    this.#sequences[sequence] = fresh;
    return fresh;
  }

  /** Empty layers for a sequence, which nobody holds yet. */
  newLayers(): LayerState[] {
    return Array.from({ length: this.#config.numHiddenLayers }, (_, layer) =>
      this.#newLayer(layer),
    );
  }

  /** Lets the empty sequence `sequence` be these layers, which began with a prompt of `promptLength` tokens. */
  adopt(sequence: number, layers: LayerState[], promptLength: number): void {
    if (this.length(sequence) > 0) throw new UsageError(`cache slot ${sequence} is in use`);
    this.#drop(sequence);
    this.#sequences[sequence] = layers;
    this.#prompts[sequence] = promptLength;
  }

  /** Tokens that a sequence was to hold when it was empty: its prompt. */
  promptLength(sequence: number): number {
    return this.#prompts[sequence] ?? 0;
  }

  /** Tells how long the text of an empty sequence will be at first; later tokens are no part of its prompt. */
  expect(sequence: number, length: number): void {
    if (this.length(sequence) === 0) this.#prompts[sequence] = length;
  }

  /** Tokens that a sequence has seen. */
  length(sequence: number): number {
    return this.#sequences[sequence]?.[0]?.seen ?? 0;
  }

  /**
   * The longest prefix of at most `length` tokens that a sequence can be cut to: everything, or for policies that drop or
   * change tokens nothing at all (what a shorter text would have kept is gone).
   */
  keepable(sequence: number, length: number): number {
    if (length >= this.length(sequence)) return this.length(sequence);
    return this.kv.retention.type === "all" ? length : 0;
  }

  /** Cuts a sequence to `length` tokens. @throws UsageError when that is not keepable */
  truncate(sequence: number, length: number): void {
    if (length === 0) {
      this.#drop(sequence);
      return;
    }
    // A draft whose run failed, or whose logits were of no use, was never part of the sequence.
    for (const layer of this.#sequences[sequence] ?? []) layer.rollback();
    if (this.keepable(sequence, length) < Math.min(length, this.length(sequence))) {
      throw new UsageError(
        `retention "${this.kv.retention.type}" cannot give back single tokens`,
        { hint: "Truncate to 0 and feed the tokens again." },
        "kv-truncate",
      );
    }
    if (length >= this.length(sequence)) return;
    for (const layer of this.#sequences[sequence] ?? []) {
      for (const stream of layer.streams) stream.truncate(length);
    }
  }

  /** Makes the empty sequence `to` a copy of `from`; pages are shared until one of them changes them. */
  fork(from: number, to: number): void {
    if (this.length(to) > 0) throw new UsageError(`cache slot ${to} is in use`);
    this.#drop(to);
    this.#prompts[to] = this.promptLength(from);
    this.#sequences[to] = this.layers(from).map(
      (layer) =>
        new LayerState(
          layer.streams.map((stream) => stream.fork()),
          this.#rope,
        ),
    );
  }

  /** Bytes of everything that is held, each shared page once. */
  bytes(): CacheBytes {
    const bytes = { k: 0, v: 0, meta: 0, total: 0 };
    for (const [name, pool] of this.#pools) {
      if (name.startsWith("k")) bytes.k += pool.bytes;
      else bytes.v += pool.bytes;
    }
    const shared = new Set<object>();
    for (const sequence of this.#sequences) {
      for (const { streams } of sequence ?? []) {
        for (const stream of streams) {
          bytes.meta += stream.privateBytes;
          const common = stream.sharedSlots;
          if (common && !shared.has(common.key)) {
            shared.add(common.key);
            bytes.meta += common.bytes;
          }
        }
      }
    }
    bytes.total = bytes.k + bytes.v + bytes.meta;
    return bytes;
  }

  /** Pools by name, for tests of the accounting. */
  get pools(): ReadonlyMap<string, PagePool> {
    return this.#pools;
  }

  #drop(sequence: number): void {
    for (const { streams } of this.#sequences[sequence] ?? []) {
      for (const stream of streams) stream.dispose();
    }
    this.#sequences[sequence] = null;
  }

  #newLayer(layer: number): LayerState {
    const { numKeyValueHeads: kvHeads, numAttentionHeads: heads, headDim } = this.#config;
    const { seed, retention } = this.kv;
    const { type, ...options } = retention;
    const policy = retentions.get(type);
    const width = this.#perHead ? 1 : kvHeads;
    const streams = Array.from({ length: kvHeads / width }, (_, i) => {
      const info: StreamInfo = {
        layer,
        kvHead: i * width,
        kvHeads: width,
        headDim,
        seed,
      };
      const spec: StreamSpec = {
        info,
        groupHeads: heads / kvHeads,
        k: this.#plane("k", info),
        v: this.#plane("v", info),
        sinks: this.kv.sinks,
        positions: policy.positions,
        window: this.#config.slidingWindow[layer] ?? null,
        rope: this.#rope,
        stats: policy.stats(options),
        createPolicy: (of) => policy.create(options, of),
      };
      return new HeadStream(spec);
    });
    return new LayerState(streams, this.#rope);
  }

  #plane(plane: PlaneName, { layer, kvHead, kvHeads, headDim }: StreamInfo): PlaneSpec {
    const all = this.#codecs[plane][layer] as PlaneCodec[];
    const codecs = all.slice(kvHead, kvHead + kvHeads);
    const { groupBytes, caps } = codecs[0] as PlaneCodec;
    const groupsPerPage = Math.max(1, Math.floor(this.kv.page / caps.group));
    const name = `${plane}/${groupBytes}/${groupsPerPage}/${kvHeads}`;
    let pool = this.#pools.get(name);
    if (!pool) {
      pool = new PagePool({ groupBytes, groupsPerPage, heads: kvHeads });
      this.#pools.set(name, pool);
    }
    return { codecs, headDim, pool };
  }
}
