/**
 * KIVI on every backend that runs here: against the paper's own loop (queues of exact rows that are flushed after the step,
 * arXiv:2402.02750 and the official code), in runs of any size.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CacheText, kiviCodec, type TextRow } from "./conformance/cache-text.js";
import { Random } from "./conformance/lab.js";
import type { Backend, Engine } from "./contract.js";
import { loadAddon, makeNativeBackend } from "./native.js";
import { KV_CODEC, PAGE_TOKENS } from "./ops.js";
import { f16ToF32, f32ToF16 } from "./reference/numerics.js";
import { referenceBackend } from "./reference.js";
import { wasmBackend } from "./wasm.js";

const GROUP = 32;

function nativeVariants(): string[] {
  try {
    return loadAddon()
      .variants()
      .filter((variant) => variant.runs)
      .map((variant) => variant.name);
  } catch {
    return [];
  }
}

const half = (x: number) => f16ToF32(f32ToF16(x));

/** The group quantizer of the paper: values after coding, and codes. */
function quantizeGroup(x: readonly number[], bits: number) {
  const levels = 2 ** bits - 1;
  const minimum = half(Math.min(...x));
  const scale = half(Math.fround(Math.fround(Math.max(...x) - Math.min(...x)) / levels));
  const codes = x.map((v) => {
    if (scale === 0) return 0;
    const y = Math.min(Math.max(Math.fround(Math.fround(v - minimum) / scale), 0), levels);
    const down = Math.floor(y);
    return y - down > 0.5 || (y - down === 0.5 && down % 2 === 1) ? down + 1 : down;
  });
  return { codes, scale, minimum, values: codes.map((c) => c * scale + minimum) };
}

/** One KV head in the paper's words: packed rows, exact tails, flushes after the step. */
class PaperCache {
  packedKeys: number[][] = [];
  packedValues: number[][] = [];
  keyTail: number[][] = [];
  valueTail: number[][] = [];
  keyCodes: number[][] = [];
  valueCodes: number[][] = [];

  constructor(
    readonly bits: { k: number; v: number },
    readonly residual: number,
  ) {}

  /** Attention of one token's query heads [heads][headDim]. */
  step(queries: number[][], key: number[], value: number[]): number[][] {
    this.keyTail.push(key);
    const keys = [...this.packedKeys, ...this.keyTail];
    const weights = queries.map((q) => softmax(keys.map((k) => dot(q, k) / Math.sqrt(q.length))));
    if (this.keyTail.length === this.residual) this.#flushKeys();
    this.valueTail.push(value);
    const values = [...this.packedValues, ...this.valueTail];
    const out = weights.map((p) =>
      value.map((_, d) =>
        values.reduce((sum, v, t) => sum + (p[t] as number) * (v[d] as number), 0),
      ),
    );
    if (this.valueTail.length > this.residual) this.#flushValue();
    return out;
  }

  #flushKeys(): void {
    const rows = this.keyTail.splice(0);
    for (let t = 0; t < rows.length; t += GROUP) {
      const columns = (rows[0] as number[]).map((_, d) =>
        quantizeGroup(
          rows.slice(t, t + GROUP).map((row) => row[d] as number),
          this.bits.k,
        ),
      );
      for (let i = 0; i < GROUP; i++) {
        this.packedKeys.push(columns.map((c) => c.values[i] as number));
        this.keyCodes.push(columns.map((c) => c.codes[i] as number));
      }
    }
  }

  #flushValue(): void {
    const row = this.valueTail.shift() as number[];
    const groups = [];
    for (let d = 0; d < row.length; d += GROUP)
      groups.push(quantizeGroup(row.slice(d, d + GROUP), this.bits.v));
    this.packedValues.push(groups.flatMap((g) => g.values));
    this.valueCodes.push(groups.flatMap((g) => g.codes));
  }
}

