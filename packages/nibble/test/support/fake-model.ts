/**
 * A language model in ten lines for tests of evaluation code: the logits of a row are a hash of everything its cache
 * slot holds up to its position, so a row that reads a wrong prefix gets wrong logits. Its tokenizer has one token a
 * character, or one a pair of letters, so that texts may merge over a boundary.
 */
import { ResourceError } from "../../src/core/errors.js";
import { philox4x32 } from "../../src/core/rng.js";
import type { ScoringModel } from "../../src/eval/zero-shot.js";
import type { OpenedModel } from "../../src/runtime/open.js";
import type { LogitStats, Rows } from "../../src/runtime/runner.js";

export const VOCAB = 160;

/** Logits after a prefix. */
export function fakeLogits(prefix: ArrayLike<number>, salt = 0): Float32Array {
  let hash = 17 + salt;
  for (let i = 0; i < prefix.length; i++)
    hash = (Math.imul(hash, 31) + (prefix[i] as number) + 7) >>> 0;
  const out = new Float32Array(VOCAB);
  for (let v = 0; v < VOCAB; v++) out[v] = (philox4x32([hash, v, 0, 0], [1, 2])[0] / 2 ** 32) * 6;
  return out;
}

export function logSumExp(logits: Float32Array): number {
  const max = logits.reduce((a, b) => Math.max(a, b));
  return max + Math.log(logits.reduce((sum, l) => sum + Math.exp(l - max), 0));
}

/** One token a character (code & 127); "th" and "e " are single tokens 128 and 129. */
export function fakeEncode(text: string): number[] {
  const ids: number[] = [];
  for (let i = 0; i < text.length; i++) {
    const pair = text.slice(i, i + 2);
    if (pair === "th" || pair === "e ") {
      ids.push(pair === "th" ? 128 : 129);
      i++;
    } else ids.push(text.charCodeAt(i) & 127);
  }
  return ids;
}

export class FakeRunner {
  readonly model: { maxRows: number; maxLogitRows: number; maxContext: number };
  readonly tables;
  /** Rows of each step so far. */
  readonly steps: number[] = [];
  readonly #cache: number[][];
  readonly #salt: number;
  #prefixes: number[][] = [];
  #scored: Float32Array[] = [];

  constructor({
    salt = 0,
    maxRows = 16,
    maxLogitRows = 4,
    maxContext = 256,
    sequences = 3,
    room = Number.POSITIVE_INFINITY,
  } = {}) {
    this.#salt = salt;
    this.model = { maxRows, maxLogitRows, maxContext };
    this.#cache = Array.from({ length: sequences }, () => []);
    const reserved = new Array<number>(sequences).fill(0);
    this.tables = {
      sequences,
      reserve(slot: number, length: number) {
        const others = reserved.reduce((sum, r, i) => (i === slot ? sum : sum + r), 0);
        if (others + length > room) throw new ResourceError("full", {}, "context-full");
        reserved[slot] = Math.max(reserved[slot] as number, length);
      },
      truncate(slot: number, length: number) {
        reserved[slot] = Math.min(reserved[slot] as number, length);
      },
      get reserved() {
        return reserved.slice();
      },
    };
  }

  async step(rows: Rows, _logitRows: ArrayLike<number> = []): Promise<void> {
    const n = rows.tokens.length;
    if (n === 0 || n > this.model.maxRows) throw new Error(`${n} rows`);
    this.steps.push(n);
    const seen = new Set<string>();
    for (let i = 0; i < n; i++) {
      const slot = rows.sequences[i] as number;
      const position = rows.positions[i] as number;
      if (seen.has(`${slot}/${position}`)) throw new Error("one position written twice in a run");
      seen.add(`${slot}/${position}`);
      if (position >= (this.tables.reserved[slot] as number))
        throw new Error("no room was reserved");
      (this.#cache[slot] as number[])[position] = rows.tokens[i] as number;
    }
    // Like the engine: all keys of a run are written before any row attends.
    this.#prefixes = Array.from({ length: n }, (_, i) =>
      (this.#cache[rows.sequences[i] as number] as number[]).slice(
        0,
        (rows.positions[i] as number) + 1,
      ),
    );
    this.#scored = Array.from(_logitRows, (row) =>
      fakeLogits(this.#prefixes[row] as number[], this.#salt),
    );
  }

  async score(rows: number | ArrayLike<number>, targets: ArrayLike<number>): Promise<LogitStats[]> {
    if (targets.length > this.model.maxLogitRows) throw new Error("too many logit rows");
    const list =
      typeof rows === "number" ? Array.from(targets, (_, i) => rows + i) : Array.from(rows);
    this.#scored = list.map((row) => fakeLogits(this.#prefixes[row] as number[], this.#salt));
    return this.#scored.map((logits, i) => {
      const argmax = logits.indexOf(Math.max(...logits));
      return {
        argmax,
        max: logits[argmax] as number,
        logSumExp: logSumExp(logits),
        target: logits[targets[i] as number] as number,
      };
    });
  }

  async divergence(count: number, reference: (row: number) => Float32Array) {
    return Array.from({ length: count }, (_, i) => {
      const [p, q] = [reference(i), this.#scored[i] as Float32Array];
      const [zp, zq] = [logSumExp(p), logSumExp(q)];
      const kl = p.reduce(
        (sum, lp, v) => sum + Math.exp(lp - zp) * (lp - zp - ((q[v] as number) - zq)),
        0,
      );
      return { kl, same: p.indexOf(Math.max(...p)) === q.indexOf(Math.max(...q)) };
    });
  }

  logits(i: number): Float32Array {
    return this.#scored[i] as Float32Array;
  }
}

/** The same runner as an opened model, for code that takes a whole one. */
export function fakeOpened(runner: FakeRunner): OpenedModel {
  const decode = (ids: number[]) =>
    ids.map((id) => (id === 128 ? "th" : id === 129 ? "e " : String.fromCharCode(id))).join("");
  return {
    ...fakeModel(runner),
    compiled: runner.model,
    tokenizer: { encode: fakeEncode, decode },
  } as unknown as OpenedModel; // only what evaluation uses
}

export function fakeModel(runner: FakeRunner, bosTokenId: number | null = null): ScoringModel {
  return {
    runner,
    tokenizer: { encode: fakeEncode },
    model: { config: { bosTokenId, eosTokenIds: [2] } },
  };
}
