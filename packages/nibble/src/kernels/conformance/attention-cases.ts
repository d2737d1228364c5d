/**
 * Random programs of appendKv and attention over real page tables: several sequences, pages in random order, unused table
 * entries -1, and unused slots full of NaN bytes, so that an executor that reads what it may not see fails.
 */
import type { Cache } from "../decode.js";
import { KV_CODEC, LINE, PAGE_TOKENS } from "../ops.js";
import { isIntCodec, isKiviCodec, NO_TAIL, planeLines, tailLines } from "../page-layout.js";
import { codeKeyPage, storeKiviToken } from "../reference/kivi.js";
import { storeToken } from "../reference/kv.js";
import { Machine } from "../reference/machine.js";
import { planeOf } from "../reference/pages.js";
import { type Lab, randomRow, randomStride } from "./lab.js";
import type { Make } from "./row-cases.js";

const KIVI_CODECS = [KV_CODEC.kivi4, KV_CODEC.kivi2];
const CODECS = Object.values(KV_CODEC).filter((codec) => !isKiviCodec(codec));
/** Relative bound of a float sum (docs/engine.md, section 1). */
const FLOAT_BOUND = 1e-5;

interface Choice {
  keyCodec: number;
  valueCodec: number;
  queryBits: number;
}

/** Random head vectors that remember how large they were. */
class Heads {
  readonly #lab: Lab;
  readonly #calm: boolean;
  norm = 1;
  largest = 1;

  /** @param calm no extreme rows: keeps the bounds of float ops tight */
  constructor(lab: Lab, calm: boolean) {
    this.#lab = lab;
    this.#calm = calm;
  }

  vector(headDim: number): Float32Array {
    const { random } = this.#lab;
    const row = this.#calm
      ? Float32Array.from({ length: headDim }, () => random.normal())
      : randomRow(random, headDim);
    for (const x of row) this.largest = Math.max(this.largest, Math.abs(x));
    this.norm = Math.max(this.norm, Math.hypot(...row));
    return row;
  }
}

/** Shapes, sequences and an empty cache. */
function setUp(lab: Lab, choice: Choice, calm = false) {
  const { random } = lab;
  const kvHeads = random.int(1, 3);
  const heads = kvHeads * random.pick([1, 1, 2, 3, 4]);
  const kivi = isKiviCodec(choice.keyCodec);
  const headDim = random.pick(kivi ? [32, 64, 64, 128, 96] : [8, 16, 32, 64, 64, 128, 96]);
  const powerOfTwo = headDim !== 96;
  const slots = random.int(1, 3);
  const layers = random.int(1, 2);
  const layer = random.int(0, layers - 1);

  // Rows are shared out among sequences; each row is the next position of its sequence.
  const sequences = Array.from({ length: lab.maxRows }, () => random.int(0, slots - 1));
  const lengths = Array.from({ length: slots }, () =>
    random.pick([0, 1, 30, 31, 32, 100, 127, 128, 250]),
  );
  const contextLengths = [...lengths];
  const positions = sequences.map((s) => (lengths[s] as number)++);
  const maxPages = Math.ceil((Math.max(...lengths) + 1) / PAGE_TOKENS) + random.int(0, 1);
  const pages = slots * layers * maxPages + random.int(0, 2);
  const keyLines = planeLines(choice.keyCodec, headDim);
  const headLines = keyLines + planeLines(choice.valueCodec, headDim);
  const pageLines = kvHeads * headLines;

  const free = random.shuffle(Array.from({ length: pages }, (_, i) => i));
  const table = new Int32Array(slots * layers * maxPages).fill(-1);
  for (let s = 0; s < slots; s++) {
    for (let p = 0; p < Math.ceil((lengths[s] as number) / PAGE_TOKENS); p++) {
      for (let l = 0; l < layers; l++)
        table[(s * layers + l) * maxPages + p] = free.pop() as number;
    }
  }
  const cache: Cache = {
    ...choice,
    ...(kivi ? ring(lab, slots * layers * kvHeads, headDim) : NO_TAIL),
    keyZeroInt: kivi ? 0 : random.int(0, 1),
    valueZeroInt: kivi ? 0 : random.int(0, 1),
    keyClipF: random.pick([1, Math.fround(0.95)]),
    valueClipF: random.pick([1, Math.fround(0.95)]),
    hadamard: powerOfTwo ? random.int(0, 1) : 0,
    poolAt: lab.output("pool", "i8", new Uint8Array(pages * pageLines * LINE).fill(0xff)),
    pageLines,
    headLines,
    keyLines,
    tableAt: lab.place(table),
    layers,
    maxPages,
    kvHeads,
    headDim,
    pages,
    slots,
  };
  return {
    ...{ kvHeads, heads, headDim, layer, contextLengths, cache, table },
    vectors: new Heads(lab, calm),
    cacheC: lab.builder.cache(cache),
    positionsAt: lab.i32Rows("positions", 1, "in", (m) => [positions[m] as number]),
    sequencesAt: lab.i32Rows("sequences", 1, "in", (m) => [sequences[m] as number]),
  };
}

