/**
 * Shapes beyond the conformance suite, where native code takes other paths: several blocks of rows, unpacked panels, blocked
 * factorization, tiles of queries over long contexts. Against the reference, f64 arithmetic, or the same work cut up otherwise.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "./conformance/lab.js";
import type { Engine, LoadedProgram } from "./contract.js";
import { loadAddon, makeNativeBackend } from "./native.js";
import { CONTROL_BYTES, EPILOGUE, KV_CODEC, LINE, WEIGHT_KIND, ZERO_KIND } from "./ops.js";
import { NO_TAIL, planeLines } from "./page-layout.js";
import {
  groupCodeSums,
  groupCount,
  PANEL,
  packPanel32,
  paddedColumns,
  panelCount,
  writePanelRow,
} from "./panel32.js";
import { NO_WEIGHT, ProgramBuilder } from "./program.js";
import { referenceBackend } from "./reference.js";
import { requiredScratchLines } from "./scratch.js";

const ARENA_BYTES = 24 * 2 ** 20;
const ROWS_REG = 20;

function usable(): string[] {
  try {
    return loadAddon()
      .variants()
      .filter((variant) => variant.runs)
      .map((variant) => variant.name);
  } catch {
    return [];
  }
}

/** Buffers in one engine's arena, from the bottom up; two Layouts that allocate alike have equal places. */
class Layout {
  readonly builder = new ProgramBuilder();
  #next = CONTROL_BYTES / LINE;
  readonly engine: Engine;

  constructor(engine: Engine) {
    this.engine = engine;
    new Uint8Array(engine.memory).fill(0);
  }
  alloc(bytes: number): number {
    const at = this.#next;
    this.#next += Math.ceil(bytes / LINE);
    return at;
  }
  place(data: Float32Array | Int32Array | Uint8Array | Int8Array | Float64Array): number {
    const at = this.alloc(data.byteLength);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    new Uint8Array(this.engine.memory).set(bytes, at * LINE);
    return at;
  }
  f32(at: number, count: number): Float32Array {
    return new Float32Array(this.engine.memory, at * LINE, count);
  }
  load(maxRows: number): LoadedProgram {
    const { threads } = this.engine;
    const limits = { scratchAt: this.#next, scratchLines: 0, maxRows, arenaLines: this.#next };
    const scratchLines = requiredScratchLines(this.builder.build(limits));
    const arenaLines = this.#next + threads * scratchLines;
    return this.engine.load(this.builder.build({ ...limits, scratchLines, arenaLines }));
  }
  run(rows: number, program = this.load(rows)): void {
    new Int32Array(this.engine.memory)[ROWS_REG] = rows;
    this.engine.runSync(program);
  }
}

const normals = (random: Random, count: number) =>
  Float32Array.from({ length: count }, () => random.normal());

function gintWeight(
  l: Layout,
  random: Random,
  shape: { n: number; k: number; bits: number; groupSize: number; zeroKind: number },
) {
  const { n, k, bits, groupSize, zeroKind } = shape;
  const groups = groupCount(k, groupSize);
  const slots = panelCount(n) * PANEL;
  const codes = Uint8Array.from({ length: n * k }, () => random.int(0, 2 ** bits - 1));
  const segments = packPanel32(codes, n, k, bits);
  const scale = new Float32Array(slots * groups);
  const zeros = new Uint8Array(slots * groups);
  const sums = new Int32Array(slots * groups);
  for (let row = 0; row < n; row++) {
    const of = new Int32Array(groups);
    groupCodeSums(codes.subarray(row * k, (row + 1) * k), k, groupSize, of);
    writePanelRow(sums, row, groups, of);
    writePanelRow(scale, row, groups, normals(random, groups));
    const zero = Array.from({ length: groups }, () => random.int(0, 2 ** bits - 1));
    writePanelRow(zeros, row, groups, zero);
  }
  const at = (width: 8 | 4 | 2 | 1) => {
    const segment = segments[width];
    return segment ? l.place(segment) : -1;
  };
  return l.builder.weight({
    ...NO_WEIGHT,
    kind: WEIGHT_KIND.gint,
    n,
    k,
    panels: panelCount(n),
    kPad: paddedColumns(k),
    bits,
    seg8At: at(8),
    seg4At: at(4),
    seg2At: at(2),
    seg1At: at(1),
    groupSize,
    groups,
    scaleAt: l.place(scale),
    zeroKind,
    zeroConstF: 2 ** (bits - 1),
    zeroAt: zeroKind === ZERO_KIND.int ? l.place(zeros) : -1,
    codeSumAt: l.place(sums),
  });
}

/** linearInt and linearFloat of the same weight on `rows` rows; returns both outputs. */
function linears(engine: Engine, rows: number, bits: number, groupSize: number, zeroKind: number) {
  const random = new Random(bits * 100 + groupSize);
  const l = new Layout(engine);
  const [n, k] = [70, 700];
  const weightW = gintWeight(l, random, { n, k, bits, groupSize, zeroKind });
  const groups = groupCount(k, groupSize);
  const ldCodes = 704;
  const codes = Int8Array.from({ length: rows * ldCodes }, (_, i) =>
    i % ldCodes < k ? random.int(-128, 127) : 0,
  );
  const sums = new Int32Array(rows * groups);
  for (let m = 0; m < rows; m++) {
    for (let i = 0; i < k; i++) {
      const g = groupSize ? Math.floor(i / groupSize) : 0;
      sums[m * groups + g] += codes[m * ldCodes + i];
    }
  }
  const dstAt = l.alloc(4 * rows * n);
  const floatAt = l.alloc(4 * rows * n);
  l.builder.emit("linearInt", {
    rowsReg: ROWS_REG,
    codesAt: l.place(codes),
    ldCodes,
    scaleAt: l.place(normals(random, rows)),
    sumAt: l.place(sums),
    zeroAt: -1,
    activationGroups: 1,
    weightW,
    dstAt,
    ldDst: n,
    epilogue: EPILOGUE.store,
  });
  l.builder.emit("linearFloat", {
    rowsReg: ROWS_REG,
    srcAt: l.place(normals(random, rows * k)),
    ldSrc: k,
    weightW,
    dstAt: floatAt,
    ldDst: n,
    epilogue: EPILOGUE.store,
  });
  l.run(rows);
  return [l.f32(dstAt, rows * n).slice(), l.f32(floatAt, rows * n).slice()] as const;
}

function maxDifference(a: Float32Array, b: Float32Array): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i] - b[i]));
  return most;
}