const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);
function softmax(scores: number[]): number[] {
  const top = Math.max(...scores);
  const e = scores.map((s) => Math.exp(s - top));
  const sum = e.reduce((a, b) => a + b);
  return e.map((x) => x / sum);
}

/** Rows of a text with channels of different size, as keys have. */
function randomText(seed: number, tokens: number, width: number, headDim: number): Float32Array[] {
  const random = new Random(seed);
  const size = Array.from({ length: headDim }, () => 2 ** random.int(-3, 2));
  return Array.from({ length: tokens }, () =>
    Float32Array.from({ length: width }, (_, i) => random.normal() * (size[i % headDim] as number)),
  );
}

const rowsOf = (text: Float32Array[], from: number, to: number, slot = 0): TextRow[] =>
  text.slice(from, to).map((qkv, i) => ({ slot, position: from + i, qkv }));

/** Runs a text in chunks of the given sizes, over and over. */
async function runText(cache: CacheText, text: Float32Array[], sizes: number[]) {
  const out: Float32Array[] = [];
  for (let i = 0; out.length < text.length; i++) {
    const from = out.length;
    const to = Math.min(text.length, from + (sizes[i % sizes.length] as number));
    out.push(...(await cache.run(rowsOf(text, from, to))));
  }
  return out;
}

/** All bits as text: a comparison is quick, and -0 differs from 0. */
const bitsOf = (rows: Float32Array[]) =>
  rows
    .map((row) => Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString("hex"))
    .join("\n");

interface Case {
  k: 2 | 4;
  v: 2 | 4;
  residual: number;
  heads: number;
  kvHeads: number;
  headDim: number;
}
const CASES: Case[] = [
  { k: 2, v: 2, residual: 32, heads: 3, kvHeads: 1, headDim: 64 },
  { k: 4, v: 4, residual: 32, heads: 2, kvHeads: 2, headDim: 32 },
  { k: 4, v: 2, residual: 64, heads: 5, kvHeads: 1, headDim: 128 },
  { k: 2, v: 4, residual: 32, heads: 2, kvHeads: 1, headDim: 96 },
];

const BACKENDS: [string, Backend][] = [
  ["reference", referenceBackend],
  ["wasm", wasmBackend],
  ...nativeVariants().map((name): [string, Backend] => [`native ${name}`, makeNativeBackend(name)]),
];

/** What the reference gives, token by token; every backend must give the same bits. */
const expected = new Map<Case, string>();

const engines: Engine[] = [];
afterAll(async () => {
  for (const engine of engines) await engine.dispose();
});
async function open(backend: Backend, threads: number): Promise<Engine> {
  const engine = await backend.createEngine({ arenaBytes: 2 ** 24, threads });
  engines.push(engine);
  return engine;
}
const shapeOf = (c: Case, tokens: number, maxRows: number, slots = 1) => ({
  ...c,
  keyCodec: kiviCodec(c.k),
  valueCodec: kiviCodec(c.v),
  tokens,
  maxRows,
  slots,
});
const textOf = (c: Case, tokens: number, seed = 3) =>
  randomText(seed, tokens, (c.heads + 2 * c.kvHeads) * c.headDim, c.headDim);

/** The paper's loop over the text: attention per token, and the caches of the KV heads at the end. */
function paper(c: Case, text: Float32Array[], onStep?: (caches: PaperCache[], n: number) => void) {
  const caches = Array.from(
    { length: c.kvHeads },
    () => new PaperCache({ k: c.k, v: c.v }, c.residual),
  );
  const out = text.map((row, n) => {
    const head = (h: number) => [...row.subarray(h * c.headDim, (h + 1) * c.headDim)];
    const result = caches.flatMap((cache, kv) => {
      const group = c.heads / c.kvHeads;
      const queries = Array.from({ length: group }, (_, i) => head(kv * group + i));
      return cache.step(queries, head(c.heads + kv), head(c.heads + c.kvHeads + kv));
    });
    onStep?.(caches, n + 1);
    return result.flat();
  });
  return { out, caches };
}

