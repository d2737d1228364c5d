import { expect, it } from "vitest";
import { NaiveStream } from "../../../test/support/naive-stream.js";
import { randomRows } from "../../../test/support/stream-rows.js";
import type { AttentionStats } from "../contract.js";
import { h2o } from "./h2o.js";
import { keyformer, temperature } from "./keyformer.js";

const shape = { headDim: 4, heads: 3, promptLength: 20 };

const streamOf = (options: object, info = {}) => new NaiveStream(keyformer, options, shape, info);
function run(stream: { step: NaiveStream<unknown>["step"]; positions: number[] }, steps = 15) {
  const seen: number[][] = [];
  for (let step = 0; step < steps; step++) {
    const { q, k, v } = randomRows(`kf${step}`, step === 0 ? 20 : 1, shape);
    stream.step(q, k, v);
    seen.push(stream.positions);
  }
  return seen;
}

it("without noise at temperature 1 chooses as H2O does (whose window does not count the token to come)", () => {
  const quiet = run(streamOf({ budget: 10, recentShare: 0.4, noise: false, tauEnd: 1 }));
  const heavy = run(new NaiveStream(h2o, { heavy: 6, recent: 3 }, shape));
  expect(quiet).toEqual(heavy);
  const noisy = run(streamOf({ budget: 10, recentShare: 0.4 }));
  expect(noisy).not.toEqual(quiet);
});

it("live slots never exceed the budget less the token to come, and what is gone stays gone", () => {
  const seen = run(streamOf({ budget: 0.5, recentShare: 0.3 }));
  let before = new Set(Array.from({ length: 20 }, (_, i) => i));
  for (const [step, positions] of seen.entries()) {
    // 50 % of 20 tokens: 3 recent, 7 key tokens.
    expect(positions.length).toBe(9);
    expect(positions.slice(-2)).toEqual([18 + step, 19 + step]);
    expect(positions.every((p) => before.has(p))).toBe(true);
    before = new Set([...positions, 20 + step]);
  }
});

it("a budget of 100 % keeps a whole prompt", () => {
  const stream = streamOf({ budget: 1, recentShare: 0.3 });
  const rows = randomRows("kf0", 19, shape);
  stream.step(rows.q, rows.k, rows.v);
  expect(stream.positions.length).toBe(19);
});

it("one seed, the same choices: alone, beside other sequences, in one step or row by row", () => {
  const options = { budget: 10, recentShare: 0.4, seed: 7 };
  const alone = run(streamOf(options, { layer: 1, kvHead: 1 }));
  const others = [0, 1, 2].map(() => streamOf(options, { layer: 1, kvHead: 1 }));
  const batch: number[][][] = [[], [], []];
  for (let step = 0; step < 15; step++) {
    for (const [i, stream] of others.entries()) {
      const { q, k, v } = randomRows(`kf${step}`, step === 0 ? 20 : 1, shape);
      stream.step(q, k, v);
      (batch[i] as number[][]).push(stream.positions);
    }
  }
  for (const one of batch) expect(one).toEqual(alone);
  // Few tokens compete, so that one other stream may choose alike; several do not.
  const runs = (all: { options?: object; info?: object }[]) =>
    new Set(
      all.map((one) =>
        JSON.stringify(
          run(streamOf({ ...options, ...one.options }, { layer: 1, kvHead: 1, ...one.info })),
        ),
      ),
    ).size;
  expect(runs([7, 8, 9, 10].map((seed) => ({ options: { seed } })))).toBeGreaterThan(1);
  expect(runs([0, 1, 2, 3].map((kvHead) => ({ info: { kvHead } })))).toBeGreaterThan(1);
  expect(runs([0, 1, 2, 3].map((layer) => ({ info: { layer } })))).toBeGreaterThan(1);

  // Several committed rows at once (speculation) give the scores that single steps give.
  const single = streamOf({ budget: 64, seed: 3 });
  const joint = streamOf({ budget: 64, seed: 3 });
  const { q, k, v } = randomRows("joint", 24, shape);
  joint.step(q.subarray(0, 20 * 12), k.subarray(0, 80), v.subarray(0, 80));
  joint.step(q.subarray(20 * 12), k.subarray(80), v.subarray(80));
  single.step(q.subarray(0, 20 * 12), k.subarray(0, 80), v.subarray(0, 80));
  for (let r = 20; r < 24; r++) {
    single.step(
      q.subarray(r * 12, (r + 1) * 12),
      k.subarray(4 * r, 4 * r + 4),
      v.subarray(4 * r, 4 * r + 4),
    );
  }
  const scores = (bytes: Uint8Array) => new Float32Array(bytes.slice(8, 8 + 24 * 4).buffer);
  const [a, b] = [scores(joint.policy.snapshot()), scores(single.policy.snapshot())];
  for (let i = 0; i < 24; i++)
    expect(Math.abs((a[i] as number) - (b[i] as number))).toBeLessThan(1e-5);
});