/** Room for exact rows, full of NaN. */
function ring(lab: Lab, count: number, headDim: number) {
  const residual = lab.random.pick([32, 64, 128]);
  const tailTokens = Math.ceil((residual + lab.maxRows) / 128) * 128;
  const bytes = count * tailLines(tailTokens, headDim) * LINE;
  return {
    residual,
    tailTokens,
    tailAt: lab.output("tail", "i8", new Uint8Array(bytes).fill(0xff)),
  };
}

type Setting = ReturnType<typeof setUp>;

/** Writes the tokens that are in the cache before the run, through the reference codec. */
function fillContext(lab: Lab, s: Setting): void {
  const machine = new Machine(lab.buffer);
  const { cache: c, layer } = s;
  s.contextLengths.forEach((length, sequence) => {
    for (let position = 0; position < length; position++) {
      const entry = (sequence * c.layers + layer) * c.maxPages + Math.floor(position / PAGE_TOKENS);
      for (let head = 0; head < c.kvHeads; head++) {
        for (const keys of [true, false]) {
          const x = s.vectors.vector(c.headDim);
          if (c.residual > 0) {
            storeKiviToken(machine, c, { sequence, layer, head, keys }, position, x);
            if (keys && position % PAGE_TOKENS === PAGE_TOKENS - 1) {
              codeKeyPage(machine, c, sequence, layer, head, position);
            }
            continue;
          }
          const plane = planeOf(c, s.table[entry] as number, head, keys);
          storeToken(machine, plane, position % PAGE_TOKENS, x);
        }
      }
    }
  });
}

function queryBuffers(lab: Lab, s: Setting) {
  const width = s.heads * s.headDim;
  const int = s.cache.queryBits === 8;
  return {
    queryAt: int ? lab.i8Rows("query", width, "out") : lab.f32Rows("query", width, "out"),
    queryScaleAt: int ? lab.f32Rows("queryScale", s.heads, "out") : -1,
    querySumAt: int ? lab.i32Rows("querySum", s.heads, "out") : -1,
  };
}

function emitAppend(lab: Lab, s: Setting) {
  const { random } = lab;
  const { heads, kvHeads, headDim, cache } = s;
  const width = (heads + 2 * kvHeads) * headDim;
  const ldQkv = randomStride(random, width);
  const half = headDim / 2;
  const angles = cache.maxPages * PAGE_TOKENS * half;
  const angle = (i: number) => Math.floor(i / half) / 10000 ** ((i % half) / half);
  const gain = () => lab.floats(headDim, () => 1 + random.normal() / 4);
  const norm = random.chance(0.3);
  const operands = {
    rowsReg: 0,
    qkvAt: lab.f32Rows("qkv", ldQkv, "in", () => {
      const row = new Float32Array(width);
      for (let h = 0; h < width; h += headDim) row.set(s.vectors.vector(headDim), h);
      return row;
    }),
    ldQkv,
    positionsAt: s.positionsAt,
    sequencesAt: s.sequencesAt,
    cosAt: lab.floats(angles, (i) => Math.cos(angle(i))),
    sinAt: lab.floats(angles, (i) => Math.sin(angle(i))),
    heads,
    kvHeads,
    headDim,
    queryGainAt: norm ? gain() : -1,
    keyGainAt: norm ? gain() : -1,
    epsilonF: 1e-6,
    cacheC: s.cacheC,
    layer: s.layer,
    ...queryBuffers(lab, s),
  };
  lab.emit("appendKv", operands);
  return operands;
}

const kiviPlanes = (lab: Lab): Choice => ({
  keyCodec: lab.random.pick(KIVI_CODECS),
  valueCodec: lab.random.pick(KIVI_CODECS),
  queryBits: 32,
});

const appendKivi: Make = (lab) => {
  const s = setUp(lab, kiviPlanes(lab));
  fillContext(lab, s);
  emitAppend(lab, s);
};

const appendKv: Make = (lab) => {
  const keyCodec = lab.random.pick(CODECS);
  const queryBits = isIntCodec(keyCodec) ? lab.random.pick([8, 8, 32]) : 32;
  const s = setUp(lab, { keyCodec, valueCodec: lab.random.pick(CODECS), queryBits });
  fillContext(lab, s);
  emitAppend(lab, s);
};

