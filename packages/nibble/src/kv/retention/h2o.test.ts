import * as fc from "fast-check";
import { expect, it } from "vitest";
import { NaiveStream } from "../../../test/support/naive-stream.js";
import { randomRows } from "../../../test/support/stream-rows.js";
import { h2o } from "./h2o.js";
import { windowRetention } from "./window.js";

const shape = { headDim: 4, heads: 3, promptLength: 20 };
const full = { recent: 1000, heavy: 0 };

function feed(stream: NaiveStream<never>, name: string, rows: number): Float64Array {
  const { q, k, v } = randomRows(name, rows, shape);
  return stream.step(q, k, v);
}
const streamOf = (options: object, info = {}) =>
  new NaiveStream(h2o, options, shape, info) as unknown as NaiveStream<never>;

it("changes nothing while the budget covers the text", () => {
  const bounded = streamOf({ heavy: 12, recent: 20 });
  const all = streamOf(full);
  for (let step = 0; step < 12; step++) {
    const rows = step === 0 ? 20 : 1;
    expect(feed(bounded, `${step}`, rows)).toEqual(feed(all, `${step}`, rows));
  }
  expect(bounded.positions.length).toBe(31);
});

it("without heavy hitters is a plain window; without a window keeps heavy hitters only", () => {
  const stream = streamOf({ heavy: 0, recent: 5 });
  const plain = new NaiveStream(windowRetention, { sinks: 0, recent: 5 }, shape);
  for (let step = 0; step < 9; step++) {
    const rows = step === 0 ? 20 : 1;
    const out = feed(stream, `${step}`, rows);
    expect(out).toEqual(feed(plain as unknown as NaiveStream<never>, `${step}`, rows));
    expect(stream.positions).toEqual(plain.positions);
  }
  const heavy = streamOf({ heavy: 5, recent: 0 });
  feed(heavy, "0", 20);
  expect(heavy.positions.length).toBe(5);
});

it("shares are of the prompt, fixed there: 10 % and 10 % of 20 tokens", () => {
  const stream = streamOf({ heavy: 0.1, recent: 0.1 });
  for (let step = 0; step < 6; step++) {
    feed(stream, `${step}`, step === 0 ? 20 : 1);
    expect(stream.positions.length).toBe(4);
  }
  expect(stream.policy.capacity(20)).toBe(4);
  // Fed one by one the budgets are the same, since the prompt's length is known.
  const stepwise = streamOf({ heavy: 0.1, recent: 0.1 });
  for (let step = 0; step < 20; step++) feed(stepwise, `one${step}`, 1);
  expect(stepwise.positions.length).toBe(4);
});

it("keeps the last tokens and the largest brute-force sums of the rest, summed over the group", () => {
  fc.assert(
    fc.property(
      fc.record({
        heavy: fc.integer({ min: 2, max: 6 }),
        recent: fc.integer({ min: 2, max: 6 }),
        sinks: fc.integer({ min: 0, max: 2 }),
        score: fc.constantFrom("sum" as const, "avg" as const),
        prompt: fc.integer({ min: 1, max: 20 }),
        seed: fc.nat(1000),
      }),
      ({ prompt, seed, ...options }) => {
        const stream = streamOf(options);
        const sums = new Map<number, { sum: number; rows: number }>();
        let length = 0;
        for (let step = 0; step < 12; step++) {
          const rows = step === 0 ? prompt : 1;
          const before = [
            ...stream.positions,
            ...Array.from({ length: rows }, (_, i) => length + i),
          ];
          feed(stream, `${seed}/${step}`, rows);
          length += rows;
          const columns = stream.stats?.columns as Float32Array;
          for (const [i, position] of before.entries()) {
            const entry = sums.get(position) ?? { sum: 0, rows: 0 };
            entry.sum = Math.fround(entry.sum + (columns[i] as number));
            entry.rows += Math.min(rows, length - position);
            sums.set(position, entry);
          }
          const value = (position: number) => {
            const { sum, rows: seen } = sums.get(position) as { sum: number; rows: number };
            return options.score === "avg" ? Math.fround(sum / seen) : sum;
          };
          const end = before.length - options.recent;
          const middle = before.slice(options.sinks, Math.max(end, options.sinks));
          const best = middle.sort((a, b) => value(b) - value(a) || a - b).slice(0, options.heavy);
          const keep =
            before.length <= options.sinks + options.heavy + options.recent
              ? before
              : [...before.slice(0, options.sinks), ...best, ...before.slice(end)];
          expect(stream.positions).toEqual(keep.sort((a, b) => a - b));
          expect(stream.positions.length).toBe(
            Math.min(before.length, options.sinks + options.heavy + options.recent),
          );
        }
      },
    ),
    { numRuns: 60 },
  );
});

it("of equal scores the older token stays", () => {
  const policy = h2o.create(h2o.options.parse({ heavy: 2, recent: 2 }), {
    layer: 0,
    kvHead: 0,
    kvHeads: 1,
    headDim: 4,
    seed: 0,
  });
  const step = (rows: number, live: number, prompt: boolean) =>
    policy.afterAttend?.({
      rows,
      position: 0,
      live,
      prompt,
      more: false,
      promptLength: 6,
      columns: new Float32Array(live).fill(1),
    })?.evict;
  expect(Array.from(step(6, 6, true) as Int32Array)).toEqual([2, 3]);
  // One in, one out: slot 2 has 1 less than slots 0 and 1 after its shorter life, so it goes.
  expect(Array.from(step(1, 5, false) as Int32Array)).toEqual([2]);
});

it("snapshot and restore continue as if nothing had happened; damaged bytes are refused whole", () => {
  const a = streamOf({ heavy: 4, recent: 4, score: "avg" });
  feed(a, "prompt", 20);
  const b = streamOf({ heavy: 4, recent: 4, score: "avg" });
  feed(b, "other", 13);
  const bytes = a.policy.snapshot();
  expect(bytes.length).toBe(a.policy.bytes);
  for (const bad of [
    bytes.subarray(1),
    bytes.subarray(0, 4),
    new Uint8Array([255, 255, 255, 255, ...bytes.subarray(4)]),
    new Uint8Array([...bytes.subarray(0, 8), 0, 0, 192, 127, ...bytes.subarray(12)]),
  ]) {
    const before = b.policy.snapshot();
    expect(() => b.policy.restore(bad)).toThrow(expect.objectContaining({ code: "format" }));
    expect(b.policy.snapshot()).toEqual(before);
  }
  b.policy.restore(bytes);
  expect(b.policy.snapshot()).toEqual(bytes);
  b.slots = [...a.slots];
  for (let step = 0; step < 5; step++) {
    feed(a, `s${step}`, 1);
    const { q, k, v } = randomRows(`s${step}`, 1, shape);
    b.step(q, k, v);
    expect(b.slots.map((s) => s.key)).toEqual(a.slots.map((s) => s.key));
  }
});

it("refuses budgets that mean nothing", () => {
  for (const bad of [{ heavy: 1.5 }, { heavy: -1 }, { heavy: 0, recent: 0 }, { heavi: 3 }]) {
    expect(h2o.options.safeParse(bad).success).toBe(false);
  }
});

it("keeps something of a prompt that is shorter than one token of the budget", () => {
  const short = { ...shape, promptLength: 4 };
  const stream = new NaiveStream(h2o, { heavy: 0.1, recent: 0.1 }, short);
  const { q, k, v } = randomRows("short", 4, short);
  stream.step(q, k, v);
  expect(stream.positions.length).toBe(2);
  expect(stream.positions[1]).toBe(3);
});
