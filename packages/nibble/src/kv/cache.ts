/**
 * The packed cache of one compiled model: its descriptor for the kernels, its page pool and the page tables of its
 * sequences. A page holds 32 tokens of one layer, all KV heads, keys and values; layout: docs/engine.md, "Pages".
 */
import { ResourceError, UsageError } from "../core/errors.js";
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

export interface CacheSize {
  /** Tokens that all sequences together have room for. */
  tokens: number;
  sequences: number;
  /** Layers with a cache (1 for a block runner). */
  layers: number;
  /** Tokens that one sequence may reach; default: all of them. */
  sequenceTokens?: number;
}

/** Sizes of a cache whose sequences share a pool of pages. poolAt and tableAt are left 0. */
export function planCache(
  kv: KvRecipe,
  config: ModelConfig,
  { tokens, sequences, layers, sequenceTokens = tokens }: CacheSize,
): CachePlan {
  const keyLines = planeLines(kv.k, config.headDim);
  const headLines = keyLines + planeLines(kv.v, config.headDim);
  const pageLines = headLines * config.numKeyValueHeads;
  const maxPages = Math.ceil(sequenceTokens / PAGE_TOKENS);
  const pages = (Math.ceil(tokens / PAGE_TOKENS) + sequences - 1) * layers;
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
  /** Asked to give pages back when the pool runs short (a prefix cache holds pages that no sequence uses). */
  reclaim: ((pages: number) => void) | null = null;
  readonly #descriptor: Record<CacheField, number>;
  readonly #table: Int32Array;
  readonly #references: Uint32Array;
  readonly #free: number[];
  readonly #length: number[];
  readonly #copy: (from: number, to: number) => void;

  /** @param copy copies the bytes of one page to another */
  constructor(
    descriptor: Record<CacheField, number>,
    table: Int32Array,
    sequences: number,
    copy: (from: number, to: number) => void,
  ) {
    this.#descriptor = descriptor;
    this.#table = table.fill(0);
    this.#references = new Uint32Array(descriptor.pages);
    this.#free = Array.from({ length: descriptor.pages }, (_, i) => descriptor.pages - 1 - i);
    this.#length = new Array<number>(sequences).fill(0);
    this.#copy = copy;
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
  /** Pages that sequences or a prefix cache hold; a shared page counts once. */
  get usedPages(): number {
    return this.#descriptor.pages - this.#free.length;
  }

  /**
   * Makes room for tokens 0..length-1 of a sequence. What is beyond its present length may be written afterwards: a partly
   * filled last page that others share is copied first.
   * @throws ResourceError code "context-full" when the pool or the table is exhausted; nothing is changed then.
   */
  reserve(slot: number, length: number): void {
    const { layers, maxPages } = this.#descriptor;
    const old = this.length(slot);
    if (length <= old) return;
    const have = Math.ceil(old / PAGE_TOKENS);
    const want = Math.ceil(length / PAGE_TOKENS);
    const shared: number[] = [];
    if (old % PAGE_TOKENS > 0) {
      for (let layer = 0; layer < layers; layer++) {
        const entry = this.#entry(slot, layer, have - 1);
        if (this.#shared(this.#table[entry] as number)) shared.push(entry);
      }
    }
    const needed = (want - have) * layers + shared.length;
    if (want <= maxPages && needed > this.#free.length) {
      this.reclaim?.(needed - this.#free.length);
    }
    if (want > maxPages || needed > this.#free.length) {
      const free = Math.floor(this.#free.length / layers) * PAGE_TOKENS;
      throw new ResourceError(
        want > maxPages
          ? `a sequence may hold ${maxPages * PAGE_TOKENS} tokens, ${length} are needed`
          : `the cache has room for ${free} more tokens, ${length - old} are needed`,
        { hint: "open the model with a larger --max-context" },
        "context-full",
      );
    }
    for (const entry of shared) {
      const from = this.#table[entry] as number;
      const to = this.#take();
      this.#copy(from, to);
      this.#table[entry] = to;
      this.#drop(from);
    }
    for (let page = have; page < want; page++) {
      for (let layer = 0; layer < layers; layer++) {
        this.#table[this.#entry(slot, layer, page)] = this.#take();
      }
    }
    this.#length[slot] = length;
  }

  /** Gives back everything beyond the first `length` tokens. */
  truncate(slot: number, length: number): void {
    const have = Math.ceil(this.length(slot) / PAGE_TOKENS);
    const keep = Math.ceil(length / PAGE_TOKENS);
    for (let page = keep; page < have; page++) {
      for (let layer = 0; layer < this.#descriptor.layers; layer++) {
        this.#drop(this.#table[this.#entry(slot, layer, page)] as number);
      }
    }
    if (length < this.length(slot)) this.#length[slot] = length;
  }

  /**
   * Makes the empty sequence `to` a copy of `from` that shares all its pages.
   * @throws UsageError when `to` is not empty
   */
  fork(from: number, to: number): void {
    const pages = Math.ceil(this.length(from) / PAGE_TOKENS);
    const shared = Array.from({ length: pages }, (_, page) => this.pages(from, page));
    this.adopt(to, shared, this.length(from));
  }

  /** Page numbers, layer by layer, of the `page`-th 32 tokens of a sequence. */
  pages(slot: number, page: number): Int32Array {
    return Int32Array.from({ length: this.#descriptor.layers }, (_, layer) => {
      return this.#table[this.#entry(slot, layer, page)] as number;
    });
  }

  /**
   * Lets the empty sequence `slot` begin with pages that others hold too.
   * @throws UsageError when `slot` is not empty
   */
  adopt(slot: number, shared: readonly Int32Array[], length: number): void {
    if (this.length(slot) > 0 || slot < 0 || slot >= this.sequences) {
      throw new UsageError(`cache slot ${slot} is in use or does not exist`, {
        hint: "reset the session there, or open the model for more sequences",
      });
    }
    for (const [page, ids] of shared.entries()) {
      this.retain(ids);
      for (const [layer, id] of ids.entries()) this.#table[this.#entry(slot, layer, page)] = id;
    }
    this.#length[slot] = length;
  }

  /** One more holder of these pages. */
  retain(ids: Int32Array): void {
    for (const id of ids) this.#references[id] = (this.#references[id] as number) + 1;
  }
  /** One holder less; pages without one are free. */
  release(ids: Int32Array): void {
    for (const id of ids) this.#drop(id);
  }
  /** Whether any of these pages has more than one holder. */
  isShared(ids: Int32Array): boolean {
    return ids.some((id) => this.#shared(id));
  }

  #shared(id: number): boolean {
    return (this.#references[id] as number) > 1;
  }

  #take(): number {
    const id = this.#free.pop() as number; // the caller counted
    this.#references[id] = 1;
    return id;
  }

  #drop(id: number): void {
    const left = (this.#references[id] as number) - 1;
    this.#references[id] = left;
    if (left === 0) this.#free.push(id);
  }

  #entry(slot: number, layer: number, page: number): number {
    const { layers, maxPages } = this.#descriptor;
    return (slot * layers + layer) * maxPages + page;
  }
}