it("the scores of a row sum to 1 over what it sees; masked slots get nothing", () => {
  const policy = keyformer.create(keyformer.options.parse({ budget: 100 }), {
    layer: 0,
    kvHead: 0,
    kvHeads: 1,
    headDim: 4,
    seed: 0,
  });
  const [rows, heads] = [5, 2];
  const logits = new Float32Array(rows * heads * rows).fill(Number.NEGATIVE_INFINITY);
  for (let r = 0; r < rows; r++) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i <= r; i++)
        logits[(r * heads + h) * rows + i] = 80 * Math.sin(i * 7 + r + h);
    }
  }
  const stats: AttentionStats = {
    rows,
    position: rows - 1,
    live: rows,
    prompt: true,
    more: false,
    promptLength: rows,
    logits,
    heads,
  };
  expect(policy.afterAttend?.(stats)).toBeNull();
  const scores = new Float32Array(policy.snapshot().slice(8, 8 + rows * 4).buffer);
  expect(scores.reduce((a, b) => a + b, 0)).toBeCloseTo(rows * heads, 5);
  // The last slot was visible to one row of each head only.
  expect(scores[rows - 1]).toBeLessThanOrEqual(heads);
});

it("a prompt whose logits come in parts is scored as one whose logits come at once", () => {
  const info = { layer: 0, kvHead: 0, kvHeads: 1, headDim: 4, seed: 0 };
  const options = keyformer.options.parse({ budget: 4 });
  const [whole, parts] = [keyformer.create(options, info), keyformer.create(options, info)];
  const rows = 9;
  const logits = Float32Array.from({ length: rows * rows }, (_, i) =>
    i % rows <= Math.floor(i / rows) ? Math.sin(i) : Number.NEGATIVE_INFINITY,
  );
  const common = { live: rows, prompt: true, promptLength: rows, heads: 1 };
  const plan = whole.afterAttend?.({ ...common, rows, position: 8, more: false, logits });
  for (const [from, to] of [
    [0, 4],
    [4, 5],
    [5, 9],
  ] as const) {
    const part = logits.subarray(from * rows, to * rows);
    const more = to < rows;
    const last = parts.afterAttend?.({
      ...common,
      rows: to - from,
      position: to - 1,
      more,
      logits: part,
    });
    expect(last).toEqual(more ? null : plan);
  }
  const a = new Float32Array(whole.snapshot().buffer);
  const b = new Float32Array(parts.snapshot().buffer);
  for (let i = 2; i < 6; i++) expect(b[i]).toBeCloseTo(a[i] as number, 5);
  expect(() =>
    parts.afterAttend?.({ ...common, rows: 1, position: 9, more: false, logits }),
  ).toThrow(/do not make/);
});

it("the temperature goes from tauInit in the prompt to tauEnd at the last new token", () => {
  const schedule = { tauInit: 1, tauEnd: 2, maxNewTokens: 8 };
  expect(temperature(schedule, 0, 20)).toBe(1);
  expect(temperature(schedule, 19, 20)).toBe(1);
  expect(temperature(schedule, 20, 20)).toBe(1.125);
  expect(temperature(schedule, 27, 20)).toBe(2);
  expect(temperature(schedule, 500, 20)).toBe(2);
});

it("continues from a snapshot as if nothing had happened", () => {
  const whole = run(streamOf({ budget: 8 }));
  const first = streamOf({ budget: 8 });
  run(first, 10);
  const second = streamOf({ budget: 8 });
  // The position of a stream is the cache's to restore; here the same rows run once more.
  run(second, 10);
  second.policy.restore(first.policy.snapshot());
  expect(second.policy.snapshot()).toEqual(first.policy.snapshot());
  for (let step = 10; step < 15; step++) {
    const { q, k, v } = randomRows(`kf${step}`, 1, shape);
    second.step(q, k, v);
    expect(second.positions).toEqual(whole[step]);
  }
});
