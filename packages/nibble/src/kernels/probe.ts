/**
 * The known-answer probe: one small program whose results are known, with extreme codes, ragged sizes and group tails. A
 * backend uses a kernel variant only if it answers this, never because it compiled: Node 20's relaxed SIMD dot product, for
 * one, compiles and returns wrong sums. Exact ops are compared by a hash of their bits, float ops by weighted sums.
 */
import type { Engine } from "./contract.js";
import { CONTROL_BYTES, EPILOGUE, KV_CODEC, LINE, WEIGHT_KIND, ZERO_KIND } from "./ops.js";
import { NO_TAIL, planeLines } from "./page-layout.js";
import {
  groupCodeSums,
  groupCount,
  PANEL,
  packPanel32,
  paddedColumns,
  panelCount,
  segmentWidths,
  writePanelRow,
} from "./panel32.js";
import { NO_WEIGHT, ProgramBuilder } from "./program.js";
import { requiredScratchLines } from "./scratch.js";

/** Arena an engine of `threads` threads needs to be probed. */
export function probeArenaBytes(threads: number): number {
  return 512 * 1024 + threads * 768 * 1024;
}

type Bytes = Float32Array | Int32Array | Uint8Array | Int8Array | Uint16Array;

/** Places the probe's buffers one after another and remembers which hold results. */
class ProbeArena {
  readonly builder = new ProgramBuilder();
  readonly results: { name: string; start: number; bytes: number; exact: boolean }[] = [];
  readonly #bytes: Uint8Array;
  #next = CONTROL_BYTES;
  #state = 1;

  constructor(memory: ArrayBuffer | SharedArrayBuffer) {
    this.#bytes = new Uint8Array(memory);
  }

  get used(): number {
    return this.#next;
  }
  alloc(bytes: number): number {
    const at = this.#next;
    this.#next += Math.ceil(bytes / LINE) * LINE;
    return at / LINE;
  }
  place(data: Bytes): number {
    const at = this.alloc(data.byteLength);
    this.#bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at * LINE);
    return at;
  }
  result(name: string, bytes: number, exact = true): number {
    const at = this.alloc(bytes);
    this.results.push({ name, start: at * LINE, bytes, exact });
    return at;
  }
  /** Next number of a fixed sequence, 0..limit-1. */
  next(limit: number): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) | 0;
    return ((this.#state >>> 8) * limit) >>> 24;
  }
  /** f32 numbers of -2..2 in steps of 1/64: exact in every format. */
  floats(count: number): Float32Array {
    return Float32Array.from({ length: count }, () => (this.next(256) - 128) / 64);
  }
}

/** A gint weight: random codes with full rows of zeros and of the largest code. Interleaved ones fill their panels. */
function placeGint(
  p: ProbeArena,
  shape: {
    n: number;
    k: number;
    bits: number;
    groupSize: number;
    zeroKind: number;
    interleaved: number;
  },
): number {
  const { n, k, bits, groupSize } = shape;
  const groups = groupCount(k, groupSize);
  const panels = panelCount(n);
  const slots = panels * PANEL;
  const max = 2 ** bits - 1;
  const codes = new Uint8Array(slots * k);
  const codeSums = new Int32Array(slots * groups);
  const rowSums = new Int32Array(groups);
  for (let slot = 0; slot < n; slot++) {
    const row = codes.subarray(slot * k, (slot + 1) * k);
    if (slot === 1) row.fill(max);
    else if (slot > 1) for (let i = 0; i < k; i++) row[i] = p.next(max + 1);
    groupCodeSums(row, k, groupSize, rowSums);
    writePanelRow(codeSums, slot, groups, rowSums);
  }
  const segments = packPanel32(codes, n, k, bits);
  const places: Record<number, number> = { 8: -1, 4: -1, 2: -1, 1: -1 };
  for (const width of segmentWidths(bits)) places[width] = p.place(segments[width] as Uint8Array);
  const entries = slots * groups;
  return p.builder.weight({
    ...NO_WEIGHT,
    kind: WEIGHT_KIND.gint,
    n,
    k,
    panels,
    kPad: paddedColumns(k),
    bits,
    seg8At: places[8],
    seg4At: places[4],
    seg2At: places[2],
    seg1At: places[1],
    groupSize,
    groups,
    scaleAt: p.place(Float32Array.from({ length: entries }, () => (p.next(31) + 1) / 512)),
    zeroKind: shape.zeroKind,
    zeroConstF: shape.zeroKind === ZERO_KIND.const ? 2 ** (bits - 1) : 0,
    zeroAt:
      shape.zeroKind === ZERO_KIND.int
        ? p.place(Uint8Array.from({ length: entries }, () => p.next(max + 1)))
        : shape.zeroKind === ZERO_KIND.float
          ? p.place(p.floats(entries))
          : -1,
    codeSumAt: p.place(codeSums),
    biasAt: p.place(p.floats(slots)),
    interleaved: shape.interleaved,
  });
}

