/**
 * Micro-benchmark of the WebAssembly kernels: one op at a time, both variants, minimum and median of many short slices.
 * Weights of the GEMV lines lie in a ring larger than the caches, so these lines show what decoding from RAM reaches.
 *
 *   node scripts/bench-wasm.mjs [--threads 1] [--variant simd|relaxed|both] [--seconds 0.4] [--only text] [--json]
 */
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import ts from "typescript";
import { nibble, root, walk } from "./common.mjs";

const { values: flags } = parseArgs({
  options: {
    threads: { type: "string", default: "1" },
    variant: { type: "string", default: "both" },
    seconds: { type: "string", default: "0.4" },
    only: { type: "string", default: "" },
    json: { type: "boolean", default: false },
  },
});
if (process.version.startsWith("v20.")) setFlagsFromString("--experimental-wasm-relaxed-simd");

/** The backend's own sources, transpiled file by file, so that this script needs no build of the package. */
async function loadKernels(copy) {
  const output = join(root, "node_modules", ".cache", "nibble-bench-wasm", copy);
  rmSync(output, { recursive: true, force: true });
  for (const file of [
    ...walk(join(nibble, "src", "kernels")),
    join(nibble, "src", "core", "errors.ts"),
  ]) {
    if (/\.test\.ts$|conformance/.test(file)) continue;
    const target = join(output, relative(join(nibble, "src"), file).replace(/\.ts$/, ".js"));
    mkdirSync(dirname(target), { recursive: true });
    if (file.endsWith(".ts")) {
      const { outputText } = ts.transpileModule(readFileSync(file, "utf8"), {
        compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
      });
      writeFileSync(target, outputText);
    } else copyFileSync(file, target);
  }
  const load = (name) => import(pathToFileURL(join(output, "kernels", name)).href);
  return {
    ...(await load("wasm.js")),
    ...(await load("program.js")),
    ...(await load("scratch.js")),
    ops: await load("ops.js"),
  };
}

const kernels = await loadKernels("0");
const { NO_WEIGHT, ProgramBuilder, requiredScratchLines, ops } = kernels;
const THREADS = Number(flags.threads);
const ARENA_BYTES = 640 * 2 ** 20;
const RING_BYTES = 192 * 2 ** 20;
const SLICE_BYTES = 6 * 2 ** 20;
const { LINE, CONTROL_BYTES, WEIGHT_KIND, ZERO_KIND, SCALAR_TYPE, EPILOGUE, KV_CODEC } = ops;

/** Bump allocator over the arena. */
class Arena {
  next = CONTROL_BYTES;
  builder = new ProgramBuilder();
  constructor(engine) {
    this.engine = engine;
    this.bytes = new Uint8Array(engine.memory);
  }
  alloc(bytes) {
    const at = this.next;
    this.next += Math.ceil(bytes / LINE) * LINE + LINE;
    return at / LINE;
  }
  floats(count, value = () => Math.random() - 0.5) {
    const at = this.alloc(count * 4);
    new Float32Array(this.engine.memory, at * LINE, count).forEach((_, i, a) => {
      a[i] = value(i);
    });
    return at;
  }
  random(bytes) {
    const at = this.alloc(bytes);
    const view = new Uint32Array(this.engine.memory, at * LINE, Math.ceil(bytes / 4));
    let state = 12345;
    for (let i = 0; i < view.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      view[i] = state ^ (state >>> 15);
    }
    return at;
  }
  /** s8 codes of `bits` bits. */
  codes(bytes, bits) {
    const at = this.random(bytes);
    const view = new Int8Array(this.engine.memory, at * LINE, bytes);
    for (let i = 0; i < bytes; i++) view[i] >>= 8 - bits;
    return at;
  }
  programs(maxRows) {
    const scratchAt = Math.ceil(this.next / LINE);
    return (this.builders ?? [this.builder]).map((builder) => {
      const limits = { scratchAt, scratchLines: 0, maxRows, arenaLines: scratchAt };
      const scratchLines = requiredScratchLines(builder.build(limits));
      const arenaLines = scratchAt + THREADS * scratchLines;
      return this.engine.load(builder.build({ ...limits, scratchLines, arenaLines }));
    });
  }
}

const stride = (k) => (Math.ceil(k / 64) | 1) * 64;

