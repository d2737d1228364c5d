/**
 * Kernel rates as shares of what the machine can do, all measured in one process, ceilings between the kernels.
 *
 *   node bench.mjs [name part] [--threads 1,2] [--rounds 7] [--variant avx512vnni]
 *
 * Prints JSON lines: best and median over the rounds, and the share of the ceiling of the same run. Compute is measured
 * hot, the GEMV on more weights than the caches hold.
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus } from "node:os";
import ts from "typescript";

const addon = createRequire(import.meta.url)("./index.cjs");
const source = new URL("../nibble/src/kernels/ops.ts", import.meta.url);
const { outputText } = ts.transpileModule(readFileSync(source, "utf8"), {
  compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
});
const ops = await import(`data:text/javascript,${encodeURIComponent(outputText)}`);

function option(name, fallback) {
  const i = process.argv.indexOf(`--${name}`);
  return i < 0 ? fallback : process.argv[i + 1];
}
const wanted = process.argv[2]?.startsWith("--") ? "" : (process.argv[2] ?? "");
const threadCounts = option("threads", "1,2").split(",").map(Number);
const rounds = Number(option("rounds", "7"));
const variant = option("variant", addon.variants().find((v) => v.runs).name);

const ARENA = 400 * 2 ** 20;
const SCRATCH_LINES = 2 ** 15;
const bits = new DataView(new ArrayBuffer(4));
const word = (name, value) => {
  if (!name.endsWith("F")) return value;
  bits.setFloat32(0, value);
  return bits.getInt32(0);
};
const encode = (names, values) =>
  names.map((name) => word(name, values[name] ?? (name.endsWith("At") ? -1 : 0)));

/** An engine with an arena that fills from the bottom. */
class Bench {
  constructor(threads, name) {
    this.engine = addon.create(ARENA, threads, name);
    this.memory = addon.memory(this.engine);
    this.next = ops.CONTROL_BYTES / 64;
    this.threads = threads;
    this.registers = new Int32Array(this.memory, 0, 256);
  }
  alloc(bytes) {
    const at = this.next;
    this.next += Math.ceil(bytes / 64);
    return at;
  }
  floats(count, scale = 1) {
    const at = this.alloc(4 * count);
    const view = new Float32Array(this.memory, at * 64, count);
    for (let i = 0; i < count; i++) view[i] = scale * (((i * 2654435761) >>> 8) / 2 ** 23 - 1);
    return at;
  }
  bytes(count) {
    const at = this.alloc(count);
    const view = new Int32Array(this.memory, at * 64, count >> 2);
    for (let i = 0; i < view.length; i++) view[i] = Math.imul(i, 2654435761);
    return at;
  }
  load(weights, code, maxRows, caches = []) {
    const H = ops.HEADER.length;
    const flat = weights.flatMap((w) => encode(ops.WEIGHT, w));
    const flatCaches = caches.flatMap((cache) => encode(ops.CACHE, cache));
    const instructions = code.flatMap(([op, values]) => {
      const names = ops.OPS[op];
      return [ops.OPCODE[op], names.length + 2, ...encode(names, values)];
    });
    const header = {
      magic: ops.PROGRAM_MAGIC,
      version: ops.PROGRAM_VERSION,
      totalWords: H + flat.length + flatCaches.length + instructions.length + 1,
      weights: weights.length,
      weightsStart: H,
      caches: caches.length,
      cachesStart: H + flat.length,
      codeStart: H + flat.length + flatCaches.length,
      scratchAt: ARENA / 64 - this.threads * SCRATCH_LINES,
      scratchLines: SCRATCH_LINES,
      maxRows,
      maxLogitRows: maxRows,
      arenaLines: ARENA / 64,
    };
    const words = [
      ...ops.HEADER.map((name) => header[name]),
      ...flat,
      ...flatCaches,
      ...instructions,
      0,
    ];
    return { handle: addon.load(this.engine, Int32Array.from(words)) };
  }
  /** Seconds of one run. */
  time(program) {
    const start = process.hrtime.bigint();
    addon.runSync(this.engine, program.handle);
    return Number(process.hrtime.bigint() - start) / 1e9;
  }
}

const codeStride = (k) => {
  const ld = Math.ceil(k / 64) * 64;
  return ld % 128 === 0 ? ld + 64 : ld;
};