const ROWS = 5;
const codeStride = (width: number) => (Math.ceil(width / LINE) | 1) * LINE;

/** One linearInt on activations that hold whole rows of the largest and the smallest code. */
function emitLinear(
  p: ProbeArena,
  name: string,
  shape: Parameters<typeof placeGint>[1],
  asymmetric: boolean,
): void {
  const { n, k, groupSize } = shape;
  const groups = groupCount(k, groupSize);
  const ldCodes = codeStride(k);
  const codes = new Int8Array(ROWS * ldCodes);
  const sums = new Int32Array(ROWS * groups);
  for (let m = 0; m < ROWS; m++) {
    for (let i = 0; i < k; i++) {
      const code = m === 0 ? -128 : m === 1 ? 127 : p.next(256) - 128;
      codes[m * ldCodes + i] = code;
      sums[m * groups + (groupSize ? Math.floor(i / groupSize) : 0)] += code;
    }
  }
  const outputs = shape.interleaved ? n / 2 : n;
  p.builder.emit("linearInt", {
    rowsReg: 0,
    codesAt: p.place(codes),
    ldCodes,
    scaleAt: p.place(Float32Array.from({ length: ROWS }, (_, m) => (m + 1) / 256)),
    sumAt: p.place(sums),
    zeroAt: asymmetric ? p.place(Int32Array.of(-128, 127, -7, 0, 55)) : -1,
    activationGroups: 1,
    weightW: placeGint(p, shape),
    dstAt: p.result(name, ROWS * outputs * 4),
    ldDst: outputs,
    epilogue: shape.interleaved ? EPILOGUE.swiglu : EPILOGUE.store,
  });
}

/** hadamard of 12 * 8, rmsnorm into 8-bit asymmetric groups of 32 with a tail, and the same row in 4 bits. */
function emitRowOps(p: ProbeArena): void {
  const width = 96;
  const x = p.floats(ROWS * width);
  x.fill(0, width, 2 * width);
  x[2 * width + 5] = 3000;
  const srcAt = p.place(x);
  const sign = () => (p.next(2) ? 1 : -1);
  p.builder.emit("hadamard", {
    rowsReg: 0,
    srcAt,
    ldSrc: width,
    dstAt: p.result("hadamard", ROWS * width * 4),
    ldDst: width,
    blocks: 1,
    orderK: 12,
    orderM: 8,
    inner: 1,
    matrixAt: p.place(Int8Array.from({ length: 144 }, sign)),
    transpose: 1,
    preSignAt: -1,
    postSignAt: p.place(Float32Array.from({ length: width }, sign)),
    normF: 0.1,
  });
  for (const [name, bits, symmetric, groupSize] of [
    ["quantize 8 bit", 8, 0, 64],
    ["quantize 4 bit", 4, 1, 0],
  ] as const) {
    const groups = groupCount(width, groupSize);
    p.builder.emit("rmsnormQuantize", {
      rowsReg: 0,
      srcAt,
      ldSrc: width,
      width,
      codesAt: p.result(`${name}, codes`, ROWS * codeStride(width)),
      ldCodes: codeStride(width),
      scaleAt: p.result(`${name}, scale`, ROWS * groups * 4),
      sumAt: p.result(`${name}, sum`, ROWS * groups * 4),
      zeroAt: symmetric ? -1 : p.result(`${name}, zero`, ROWS * groups * 4),
      bits,
      symmetric,
      groupSize,
      clipF: 0.9,
      gainAt: p.place(p.floats(width)),
      epsilonF: 1e-5,
    });
  }
}

