/** The reference's cache ops against dense f64 attention. */
import { beforeAll, describe, expect, it } from "vitest";
import { Lab } from "../conformance/lab.js";
import { execute } from "../conformance/run.js";
import type { Engine } from "../contract.js";
import { KV_CODEC, LINE, PAGE_TOKENS } from "../ops.js";
import { isIntCodec, NO_TAIL, planeLines } from "../page-layout.js";
import { referenceBackend } from "../reference.js";

let engine: Engine;
beforeAll(async () => {
  engine = await referenceBackend.createEngine({ arenaBytes: 2 ** 23, threads: 1 });
});

interface Setting {
  key: keyof typeof KV_CODEC;
  value: keyof typeof KV_CODEC;
  queryBits: 8 | 32;
  zeroInt: 0 | 1;
  hadamard: 0 | 1;
  window: number;
}

const HEADS = 3;
const KV_HEADS = 1;
const DIM = 32;
const TOKENS = 150;

/** Query, key (both after RoPE) and value vectors of all tokens in f64, straight from the formulas. */
function dense(qkv: Float32Array[]) {
  return qkv.map((row, position) => {
    const vectors: Float64Array[] = [];
    for (let h = 0; h < HEADS + 2 * KV_HEADS; h++) {
      const x = Float64Array.from(row.subarray(h * DIM, (h + 1) * DIM));
      const y = x.slice();
      if (h < HEADS + KV_HEADS) {
        for (let i = 0; i < DIM / 2; i++) {
          const angle = position / 10000 ** ((2 * i) / DIM);
          y[i] = x[i] * Math.cos(angle) - x[i + DIM / 2] * Math.sin(angle);
          y[i + DIM / 2] = x[i + DIM / 2] * Math.cos(angle) + x[i] * Math.sin(angle);
        }
      }
      vectors.push(y);
    }
    return { q: vectors.slice(0, HEADS), k: vectors[HEADS], v: vectors[HEADS + 1] };
  });
}

/** Softmax attention of the last token's heads over the visible ones. */
function attend(tokens: ReturnType<typeof dense>, window: number): number[] {
  const from = window > 0 ? Math.max(0, TOKENS - window) : 0;
  return tokens[TOKENS - 1].q.flatMap((q) => {
    const scores = tokens
      .slice(from)
      .map(({ k }) => k.reduce((sum, x, d) => sum + x * q[d], 0) / Math.sqrt(DIM));
    const max = Math.max(...scores);
    const weights = scores.map((s) => Math.exp(s - max));
    const total = weights.reduce((a, b) => a + b);
    return Array.from({ length: DIM }, (_, d) =>
      weights.reduce((sum, w, t) => sum + (w / total) * tokens[from + t].v[d], 0),
    );
  });
}

/** Largest error of attention of the last of 150 tokens over the packed cache. */
async function attentionError(s: Setting): Promise<number> {
  const lab = new Lab(7, TOKENS);
  const { random } = lab;
  const keyCodec = KV_CODEC[s.key];
  const valueCodec = KV_CODEC[s.value];
  const keyLines = planeLines(keyCodec, DIM);
  const headLines = keyLines + planeLines(valueCodec, DIM);
  const maxPages = Math.ceil(lab.maxRows / PAGE_TOKENS);
  const cacheC = lab.builder.cache({
    keyCodec,
    valueCodec,
    keyZeroInt: s.zeroInt,
    valueZeroInt: s.zeroInt,
    keyClipF: 1,
    valueClipF: 1,
    hadamard: s.hadamard,
    queryBits: s.queryBits,
    poolAt: lab.alloc(maxPages * headLines * LINE),
    pageLines: headLines,
    headLines,
    keyLines,
    tableAt: lab.place(Int32Array.from({ length: maxPages }, (_, i) => maxPages - 1 - i)),
    layers: 1,
    maxPages,
    kvHeads: KV_HEADS,
    headDim: DIM,
    pages: maxPages,
    slots: 1,
    ...NO_TAIL,
  });
  const width = (HEADS + 2 * KV_HEADS) * DIM;
  const rows = Array.from({ length: lab.maxRows }, () =>
    Float32Array.from({ length: width }, () => random.normal()),
  );
  const half = DIM / 2;
  const angle = (i: number) => Math.floor(i / half) / 10000 ** ((2 * (i % half)) / DIM);
  const angles = maxPages * PAGE_TOKENS * half;
  const int = s.queryBits === 8;
  const common = {
    rowsReg: 0,
    positionsAt: lab.i32Rows("positions", 1, "in", (m) => [m]),
    sequencesAt: lab.i32Rows("sequences", 1, "in", () => [0]),
    heads: HEADS,
    kvHeads: KV_HEADS,
    headDim: DIM,
    cacheC,
    layer: 0,
    queryAt: lab.alloc(lab.maxRows * HEADS * DIM * 4),
    queryScaleAt: int ? lab.alloc(lab.maxRows * HEADS * 4) : -1,
    querySumAt: int ? lab.alloc(lab.maxRows * HEADS * 4) : -1,
  };
  lab.emit("appendKv", {
    ...common,
    qkvAt: lab.f32Rows("qkv", width, "in", (m) => rows[m]),
    ldQkv: width,
    cosAt: lab.floats(angles, (i) => Math.cos(angle(i))),
    sinAt: lab.floats(angles, (i) => Math.sin(angle(i))),
    queryGainAt: -1,
    keyGainAt: -1,
    epsilonF: 1e-5,
  });
  const dstAt = lab.f32Rows("dst", HEADS * DIM, "out");
  lab.emit("attention", {
    ...common,
    dstAt,
    ldDst: HEADS * DIM,
    softmaxScaleF: 1 / Math.sqrt(DIM),
    slidingWindow: s.window,
    partsAt: -1,
    partsLines: 0,
  });
  const out = new Float32Array((await execute(engine, lab)).buffer);
  const expected = attend(dense(rows.slice(0, TOKENS)), s.window);
  const last = dstAt * 16 + (TOKENS - 1) * HEADS * DIM;
  return expected.reduce((worst, y, i) => Math.max(worst, Math.abs(out[last + i] - y)), 0);
}

/** Values are normal, so a coding step of the cache is about 6 / levels; the mean over tokens averages it down. */
const BOUND = { f32: 1e-5, f16: 2e-3, int8: 0.02, int4: 0.25 };
type Codec = keyof typeof BOUND; // kivi has a test of its own

describe("attention over the packed cache agrees with dense f64 attention", () => {
  for (const key of Object.keys(BOUND) as Codec[]) {
    for (const value of Object.keys(BOUND) as Codec[]) {
      const bound = Math.max(BOUND[key], BOUND[value]);
      it(`keys ${key}, values ${value}: error < ${bound}`, async () => {
        const queries = isIntCodec(KV_CODEC[key]) ? ([8, 32] as const) : ([32] as const);
        for (const queryBits of queries) {
          for (const zeroInt of [0, 1] as const) {
            const hadamard = zeroInt;
            const setting = { key, value, queryBits, zeroInt, hadamard, window: zeroInt ? 40 : 0 };
            expect(await attentionError(setting), JSON.stringify(setting)).toBeLessThan(bound);
          }
        }
      });
    }
  }
});