const TOKENS = 300;

/** Appends TOKENS rows and attends, in runs of the given sizes (the last repeats); returns all outputs. */
function attend(
  engine: Engine,
  sizes: number[],
  codec: number,
  queryBits: number,
  slidingWindow = 0,
) {
  const random = new Random(codec * 10 + queryBits);
  const l = new Layout(engine);
  const [heads, kvHeads, headDim, maxPages] = [6, 2, 64, 32];
  const width = (heads + 2 * kvHeads) * headDim;
  const qkv = normals(random, TOKENS * width);
  const table = Int32Array.from({ length: maxPages }, (_, i) => (i * 7 + 3) % maxPages);
  const plane = planeLines(codec, headDim);
  const positions = Array.from({ length: 32 * maxPages }, (_, p) => p);
  const angles = positions.flatMap((p) =>
    Array.from({ length: headDim / 2 }, (_, i) => p * 10000 ** (-i / (headDim / 2))),
  );
  const cacheC = l.builder.cache({
    keyCodec: codec,
    valueCodec: codec,
    keyZeroInt: 0,
    valueZeroInt: 0,
    keyClipF: 1,
    valueClipF: 1,
    hadamard: 1,
    queryBits,
    poolAt: l.alloc(maxPages * kvHeads * 2 * plane * LINE),
    pageLines: kvHeads * 2 * plane,
    headLines: 2 * plane,
    keyLines: plane,
    tableAt: l.place(table),
    layers: 1,
    maxPages,
    kvHeads,
    headDim,
    pages: maxPages,
    slots: 1,
    ...NO_TAIL,
  });
  const partsLines = 4096;
  const qkvAt = l.alloc(TOKENS * width * 4);
  const positionsAt = l.alloc(TOKENS * 4);
  const common = {
    rowsReg: ROWS_REG,
    positionsAt,
    sequencesAt: l.place(new Int32Array(TOKENS)),
    heads,
    kvHeads,
    headDim,
    cacheC,
    layer: 0,
    queryAt: l.alloc(TOKENS * heads * headDim * 4),
    queryScaleAt: l.alloc(TOKENS * heads * 4),
    querySumAt: l.alloc(TOKENS * heads * 4),
  };
  const dstAt = l.alloc(TOKENS * heads * headDim * 4);
  l.builder.emit("appendKv", {
    ...common,
    qkvAt,
    ldQkv: width,
    cosAt: l.place(Float32Array.from(angles, Math.cos)),
    sinAt: l.place(Float32Array.from(angles, Math.sin)),
    queryGainAt: -1,
    keyGainAt: -1,
    epsilonF: 1e-5,
  });
  l.builder.emit("attention", {
    ...common,
    dstAt,
    ldDst: heads * headDim,
    softmaxScaleF: 0.125,
    slidingWindow,
    partsAt: l.alloc(partsLines * LINE),
    partsLines,
  });
  const out = new Float32Array(TOKENS * heads * headDim);
  const program = l.load(TOKENS);
  for (let from = 0, i = 0; from < TOKENS; i++) {
    const rows = Math.min(sizes[Math.min(i, sizes.length - 1)] as number, TOKENS - from);
    l.f32(qkvAt, rows * width).set(qkv.subarray(from * width, (from + rows) * width));
    const target = new Int32Array(engine.memory, positionsAt * LINE, rows);
    for (let r = 0; r < rows; r++) target[r] = from + r;
    l.run(rows, program);
    out.set(l.f32(dstAt, rows * heads * headDim), from * heads * headDim);
    from += rows;
  }
  return out;
}