/** A random gint weight in the arena. */
function gint(b, n, k, codeBits, groupSize) {
  const panels = Math.ceil(n / 32);
  const kPad = Math.ceil(k / 32) * 32;
  const groups = groupSize ? Math.ceil(k / groupSize) : 1;
  const weight = {
    kind: ops.WEIGHT_KIND.gint,
    n,
    k,
    panels,
    kPad,
    bits: codeBits,
    groupSize,
    groups,
  };
  for (const width of [8, 4, 2, 1]) {
    if (codeBits & width) weight[`seg${width}At`] = b.bytes(panels * kPad * 4 * width);
  }
  weight.scaleAt = b.floats(panels * 32 * groups, 0.01);
  weight.zeroKind = ops.ZERO_KIND.const;
  weight.zeroConstF = 2 ** (codeBits - 1);
  return weight;
}

/** linearInt on M rows; `copies` weights one after another (to leave the caches). */
function linearInt(m, n, k, codeBits, groupSize, copies = 1) {
  return (b) => {
    const groups = groupSize ? Math.ceil(k / groupSize) : 1;
    const ldCodes = codeStride(k);
    const weights = Array.from({ length: copies }, () => gint(b, n, k, codeBits, groupSize));
    const common = {
      rowsReg: 20,
      codesAt: b.bytes(m * ldCodes),
      ldCodes,
      scaleAt: b.floats(m),
      sumAt: b.alloc(4 * m * groups),
      activationGroups: 1,
      dstAt: b.alloc(4 * m * n),
      ldDst: n,
      epilogue: 0,
    };
    b.registers[20] = m;
    const code = weights.map((_, i) => ["linearInt", { ...common, weightW: i }]);
    return b.load(weights, code, m);
  };
}

function linearFloat(m, n, k, codeBits, groupSize, copies = 1) {
  return (b) => {
    const weights = Array.from({ length: copies }, () => gint(b, n, k, codeBits, groupSize));
    const common = {
      rowsReg: 20,
      srcAt: b.floats(m * k),
      ldSrc: k,
      dstAt: b.alloc(4 * m * n),
      ldDst: n,
      epilogue: 0,
    };
    b.registers[20] = m;
    return b.load(
      weights,
      weights.map((_, i) => ["linearFloat", { ...common, weightW: i }]),
      m,
    );
  };
}

function gemm(m, n, k, transA = 0, transB = 0) {
  return (b) => {
    b.registers[20] = m;
    const operands = {
      rowsReg: 20,
      cols: n,
      inner: k,
      aAt: b.floats(m * k),
      aSkip: 0,
      lda: transA ? m : k,
      transA,
      bAt: b.floats(n * k),
      bSkip: 0,
      ldb: transB ? k : n,
      transB,
      cAt: b.alloc(4 * m * n),
      cSkip: 0,
      ldc: n,
      alphaF: 1,
      betaF: 0,
    };
    return b.load([], [["gemm", operands]], m);
  };
}

function gram(m, width) {
  return (b) => {
    b.registers[20] = m;
    const operands = {
      rowsReg: 20,
      srcAt: b.floats(m * width),
      ldSrc: width,
      width,
      gramAt: b.alloc(8 * width * width),
    };
    return b.load([], [["gram", operands]], m);
  };
}

function inverseFactor(n) {
  return (b) => {
    const hessianAt = b.alloc(8 * n * n);
    const operands = { size: n, hessianAt, factorAt: b.alloc(4 * n * n), statusAt: b.alloc(64) };
    const h = new Float64Array(b.memory, hessianAt * 64, n * n);
    const program = b.load([], [["inverseFactor", operands]], 1);
    program.before = () => {
      for (let i = 0; i < n; i++)
        for (let j = i; j < n; j++) h[i * n + j] = i === j ? n : Math.cos(i * j);
    };
    return program;
  };
}

