/** What every codec and every policy must do in the managed cache (docs/kv-cache.md, "Conformance"). */
import { describe, expect, it } from "vitest";
import { CacheLab, type LabShape } from "../../test/support/cache-lab.js";
import { both, PLANES, storages } from "../../test/support/cache-storages.js";
import { mergePolicy } from "../../test/support/merge-policy.js";
import { NaiveStream } from "../../test/support/naive-stream.js";
import type { KvRecipe } from "../model/model.js";
import { kvCodecs } from "./codecs/index.js";
import type { RetentionDefinition } from "./contract.js";
import { resolveKv } from "./recipe.js";
import { retentions } from "./retention/index.js";
import { DenseAttender } from "./streams/attender.js";
import { ManagedImage } from "./streams/image.js";
import { sealRhythm } from "./streams/stream.js";

const POLICIES: Record<string, Record<string, unknown>[]> = {
  all: [{}],
  window: [{ sinks: 2, recent: 9 }],
  h2o: [{ heavy: 4, recent: 6 }],
  keyformer: [{ budget: 10 }],
};
const policyCases = retentions
  .ids()
  .flatMap((type) =>
    (POLICIES[type] ?? []).map((options) => [type, { type, ...options }] as const),
  );

const SHAPE: LabShape = { headDim: 32, kvHeads: 2, groupHeads: 2 };

it("every registered codec and policy has cases here", () => {
  expect(Object.keys(PLANES).sort()).toEqual(kvCodecs.ids().sort());
  expect(Object.keys(POLICIES).sort()).toEqual(retentions.ids().sort());
});

/** Computes attention over all tiles of a step at once, in doubles: the oracle of fused attention. */
class WholeAttender extends DenseAttender {
  #seen: { keys: Float32Array; values: Float32Array; queries: Float32Array; ranges: Int32Array }[] =
    [];

  override run(rows: number, logits: boolean): void {
    super.run(rows, logits);
    const { keys, values, queries, ranges } = this;
    this.#seen.push({
      keys: keys.slice(),
      values: values.slice(),
      queries: queries.slice(),
      ranges: ranges.slice(),
    });
  }

  /** Attention output of `rows` rows over everything since the last call. */
  whole(rows: number): Float64Array {
    const { heads, kvHeads, headDim, slots } = this;
    const out = new Float64Array(rows * heads * headDim);
    for (let m = 0; m < rows; m++) {
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor((h * kvHeads) / heads);
        const entries: { score: number; value: Float32Array }[] = [];
        for (const { keys, values, queries, ranges } of this.#seen) {
          const at = (m * kvHeads + kv) * 2;
          for (let t = ranges[at] as number; t < (ranges[at + 1] as number); t++) {
            const from = (kv * slots + t) * headDim;
            let dot = 0;
            for (let d = 0; d < headDim; d++) {
              dot +=
                (queries[(m * heads + h) * headDim + d] as number) * (keys[from + d] as number);
            }
            entries.push({
              score: dot / Math.sqrt(headDim),
              value: values.subarray(from, from + headDim),
            });
          }
        }
        const max = Math.max(...entries.map(({ score }) => score));
        const total = entries.reduce((sum, { score }) => sum + Math.exp(score - max), 0);
        for (const { score, value } of entries) {
          const p = Math.exp(score - max) / total;
          for (let d = 0; d < headDim; d++) {
            const to = (m * heads + h) * headDim + d;
            out[to] = (out[to] as number) + p * (value[d] as number);
          }
        }
      }
    }
    this.#seen = [];
    return out;
  }
}

function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>, bound: number): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < actual.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    if (!(difference <= bound * (1 + Math.abs(expected[i] as number)))) {
      expect.fail(`[${i}] is ${actual[i]}, expected ${expected[i]}`);
    }
  }
}