/** A gint weight of random codes. `copies` places of it in a ring, as descriptor numbers. */
function gint(arena, n, k, bits, groupSize, copies, zeroKind = ZERO_KIND.const) {
  const panels = Math.ceil(n / 32);
  const kPad = Math.ceil(k / 32) * 32;
  const groups = groupSize ? Math.ceil(k / groupSize) : 1;
  const zeros = arena.random(panels * groups * 32);
  const halves = () => {
    const at = arena.alloc(panels * groups * 64);
    new Uint16Array(arena.engine.memory, at * LINE, panels * groups * 32).fill(0x2100);
    return at;
  };
  const shared = {
    scaleAt: zeroKind === ZERO_KIND.int ? halves() : arena.floats(panels * groups * 32, () => 0.01),
    codeSumAt: arena.random(panels * groups * 128),
  };
  return Array.from({ length: copies }, () =>
    arena.builder.weight({
      ...NO_WEIGHT,
      ...shared,
      kind: WEIGHT_KIND.gint,
      n,
      k,
      panels,
      kPad,
      bits,
      ...Object.fromEntries(
        [8, 4, 2, 1].map((width) => [
          `seg${width}At`,
          (width === 8 ? bits === 8 : bits & width) ? arena.random(panels * 4 * kPad * width) : -1,
        ]),
      ),
      groupSize,
      groups,
      zeroKind,
      zeroConstF: 2 ** (bits - 1),
      scaleType: zeroKind === ZERO_KIND.int ? SCALAR_TYPE.f16 : SCALAR_TYPE.f32,
      zeroAt: zeroKind === ZERO_KIND.int ? zeros : -1,
    }),
  );
}

/** linearInt of `rows` rows; returns what one run moves and computes. */
function linearInt(
  arena,
  { n, k, bits, groupSize = 0, rows, cold = false, repeat = 1, activationBits = 8, zeroKind },
) {
  const bytes = (n * k * bits) / 8;
  const copies = cold ? Math.ceil(RING_BYTES / bytes) : 1;
  const places = gint(arena, n, k, bits, groupSize, copies, zeroKind);
  const weights = Array.from({ length: repeat }, () => places).flat();
  const groups = groupSize ? Math.ceil(k / groupSize) : 1;
  const operands = {
    rowsReg: 0,
    codesAt: arena.codes(rows * stride(k), activationBits),
    ldCodes: stride(k),
    scaleAt: arena.floats(rows * groups),
    sumAt: arena.alloc(rows * groups * 4),
    zeroAt: -1,
    activationGroups: 1,
    dstAt: arena.alloc(rows * n * 4),
    ldDst: n,
    epilogue: EPILOGUE.store,
  };
  return emitRing(arena, "linearInt", operands, weights, { ops: 2 * n * k * rows, bytes, rows });
}

/**
 * Programs of about half a millisecond that together pass through all weights: slices short enough to fall between the
 * interruptions of a busy machine.
 */
function emitRing(arena, op, operands, weights, { ops: count, bytes, rows }) {
  const size = Math.max(1, Math.min(weights.length, Math.round(SLICE_BYTES / bytes)));
  arena.builders = [];
  for (let i = 0; i + size <= weights.length; i += size) {
    const builder = arena.builder.fork();
    for (const weightW of weights.slice(i, i + size)) builder.emit(op, { ...operands, weightW });
    arena.builders.push(builder);
  }
  return { ops: count * size, bytes: bytes * size, rows };
}

function linearFloat(arena, { n, k, kind, bits = 0, groupSize = 0, rows, cold = false }) {
  const size = { f32: 4, f16: 2, bf16: 2, gint: bits / 8 }[kind];
  const bytes = n * k * size;
  const copies = cold ? Math.ceil(RING_BYTES / bytes) : 1;
  const panels = Math.ceil(n / 32);
  const weights =
    kind === "gint"
      ? gint(arena, n, k, bits, groupSize, copies)
      : Array.from({ length: copies }, () => {
          const at = arena.alloc(panels * 32 * k * size);
          const view = new Uint16Array(
            arena.engine.memory,
            at * LINE,
            (panels * 32 * k * size) / 2,
          );
          for (let i = 0; i < view.length; i++) view[i] = 0x2000 + ((i * 2654435761) & 0x8fff);
          return arena.builder.weight({
            ...NO_WEIGHT,
            kind: WEIGHT_KIND[kind],
            n,
            k,
            panels,
            kPad: k,
            denseAt: at,
          });
        });
  const srcAt = arena.floats(rows * k);
  const dstAt = arena.alloc(rows * n * 4);
  const operands = { rowsReg: 0, srcAt, ldSrc: k, dstAt, ldDst: n, epilogue: EPILOGUE.store };
  return emitRing(arena, "linearFloat", operands, weights, { ops: 2 * n * k * rows, bytes, rows });
}