beforeAll(async () => {
  const engine = await open(referenceBackend, 1);
  for (const c of CASES) {
    const text = textOf(c, 3 * c.residual + 1);
    const cache = new CacheText(engine, shapeOf(c, text.length, 128));
    expected.set(c, bitsOf(await runText(cache, text, [1])));
    cache.dispose();
  }
});

for (const [name, backend] of BACKENDS) {
  describe(`kivi on ${name}`, () => {
    it.each(CASES)(
      "k$k v$v R$residual d$headDim: equals the paper's loop, step by step",
      async (c) => {
        const text = textOf(c, 3 * c.residual + 1);
        const engine = await open(backend, 1);
        const cache = new CacheText(engine, shapeOf(c, text.length, 128));
        const got = await runText(cache, text, [1]);
        const { out, caches } = paper(c, text, (now, n) => {
          for (const head of now) {
            expect(head.keyTail.length).toBe(n % c.residual);
            expect(head.valueTail.length).toBe(Math.min(n, c.residual));
          }
        });
        const largest = Math.max(...text.map((row) => Math.max(...row.map(Math.abs))));
        const errors = got.flatMap((row, n) =>
          Array.from(row, (y, i) => Math.abs(y - (out[n]?.[i] ?? Number.NaN)) / largest),
        );
        expect(errors.every((error) => error < 1e-5)).toBe(true);
        // Codes of the pages are the paper's, in the official order for keys: code i of a channel in bits [i * B, ...).
        caches.forEach((head, kv) => {
          head.keyCodes.forEach((codes, t) => {
            const plane = cache.plane(Math.floor(t / PAGE_TOKENS), kv, true);
            const stored = codes.map((_, d) => {
              const words = new Uint32Array(plane.buffer, d * 4 * c.k, c.k);
              const bit = (t % PAGE_TOKENS) * c.k;
              return ((words[bit >> 5] as number) >>> (bit & 31)) & (2 ** c.k - 1);
            });
            expect(stored.join()).toBe(codes.join());
          });
          expect(head.valueCodes.length).toBe(text.length - c.residual);
        });
        cache.dispose();
      },
    );

    it.each(CASES)(
      "k$k v$v R$residual d$headDim: same bits for runs of any size and threads",
      async (c) => {
        const text = textOf(c, 3 * c.residual + 1);
        for (const threads of name === "reference" ? [1] : [1, 2, 3]) {
          const engine = await open(backend, threads);
          for (const sizes of [[1], [2, 3, 5, 7, 11], [128], [c.residual - 1, 2, 33]]) {
            const cache = new CacheText(engine, shapeOf(c, text.length, 128));
            const got = bitsOf(await runText(cache, text, sizes));
            expect(got === expected.get(c), `${threads} threads, runs of ${sizes}`).toBe(true);
            cache.dispose();
          }
        }
      },
    );

    it("several sequences in one run equal each alone", async () => {
      const c = CASES[0] as Case;
      const engine = await open(backend, 2);
      const texts = [textOf(c, 70, 5), textOf(c, 101, 6), textOf(c, 33, 7)];
      const alone = [];
      for (const text of texts) {
        const cache = new CacheText(engine, shapeOf(c, 101, 128, 3));
        alone.push(bitsOf(await runText(cache, text, [1])));
        cache.dispose();
      }
      const together = new CacheText(engine, shapeOf(c, 101, 128, 3));
      const got: Float32Array[][] = [[], [], []];
      for (let from = 0; from < 101; from += 20) {
        const rows = texts.flatMap((text, slot) => rowsOf(text, from, from + 20, slot));
        const out = await together.run(rows);
        for (const [m, { slot }] of rows.entries()) got[slot]?.push(out[m] as Float32Array);
      }
      expect(got.map(bitsOf)).toEqual(alone);
      together.dispose();
    });

    it("goes back within the ring and on as if the rest had never been", async () => {
      const c = CASES[0] as Case;
      const engine = await open(backend, 1);
      const text = textOf(c, 160, 8);
      const other = textOf(c, 160, 9);
      const cache = new CacheText(engine, shapeOf(c, 160, 96));
      await runText(cache, text, [96]);
      // The ring holds 128 rows, 32 of them are the residual: the last 96 tokens can be taken back.
      const kept = 64;
      const got = [];
      for (let n = kept; n < 160; n += 32) got.push(...(await cache.run(rowsOf(other, n, n + 32))));
      cache.dispose();
      const fresh = new CacheText(engine, shapeOf(c, 160, 96));
      const plain = await runText(fresh, [...text.slice(0, kept), ...other.slice(kept)], [32]);
      expect(bitsOf(got)).toEqual(bitsOf(plain.slice(kept)));
      fresh.dispose();
    });

    it("equals the f32 cache bit for bit while nothing leaves the residual", async () => {
      const c = { ...(CASES[0] as Case), residual: 128 };
      const engine = await open(backend, 1);
      const text = textOf(c, 128, 4);
      const kivi = new CacheText(engine, shapeOf(c, 128, 128));
      const got = bitsOf(await runText(kivi, text, [50]));
      kivi.dispose();
      const shape = { ...shapeOf(c, 128, 128), keyCodec: KV_CODEC.f32, valueCodec: KV_CODEC.f32 };
      const exact = new CacheText(engine, shape);
      expect(got).toEqual(bitsOf(await runText(exact, text, [50])));
      exact.dispose();
    });

    it("gives constants back exactly and stays finite for extreme rows", async () => {
      const c = CASES[0] as Case;
      const engine = await open(backend, 1);
      const width = (c.heads + 2 * c.kvHeads) * c.headDim;
      const cache = new CacheText(engine, shapeOf(c, 100, 128));
      const constant = Array.from({ length: 100 }, () => new Float32Array(width).fill(-0.375));
      const out = await runText(cache, constant, [1]);
      expect(out.every((row) => row.every((y) => Math.abs(y + 0.375) < 1e-6))).toBe(true);
      const extreme = constant.map((_, n) =>
        Float32Array.from({ length: width }, (_, i) => ((i * 7 + n * 5) % 11 === 0 ? 1e9 : 1e-30)),
      );
      const large = await runText(cache, extreme, [9]);
      expect(large.every((row) => row.every(Number.isFinite))).toBe(true);
      cache.dispose();
    });
  });
}

