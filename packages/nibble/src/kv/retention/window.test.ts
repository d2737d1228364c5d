import { expect, it } from "vitest";
import { NaiveStream } from "../../../test/support/naive-stream.js";
import { randomRows } from "../../../test/support/stream-rows.js";
import { windowRetention } from "./window.js";

const shape = { headDim: 4, heads: 1, promptLength: 10 };

function positionsAfter(options: object, prompt: number, steps: number): number[][] {
  const stream = new NaiveStream(windowRetention, options, shape);
  const feed = (name: string, rows: number) => {
    const { q, k, v } = randomRows(name, rows, shape);
    stream.step(q, k, v);
    return stream.positions;
  };
  return [feed("prompt", prompt), ...Array.from({ length: steps }, (_, i) => feed(`s${i}`, 1))];
}

it("keeps everything while sinks and window have room", () => {
  const seen = positionsAfter({ sinks: 2, recent: 6 }, 5, 3);
  expect(seen.at(-1)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
});

it("keeps the first and the last tokens; sinks are not counted in the window", () => {
  const seen = positionsAfter({ sinks: 2, recent: 3 }, 10, 2);
  expect(seen).toEqual([
    [0, 1, 7, 8, 9],
    [0, 1, 8, 9, 10],
    [0, 1, 9, 10, 11],
  ]);
  expect(positionsAfter({ sinks: 0, recent: 3 }, 10, 1).at(-1)).toEqual([8, 9, 10]);
});

it("stays in constant memory over 10,000 steps and needs no state", () => {
  const policy = windowRetention.create(windowRetention.options.parse({ sinks: 4, recent: 60 }), {
    layer: 0,
    kvHead: 0,
    kvHeads: 1,
    headDim: 4,
    seed: 0,
  });
  let live = 0;
  for (let position = 0; position < 10_000; position++) {
    live++;
    const plan = policy.afterAttend?.({
      rows: 1,
      position,
      live,
      prompt: position === 0,
      more: false,
      promptLength: 1,
    });
    live -= plan?.evict.length ?? 0;
    expect(live).toBe(Math.min(position + 1, policy.capacity(1) as number));
  }
  expect(policy.snapshot().length).toBe(0);
  expect(() => policy.restore(new Uint8Array(1))).toThrow(/no state/);
});

/** Rotates pairs (i, i + d / 2) of a head by `position`, angles reduced in float64. */
function rotate(x: readonly number[], position: number): number[] {
  const half = x.length / 2;
  const out = [...x];
  for (let i = 0; i < half; i++) {
    const angle = (position * 10000 ** (-i / half)) % (2 * Math.PI);
    const [a, b] = [x[i] as number, x[i + half] as number];
    out[i] = Math.fround(Math.fround(a * Math.cos(angle)) - Math.fround(b * Math.sin(angle)));
    out[i + half] = Math.fround(
      Math.fround(b * Math.cos(angle)) + Math.fround(a * Math.sin(angle)),
    );
  }
  return out;
}

it("slot positions on keys after RoPE: two queries score as if all keys were rotated anew", () => {
  const d = 64;
  const dot = (a: number[], b: number[]) => a.reduce((s, x, i) => s + x * (b[i] as number), 0);
  const [sinks, recent] = [4, 12];
  for (const p of [20, 5000, 1_000_000]) {
    const rows = randomRows(`rope${p}`, sinks + recent, { headDim: d, heads: 1 }, 0.3);
    const key = (i: number) => Array.from(rows.k.subarray(i * d, (i + 1) * d));
    const query = Array.from(rows.q.subarray(0, d));
    const evicted = p + 1 - sinks - recent;
    const slotQuery = rotate(query, p - evicted);
    const textQuery = rotate(query, p);
    for (let slot = 0; slot < sinks + recent; slot++) {
      const anew = dot(slotQuery, rotate(key(slot), slot));
      const position = slot < sinks ? slot : slot + evicted;
      const stored = rotate(key(slot), position);
      const twoQuery = dot(slot < sinks ? slotQuery : textQuery, stored);
      expect(Math.abs(twoQuery - anew)).toBeLessThan(1e-5 * Math.max(1, Math.abs(anew)) + 2e-6);
    }
  }
});
