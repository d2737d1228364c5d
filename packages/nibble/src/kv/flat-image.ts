/**
 * The bytes of one sequence of a page cache, for files: its full pages, and for kivi the exact rows that its residual needs.
 * A partly filled last page is left out (rows beyond its end belong to whoever had the page before), so an image ends at
 * a multiple of 32 tokens and the few tokens after it are run again.
 */
import { FormatError } from "../core/errors.js";
import type { Arena } from "../graph/arena.js";
import { type CacheField, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import { tailLines } from "../kernels/page-layout.js";
import type { PageTables } from "./cache.js";

/** What a cache tier can put into a file and take out of it. */
export interface SequenceImage {
  /** Longest beginning of `length` tokens that can be saved. */
  savable(slot: number, length: number): number;
  save(slot: number, length: number): Uint8Array;
  /** @throws FormatError unless the bytes can be an image of `length` tokens of such a cache; touches nothing */
  check(bytes: Uint8Array, length: number): void;
  /** Fills the empty sequence `slot`. @throws ResourceError when there is no room */
  load(slot: number, bytes: Uint8Array, length: number): void;
}

export class FlatImage implements SequenceImage {
  readonly #arena: Arena;
  readonly #cache: Record<CacheField, number>;
  readonly #tables: PageTables;

  constructor(arena: Arena, cache: Record<CacheField, number>, tables: PageTables) {
    this.#arena = arena;
    this.#cache = cache;
    this.#tables = tables;
  }

  savable(slot: number, length: number): number {
    const whole = Math.floor(length / PAGE_TOKENS) * PAGE_TOKENS;
    return this.#tables.keepable(slot, whole);
  }

  save(slot: number, length: number): Uint8Array {
    const bytes = new Uint8Array(this.#size(length));
    let at = 0;
    for (const page of this.#pages(slot, length)) {
      bytes.set(page, at);
      at += page.length;
    }
    const exact = new Float32Array(bytes.buffer, at);
    this.#eachExact(slot, length, (place, i, ring) => {
      exact[i] = ring[place] as number;
    });
    return bytes;
  }

  check(bytes: Uint8Array, length: number): void {
    if (length % PAGE_TOKENS !== 0 || bytes.length !== this.#size(length)) {
      throw new FormatError(
        `${bytes.length} bytes are no cache of ${length} tokens of this model and recipe`,
      );
    }
  }

  load(slot: number, bytes: Uint8Array, length: number): void {
    this.#tables.reserve(slot, length);
    let at = 0;
    for (const page of this.#pages(slot, length)) {
      page.set(bytes.subarray(at, at + page.length));
      at += page.length;
    }
    const exact = new Float32Array(bytes.slice(at).buffer);
    this.#eachExact(slot, length, (place, i, ring) => {
      ring[place] = exact[i] as number;
    });
    this.#tables.restored(slot, length);
  }

  #size(length: number): number {
    const { pageLines, layers, kvHeads, headDim } = this.#cache;
    const exact = this.#exactRows(length) * layers * kvHeads * headDim * 2 * 4;
    return (length / PAGE_TOKENS) * layers * pageLines * LINE + exact;
  }

  /** Newest rows of each head that an image of kivi holds besides its pages. */
  #exactRows(length: number): number {
    return Math.min(length, this.#cache.residual);
  }

  /** Memory of the full pages of a sequence, layer by layer within each 32 tokens. */
  *#pages(slot: number, length: number): Generator<Uint8Array> {
    const { poolAt, pageLines } = this.#cache;
    for (let page = 0; page < length / PAGE_TOKENS; page++) {
      for (const id of this.#tables.pages(slot, page)) {
        yield this.#arena.u8(poolAt + id * pageLines, pageLines * LINE);
      }
    }
  }

  /** Calls `visit` for each exact element: its place in its ring, its running number, the ring (docs/engine.md, "kivi"). */
  #eachExact(
    slot: number,
    length: number,
    visit: (place: number, i: number, ring: Float32Array) => void,
  ): void {
    const { tailAt, tailTokens, layers, kvHeads, headDim } = this.#cache;
    const rows = this.#exactRows(length);
    if (rows === 0) return;
    const lines = tailLines(tailTokens, headDim);
    let i = 0;
    for (let head = 0; head < layers * kvHeads; head++) {
      const at = tailAt + (slot * layers * kvHeads + head) * lines;
      const ring = this.#arena.f32(at, (lines * LINE) / 4);
      for (let position = length - rows; position < length; position++) {
        const row = position % tailTokens;
        const key = (row >> 4) * headDim * 16 + (row & 15);
        const value = (tailTokens + row) * headDim;
        for (let d = 0; d < headDim; d++) visit(key + 16 * d, i++, ring);
        for (let d = 0; d < headDim; d++) visit(value + d, i++, ring);
      }
    }
  }
}
