/** The hooks that merging (DMC) and remembering (LESS) policies use, through the oracle of one stream. */
import { expect, it } from "vitest";
import { mergePolicy } from "../../../test/support/merge-policy.js";
import { NaiveStream } from "../../../test/support/naive-stream.js";
import { randomRows } from "../../../test/support/stream-rows.js";

const shape = { headDim: 4, heads: 2, promptLength: 1 };

it("merged slots are the means of their tokens, at the position of the last", () => {
  const stream = new NaiveStream(mergePolicy(), { run: 3, recent: 100 }, shape);
  const rows = Array.from({ length: 11 }, (_, i) => randomRows(`m${i}`, 1, shape));
  for (const { q, k, v } of rows) stream.step(q, k, v);
  expect(stream.positions).toEqual([2, 5, 8, 10]);
  for (const [s, slot] of stream.slots.entries()) {
    const own = rows.slice(3 * s, 3 * s + 3);
    for (let i = 0; i < 4; i++) {
      const mean = own.reduce((sum, { k }) => sum + (k[i] as number), 0) / own.length;
      expect(slot.key[i]).toBeCloseTo(mean, 6);
    }
  }
});

it("nothing evicted: the auxiliary part is absent and changes nothing", () => {
  const stream = new NaiveStream(mergePolicy(), { run: 1, recent: 100 }, shape);
  const all = new NaiveStream(mergePolicy(), { run: 1, recent: 1000 }, shape);
  for (let i = 0; i < 10; i++) {
    const { q, k, v } = randomRows(`n${i}`, 1, shape);
    expect(stream.step(q, k, v)).toEqual(all.step(q, k, v));
    expect(stream.policy.auxPart?.(q, 2)).toBeNull();
  }
});

it("feature maps that give exp(q.k / sqrt d) restore full attention after any evictions", () => {
  // Each key is its own feature: psi is one-hot, phi the exact weights.
  const rows = Array.from({ length: 14 }, (_, i) => randomRows(`f${i}`, 1, shape));
  const dot = (a: Float32Array, b: Float32Array) =>
    a.reduce((s, x, i) => s + x * (b[i] as number), 0);
  const exact = mergePolicy({
    rank: rows.length,
    phi: (q) => Float64Array.from(rows, ({ k }) => Math.exp(dot(q, k) / 2)),
    psi: (key) => Float64Array.from(rows, ({ k }) => (k.every((x, i) => x === key[i]) ? 1 : 0)),
  });
  const small = new NaiveStream(exact, { run: 1, recent: 3 }, shape);
  const full = new NaiveStream(exact, { run: 1, recent: 100 }, shape);
  for (const { q, k, v } of rows) {
    const a = small.step(q, k, v);
    const b = full.step(q, k, v);
    for (const [i, x] of a.entries()) expect(x).toBeCloseTo(b[i] as number, 5);
  }
  expect(small.positions).toEqual([11, 12, 13]);
});

it("folding rows one by one or all at once gives the same state; the mass is positive", () => {
  const once = new NaiveStream(mergePolicy(), { run: 1, recent: 2 }, shape);
  const single = new NaiveStream(mergePolicy(), { run: 1, recent: 2 }, shape);
  const rows = Array.from({ length: 9 }, (_, i) => randomRows(`o${i}`, 1, shape));
  for (const { q, k, v } of rows) single.step(q, k, v);
  for (const { k, v } of rows.slice(0, 7)) once.policy.onEvict?.(k, v);
  const state = (p: typeof once) => new Float64Array(p.policy.snapshot().buffer).slice(0, -1);
  expect(state(once)).toEqual(state(single));
  const part = single.policy.auxPart?.((rows[0] as { q: Float32Array }).q, 2);
  expect(part?.sum.every((x) => x > 0)).toBe(true);
});

it("state survives a snapshot", () => {
  const a = new NaiveStream(mergePolicy(), { run: 2, recent: 3 }, shape);
  for (let i = 0; i < 9; i++) {
    const { q, k, v } = randomRows(`p${i}`, 1, shape);
    a.step(q, k, v);
  }
  const b = new NaiveStream(mergePolicy(), { run: 2, recent: 3 }, shape);
  b.policy.restore(a.policy.snapshot());
  b.slots = [...a.slots];
  const { q, k, v } = randomRows("next", 1, shape);
  expect(b.step(q, k, v)).toEqual(a.step(q, k, v));
});
