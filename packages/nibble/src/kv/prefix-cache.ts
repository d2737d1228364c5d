/**
 * Prefix sharing (PagedAttention, arXiv:2309.06180): full pages of 32 tokens are remembered under a chain of hashes, so a
 * prompt that begins like an earlier one begins with its pages instead of running it again. A page's hash covers the cache
 * recipe, all tokens before it and its own, hence also its position. Pages that only this index holds go, least recently
 * used and last in their chain first, when the pool runs short. Nothing is remembered of a kivi cache, whose newest rows
 * stand outside of the pages.
 */
import { sha256 } from "../core/sha256.js";
import { PAGE_TOKENS } from "../kernels/ops.js";
import type { PageTables } from "./cache.js";

interface Block {
  readonly hash: string;
  readonly parent: Block | null;
  readonly tokens: Int32Array;
  /** Page numbers, layer by layer. */
  readonly pages: Int32Array;
  children: number;
  used: number;
}

export class PrefixCache {
  readonly #tables: PageTables;
  readonly #salt: string;
  readonly #blocks = new Map<string, Block>();
  #clock = 0;
  /** Tokens that were taken from earlier prompts instead of being run. */
  hitTokens = 0;

  /** @param salt what the bytes of a page depend on besides tokens: the cache recipe and anything that changes the model */
  constructor(tables: PageTables, salt: string) {
    this.#tables = tables;
    this.#salt = salt;
    tables.reclaim = (pages) => this.#reclaim(pages);
  }

  /** Pages that this index holds. */
  get pages(): number {
    let pages = 0;
    for (const block of this.#blocks.values()) pages += block.pages.length;
    return pages;
  }

  /** Leading tokens of a prompt that are there: whole pages, and never the last token, whose logits are wanted. */
  match(tokens: readonly number[]): number {
    return this.#chain(tokens, tokens.length - 1).length * PAGE_TOKENS;
  }

  /**
   * Lets the empty sequence `slot` begin with what is there of a prompt.
   * @returns tokens that need not be run
   */
  adopt(slot: number, tokens: readonly number[]): number {
    const chain = this.#chain(tokens, tokens.length - 1);
    const length = chain.length * PAGE_TOKENS;
    this.#tables.adopt(
      slot,
      chain.map(({ pages }) => pages),
      length,
    );
    for (const block of chain) block.used = ++this.#clock;
    this.hitTokens += length;
    return length;
  }

  /** Remembers the full pages of a sequence; `tokens` are in its cache. */
  publish(slot: number, tokens: readonly number[]): void {
    if (!this.#tables.pagesAreAll) return;
    const known = this.#chain(tokens, tokens.length);
    let parent = known.at(-1) ?? null;
    const end = Math.floor(tokens.length / PAGE_TOKENS);
    for (let page = known.length; page < end; page++) {
      const own = block(tokens, page);
      const pages = this.#tables.pages(slot, page);
      this.#tables.retain(pages);
      const entry: Block = {
        hash: this.#hash(parent, own),
        parent,
        tokens: own,
        pages,
        children: 0,
        used: ++this.#clock,
      };
      this.#blocks.set(entry.hash, entry);
      if (parent) parent.children++;
      parent = entry;
    }
  }

  /** Forgets everything. */
  clear(): void {
    for (const { pages } of this.#blocks.values()) this.#tables.release(pages);
    this.#blocks.clear();
  }

  /** Known blocks at the beginning of the first `limit` tokens. */
  #chain(tokens: readonly number[], limit: number): Block[] {
    const found: Block[] = [];
    for (let page = 0; (page + 1) * PAGE_TOKENS <= limit; page++) {
      const own = block(tokens, page);
      const entry = this.#blocks.get(this.#hash(found.at(-1) ?? null, own));
      // Tokens are compared: a collision of hashes must not mix texts.
      if (!entry || entry.tokens.some((token, i) => token !== own[i])) break;
      found.push(entry);
    }
    return found;
  }

  #hash(parent: Block | null, tokens: Int32Array): string {
    const hash = sha256();
    hash.update(new TextEncoder().encode(parent ? parent.hash : this.#salt));
    hash.update(new Uint8Array(tokens.buffer));
    return hash.digest();
  }

  #reclaim(pages: number): void {
    let freed = 0;
    while (freed < pages) {
      let oldest: Block | null = null;
      for (const entry of this.#blocks.values()) {
        if (entry.children > 0 || (oldest && entry.used > oldest.used)) continue;
        if (!this.#tables.isShared(entry.pages)) oldest = entry;
      }
      if (!oldest) return;
      this.#tables.release(oldest.pages);
      this.#blocks.delete(oldest.hash);
      if (oldest.parent) oldest.parent.children--;
      freed += oldest.pages.length;
    }
  }
}

function block(tokens: readonly number[], page: number): Int32Array {
  return Int32Array.from(tokens.slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS));
}
