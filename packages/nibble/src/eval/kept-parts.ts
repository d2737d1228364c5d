/**
 * Finished parts of a long measurement, kept on disk under the hash of everything that decides them: a run that was stopped
 * goes on where it was, one that is given again computes nothing. Node only.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../core/atomic-write.js";
import { sha256 } from "../core/sha256.js";

/** What decides a part: the same content gives the same name, in whatever order the keys are. */
export type PartKey = Record<string, unknown>;

/** Hex SHA-256 of a text. */
export function textHash(text: string): string {
  const hash = sha256();
  hash.update(new TextEncoder().encode(text));
  return hash.digest();
}

/** Objects with sorted keys, so that equal contents have equal texts. */
function sorted(_key: string, value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

export class KeptParts {
  /** @param folder where parts lie, `<hash>.json` each */
  constructor(private readonly folder: string) {}

  /** The part of that key, or null. A damaged file is no part. */
  async known<T>(key: PartKey): Promise<T | null> {
    const id = textHash(JSON.stringify(key, sorted));
    const text = await readFile(join(this.folder, `${id}.json`), "utf8").catch(() => null);
    if (text === null) return null;
    try {
      const kept = JSON.parse(text) as { id?: unknown; part?: T };
      return kept.id === id && kept.part !== undefined ? kept.part : null;
    } catch {
      return null;
    }
  }

  /** Keeps a part, unless it holds numbers that JSON cannot (they would come back as null). */
  async keep(key: PartKey, part: object): Promise<void> {
    const id = textHash(JSON.stringify(key, sorted));
    let exact = true;
    const text = JSON.stringify({ id, part }, (_key, value: unknown) => {
      if (typeof value === "number" && !Number.isFinite(value)) exact = false;
      return value;
    });
    if (exact) await writeFileAtomic(join(this.folder, `${id}.json`), `${text}\n`);
  }
}
