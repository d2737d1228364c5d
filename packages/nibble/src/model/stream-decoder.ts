/**
 * Tokens that come one by one -> text that never has to be taken back: half characters and possible beginnings of stop texts
 * are held until they are decided.
 */

export interface StreamOptions {
  /** Leave control tokens out of the text. Default true. */
  skipSpecial?: boolean;
}

/** What an incomplete or invalid UTF-8 sequence decodes to. */
const REPLACEMENT = "\uFFFD";

/**
 * The pieces of `push` and the rest of `flush`, joined, equal the decoding of all ids at once, cut before the first stop text.
 * Decoding looks at a short window of ids: the ones not yet turned into text, and those of the last piece of text, because a
 * decoder may treat its first token differently (blanks).
 */
export class StreamDecoder {
  readonly #decode: (ids: readonly number[], skipSpecial: boolean) => string;
  readonly #stop: readonly string[];
  readonly #skipSpecial: boolean;
  /** Ids of the window; the first `#done` of them have become text already. */
  #window: number[] = [];
  #done = 0;
  /** Text that is certain but may begin a stop text. */
  #held = "";
  #stopped: string | null = null;

  constructor(
    decode: (ids: readonly number[], skipSpecial: boolean) => string,
    stop: readonly string[],
    options: StreamOptions,
  ) {
    this.#decode = decode;
    this.#stop = stop.filter((text) => text.length > 0);
    this.#skipSpecial = options.skipSpecial ?? true;
  }

  /** The stop text that ended the stream, or null. Nothing comes out after it. */
  get stopped(): string | null {
    return this.#stopped;
  }

  /** Takes one id, gives the text that became certain by it (often none). */
  push(id: number): string {
    if (this.#stopped !== null) return "";
    this.#window.push(id);
    return this.#emit(this.#advance(false), false);
  }

  /** The rest, half characters as U+FFFD. The decoder can be used again afterwards. */
  flush(): string {
    const text = this.#stopped === null ? this.#emit(this.#advance(true), true) : "";
    this.#window = [];
    this.#done = 0;
    this.#held = "";
    return text;
  }

  /** Text of the window's new ids, once it ends with a whole character. */
  #advance(final: boolean): string {
    if (this.#done === this.#window.length) return "";
    const all = this.#decode(this.#window, this.#skipSpecial);
    if (!final && all.endsWith(REPLACEMENT)) return "";
    const before = this.#decode(this.#window.slice(0, this.#done), this.#skipSpecial);
    const text = all.slice(before.length);
    // Ids without text stay in the window: the next one may be the first that counts.
    if (text.length > 0) this.#window = this.#window.slice(this.#done);
    this.#done = this.#window.length;
    return text;
  }

  /** Appends to the held text and gives what cannot be part of a stop text any more. */
  #emit(text: string, final: boolean): string {
    this.#held += text;
    let first = -1;
    for (const stop of this.#stop) {
      const at = this.#held.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first)) {
        first = at;
        this.#stopped = stop;
      }
    }
    if (first >= 0) {
      const out = this.#held.slice(0, first);
      this.#held = "";
      return out;
    }
    let keep = 0;
    if (!final) for (const stop of this.#stop) keep = Math.max(keep, overlap(this.#held, stop));
    const out = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return out;
  }
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let n = Math.min(text.length, stop.length - 1); n > 0; n--) {
    if (text.endsWith(stop.slice(0, n))) return n;
  }
  return 0;
}