/** Two KV heads of 32, 4-bit keys and 8-bit values (or the other way round), six positions, attention with 8-bit queries. */
function emitAttention(p: ProbeArena, name: string, keyCodec: number, valueCodec: number): void {
  const [heads, kvHeads, headDim] = [4, 2, 32];
  const keyLines = planeLines(keyCodec, headDim);
  const headLines = keyLines + planeLines(valueCodec, headDim);
  const pageLines = kvHeads * headLines;
  const zeroInt = keyCodec === KV_CODEC.int4 ? 1 : 0;
  const cacheC = p.builder.cache({
    keyCodec,
    valueCodec,
    keyZeroInt: zeroInt,
    valueZeroInt: zeroInt,
    keyClipF: 1,
    valueClipF: 1,
    hadamard: 1,
    queryBits: 8,
    poolAt: p.alloc(pageLines * LINE),
    pageLines,
    headLines,
    keyLines,
    tableAt: p.place(Int32Array.of(0)),
    layers: 1,
    maxPages: 1,
    kvHeads,
    headDim,
    pages: 1,
    slots: 1,
    ...NO_TAIL,
  });
  const ldQkv = (heads + 2 * kvHeads) * headDim;
  const angle = (i: number) => (i % 7) / 8;
  const common = {
    rowsReg: 0,
    positionsAt: p.place(Int32Array.from({ length: ROWS }, (_, m) => m)),
    sequencesAt: p.place(new Int32Array(ROWS)),
    heads,
    kvHeads,
    headDim,
    cacheC,
    layer: 0,
    queryAt: p.result(`${name}, query`, ROWS * heads * headDim),
    queryScaleAt: p.result(`${name}, query scale`, ROWS * heads * 4),
    querySumAt: p.result(`${name}, query sum`, ROWS * heads * 4),
  };
  p.builder.emit("appendKv", {
    ...common,
    qkvAt: p.place(p.floats(ROWS * ldQkv)),
    ldQkv,
    cosAt: p.place(Float32Array.from({ length: 32 * 16 }, (_, i) => 1 - angle(i) / 2)),
    sinAt: p.place(Float32Array.from({ length: 32 * 16 }, (_, i) => angle(i))),
    queryGainAt: -1,
    keyGainAt: -1,
    epsilonF: 1e-5,
  });
  p.builder.emit("attention", {
    ...common,
    dstAt: p.result(name, ROWS * heads * headDim * 4, false),
    ldDst: heads * headDim,
    softmaxScaleF: 0.25,
    slidingWindow: 0,
    partsAt: -1,
    partsLines: 0,
  });
}

/** A dense bf16 linear of 33 outputs and 100 inputs. */
function emitFloat(p: ProbeArena): void {
  const [n, k] = [33, 100];
  const bits = Uint16Array.from(
    { length: 2 * k * PANEL },
    () => 0x3f00 + p.next(256) + (p.next(2) << 15),
  );
  const weightW = p.builder.weight({
    ...NO_WEIGHT,
    kind: WEIGHT_KIND.bf16,
    n,
    k,
    panels: 2,
    kPad: k,
    denseAt: p.place(bits),
  });
  p.builder.emit("linearFloat", {
    rowsReg: 0,
    srcAt: p.place(p.floats(ROWS * k)),
    ldSrc: k,
    weightW,
    dstAt: p.result("linearFloat", ROWS * n * 4, false),
    ldDst: n,
    epilogue: EPILOGUE.store,
  });
}

function fillProbe(p: ProbeArena): void {
  const { const: constant, int, float } = ZERO_KIND;
  const linear = (
    name: string,
    n: number,
    k: number,
    bits: number,
    groupSize: number,
    zeroKind: number,
  ) => ({ name, shape: { n, k, bits, groupSize, zeroKind, interleaved: 0 } }) as const;
  for (const { name, shape } of [
    linear("linearInt 8 bit", 32, 64, 8, 0, constant),
    linear("linearInt 4 bit in groups", 33, 216, 4, 64, int),
    linear("linearInt 4 bit", 32, 136, 4, 0, constant),
    linear("linearInt 7 bit", 33, 100, 7, 32, float),
    linear("linearInt 3 bit", 40, 33, 3, 0, int),
    linear("linearInt 2 bit", 32, 130, 2, 128, constant),
  ]) {
    emitLinear(p, name, shape, name === "linearInt 3 bit" || name === "linearInt 4 bit in groups");
  }
  const shape = { n: 64, k: 96, bits: 4, groupSize: 0, zeroKind: constant, interleaved: 1 };
  emitLinear(p, "linearInt swiglu", shape, false);
  emitRowOps(p);
  emitAttention(p, "attention, 4-bit keys", KV_CODEC.int4, KV_CODEC.int8);
  emitAttention(p, "attention, 8-bit keys", KV_CODEC.int8, KV_CODEC.int4);
  emitFloat(p);
}