function gemm(arena, { size, transA = 0 }) {
  const at = () => arena.floats(size * size);
  arena.builder.emit("gemm", {
    ...{
      rowsReg: 0,
      cols: size,
      inner: size,
      aAt: at(),
      aSkip: 0,
      lda: size,
      transA,
      bAt: at(),
      bSkip: 0,
      ldb: size,
    },
    ...{ transB: 1, cAt: at(), cSkip: 0, ldc: size, alphaF: 1, betaF: 0 },
  });
  return { ops: 2 * size ** 3, bytes: 0, rows: size };
}

/** Keys and values are 4 bit; 9 query heads of 64 on 3 KV heads, as SmolLM2. `layers` distinct layers. */
function attention(arena, { rows, context, layers = 1 }) {
  const [heads, kvHeads, headDim] = [9, 3, 64];
  const plane = (32 * headDim) / 2 / LINE + 2;
  const maxPages = Math.ceil((context + rows) / 32);
  const pages = layers * maxPages;
  const table = arena.alloc(pages * 4);
  new Int32Array(arena.engine.memory, table * LINE, pages).forEach((_, i, a) => {
    a[i] = i;
  });
  const pageLines = kvHeads * 2 * plane;
  const poolAt = arena.random(pages * pageLines * LINE);
  const halves = new Uint16Array(arena.engine.memory, poolAt * LINE, pages * pageLines * 32);
  for (let p = 0; p < pages * kvHeads * 2; p++) {
    halves.fill(0x2c00, p * plane * 32 + (plane - 2) * 32, (p + 1) * plane * 32);
  }
  const cacheC = arena.builder.cache({
    ...{
      keyCodec: KV_CODEC.int4,
      valueCodec: KV_CODEC.int4,
      keyZeroInt: 0,
      valueZeroInt: 0,
      keyClipF: 1,
      valueClipF: 1,
    },
    ...{
      hadamard: 1,
      queryBits: 8,
      poolAt,
      pageLines,
      headLines: 2 * plane,
      keyLines: plane,
      tableAt: table,
    },
    ...{ layers, maxPages, kvHeads, headDim, pages, slots: 1 },
  });
  const positionsAt = arena.alloc(rows * 4);
  new Int32Array(arena.engine.memory, positionsAt * LINE, rows).forEach((_, i, a) => {
    a[i] = context + i;
  });
  const partsLines = Math.ceil(
    (heads * Math.ceil((context + rows) / 128) * (headDim + 2) * 4) / LINE,
  );
  const operands = {
    ...{
      rowsReg: 0,
      positionsAt,
      sequencesAt: arena.alloc(rows * 4),
      heads,
      kvHeads,
      headDim,
      cacheC,
    },
    queryAt: arena.random(rows * heads * headDim),
    queryScaleAt: arena.floats(rows * heads, () => 0.01),
    querySumAt: arena.alloc(rows * heads * 4),
    ...{
      dstAt: arena.alloc(rows * heads * headDim * 4),
      ldDst: heads * headDim,
      softmaxScaleF: 0.125,
      slidingWindow: 0,
    },
    ...{ partsAt: arena.alloc(partsLines * LINE), partsLines },
  };
  for (let layer = 0; layer < layers; layer++)
    arena.builder.emit("attention", { ...operands, layer });
  const keys = rows * (context + (rows + 1) / 2);
  return { ops: 4 * keys * heads * headDim * layers, bytes: pages * pageLines * LINE, rows };
}

/** Row ops of one decoder layer of SmolLM2, `times` times. */
function rowOps(arena, { kind, rows, times = 50 }) {
  const width = kind === "hadamardQuantize" ? 1536 : 576;
  const groups = 1;
  const x = arena.floats(rows * width);
  const codes = {
    ...{
      rowsReg: 0,
      srcAt: x,
      ldSrc: width,
      width,
      codesAt: arena.alloc(rows * stride(width)),
      ldCodes: stride(width),
    },
    ...{
      scaleAt: arena.alloc(rows * groups * 4),
      sumAt: arena.alloc(rows * groups * 4),
      zeroAt: -1,
    },
    ...{ bits: 8, symmetric: 1, groupSize: 0, clipF: 1 },
  };
  const transform = {
    blocks: 1,
    orderK: 12,
    orderM: 128,
    inner: 1,
    matrixAt: arena.random(144),
    transpose: 0,
    preSignAt: -1,
    postSignAt: -1,
    normF: 0.0255,
  };
  for (let i = 0; i < times; i++) {
    if (kind === "hadamardQuantize")
      arena.builder.emit("hadamardQuantize", { ...codes, ...transform });
    else if (kind === "rmsnormQuantize")
      arena.builder.emit("rmsnormQuantize", { ...codes, gainAt: -1, epsilonF: 1e-5 });
    else arena.builder.emit("quantize", codes);
  }
  return { ops: 0, bytes: 0, rows, calls: times };
}