/** Attention of `rows` tokens that end at position `length`, over a cache that holds zeros; SmolLM2's heads. */
function attention(rows, length, codec, queryBits, heads = 9, kvHeads = 3, headDim = 64) {
  return (b) => {
    const bytes = { 0: 4, 1: 2, 2: 1, 3: 0.5 }[codec] * 32 * headDim;
    const plane = bytes / 64 + (codec >= 2 ? 2 : 0);
    const pages = Math.ceil(length / 32);
    const cache = {
      keyCodec: codec,
      valueCodec: codec,
      queryBits,
      hadamard: 1,
      keyClipF: 1,
      valueClipF: 1,
      poolAt: b.alloc(pages * kvHeads * 2 * plane * 64),
      pageLines: kvHeads * 2 * plane,
      headLines: 2 * plane,
      keyLines: plane,
      tableAt: b.alloc(4 * pages),
      layers: 1,
      maxPages: pages,
      kvHeads,
      headDim,
      pages,
      slots: 1,
    };
    const table = new Int32Array(b.memory, cache.tableAt * 64, pages);
    for (let i = 0; i < pages; i++) table[i] = i;
    const positionsAt = b.alloc(4 * rows);
    const positions = new Int32Array(b.memory, positionsAt * 64, rows);
    for (let i = 0; i < rows; i++) positions[i] = length - rows + i;
    const operands = {
      rowsReg: 20,
      positionsAt,
      sequencesAt: b.alloc(4 * rows),
      heads,
      kvHeads,
      headDim,
      cacheC: 0,
      layer: 0,
      queryAt: b.bytes(rows * heads * headDim),
      queryScaleAt: b.alloc(4 * rows * heads),
      querySumAt: b.alloc(4 * rows * heads),
      dstAt: b.alloc(4 * rows * heads * headDim),
      ldDst: heads * headDim,
      softmaxScaleF: headDim ** -0.5,
      slidingWindow: 0,
      partsAt: b.alloc(2 ** 20),
      partsLines: 2 ** 14,
    };
    if (queryBits === 32) operands.queryAt = b.floats(rows * heads * headDim);
    b.registers[20] = rows;
    return b.load([], [["attention", operands]], rows, [cache]);
  };
}

const GOPS = (m, n, k) => (2 * m * n * k) / 1e9;
const cases = [];
for (const [n, k] of [
  [576, 576],
  [1536, 576],
  [576, 1536],
  [4096, 4096],
]) {
  for (const group of [0, 128]) {
    cases.push({
      name: `int gemm M=512 ${n}x${k} w4 ${group ? `g${group}` : "channel"}`,
      make: linearInt(512, n, k, 4, group),
      work: GOPS(512, n, k),
      unit: "GOPS",
      ceiling: "dot",
    });
  }
}
cases.push({
  name: "int gemm M=512 1536x576 w4 g32",
  make: linearInt(512, 1536, 576, 4, 32),
  work: GOPS(512, 1536, 576),
  unit: "GOPS",
  ceiling: "dot",
});
cases.push({
  name: "int gemm M=512 1536x576 w8 channel",
  make: linearInt(512, 1536, 576, 8, 0),
  work: GOPS(512, 1536, 576),
  unit: "GOPS",
  ceiling: "dot",
});
cases.push({
  name: "int gemm M=512 1536x576 w3 channel",
  make: linearInt(512, 1536, 576, 3, 0),
  work: GOPS(512, 1536, 576),
  unit: "GOPS",
  ceiling: "dot",
});
for (const m of [8, 12, 16, 48]) {
  cases.push({
    name: `int gemm M=${m} 4096x4096 w4 channel`,
    make: linearInt(m, 4096, 4096, 4, 0),
    work: GOPS(m, 4096, 4096),
    unit: "GOPS",
    ceiling: "dot",
  });
}
const MB8 = (4096 * 4096) / 1e9;
for (const [codeBits, group] of [
  [4, 0],
  [4, 128],
  [8, 0],
  [3, 128],
  [2, 0],
  [1, 0],
]) {
  const copies = Math.ceil(12 / codeBits) * 3;
  cases.push({
    name: `int gemv cold 4096x4096 w${codeBits} ${group ? `g${group}` : "channel"}`,
    make: linearInt(1, 4096, 4096, codeBits, group, copies),
    work: (copies * MB8 * codeBits) / 8,
    unit: "GB/s",
    ceiling: "read",
  });
}
cases.push({
  name: "int gemv cold M=4 4096x4096 w4 channel",
  make: linearInt(4, 4096, 4096, 4, 0, 9),
  work: (9 * MB8) / 2,
  unit: "GB/s",
  ceiling: "read",
});
cases.push({
  name: "float gemv cold 4096x4096 w4 g128",
  make: linearFloat(1, 4096, 4096, 4, 128, 9),
  work: (9 * MB8) / 2,
  unit: "GB/s",
  ceiling: "read",
});
cases.push({
  name: "float gemv cold 4096x4096 w8 g128",
  make: linearFloat(1, 4096, 4096, 8, 128, 5),
  work: 5 * MB8,
  unit: "GB/s",
  ceiling: "read",
});
cases.push({
  name: "float gemm M=512 1536x576 w4 g128",
  make: linearFloat(512, 1536, 576, 4, 128),
  work: GOPS(512, 1536, 576),
  unit: "GFLOPS",
  ceiling: "fma",
});
cases.push({
  name: "f32 gemm 1024^3",
  make: gemm(1024, 1024, 1024),
  work: GOPS(1024, 1024, 1024),
  unit: "GFLOPS",
  ceiling: "fma",
});
cases.push({
  name: "f32 gemm 1024^3 A^T",
  make: gemm(1024, 1024, 1024, 1, 0),
  work: GOPS(1024, 1024, 1024),
  unit: "GFLOPS",
  ceiling: "fma",
});
cases.push({
  name: "f32 gemm 1024^3 B^T",
  make: gemm(1024, 1024, 1024, 0, 1),
  work: GOPS(1024, 1024, 1024),
  unit: "GFLOPS",
  ceiling: "fma",
});
cases.push({
  name: "gram 512x1536",
  make: gram(512, 1536),
  work: GOPS(512, 1536, 1536) / 2,
  unit: "GFLOPS",
  ceiling: "fma",
});
// Float products of the variant avx512bf16, which has to be asked for: beside its own ceiling, and beside f32 above.
for (const [name, make, work] of [
  ["bf16 gram 512x1536", gram(512, 1536), GOPS(512, 1536, 1536) / 2],
  ["bf16 gemm M=512 1536x576 w4 g128", linearFloat(512, 1536, 576, 4, 128), GOPS(512, 1536, 576)],
  [
    "bf16 gemm M=512 4096x4096 w4 g128",
    linearFloat(512, 4096, 4096, 4, 128),
    GOPS(512, 4096, 4096),
  ],
]) {
  cases.push({ name, make, work, unit: "GFLOPS", ceiling: "bf16", variant: "avx512bf16" });
}
cases.push({
  name: "inverse factor 1536 (f64)",
  make: inverseFactor(1536),
  work: ((2 / 3) * 1536 ** 3) / 1e9,
  unit: "GFLOPS",
  ceiling: "fma",
  half: true,
});

