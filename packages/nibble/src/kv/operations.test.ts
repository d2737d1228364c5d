/** Random operations on sequences of a managed cache, against plain lists: order, accounting of pages, no leak. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CacheLab, type LabShape } from "../../test/support/cache-lab.js";
import { storages } from "../../test/support/cache-storages.js";
import { Philox } from "../core/rng.js";
import type { KvRecipe } from "../model/model.js";

type Operation =
  | { kind: "append"; sequence: number; rows: number }
  | { kind: "draft"; sequence: number; rows: number; keep: number }
  | { kind: "evict"; sequence: number; every: number }
  | { kind: "truncate"; sequence: number; share: number }
  | { kind: "fork"; sequence: number; to: number }
  | { kind: "drop"; sequence: number };

const operation: fc.Arbitrary<Operation> = fc.oneof(
  fc.record({
    kind: fc.constant("append" as const),
    sequence: fc.nat(2),
    rows: fc.integer({ min: 1, max: 30 }),
  }),
  fc.record({
    kind: fc.constant("draft" as const),
    sequence: fc.nat(2),
    rows: fc.integer({ min: 1, max: 8 }),
    keep: fc.nat(8),
  }),
  fc.record({
    kind: fc.constant("evict" as const),
    sequence: fc.nat(2),
    every: fc.integer({ min: 2, max: 7 }),
  }),
  fc.record({
    kind: fc.constant("truncate" as const),
    sequence: fc.nat(2),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
  }),
  fc.record({ kind: fc.constant("fork" as const), sequence: fc.nat(2), to: fc.nat(2) }),
  fc.record({ kind: fc.constant("drop" as const), sequence: fc.nat(2) }),
);

const SEQUENCES = [0, 1, 2];

/** A cache beside lists of the positions that each of its sequences must hold. */
class Tracked {
  readonly lab: CacheLab;
  readonly held: number[][] = [[], [], []];
  /** Tokens that each sequence has seen. */
  readonly seen = [0, 0, 0];

  constructor(recipe: KvRecipe, shape: LabShape) {
    this.lab = new CacheLab(recipe, shape);
  }

  async apply(op: Operation): Promise<void> {
    const { lab, held, seen } = this;
    const { sequence } = op;
    const own = held[sequence] as number[];
    const at = seen[sequence] as number;
    const take = (n: number) => Array.from({ length: n }, (_, i) => at + i);
    if (op.kind === "append") {
      await lab.step(lab.rows(op.rows, at), { kind: "stepwise" }, { sequence });
      own.push(...take(op.rows));
      seen[sequence] = at + op.rows;
    } else if (op.kind === "draft") {
      await lab.step(lab.rows(op.rows, at), { kind: "scratch" }, { sequence });
      const keep = Math.min(op.keep, op.rows);
      if (keep === 0) lab.layer(sequence).rollback();
      else lab.layer(sequence).commit(keep);
      own.push(...take(keep));
      seen[sequence] = at + keep;
    } else if (op.kind === "evict") {
      const gone = own.map((_, i) => i).filter((i) => i % op.every !== 0);
      for (const stream of lab.layer(sequence).streams) stream.evict(Int32Array.from(gone));
      held[sequence] = own.filter((_, i) => i % op.every === 0);
    } else if (op.kind === "truncate") {
      const length = Math.floor(op.share * at);
      lab.cache.truncate(sequence, length);
      held[sequence] = own.filter((position) => position < length);
      seen[sequence] = length;
    } else if (op.kind === "drop") {
      lab.cache.truncate(sequence, 0);
      held[sequence] = [];
      seen[sequence] = 0;
    } else if (sequence !== op.to) {
      lab.cache.truncate(op.to, 0);
      lab.cache.fork(sequence, op.to);
      held[op.to] = own.slice();
      seen[op.to] = at;
    }
  }

  /** Slots are those of the lists, in order; every page is referred to as often as streams hold it. */
  check(): void {
    const { lab } = this;
    const pages: Record<"k" | "v", number[]> = { k: [], v: [] };
    for (const s of SEQUENCES) {
      const expected = this.held[s] as number[];
      for (const stream of lab.layer(s).streams) {
        stream.check();
        const positions = Array.from({ length: stream.length }, (_, i) => stream.position(i));
        expect(positions).toEqual(expected);
        pages.k.push(...stream.k.store.pages);
        pages.v.push(...stream.v.store.pages);
      }
    }
    for (const [name, pool] of lab.cache.pools) {
      const held = pages[name.startsWith("k") ? "k" : "v"];
      const used = new Set(held);
      expect([...used].reduce((sum, id) => sum + pool.references(id), 0)).toBe(held.length);
      expect(pool.usedPages).toBe(used.size);
    }
  }

  /** Nothing is left when every sequence is gone. */
  end(): void {
    for (const s of SEQUENCES) this.lab.cache.truncate(s, 0);
    expect(this.lab.cache.bytes().total).toBe(0);
  }
}

describe("random operations", () => {
  it.each(storages)("keep %s in order", async (_, recipe) => {
    const shape = { headDim: 32, kvHeads: 1, groupHeads: 1, tile: 64, positions: 1200 };
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { minLength: 5, maxLength: 16 }), async (operations) => {
        const tracked = new Tracked(recipe, shape);
        for (const op of operations) {
          await tracked.apply(op);
          tracked.check();
        }
        tracked.end();
      }),
      { numRuns: Number(process.env.NIBBLE_TEST_RUNS ?? 3) },
    );
  });

  it("10,000 in a row keep their order and leave nothing behind", async () => {
    const recipe: KvRecipe = {
      k: { codec: "gear", base: { codec: "int4-token" }, rank: 1, buffer: 8 },
      v: { codec: "kivi", bits: 2, group: 8, residual: 8 },
      sinks: 2,
      page: 8,
    };
    const tracked = new Tracked(recipe, {
      ...{ headDim: 8, kvHeads: 1, groupHeads: 1, tile: 64, positions: 200, still: true },
    });
    const rng = new Philox(11, "operations");
    let most = 0;
    for (let i = 0; i < 10_000; i++) {
      const sequence = rng.below(3);
      const room = 120 - (tracked.seen[sequence] as number);
      const operations: Operation[] = [
        { kind: "append", sequence, rows: Math.min(room, 1 + rng.below(6)) },
        { kind: "draft", sequence, rows: Math.min(room, 1 + rng.below(6)), keep: rng.below(6) },
        { kind: "evict", sequence, every: 2 + rng.below(5) },
        { kind: "truncate", sequence, share: rng.uniform() },
        { kind: "fork", sequence, to: rng.below(3) },
        { kind: "drop", sequence },
      ];
      // Rows come more often than what takes them away.
      const chosen = Math.max(0, rng.below(14) - 8);
      const kind = chosen === 0 && rng.below(3) === 0 ? 1 : chosen;
      await tracked.apply(operations[room < 8 && kind < 2 ? 3 : kind] as Operation);
      tracked.check();
      most = Math.max(most, tracked.lab.cache.bytes().total);
    }
    tracked.end();
    // Three sequences of 120 tokens, exact rows and codes at once.
    expect(most).toBeLessThan(3 * 120 * (2 * 4 * 8 + 2 * 8 * 2 + 32));
    expect(most).toBeGreaterThan(1000);
  });
});