describe("kivi group quantizer", () => {
  it("errs by at most half a step and what f16 takes from scale and minimum", async () => {
    const engine = await open(referenceBackend, 1);
    const c: Case = { k: 2, v: 2, residual: 32, heads: 1, kvHeads: 1, headDim: 32 };
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom<2 | 4>(2, 4),
        fc.array(fc.float({ noNaN: true, min: -1000, max: 1000 }), {
          minLength: 32,
          maxLength: 32,
        }),
        async (bits, channels) => {
          const shape = shapeOf({ ...c, k: bits, v: bits }, 64, 64);
          const cache = new CacheText(engine, shape);
          const row = new Float32Array(96);
          row.set(channels, 64);
          await cache.run([{ slot: 0, position: 0, qkv: row }]);
          const plane = cache.plane(0, 0, false);
          cache.dispose();
          const { codes, scale, minimum, values } = quantizeGroup(channels, bits);
          const levels = 2 ** bits - 1;
          const lost = 2 ** -10 * (Math.abs(minimum) + levels * scale) + 2 ** -23;
          channels.forEach((x, i) => {
            expect(Math.abs(x - (values[i] as number))).toBeLessThanOrEqual(scale / 2 + lost);
            const perByte = 8 / bits;
            const byte = plane[i % (32 / perByte)] as number;
            const shift = bits * Math.floor(i / (32 / perByte));
            expect((byte >> shift) & levels).toBe(codes[i]);
          });
        },
      ),
      { numRuns: 60 },
    );
  });
});