function gram(arena, { width, rows }) {
  arena.builder.emit("gram", {
    rowsReg: 0,
    srcAt: arena.floats(rows * width),
    ldSrc: width,
    width,
    gramAt: arena.alloc(width * width * 8),
  });
  return { ops: width * (width + 1) * rows, bytes: 0, rows };
}

const LAYER = [
  ["gemv 4 bit 576x576 hot", linearInt, { n: 576, k: 576, bits: 4, rows: 1, repeat: 40 }],
  [
    "gemv 4 bit g64 zeros 576x576 hot",
    linearInt,
    { n: 576, k: 576, bits: 4, groupSize: 64, rows: 1, repeat: 40, zeroKind: ZERO_KIND.int },
  ],
  [
    "gemv 4 bit g64 zeros 3072x576 cold",
    linearInt,
    { n: 3072, k: 576, bits: 4, groupSize: 64, rows: 1, cold: true, zeroKind: ZERO_KIND.int },
  ],
  [
    "gemm 4 bit g64 zeros 576x576 M=64",
    linearInt,
    { n: 576, k: 576, bits: 4, groupSize: 64, rows: 64, zeroKind: ZERO_KIND.int },
  ],
  ["gemv 8 bit 576x576 hot", linearInt, { n: 576, k: 576, bits: 8, rows: 1, repeat: 40 }],
  [
    "gemv 4 bit g32 576x576 hot",
    linearInt,
    { n: 576, k: 576, bits: 4, groupSize: 32, rows: 1, repeat: 40 },
  ],
  ["gemv 4 bit 3072x576 cold", linearInt, { n: 3072, k: 576, bits: 4, rows: 1, cold: true }],
  ["gemv 4 bit 4096x4096 cold", linearInt, { n: 4096, k: 4096, bits: 4, rows: 1, cold: true }],
  [
    "gemv 4 bit g128 4096x4096 cold",
    linearInt,
    { n: 4096, k: 4096, bits: 4, groupSize: 128, rows: 1, cold: true },
  ],
  [
    "gemv 4 bit g32 4096x4096 cold",
    linearInt,
    { n: 4096, k: 4096, bits: 4, groupSize: 32, rows: 1, cold: true },
  ],
  ["gemv 8 bit 49152x576 cold", linearInt, { n: 49152, k: 576, bits: 8, rows: 1, cold: true }],
  ["gemv 2 bit 4096x4096 cold", linearInt, { n: 4096, k: 4096, bits: 2, rows: 1, cold: true }],
  ["gemv 3 bit 4096x4096 cold", linearInt, { n: 4096, k: 4096, bits: 3, rows: 1, cold: true }],
  ["gemm 4 bit 576x576 M=4", linearInt, { n: 576, k: 576, bits: 4, rows: 4 }],
  ["gemm 4 bit 576x576 M=32", linearInt, { n: 576, k: 576, bits: 4, rows: 32 }],
  [
    "gemm 4 bit A4 192x576 M=32",
    linearInt,
    { n: 192, k: 576, bits: 4, rows: 32, activationBits: 4 },
  ],
  ["gemm 4 bit A8 192x576 M=32", linearInt, { n: 192, k: 576, bits: 4, rows: 32 }],
  ["gemm 4 bit 576x576 M=512", linearInt, { n: 576, k: 576, bits: 4, rows: 512 }],
  ["gemm 4 bit 192x1536 M=512", linearInt, { n: 192, k: 1536, bits: 4, rows: 512 }],
  [
    "gemm 4 bit g128 128x4096 M=128",
    linearInt,
    { n: 128, k: 4096, bits: 4, groupSize: 128, rows: 128 },
  ],
  [
    "gemm 4 bit g32 128x4096 M=128",
    linearInt,
    { n: 128, k: 4096, bits: 4, groupSize: 32, rows: 128 },
  ],
  ["gemm 8 bit 576x576 M=128", linearInt, { n: 576, k: 576, bits: 8, rows: 128 }],
  [
    "float gemv f16 2048x2048 cold",
    linearFloat,
    { n: 2048, k: 2048, kind: "f16", rows: 1, cold: true },
  ],
  [
    "float gemv bf16 2048x2048 cold",
    linearFloat,
    { n: 2048, k: 2048, kind: "bf16", rows: 1, cold: true },
  ],
  [
    "float gemv f32 2048x2048 cold",
    linearFloat,
    { n: 2048, k: 2048, kind: "f32", rows: 1, cold: true },
  ],
  [
    "float gemv 4 bit 2048x2048 cold",
    linearFloat,
    { n: 2048, k: 2048, kind: "gint", bits: 4, groupSize: 128, rows: 1, cold: true },
  ],
  [
    "float gemv 8 bit 49152x576 cold",
    linearFloat,
    { n: 49152, k: 576, kind: "gint", bits: 8, rows: 1, cold: true },
  ],
  [
    "float gemv 3 bit 2048x2048 cold",
    linearFloat,
    { n: 2048, k: 2048, kind: "gint", bits: 3, groupSize: 128, rows: 1, cold: true },
  ],
  [
    "float gemm 8 bit 1024x576 M=64",
    linearFloat,
    { n: 1024, k: 576, kind: "gint", bits: 8, rows: 64 },
  ],
  ["float gemm f16 256x1024 M=64", linearFloat, { n: 256, k: 1024, kind: "f16", rows: 64 }],
  [
    "float gemm 4 bit g128 256x1024 M=64",
    linearFloat,
    { n: 256, k: 1024, kind: "gint", bits: 4, groupSize: 128, rows: 64 },
  ],
  ["gemm f32 256", gemm, { size: 256 }],
  ["gemm f32 256 A^T", gemm, { size: 256, transA: 1 }],
  ["gram 576 x 64 rows (f64)", gram, { width: 576, rows: 64 }],
  ["attention decode @512, 6 layers", attention, { rows: 1, context: 511, layers: 6 }],
  ["attention decode @2048, 2 layers", attention, { rows: 1, context: 2047, layers: 2 }],
  ["attention prefill 64 @256", attention, { rows: 64, context: 256 }],
  ["quantize 576", rowOps, { kind: "quantize", rows: 1 }],
  ["rmsnormQuantize 576", rowOps, { kind: "rmsnormQuantize", rows: 1 }],
  ["hadamardQuantize 1536", rowOps, { kind: "hadamardQuantize", rows: 1 }],
];

