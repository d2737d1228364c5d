/**
 * Named definitions (methods, formats, codecs, tasks …). Entries are added by explicit lines in a folder's index.ts;
 * nothing registers itself on import, so bundlers keep what is used and readers see what exists.
 */
import { nearestName, UsageError } from "./errors.js";

export interface Definition {
  /** Stable name in recipes, on the command line and in artifacts. */
  readonly id: string;
  /** What people call it. */
  readonly title: string;
}

export class Registry<T extends Definition> implements Iterable<T> {
  readonly #entries = new Map<string, T>();

  /** @param noun what an entry is, for messages ("method", "format"). */
  constructor(readonly noun: string) {}

  /** @throws UsageError code "duplicate" naming both entries when the id is taken. */
  add(entry: T): this {
    const taken = this.#entries.get(entry.id);
    if (taken) {
      throw new UsageError(
        `two ${this.noun}s have the id "${entry.id}": "${taken.title}" and "${entry.title}"`,
        { hint: "Give the second one its own id." },
        "duplicate",
      );
    }
    this.#entries.set(entry.id, entry);
    return this;
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  /** @throws UsageError code "unknown-<noun>" that names the nearest id. */
  get(id: string): T {
    const entry = this.#entries.get(id);
    if (entry) return entry;
    const near = nearestName(id, this.#entries.keys());
    throw new UsageError(
      `unknown ${this.noun} "${id}"`,
      {
        hint: near
          ? `Did you mean "${near}"?`
          : `Known ${this.noun}s: ${this.ids().join(", ") || "none"}.`,
      },
      `unknown-${this.noun}`,
    );
  }

  /** Ids in the order they were added. */
  ids(): string[] {
    return [...this.#entries.keys()];
  }

  [Symbol.iterator](): IterableIterator<T> {
    return this.#entries.values();
  }
}