describe.each(storages)("storage %s", (_, recipe) => {
  it("attends as over everything decoded at once, with any head ratio", async () => {
    for (const [headDim, groupHeads] of [
      [32, 1],
      [64, 3],
      [128, 8],
    ] as const) {
      const shape: LabShape = { headDim, kvHeads: 2, groupHeads, tile: 24 };
      const attender = new WholeAttender({
        ...shape,
        heads: 2 * groupHeads,
        maxRows: 64,
        slots: 24,
      });
      const lab = new CacheLab(recipe, shape, attender);
      await lab.step(lab.rows(45, 0));
      attender.whole(0);
      for (let n = 45; n < 50; n++) {
        expectClose(await lab.step(lab.rows(1, n)), attender.whole(1), 1e-5);
      }
    }
  });

  it("rows of a step count as if fed one by one", async () => {
    const [many, single] = [new CacheLab(recipe, SHAPE), new CacheLab(recipe, SHAPE)];
    for (const count of [1, 7, 40, 3, 30]) {
      const from = many.cache.length(0);
      const together = await many.step(many.rows(count, from));
      const width = together.length / count;
      for (let i = 0; i < count; i++) {
        const alone = await single.step(single.rows(1, from + i));
        expectClose(together.subarray(i * width, (i + 1) * width), alone, 1e-5);
      }
      expect(many.contents()).toEqual(single.contents());
    }
  });

  it("a prompt attends exactly and leaves the state of one-by-one feeding", async () => {
    const [prompt, single, exact] = [
      new CacheLab(recipe, SHAPE),
      new CacheLab(recipe, SHAPE),
      new CacheLab(both({ codec: "fp32" }), SHAPE),
    ];
    const total = 61;
    const first = await prompt.step(prompt.rows(40, 0), { kind: "block", total, last: false });
    const second = await prompt.step(prompt.rows(21, 40), { kind: "block", total, last: true });
    const expected = await exact.step(exact.rows(total, 0));
    expectClose(first, expected.subarray(0, first.length), 1e-4);
    expectClose(second, expected.subarray(first.length), 1e-4);
    await single.step(single.rows(total, 0));
    // What a codec learns from attention depends on how the tokens came.
    const [stream] = prompt.layer().streams;
    if (!stream?.k.caps.stats && !stream?.v.caps.stats) {
      expect(prompt.contents()).toEqual(single.contents());
    }
  });

  it("tails have the lengths that the flush rule says, for every length", async () => {
    const lab = new CacheLab(recipe, SHAPE);
    for (let n = 1; n <= 70; n++) {
      await lab.step(lab.rows(1, n - 1));
      for (const { caps, sealed } of lab.layer().streams.flatMap(({ k, v }) => [k, v])) {
        const sinks = Math.min(n, lab.kv.sinks);
        const rhythm = sealRhythm(caps);
        const { when, keep, take } = caps.flush;
        let tail = n - sinks;
        if (rhythm.kind === "batch") {
          while (tail >= when) tail -= take === 0 ? tail - keep : take;
        } else tail = Math.min(tail, keep);
        expect(sealed).toBe(n - tail);
      }
    }
  });

  it("a draft that is rolled back leaves no trace; one that is committed counts", async () => {
    const lab = new CacheLab(recipe, SHAPE);
    await lab.step(lab.rows(50, 0));
    const before = lab.contents();
    const bytes = lab.cache.bytes();
    const draft = await lab.step(lab.rows(9, 50), { kind: "scratch" });
    expect(draft.every(Number.isFinite)).toBe(true);
    lab.layer().rollback();
    expect(lab.contents()).toEqual(before);
    expect(lab.cache.bytes()).toEqual(bytes);
    await lab.step(lab.rows(9, 50), { kind: "scratch" });
    lab.layer().commit(Int32Array.of(0, 1, 4));
    lab.layer().streams.forEach((stream) => {
      stream.check();
      const positions = Array.from({ length: 3 }, (_, i) => stream.position(50 + i));
      expect(positions).toEqual([50, 51, 54]);
    });
  });

  it("a fork shares pages, and neither side sees what the other does", async () => {
    const lab = new CacheLab(recipe, SHAPE);
    await lab.step(lab.rows(50, 0));
    const used = [...lab.cache.pools.values()].map((pool) => pool.usedPages);
    lab.cache.fork(0, 1);
    expect([...lab.cache.pools.values()].map((pool) => pool.usedPages)).toEqual(used);
    const before = lab.contents();
    expect(lab.contents(1)).toEqual(before);
    await lab.step(lab.rows(20, 50, "other"), { kind: "stepwise" }, { sequence: 1 });
    expect(lab.contents()).toEqual(before);
    const alone = new CacheLab(recipe, SHAPE);
    await alone.step(alone.rows(50, 0));
    const [a, b] = [await lab.step(lab.rows(5, 50)), await alone.step(alone.rows(5, 50))];
    expect(a).toEqual(b);
    lab.cache.truncate(0, 0);
    lab.cache.truncate(1, 0);
    expect([...lab.cache.pools.values()].every((pool) => pool.usedPages === 0)).toBe(true);
    expect(lab.cache.bytes().total).toBe(0);
  });

  it("stores as many bits as its definition says", async () => {
    const lab = new CacheLab(recipe, { ...SHAPE, headDim: 64 });
    await lab.step(lab.rows(256, 0));
    const bytes = lab.cache.bytes();
    for (const plane of ["k", "v"] as const) {
      const { codec, ...options } = lab.kv[plane];
      const bits = kvCodecs.get(codec).bitsPerElement(options, 64);
      const { sealed } = lab.layer().streams[0]?.[plane] ?? { sealed: 0 };
      const sinks = lab.kv.sinks;
      const elements = (sealed - sinks) * 64 * 2;
      const stored = bytes[plane] * 8;
      // Rounding of a group to 4 bytes, and of the last page.
      if (bits !== null) {
        expect(stored).toBeGreaterThanOrEqual(elements * bits - 1);
        expect(stored).toBeLessThan(elements * (bits + 1) + 33 * 64 * 2 * (bits + 1));
      } else expect(stored).toBeGreaterThan(0);
    }
  });

  it("survives rows of every kind", async () => {
    for (const fill of [0, 1, -1e4, 1e-30]) {
      const lab = new CacheLab(recipe, SHAPE);
      const rows = lab.rows(50, 0);
      rows.keys.fill(fill);
      rows.values.fill(fill);
      rows.values[5] = 500;
      expect((await lab.step(rows)).every(Number.isFinite)).toBe(true);
      expect((await lab.step(lab.rows(2, 50))).every(Number.isFinite)).toBe(true);
    }
  });
});