/** Seconds of each run within the time given, after a warm-up that lets the optimizing compiler finish. */
function time(engine, programs, seconds) {
  const slices = [];
  const warm = performance.now() + 300;
  do engine.runSync(programs[0]);
  while (performance.now() < warm);
  const end = performance.now() + seconds * 1000;
  do {
    for (const program of programs) {
      const begun = performance.now();
      engine.runSync(program);
      slices.push((performance.now() - begun) / 1000);
    }
  } while (performance.now() < end);
  return slices.sort((a, b) => a - b);
}

const variants = flags.variant === "both" ? ["relaxed", "simd"] : [flags.variant];
const results = [];
for (const variant of variants) {
  // A fresh copy of the backend per variant: its choice is made once.
  const { wasmBackend, setWasmSource } = variant === variants[0] ? kernels : await loadKernels("1");
  setWasmSource({
    binary: async (name) =>
      variant === "simd" && name.startsWith("relaxed")
        ? new Uint8Array(4)
        : readFileSync(join(nibble, "wasm", `${name}.wasm`)),
  });
  for (const [name, make, shape] of LAYER) {
    if (!name.includes(flags.only)) continue;
    const engine = await wasmBackend.createEngine({ arenaBytes: ARENA_BYTES, threads: THREADS });
    const arena = new Arena(engine);
    const { ops: count, bytes, rows, calls } = make(arena, shape);
    new Int32Array(engine.memory)[0] = rows;
    const slices = time(engine, arena.programs(rows), Number(flags.seconds));
    const [best, median] = [slices[0], slices[slices.length >> 1]];
    const result = {
      name,
      variant: engine.variant,
      threads: THREADS,
      microseconds: (best * 1e6) / (calls ?? 1),
      medianMicroseconds: (median * 1e6) / (calls ?? 1),
      gops: count / best / 1e9,
      gbPerSecond: bytes / best / 1e9,
      runs: slices.length,
    };
    results.push(result);
    if (!flags.json) {
      const cell = (x, digits = 1) => x.toFixed(digits).padStart(8);
      console.log(
        `${engine.variant.padEnd(12)} ${name.padEnd(40)} ${cell(result.microseconds)} us (median ${cell(result.medianMicroseconds)}) ${cell(result.gops)} GOPS ${cell(result.gbPerSecond)} GB/s`,
      );
    }
    await engine.dispose();
  }
}
if (flags.json) console.log(JSON.stringify({ node: process.version, results }, null, 2));
