import * as fc from "fast-check";
import { expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { PageTables, planCache } from "./cache.js";
import { PrefixCache } from "./prefix-cache.js";
import { kvPreset } from "./presets.js";

const LAYERS = 2;

/** A pool whose pages hold one number a token, as the kernels would write them. */
class Pool {
  readonly tables: PageTables;
  readonly pages: number[][];
  readonly #table: Int32Array;
  readonly #maxPages: number;

  constructor(
    readonly sequences: number,
    tokens: number,
    sequenceTokens = tokens,
  ) {
    const { config } = tinyModel();
    const plan = planCache(kvPreset("fp32"), config, {
      tokens,
      sequences,
      layers: LAYERS,
      sequenceTokens,
    });
    this.#table = new Int32Array(plan.tableBytes / 4);
    this.#maxPages = plan.descriptor.maxPages;
    this.pages = Array.from({ length: plan.descriptor.pages }, () =>
      new Array<number>(32).fill(-1),
    );
    this.tables = new PageTables(plan.descriptor, this.#table, sequences, (from, to) => {
      this.pages[to] = [...(this.pages[from] as number[])];
    });
  }

  #page(slot: number, layer: number, position: number): number[] {
    const entry = (slot * LAYERS + layer) * this.#maxPages + (position >> 5);
    return this.pages[this.#table[entry] as number] as number[];
  }
  write(slot: number, from: number, tokens: readonly number[]): void {
    this.tables.reserve(slot, from + tokens.length);
    for (let layer = 0; layer < LAYERS; layer++) {
      for (const [i, token] of tokens.entries()) {
        this.#page(slot, layer, from + i)[(from + i) & 31] = token * LAYERS + layer;
      }
    }
  }
  read(slot: number): number[] {
    return Array.from({ length: this.tables.length(slot) }, (_, position) => {
      const [a, b] = [0, 1].map((layer) => this.#page(slot, layer, position)[position & 31]);
      expect(b).toBe((a as number) + 1);
      return (a as number) / LAYERS;
    });
  }
}

it("a fork shares pages until one of the two writes", () => {
  const pool = new Pool(2, 320);
  const text = Array.from({ length: 40 }, (_, i) => i + 100);
  pool.write(0, 0, text);
  expect(pool.tables.usedPages).toBe(2 * LAYERS);
  pool.tables.fork(0, 1);
  expect(pool.tables.usedPages).toBe(2 * LAYERS);
  pool.write(1, 40, [7, 8]);
  // Only the partly filled page was copied.
  expect(pool.tables.usedPages).toBe(3 * LAYERS);
  pool.write(0, 40, [9]);
  expect(pool.tables.usedPages).toBe(3 * LAYERS);
  expect(pool.read(0)).toEqual([...text, 9]);
  expect(pool.read(1)).toEqual([...text, 7, 8]);
  expect(() => pool.tables.fork(0, 1)).toThrow(expect.objectContaining({ code: "usage" }));
  pool.tables.truncate(0, 0);
  expect(pool.read(1)).toEqual([...text, 7, 8]);
  pool.tables.truncate(1, 0);
  expect(pool.tables.usedPages).toBe(0);
});

it("100 forks of a prompt of 2,048 tokens need less than 1.3 times the memory of one and their tails", () => {
  const [prompt, forks, tail] = [2048, 100, 40];
  const pool = new Pool(forks + 1, 8192, 4096);
  pool.write(
    0,
    0,
    Array.from({ length: prompt }, (_, i) => i),
  );
  const one = pool.tables.usedPages;
  for (let slot = 1; slot <= forks; slot++) {
    pool.tables.fork(0, slot);
    pool.write(
      slot,
      prompt,
      Array.from({ length: tail }, (_, i) => slot * 1000 + i),
    );
  }
  const tails = forks * Math.ceil(tail / 32) * LAYERS;
  expect(pool.tables.usedPages).toBe(one + tails);
  expect(pool.tables.usedPages - tails).toBeLessThan(1.3 * one);
  expect(pool.read(57).slice(prompt - 1, prompt + 2)).toEqual([prompt - 1, 57000, 57001]);
});

it("a prompt that ends inside a page costs a fork one page more", () => {
  const pool = new Pool(101, 8192, 4096);
  pool.write(
    0,
    0,
    Array.from({ length: 2050 }, (_, i) => i),
  );
  const one = pool.tables.usedPages;
  for (let slot = 1; slot <= 100; slot++) {
    pool.tables.fork(0, slot);
    pool.write(slot, 2050, [slot]);
  }
  expect(pool.tables.usedPages).toBe(one + 100 * LAYERS);
});

it("refuses what does not fit and changes nothing", () => {
  const pool = new Pool(3, 64, 64);
  pool.write(0, 0, [1, 2, 3]);
  pool.tables.fork(0, 1);
  const used = pool.tables.usedPages;
  expect(() => pool.tables.reserve(0, 65)).toThrow(
    expect.objectContaining({ code: "context-full" }),
  );
  pool.write(2, 0, new Array(64).fill(4));
  expect(() => pool.write(1, 3, new Array(40).fill(5))).toThrow(/room for 32 more/);
  expect(pool.tables.usedPages).toBe(used + 2 * LAYERS);
  expect(pool.read(1)).toEqual([1, 2, 3]);
});

it("begins a prompt with the pages of an earlier one, and drops what only it holds when room is short", () => {
  const pool = new Pool(2, 160, 160);
  const prefixes = new PrefixCache(pool.tables, "fp32");
  const text = Array.from({ length: 100 }, (_, i) => i);
  pool.write(0, 0, text);
  prefixes.publish(0, text);
  pool.tables.truncate(0, 0);
  expect(pool.tables.usedPages).toBe(3 * LAYERS);
  expect(prefixes.match(text)).toBe(96);
  // The last token must run: a prompt of 96 tokens finds two pages.
  expect(prefixes.match(text.slice(0, 96))).toBe(64);
  expect(prefixes.match([...text.slice(0, 40), -1, ...text.slice(41)])).toBe(32);
  expect(prefixes.adopt(1, [...text.slice(0, 64), 5, 6])).toBe(64);
  expect(pool.read(1)).toEqual(text.slice(0, 64));
  pool.tables.truncate(1, 0);
  // Room for 6 pages of tokens; the index alone holds 3 and gives up what is needed, the end of the chain first.
  pool.write(0, 0, new Array(128).fill(3));
  expect(prefixes.match(text)).toBe(64);
  expect(() => pool.write(1, 0, new Array(100).fill(3))).toThrow(/room for 64 more/);
  expect(prefixes.match(text)).toBe(0);
  pool.tables.truncate(0, 0);
  expect(pool.tables.usedPages).toBe(0);
});

it("pages of another cache recipe are never found", () => {
  const pool = new Pool(1, 160);
  const text = Array.from({ length: 64 }, (_, i) => i);
  pool.write(0, 0, text);
  const [a, b] = ["fp32", "int4"].map((salt) => new PrefixCache(pool.tables, salt));
  a?.publish(0, text);
  expect(a?.match([...text, 0])).toBe(64);
  expect(b?.match([...text, 0])).toBe(0);
});

type Op =
  | { op: "write"; slot: number; count: number }
  | { op: "fork"; slot: number; to: number }
  | { op: "truncate"; slot: number; keep: number }
  | { op: "publish"; slot: number }
  | { op: "adopt"; slot: number; from: number };

it("10,000 random operations leave every sequence as a plain array would be, and leak no page", () => {
  const SLOTS = 6;
  const slot = fc.nat(SLOTS - 1);
  const operation: fc.Arbitrary<Op> = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        op: fc.constant("write" as const),
        slot,
        count: fc.integer({ min: 1, max: 70 }),
      }),
    },
    { weight: 2, arbitrary: fc.record({ op: fc.constant("fork" as const), slot, to: slot }) },
    {
      weight: 3,
      arbitrary: fc.record({
        op: fc.constant("truncate" as const),
        slot,
        keep: fc.double({ min: 0, max: 1, noNaN: true }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ op: fc.constant("publish" as const), slot }) },
    { weight: 1, arbitrary: fc.record({ op: fc.constant("adopt" as const), slot, from: slot }) },
  );
  fc.assert(
    fc.property(fc.array(operation, { minLength: 500, maxLength: 500 }), (operations) => {
      const pool = new Pool(SLOTS, 1024, 512);
      const prefixes = new PrefixCache(pool.tables, "");
      const model: number[][] = Array.from({ length: SLOTS }, () => []);
      let next = 0;
      for (const o of operations) {
        const own = model[o.slot] as number[];
        if (o.op === "write") {
          // Few different texts, so that prefixes repeat.
          const tokens = Array.from({ length: o.count }, () => next++ % 3);
          try {
            pool.write(o.slot, own.length, tokens);
            own.push(...tokens);
          } catch (error) {
            expect(error).toMatchObject({ code: "context-full" });
          }
        } else if (o.op === "fork") {
          if (o.to === o.slot) continue;
          pool.tables.truncate(o.to, 0);
          pool.tables.fork(o.slot, o.to);
          model[o.to] = [...own];
        } else if (o.op === "truncate") {
          const keep = Math.floor(o.keep * own.length);
          pool.tables.truncate(o.slot, keep);
          own.length = keep;
        } else if (o.op === "publish") prefixes.publish(o.slot, own);
        else {
          const prompt = [...(model[o.from] as number[]), 1];
          pool.tables.truncate(o.slot, 0);
          const hit = prefixes.adopt(o.slot, prompt);
          model[o.slot] = prompt.slice(0, hit);
        }
      }
      for (let s = 0; s < SLOTS; s++) expect(pool.read(s)).toEqual(model[s]);
      for (let s = 0; s < SLOTS; s++) pool.tables.truncate(s, 0);
      expect(pool.tables.usedPages).toBe(prefixes.pages);
      prefixes.clear();
      expect(pool.tables.usedPages).toBe(0);
    }),
    { numRuns: 20 },
  );
});
