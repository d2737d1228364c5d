/**
 * The packed cache of one compiled model: its descriptor for the kernels, its page pool and the page tables of its
 * sequences. A page holds 32 tokens of one layer, all KV heads, keys and values; layout: docs/engine.md, "Pages".
 */
import { ResourceError } from "../core/errors.js";
import { type CacheField, KV_CODEC, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe } from "../model/model.js";

const CODEC: Record<KvPlane["codec"], number> = {
  fp32: KV_CODEC.f32,
  fp16: KV_CODEC.f16,
  "int8-token": KV_CODEC.int8,
  "int4-token": KV_CODEC.int4,
};
const ELEMENT_BITS: Record<KvPlane["codec"], number> = {
  fp32: 32,
  fp16: 16,
  "int8-token": 8,
  "int4-token": 4,
};
const isInteger = (plane: KvPlane) => ELEMENT_BITS[plane.codec] <= 8;

/** Lines of one plane (32 tokens of one KV head): codes, then for integer codecs f16 scale[32] and f16 zero[32]. */
function planeLines(plane: KvPlane, headDim: number): number {
  const codes = Math.ceil((PAGE_TOKENS * headDim * ELEMENT_BITS[plane.codec]) / 8 / LINE);
  return codes + (isInteger(plane) ? (2 * PAGE_TOKENS * 2) / LINE : 0);
}

/** Stored bits per cached element (K and V averaged), parameters included. */
export function cacheBitsPerElement(kv: KvRecipe, headDim: number): number {
  const lines = planeLines(kv.k, headDim) + planeLines(kv.v, headDim);
  return (lines * LINE * 8) / (2 * PAGE_TOKENS * headDim);
}

/** Bytes of the cache of `tokens` tokens, all layers. */
export function cacheBytes(kv: KvRecipe, config: ModelConfig, tokens: number): number {
  const lines = planeLines(kv.k, config.headDim) + planeLines(kv.v, config.headDim);
  const pages = Math.ceil(tokens / PAGE_TOKENS) * config.numHiddenLayers;
  return pages * config.numKeyValueHeads * lines * LINE;
}

export interface CachePlan {
  descriptor: Record<CacheField, number>;
  poolLines: number;
  tableBytes: number;
}

/**
 * Sizes of a cache for `sequences` sequences that share `tokens` tokens of room. poolAt and tableAt are left 0.
 * @param layers layers with a cache (1 for a block runner)
 */
export function planCache(
  kv: KvRecipe,
  config: ModelConfig,
  { tokens, sequences, layers }: { tokens: number; sequences: number; layers: number },
): CachePlan {
  const keyLines = planeLines(kv.k, config.headDim);
  const headLines = keyLines + planeLines(kv.v, config.headDim);
  const pageLines = headLines * config.numKeyValueHeads;
  const maxPages = Math.ceil(tokens / PAGE_TOKENS);
  const pages = (maxPages + sequences - 1) * layers;
  return {
    poolLines: pages * pageLines,
    tableBytes: sequences * layers * maxPages * 4,
    descriptor: {
      keyCodec: CODEC[kv.k.codec],
      valueCodec: CODEC[kv.v.codec],
      keyZeroInt: kv.k.zero === "int" ? 1 : 0,
      valueZeroInt: kv.v.zero === "int" ? 1 : 0,
      keyClipF: kv.k.clip ?? 1,
      valueClipF: kv.v.clip ?? 1,
      // With an exact cache the rotation would change nothing but rounding (q and k turn together).
      hadamard: kv.k.hadamard && isInteger(kv.k) ? 1 : 0,
      queryBits: isInteger(kv.k) ? (kv.k.qBits ?? 8) : 32,
      poolAt: 0,
      pageLines,
      headLines,
      keyLines,
      tableAt: 0,
      layers,
      maxPages,
      kvHeads: config.numKeyValueHeads,
      headDim: config.headDim,
      pages,
      slots: sequences,
    },
  };
}

/** Page tables and reference counts over the pool of one engine. */
export class PageTables {
  readonly #descriptor: Record<CacheField, number>;
  readonly #table: Int32Array;
  readonly #references: Uint16Array;
  readonly #free: number[];
  readonly #length: number[];

  constructor(descriptor: Record<CacheField, number>, table: Int32Array, sequences: number) {
    this.#descriptor = descriptor;
    this.#table = table.fill(0);
    this.#references = new Uint16Array(descriptor.pages);
    this.#free = Array.from({ length: descriptor.pages }, (_, i) => descriptor.pages - 1 - i);
    this.#length = new Array<number>(sequences).fill(0);
  }

  /** Tokens that sequence `slot` has room for now. */
  length(slot: number): number {
    return this.#length[slot] ?? 0;
  }
  get sequences(): number {
    return this.#length.length;
  }
  get freePages(): number {
    return this.#free.length;
  }

  /**
   * Makes room for tokens 0..length-1 of a sequence.
   * @throws ResourceError code "context-full" when the pool or the table is exhausted; nothing is changed then.
   */
  reserve(slot: number, length: number): void {
    const { layers, maxPages } = this.#descriptor;
    const have = Math.ceil(this.length(slot) / PAGE_TOKENS);
    const want = Math.ceil(length / PAGE_TOKENS);
    if (want > maxPages || (want - have) * layers > this.#free.length) {
      throw new ResourceError(
        `the cache holds ${maxPages * PAGE_TOKENS} tokens, ${length} are needed`,
        { hint: "open the model with a larger --max-context" },
        "context-full",
      );
    }
    for (let page = have; page < want; page++) {
      for (let layer = 0; layer < layers; layer++) {
        const id = this.#free.pop() as number; // counted above
        this.#references[id] = 1;
        this.#table[this.#entry(slot, layer, page)] = id;
      }
    }
    if (length > this.length(slot)) this.#length[slot] = length;
  }

  /** Gives back everything beyond the first `length` tokens. */
  truncate(slot: number, length: number): void {
    const have = Math.ceil(this.length(slot) / PAGE_TOKENS);
    const keep = Math.ceil(length / PAGE_TOKENS);
    for (let page = keep; page < have; page++) {
      for (let layer = 0; layer < this.#descriptor.layers; layer++) {
        const id = this.#table[this.#entry(slot, layer, page)] as number;
        const left = (this.#references[id] as number) - 1;
        this.#references[id] = left;
        if (left === 0) this.#free.push(id);
      }
    }
    if (length < this.length(slot)) this.#length[slot] = length;
  }

  #entry(slot: number, layer: number, page: number): number {
    const { layers, maxPages } = this.#descriptor;
    return (slot * layers + layer) * maxPages + page;
  }
}