/** Append and attend in one program, as a model does. */
const attend =
  (choose: (lab: Lab) => Choice, exact: boolean): Make =>
  (lab) => {
    const { random } = lab;
    const s = setUp(lab, choose(lab), !exact && random.chance(0.7));
    fillContext(lab, s);
    const append = emitAppend(lab, s);
    const width = s.heads * s.headDim;
    const ldDst = randomStride(random, width);
    const chunks = Math.ceil((s.cache.maxPages * PAGE_TOKENS) / 128);
    const partsLines = random.pick([
      0,
      1,
      Math.ceil((lab.maxRows * s.heads * chunks * (s.headDim + 2) * 4) / LINE),
    ]);
    const partsAt = partsLines > 0 ? lab.alloc(partsLines * LINE) : -1;
    if (partsLines > 0) {
      const start = partsAt * LINE;
      const bytes = partsLines * LINE;
      lab.region({
        name: "parts",
        start,
        bytes,
        type: "f32",
        rowBytes: 0,
        role: "out",
        ignored: true,
      });
    }
    const softmaxScale = Math.fround(1 / Math.sqrt(s.headDim));
    lab.emit("attention", {
      rowsReg: 0,
      positionsAt: s.positionsAt,
      sequencesAt: s.sequencesAt,
      heads: s.heads,
      kvHeads: s.kvHeads,
      headDim: s.headDim,
      cacheC: s.cacheC,
      layer: s.layer,
      queryAt: append.queryAt,
      queryScaleAt: append.queryScaleAt,
      querySumAt: append.querySumAt,
      dstAt: lab.f32Rows("dst", ldDst, "out"),
      ldDst,
      softmaxScaleF: softmaxScale,
      slidingWindow: random.pick([0, 0, 0, 1, 20, 129]),
      partsAt,
      partsLines,
    });
    if (!exact) lab.tolerate("dst", attentionBound(s, softmaxScale));
  };

/**
 * One bound for all outputs of a run. Results are weighted means of values: their sums err relative to the largest value,
 * and an error of the scores (products of q and k, bounded by their norms) changes the weights by that much. The factor 4
 * covers code * scale and zero, which are each larger than the value they make.
 */
function attentionBound(s: Setting, softmaxScale: number): number {
  const { norm, largest } = s.vectors;
  const longest = Math.max(norm, 2 * Math.sqrt(s.headDim)); // what QK-norm makes of a short vector
  const scores = s.cache.queryBits === 8 ? 0 : longest * longest * softmaxScale;
  return 4 * FLOAT_BOUND * largest * (1 + scores);
}

const intCodec = (lab: Lab) => lab.random.pick([KV_CODEC.int8, KV_CODEC.int4]);
const floatCodec = (lab: Lab) => lab.random.pick([KV_CODEC.f32, KV_CODEC.f16]);
const anyCodec = (lab: Lab) => lab.random.pick(CODECS);

const integerScores = (lab: Lab): Choice => ({
  keyCodec: intCodec(lab),
  valueCodec: anyCodec(lab),
  queryBits: 8,
});
const floatScores = (lab: Lab): Choice => ({
  keyCodec: floatCodec(lab),
  valueCodec: anyCodec(lab),
  queryBits: 32,
});
const mixedScores = (lab: Lab): Choice => ({
  keyCodec: intCodec(lab),
  valueCodec: anyCodec(lab),
  queryBits: 32,
});

/** Random queries over a random tile; rows see ranges that begin and end anywhere, some of them nothing. */
const attendTile: Make = (lab) => {
  const { random } = lab;
  const kvHeads = random.int(1, 3);
  const heads = kvHeads * random.pick([1, 2, 3, 8]);
  const headDim = random.pick([8, 20, 32, 64, 96, 128]);
  const slots = random.pick([1, 5, 128, 130, 300]);
  const width = heads * headDim;
  const ldQuery = randomStride(random, width);
  const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());
  const fresh = random.chance(0.3);
  const state = () =>
    Float32Array.from({ length: heads * (headDim + 2) }, (_, i) => {
      const place = i % (headDim + 2);
      if (fresh) return place === 0 ? Number.NEGATIVE_INFINITY : 0;
      return place === 1 ? 1 + random.uniform() : random.normal();
    });
  const range = () => {
    const from = random.int(0, slots);
    return [from, random.int(from, slots)];
  };
  lab.emit("attendTile", {
    rowsReg: 0,
    queryAt: lab.f32Rows("query", ldQuery, "in", () => normal(width)),
    ldQuery,
    ...{ heads, kvHeads, headDim, slots },
    keysAt: lab.floats(kvHeads * slots * headDim, () => random.normal()),
    valuesAt: lab.floats(kvHeads * slots * headDim, () => random.normal()),
    rangesAt: lab.i32Rows("ranges", kvHeads * 2, "in", () =>
      Array.from({ length: kvHeads }, range).flat(),
    ),
    stateAt: lab.f32Rows("state", heads * (headDim + 2), "inout", state),
    logitsAt: random.chance(0.5) ? lab.f32Rows("logits", heads * slots, "out") : -1,
    softmaxScaleF: Math.fround(1 / Math.sqrt(headDim)),
  });
  // Sums of up to `slots` weights, each off by what the scores are.
  lab.tolerate("state", 2 * FLOAT_BOUND * slots);
  if (lab.regions.some((r) => r.name === "logits")) lab.tolerate("logits", 8 * FLOAT_BOUND);
};

/** @param exactAttention true when P·V and f32 q·k use no fma (docs/engine.md, section 1) */
export function attentionCases(exactAttention: boolean): Record<string, Make> {
  return {
    appendKv,
    "appendKv, kivi": appendKivi,
    "attention, kivi": attend(kiviPlanes, exactAttention),
    "attention, integer keys, 8-bit queries": attend(integerScores, exactAttention),
    "attention, float keys": attend(floatScores, exactAttention),
    "attention, integer keys, f32 queries": attend(mixedScores, false),
    attendTile,
  };
}