// Attention: two products of head_dim for every visible (query, key) pair.
for (const [codec, name, queryBits] of [
  [3, "int4 q8", 8],
  [2, "int8 q8", 8],
  [1, "f16", 32],
]) {
  cases.push({
    name: `attention prefill 512 ${name}`,
    make: attention(512, 512, codec, queryBits),
    work: (9 * 512 * 256 * 64 * 4) / 1e9,
    unit: "GFLOPS",
    ceiling: "fma",
  });
  for (const length of [512, 4096]) {
    cases.push({
      name: `attention decode ${length} ${name}`,
      make: attention(1, length, codec, queryBits),
      work: (9 * length * 64 * 4) / 1e9,
      unit: "GFLOPS",
      ceiling: "fma",
    });
  }
}

const median = (list) => [...list].sort((x, y) => x - y)[list.length >> 1];
const digits = (x) => Number(x.toPrecision(3));

console.log(JSON.stringify({ cpu: cpus()[0].model, node: process.version, variant, rounds }));
const runs = new Set(addon.variants().flatMap((v) => (v.runs ? [v.name] : [])));
for (const { name, make, work, unit, ceiling, half, variant: own = variant } of cases) {
  if (!name.includes(wanted) || !runs.has(own)) continue;
  for (const threads of threadCounts) {
    const bench = new Bench(threads, own);
    const program = make(bench);
    program.before?.();
    bench.time(program);
    program.before?.();
    const times = program.before ? 1 : Math.max(1, Math.ceil(0.03 / bench.time(program)));
    const rates = [];
    let top = 0;
    for (let round = 0; round < rounds; round++) {
      program.before?.();
      let seconds = Number.POSITIVE_INFINITY;
      for (let i = 0; i < times; i++) seconds = Math.min(seconds, bench.time(program));
      rates.push(work / seconds);
      top = Math.max(top, addon.ceiling(ceiling, threads, own) / 1e9 / (half ? 2 : 1));
    }
    const best = Math.max(...rates);
    const share = top ? `${Math.round((100 * best) / top)} %` : null;
    console.log(
      JSON.stringify({
        name,
        threads,
        best: digits(best),
        median: digits(median(rates)),
        unit,
        ceiling: digits(top),
        share,
      }),
    );
    addon.dispose(bench.engine);
  }
}