// The other variants share these drivers; the conformance suite runs their tiles.
for (const variant of usable().slice(0, 1)) {
  describe(`native ${variant}, large shapes`, () => {
    let reference: Engine;
    const engines: Engine[] = [];
    beforeAll(async () => {
      reference = await referenceBackend.createEngine({ arenaBytes: ARENA_BYTES, threads: 1 });
      for (const threads of [1, 2, 3]) {
        const backend = makeNativeBackend(variant);
        engines.push(await backend.createEngine({ arenaBytes: ARENA_BYTES, threads }));
      }
    });
    afterAll(async () => {
      for (const engine of [reference, ...engines]) await engine?.dispose();
    });

    for (const [bits, groupSize, zeroKind] of [
      [4, 0, ZERO_KIND.const],
      [4, 128, ZERO_KIND.int],
      [3, 64, ZERO_KIND.const],
      [8, 96, ZERO_KIND.int],
      [7, 32, ZERO_KIND.const],
    ] as const) {
      it(`linears of ${bits} bits in groups of ${groupSize}: the reference's bits for 1 to 60 rows`, () => {
        for (const [i, m] of [1, 7, 24, 60].entries()) {
          const [exact, close] = linears(reference, m, bits, groupSize, zeroKind);
          const [int, float] = linears(engines[i % 3] as Engine, m, bits, groupSize, zeroKind);
          expect(int, `${m} rows`).toEqual(exact);
          const bound = 1e-5 * 700 * 4 * 2 ** bits;
          expect(maxDifference(float, close), `${m} rows`).toBeLessThan(bound);
          const other = linears(engines[(i + 1) % 3] as Engine, m, bits, groupSize, zeroKind);
          expect(other[1], `${m} rows`).toEqual(float);
        }
      });
    }

    it("gemm of 230 x 150 over 333, all transposes, within 1e-5 of the sum of products", () => {
      const random = new Random(5);
      const [m, n, k] = [230, 150, 333];
      const a = normals(random, m * k);
      const b = normals(random, k * n);
      for (const transA of [0, 1]) {
        for (const transB of [0, 1]) {
          const l = new Layout(engines[1 + transB] as Engine);
          const cAt = l.alloc(4 * m * n);
          l.builder.emit("gemm", {
            rowsReg: ROWS_REG,
            cols: n,
            inner: k,
            aAt: l.place(a),
            aSkip: 0,
            lda: transA ? m : k,
            transA,
            bAt: l.place(b),
            bSkip: 0,
            ldb: transB ? k : n,
            transB,
            cAt,
            cSkip: 0,
            ldc: n,
            alphaF: 1,
            betaF: 0,
          });
          l.run(m);
          const c = l.f32(cAt, m * n);
          for (let t = 0; t < 500; t++) {
            const [i, j] = [random.int(0, m - 1), random.int(0, n - 1)];
            let sum = 0;
            let size = 0;
            for (let q = 0; q < k; q++) {
              const product = a[transA ? q * m + i : i * k + q] * b[transB ? j * k + q : q * n + j];
              sum += product;
              size += Math.abs(product);
            }
            expect(Math.abs(c[i * n + j] - sum)).toBeLessThan(1e-5 * size);
          }
        }
      }
    });

    it("gram of 700 rows of 210: upper triangle within 1e-5, the rest untouched", () => {
      const random = new Random(6);
      const [rows, width] = [700, 210];
      const x = normals(random, rows * width);
      const l = new Layout(engines[2] as Engine);
      const gramAt = l.alloc(8 * width * width);
      const srcAt = l.place(x);
      l.builder.emit("gram", { rowsReg: ROWS_REG, srcAt, ldSrc: width, width, gramAt });
      l.run(rows);
      l.run(rows);
      const g = new Float64Array(l.engine.memory, gramAt * LINE, width * width);
      for (let i = 0; i < width; i++) {
        for (let j = 0; j < width; j++) {
          let sum = 0;
          let size = 0;
          for (let m = 0; m < rows && j >= i; m++) {
            const product = 2 * x[m * width + i] * x[m * width + j];
            sum += product;
            size += Math.abs(product);
          }
          if (Math.abs(g[i * width + j] - sum) > 1e-5 * size) {
            throw new Error(`G[${i}, ${j}] is ${g[i * width + j]}, expected ${sum}`);
          }
        }
      }
    });

    it("inverseFactor of 310: U H^-1 … U^T U H is the identity within 1e-4, same bits on all threads", () => {
      const random = new Random(7);
      const n = 310;
      const x = normals(random, 400 * n);
      const h = new Float64Array(n * n);
      for (let m = 0; m < 400; m++) {
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++) h[i * n + j] += x[m * n + i] * x[m * n + j];
        }
      }
      for (let i = 0; i < n; i++) h[i * n + i] += 40;
      let first: Float32Array | null = null;
      for (const engine of engines) {
        const l = new Layout(engine);
        const factorAt = l.alloc(4 * n * n);
        const statusAt = l.alloc(4);
        const hessianAt = l.place(h);
        l.builder.emit("inverseFactor", { size: n, hessianAt, factorAt, statusAt });
        l.run(1);
        expect(new Int32Array(engine.memory, statusAt * LINE, 1)[0]).toBe(0);
        const u = l.f32(factorAt, n * n).slice();
        first ??= u;
        expect(u).toEqual(first);
      }
      const u = first as Float32Array;
      // v = H e_c for some columns; U^T (U v) must be e_c.
      for (const c of [0, 1, 95, 96, 191, 200, 309]) {
        const t = new Float64Array(n);
        for (let i = 0; i < n; i++) {
          for (let j = i; j < n; j++) t[i] += u[i * n + j] * h[j * n + c];
        }
        for (let i = 0; i < n; i++) {
          let sum = 0;
          for (let j = 0; j <= i; j++) sum += u[j * n + i] * t[j];
          expect(Math.abs(sum - (i === c ? 1 : 0))).toBeLessThan(1e-4);
        }
      }
    });

    for (const [name, codec, queryBits, window] of [
      ["int4, 8-bit queries", KV_CODEC.int4, 8, 0],
      ["int8, 8-bit queries, window 200", KV_CODEC.int8, 8, 200],
      ["int4, f32 queries", KV_CODEC.int4, 32, 0],
      ["f16", KV_CODEC.f16, 32, 300],
      ["f32", KV_CODEC.f32, 32, 0],
    ] as const) {
      it(`attention over ${TOKENS} tokens, ${name}: near the reference, same bits by chunk, row and threads`, () => {
        const run = (engine: Engine | undefined, sizes: number[]) =>
          attend(engine as Engine, sizes, codec, queryBits, window);
        const whole = run(engines[0], [TOKENS]);
        expect(maxDifference(whole, run(reference, [TOKENS]))).toBeLessThan(2e-5);
        expect(run(engines[1], [100])).toEqual(whole);
        expect(run(engines[2], [260, 20, 1])).toEqual(whole);
      });
    }
  });
}
