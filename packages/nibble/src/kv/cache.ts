/**
 * The packed cache of one compiled model: its descriptor for the kernels, its page pool and the page tables of its
 * sequences. A page holds 32 tokens of one layer, all KV heads, keys and values; layout: docs/engine.md, "Pages".
 */
import { ResourceError, UsageError } from "../core/errors.js";
import { ATTENTION_CHUNK, type CacheField, KV_CODEC, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import { isIntCodec, planeLines, tailLines } from "../kernels/page-layout.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe } from "../model/model.js";

const CODEC: Record<string, number> = {
  fp32: KV_CODEC.f32,
  fp16: KV_CODEC.f16,
  "int8-token": KV_CODEC.int8,
  "int4-token": KV_CODEC.int4,
};
function codecOf({ codec, bits }: KvPlane): number {
  if (codec === "kivi") return bits === 2 ? KV_CODEC.kivi2 : KV_CODEC.kivi4;
  const number = CODEC[codec];
  if (number === undefined) throw new Error(`the kernels have no cache codec ${codec}`);
  return number;
}
const linesOf = (plane: KvPlane, headDim: number) => planeLines(codecOf(plane), headDim);
const isQuantized = ({ codec }: KvPlane) => codec !== "fp32" && codec !== "fp16";

/** Rows of one run when nothing else is asked for. Exact rows of a kivi cache cost memory for each. */
const MAX_ROWS = 512;
const MAX_ROWS_KIVI = 128;

/** Rows of one run with this cache, unless the caller chose. */
export function defaultRows(kv: KvRecipe): number {
  return kv.k.codec === "kivi" ? MAX_ROWS_KIVI : MAX_ROWS;
}

/** Rows of the ring of exact rows: the residual, and all rows of a run before any of them may be overwritten. */
function tailTokens(kv: KvRecipe, maxRows: number): number {
  if (kv.k.codec !== "kivi") return 0;
  return Math.ceil(((kv.k.residual ?? 0) + maxRows) / ATTENTION_CHUNK) * ATTENTION_CHUNK;
}

/** Stored bits per element of tokens in the pages (K and V averaged), parameters included; exact rows of kivi are extra. */
export function cacheBitsPerElement(kv: KvRecipe, headDim: number): number {
  const lines = linesOf(kv.k, headDim) + linesOf(kv.v, headDim);
  return (lines * LINE * 8) / (2 * PAGE_TOKENS * headDim);
}

/**
 * Bytes of the cache of one sequence of `tokens` tokens, all layers: its pages, and for kivi the ring of exact rows, which
 * is there from the first token on.
 */
export function cacheBytes(
  kv: KvRecipe,
  config: ModelConfig,
  tokens: number,
  maxRows = defaultRows(kv),
): number {
  const lines = linesOf(kv.k, config.headDim) + linesOf(kv.v, config.headDim);
  const pages = Math.ceil(tokens / PAGE_TOKENS);
  const tail = tailLines(tailTokens(kv, maxRows), config.headDim);
  return config.numHiddenLayers * config.numKeyValueHeads * (pages * lines + tail) * LINE;
}

/** Bytes that one decoded token reads when `tokens` are in the cache: rows of the ring that are exact for it, not all. */
export function cacheBytesRead(kv: KvRecipe, config: ModelConfig, tokens: number): number {
  const { headDim, numHiddenLayers, numKeyValueHeads } = config;
  const heads = numHiddenLayers * numKeyValueHeads;
  const residual = kv.k.codec === "kivi" ? (kv.k.residual ?? 0) : 0;
  const exact = residual > 0 ? [Math.floor(tokens) % residual, Math.min(tokens, residual)] : [0, 0];
  const bytes = [kv.k, kv.v].map((plane, i) => {
    const perToken = (linesOf(plane, headDim) * LINE) / PAGE_TOKENS;
    return (tokens - (exact[i] as number)) * perToken + (exact[i] as number) * headDim * 4;
  });
  return heads * bytes.reduce((a, b) => a + b);
}

export interface CachePlan {
  descriptor: Record<CacheField, number>;
  poolLines: number;
  tableBytes: number;
  /** Exact rows of all sequences; 0 for codecs without. */
  tailLines: number;
}

export interface CacheSize {
  /** Tokens that all sequences together have room for. */
  tokens: number;
  sequences: number;
  /** Layers with a cache (1 for a block runner). */
  layers: number;
  /** Tokens that one sequence may reach; default: all of them. */
  sequenceTokens?: number;
  /** Rows of one run. */
  maxRows?: number;
}

/** Sizes of a cache whose sequences share a pool of pages. poolAt, tableAt and tailAt are left 0. */
export function planCache(
  kv: KvRecipe,
  config: ModelConfig,
  { tokens, sequences, layers, sequenceTokens = tokens, maxRows = defaultRows(kv) }: CacheSize,
): CachePlan {
  const keyLines = linesOf(kv.k, config.headDim);
  const headLines = keyLines + linesOf(kv.v, config.headDim);
  const pageLines = headLines * config.numKeyValueHeads;
  const maxPages = Math.ceil(sequenceTokens / PAGE_TOKENS);
  const pages = (Math.ceil(tokens / PAGE_TOKENS) + sequences - 1) * layers;
  const tail = tailTokens(kv, maxRows);
  const rings = sequences * layers * config.numKeyValueHeads;
  return {
    poolLines: pages * pageLines,
    tailLines: rings * tailLines(tail, config.headDim),
    tableBytes: sequences * layers * maxPages * 4,
    descriptor: {
      keyCodec: codecOf(kv.k),
      valueCodec: codecOf(kv.v),
      keyZeroInt: kv.k.zero === "int" ? 1 : 0,
      valueZeroInt: kv.v.zero === "int" ? 1 : 0,
      keyClipF: kv.k.clip ?? 1,
      valueClipF: kv.v.clip ?? 1,
      // With an exact cache the rotation would change nothing but rounding (q and k turn together).
      hadamard: kv.k.hadamard && isQuantized(kv.k) ? 1 : 0,
      queryBits: isIntCodec(codecOf(kv.k)) ? (kv.k.qBits ?? 8) : 32,
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
      residual: tail > 0 ? (kv.k.residual ?? 0) : 0,
      tailAt: tail > 0 ? 0 : -1,
      tailTokens: tail,
    },
  };
}

/** What runners, sessions and measurements ask of the cache of a model, whichever tier holds it. */
export interface SequenceTables {
  readonly sequences: number;
  /** Tokens that a sequence has room for (packed tier) or has seen (managed tier). */
  length(slot: number): number;
  /** Makes room for tokens 0..length-1. @throws ResourceError code "context-full" */
  reserve(slot: number, length: number): void;
  /** Longest prefix of at most `length` tokens that a sequence can be cut to. */
  keepable(slot: number, length: number): number;
  /** Gives back everything beyond the first `length` tokens. @throws UsageError code "kv-truncate" */
  truncate(slot: number, length: number): void;
  /** Makes the empty sequence `to` a copy of `from` that shares its pages. */
  fork(from: number, to: number): void;
  /** Rows of a run that begins. */
  wrote(slots: ArrayLike<number>, positions: ArrayLike<number>): void;
  /** Pages in use; a shared page counts once. */
  readonly usedPages: number;
}

/** Page tables and reference counts over the pool of one engine. */
export class PageTables implements SequenceTables {
  /** Asked to give pages back when the pool runs short (a prefix cache holds pages that no sequence uses). */
  reclaim: ((pages: number) => void) | null = null;
  readonly #descriptor: Record<CacheField, number>;
  readonly #table: Int32Array;
  readonly #references: Uint32Array;
  readonly #free: number[];
  readonly #length: number[];
  readonly #copy: (from: number, to: number) => void;
  readonly #copyRing: (from: number, to: number) => void;
  /** Highest end of the rows written to each slot's ring since it was emptied. */
  readonly #written: number[];

  /**
   * @param copy copies the bytes of one page to another
   * @param copyRing copies the exact rows of one sequence to another (kivi)
   */
  constructor(
    descriptor: Record<CacheField, number>,
    table: Int32Array,
    sequences: number,
    copy: (from: number, to: number) => void,
    copyRing: (from: number, to: number) => void = () => {},
  ) {
    this.#descriptor = descriptor;
    this.#table = table.fill(0);
    this.#references = new Uint32Array(descriptor.pages);
    this.#free = Array.from({ length: descriptor.pages }, (_, i) => descriptor.pages - 1 - i);
    this.#length = new Array<number>(sequences).fill(0);
    this.#copy = copy;
    this.#copyRing = copyRing;
    this.#written = new Array<number>(sequences).fill(0);
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

  /** Rows of a run: kivi caches keep the newest rows exact, and may forget only as many as their ring can give back. */
  wrote(slots: ArrayLike<number>, positions: ArrayLike<number>): void {
    for (let i = 0; i < slots.length; i++) {
      const slot = slots[i] as number;
      this.#written[slot] = Math.max(this.#written[slot] as number, (positions[i] as number) + 1);
    }
  }

  /** A sequence was filled from a file: nothing older than what its residual needs is in its ring. */
  restored(slot: number, length: number): void {
    const { residual, tailTokens } = this.#descriptor;
    this.#written[slot] = length + Math.max(0, tailTokens - residual);
  }

  /**
   * The longest prefix of at most `length` tokens that a sequence can be cut to: `length` itself, or 0 where a kivi cache
   * no longer has the exact rows that the cut would bring back into its residual.
   */
  keepable(slot: number, length: number): number {
    const { residual, tailTokens } = this.#descriptor;
    const lost = (this.#written[slot] as number) - length;
    return residual > 0 && lost > tailTokens - residual ? 0 : length;
  }

  /**
   * Gives back everything beyond the first `length` tokens.
   * @throws UsageError code "kv-truncate" when a kivi cache has no exact rows for that end; nothing is changed then
   */
  truncate(slot: number, length: number): void {
    if (this.keepable(slot, length) < length) {
      const { residual, tailTokens } = this.#descriptor;
      throw new UsageError(
        `a kivi cache gives back at most its last ${tailTokens - residual} tokens; ` +
          `${this.#written[slot]} were written and ${length} are to stay`,
        { hint: "Truncate to 0 and feed the tokens again." },
        "kv-truncate",
      );
    }
    if (length === 0) this.#written[slot] = 0;
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
    this.#begin(to, shared, this.length(from));
    if (!this.pagesAreAll) this.#copyRing(from, to);
    this.#written[to] = this.#written[from] as number;
  }

  /** False when a sequence is more than its pages: a kivi cache keeps the newest rows elsewhere. */
  get pagesAreAll(): boolean {
    return this.#descriptor.residual === 0;
  }

  /** Page numbers, layer by layer, of the `page`-th 32 tokens of a sequence. */
  pages(slot: number, page: number): Int32Array {
    return Int32Array.from({ length: this.#descriptor.layers }, (_, layer) => {
      return this.#table[this.#entry(slot, layer, page)] as number;
    });
  }

  /**
   * Lets the empty sequence `slot` begin with pages that others hold too.
   * @throws UsageError when `slot` is not empty, or pages are not all there is to a sequence
   */
  adopt(slot: number, shared: readonly Int32Array[], length: number): void {
    if (length > 0 && !this.pagesAreAll) {
      throw new UsageError("a kivi sequence cannot begin with the pages of another", {
        hint: "its newest rows stand outside of the pages; fork the sequence instead",
      });
    }
    this.#begin(slot, shared, length);
  }

  #begin(slot: number, shared: readonly Int32Array[], length: number): void {
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