describe.each(policyCases)("policy %s", (type, retention) => {
  const definition = retentions.get(type) as RetentionDefinition<unknown>;

  it("decides as over plain arrays, and attends to what stayed", async () => {
    const shape: LabShape = { headDim: 8, kvHeads: 1, groupHeads: 2, still: true, tile: 8 };
    const lab = new CacheLab({ ...both({ codec: "fp32" }), retention }, shape);
    const { type: _, ...options } = retention;
    const naive = new NaiveStream(definition, options, { headDim: 8, heads: 2, promptLength: 20 });
    const prompt = lab.rows(20, 0);
    const mode = { kind: "block", total: 20, last: true } as const;
    const told = { promptLength: 20 };
    expectClose(
      await lab.step(prompt, mode, told),
      naive.step(prompt.queries, prompt.keys, prompt.values),
      1e-5,
    );
    for (let n = 20; n < 60; n++) {
      const row = lab.rows(1, n);
      const out = await lab.step(row, { kind: "stepwise" }, told);
      expectClose(out, naive.step(row.queries, row.keys, row.values), 1e-5);
      expect(lab.contents()[0]?.positions).toEqual(naive.positions);
    }
  });

  it("a prompt in parts is decided on as a whole", async () => {
    const recipe = { ...both({ codec: "fp32" }), retention };
    const [whole, parts] = [new CacheLab(recipe, SHAPE), new CacheLab(recipe, SHAPE)];
    const total = 40;
    await whole.step(whole.rows(total, 0), { kind: "block", total, last: true });
    for (const [from, count] of [
      [0, 17],
      [17, 3],
      [20, 20],
    ] as const) {
      const last = from + count === total;
      await parts.step(parts.rows(count, from), { kind: "block", total, last });
    }
    expect(parts.contents().map(({ positions }) => positions)).toEqual(
      whole.contents().map(({ positions }) => positions),
    );
  });

  it.each(storages)("works over %s", async (_, storage) => {
    const recipe = { ...storage, retention };
    const lab = new CacheLab(recipe, SHAPE);
    await lab.step(lab.rows(40, 0), { kind: "block", total: 40, last: true }, { promptLength: 40 });
    for (let n = 40; n < 60; n++) {
      expect((await lab.step(lab.rows(1, n))).every(Number.isFinite)).toBe(true);
    }
    await lab.step(lab.rows(4, 60), { kind: "scratch" });
    lab.layer().commit(2);
    for (const stream of lab.layer().streams) stream.check();
    expect(lab.cache.length(0)).toBe(62);
  });
});

it("a budget beyond the text makes every policy the identity", async () => {
  const plain = new CacheLab(both({ codec: "fp32" }), SHAPE);
  const rows = plain.rows(30, 0);
  const expected = await plain.step(rows);
  for (const retention of [
    { type: "window", sinks: 4, recent: 500 },
    { type: "h2o", heavy: 250, recent: 250 },
    { type: "keyformer", budget: 500 },
  ]) {
    const lab = new CacheLab({ ...both({ codec: "fp32" }), retention }, SHAPE);
    expectClose(await lab.step(lab.rows(30, 0)), expected, 1e-6);
  }
});