/** FNV-1a over words. */
function hash(words: Int32Array): number {
  let h = 0x811c9dc5;
  for (const word of words) h = Math.imul(h ^ word, 0x01000193);
  return h >>> 0;
}

/** Sum of the values with weights of -1..1 that differ from place to place. */
function weightedSum(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * Math.cos(i);
  return sum;
}

/** Answers of the reference; `probe.test.ts` says how to print them anew. */
const KNOWN: Record<string, number> = {
  "linearInt 8 bit": 586027118,
  "linearInt 4 bit in groups": 4030945521,
  "linearInt 4 bit": 624599669,
  "linearInt 7 bit": 1503251084,
  "linearInt 3 bit": 3721502485,
  "linearInt 2 bit": 2308009829,
  "linearInt swiglu": 3962329876,
  hadamard: 1195072517,
  "quantize 8 bit, codes": 3865465102,
  "quantize 8 bit, scale": 1190840801,
  "quantize 8 bit, sum": 1152560063,
  "quantize 8 bit, zero": 51697431,
  "quantize 4 bit, codes": 4121501804,
  "quantize 4 bit, scale": 2357362587,
  "quantize 4 bit, sum": 917027680,
  "attention, 4-bit keys, query": 3086982566,
  "attention, 4-bit keys, query scale": 45807343,
  "attention, 4-bit keys, query sum": 4038074,
  "attention, 4-bit keys": 1.543674,
  "attention, 8-bit keys, query": 1350038966,
  "attention, 8-bit keys, query scale": 1181109612,
  "attention, 8-bit keys, query sum": 160911500,
  "attention, 8-bit keys": 13.048933,
  linearFloat: -82.183127,
};

/** The probe's results on an engine: a hash for exact ops, a weighted sum for float ops. */
export function probeAnswers(engine: Engine): Record<string, number> {
  const p = new ProbeArena(engine.memory);
  fillProbe(p);
  const scratchAt = p.used / LINE;
  const limits = { scratchAt, scratchLines: 0, maxRows: ROWS, arenaLines: scratchAt };
  const scratchLines = requiredScratchLines(p.builder.build(limits));
  const arenaLines = scratchAt + engine.threads * scratchLines;
  new Int32Array(engine.memory)[0] = ROWS;
  const program = engine.load(p.builder.build({ ...limits, scratchLines, arenaLines }));
  try {
    engine.runSync(program);
    return Object.fromEntries(
      p.results.map(({ name, start, bytes, exact }) => [
        name,
        exact
          ? hash(new Int32Array(engine.memory, start, bytes / 4))
          : weightedSum(new Float32Array(engine.memory, start, bytes / 4)),
      ]),
    );
  } finally {
    program.dispose();
    const arena = new Uint8Array(engine.memory);
    arena.fill(0, 0, 4);
    arena.fill(0, CONTROL_BYTES, arenaLines * LINE);
  }
}

/**
 * Runs the probe on a fresh engine (it uses the start of the arena and leaves it zeroed; `probeArenaBytes` is enough).
 * @param floatBound relative bound of the answers of float ops
 * @returns null when every answer is right, else one line that names the op that is wrong
 */
export function probeEngine(engine: Engine, floatBound = 1e-3): string | null {
  let answers: Record<string, number>;
  try {
    answers = probeAnswers(engine);
  } catch (error) {
    return `the probe failed to run: ${error instanceof Error ? error.message : String(error)}`;
  }
  for (const [name, expected] of Object.entries(KNOWN)) {
    const answer = answers[name];
    // Weighted sums are no integers; hashes are.
    const allowed = Number.isInteger(expected) ? 0 : floatBound * (1 + Math.abs(expected));
    if (!(Math.abs(answer - expected) <= allowed)) return `${name} gives wrong results`;
  }
  return null;
}