it("merging and remembering policies run through the hooks", async () => {
  const merging = mergePolicy() as RetentionDefinition;
  retentions.add(merging);
  const shape: LabShape = { headDim: 8, kvHeads: 1, groupHeads: 2, still: true, tile: 8 };
  const options = { run: 3, recent: 5 };
  const recipe = { ...both({ codec: "fp32" }), retention: { type: merging.id, ...options } };
  const lab = new CacheLab(recipe, shape);
  const naive = new NaiveStream(merging, options, { headDim: 8, heads: 2, promptLength: 1 });
  for (let n = 0; n < 40; n++) {
    const row = lab.rows(1, n);
    const out = await lab.step(row);
    expectClose(out, naive.step(row.queries, row.keys, row.values), 1e-5);
    expect(lab.contents()[0]?.positions).toEqual(naive.positions);
  }
});

describe("rules", () => {
  const config = { headDim: 48, numHiddenLayers: 1 } as Parameters<typeof resolveKv>[1];
  it.each([
    ["kv-hadamard", { k: { codec: "int4-token", hadamard: true }, v: { codec: "fp16" } }],
    ["kv-hadamard", { k: { codec: "fp16" }, v: { codec: "int4-token", hadamard: true } }],
    ["kv-codec", { k: { codec: "int5-token" }, v: { codec: "fp16" } }],
    ["kv-option", { k: { codec: "int4-token", clop: 1 }, v: { codec: "fp16" } }],
    ["kv-group", { k: { codec: "kivi", residual: 40, group: 32 }, v: { codec: "fp16" } }],
    ["kv-group", { k: { codec: "fp16" }, v: { codec: "kivi", group: 32 } }],
    ["kv-retention", { ...both({ codec: "fp16" }), retention: { type: "h20" } }],
    ["kv-trained", { ...both({ codec: "fp16" }), retention: { type: "dmc" } }],
  ] as [string, KvRecipe][])("refuses with %s", (code, recipe) => {
    expect(() => resolveKv(recipe, config)).toThrowError(expect.objectContaining({ code }));
  });
});

describe.each(policyCases)("a saved sequence under %s", (_, retention) => {
  it.each(storages)("over %s goes on as if it had never left", async (_, storage) => {
    const recipe = { ...storage, retention };
    const lab = new CacheLab(recipe, SHAPE);
    await lab.step(lab.rows(43, 0), { kind: "block", total: 43, last: true }, { promptLength: 43 });
    await lab.step(lab.rows(3, 43), { kind: "stepwise" }, { promptLength: 43 });
    const image = new ManagedImage(lab.cache);
    const bytes = image.save(0, 46);
    const used = lab.cache.bytes().k;
    image.check(bytes, 46);
    expect(lab.cache.bytes().k).toBe(used);
    const other = new CacheLab(recipe, SHAPE);
    const theirs = new ManagedImage(other.cache);
    for (const wrong of [bytes.slice(0, -1), new Uint8Array([...bytes, 0]), bytes.slice(8)]) {
      expect(() => theirs.load(0, wrong, 46)).toThrowError(
        expect.objectContaining({ code: "format" }),
      );
    }
    expect(other.cache.bytes().total).toBe(0);
    theirs.load(0, bytes, 46);
    expect(other.contents()).toEqual(lab.contents());
    for (let n = 46; n < 56; n++) {
      const told = { promptLength: 43 };
      const [a, b] = [
        await lab.step(lab.rows(1, n), { kind: "stepwise" }, told),
        await other.step(other.rows(1, n), { kind: "stepwise" }, told),
      ];
      expect(b).toEqual(a);
    }
  });
});

it.each(["int4-token", "kivi"])(
  "100 forks of one prompt cost little more than one (%s)",
  async (codec) => {
    const shape = { headDim: 64, kvHeads: 3, groupHeads: 1, sequences: 101, positions: 2200 };
    const lab = new CacheLab(both({ codec }), shape);
    const rows = lab.rows(256, 0);
    for (let from = 0; from < 2048; from += 256) {
      const positions = rows.positions as Int32Array;
      const places = positions.map((position) => from + position);
      for (const one of lab.layer().streams) {
        one.append(rows.keys, rows.values, places);
        one.seal();
      }
    }
    const one = lab.cache.bytes();
    const stream = lab.layer().streams[0];
    if (!stream) throw new Error("no stream");
    const { k, v, length } = stream;
    // Exact rows and where they are.
    const tail = k.store.rowBytes + v.store.rowBytes + 12 * (length - Math.min(k.sealed, v.sealed));
    for (let to = 1; to <= 100; to++) lab.cache.fork(0, to);
    expect(lab.cache.bytes().total - 100 * tail).toBeLessThan(1.3 * one.total);
    await lab.step(lab.rows(1, 2048), { kind: "stepwise" }, { sequence: 7 });
    expect(lab.contents()[0]?.positions.length).toBe(2048);
  },
);
