/** Programs that read something they must not use while running. Each ends with the instruction that does. */
import { KV_CODEC, LINE, PAGE_TOKENS } from "../ops.js";
import { NO_TAIL, planeLines } from "../page-layout.js";
import { attentionCases } from "./attention-cases.js";
import { Lab } from "./lab.js";
import { linearCases } from "./linear-cases.js";
import { type Make, rowCases } from "./row-cases.js";
import { statsCases } from "./stats-cases.js";

function makeLab(make: Make, seed: number, rows?: number): Lab {
  const lab = new Lab(seed, rows);
  make(lab);
  return lab;
}

/** Faults of an index buffer: the last row holds each of `values`. */
function indexFaults(title: string, make: Make, region: string, values: number[], seed = 5) {
  return Object.fromEntries(
    values.map((value) => [
      `${title} ${value}`,
      () => {
        const lab = makeLab(make, seed, 3);
        const found = lab.regions.find((r) => r.name === region);
        if (!found) throw new Error(`no region ${region}`);
        new Int32Array(lab.buffer)[found.start / 4 + lab.rows - 1] = value;
        return lab;
      },
    ]),
  );
}

function permutation(entry: number): Lab {
  const lab = new Lab(1, 2);
  lab.emit("columns", {
    rowsReg: 0,
    srcAt: lab.f32Rows("src", 8, "in"),
    ldSrc: 8,
    dstAt: lab.f32Rows("dst", 8, "out"),
    ldDst: 8,
    width: 8,
    permAt: lab.place(Int32Array.of(0, 1, 2, 3, 4, 5, 6, entry)),
    scaleAt: -1,
  });
  return lab;
}

function sparse(pointers: number[], column: number): Lab {
  const lab = new Lab(1, 2);
  lab.emit("csr", {
    rowsReg: 0,
    srcAt: lab.f32Rows("src", 8, "in"),
    ldSrc: 8,
    rowPointersAt: lab.place(Uint32Array.from(pointers)),
    columnsAt: lab.place(Uint32Array.of(0, column)),
    valuesAt: lab.place(Float32Array.of(1, 1)),
    outputs: pointers.length - 1,
    dstAt: lab.f32Rows("dst", 4, "out"),
    ldDst: 4,
  });
  return lab;
}

/**
 * One token at position 40 of a two-page cache, appended and attended to.
 * @param table page numbers of positions 0..31 and 32..63; the pool has two pages
 */
export function pagedToken(table: [number, number], slidingWindow = 0): Lab {
  const lab = new Lab(1, 1);
  const headDim = 8;
  const keyLines = planeLines(KV_CODEC.f32, headDim);
  const headLines = 2 * keyLines;
  const cacheC = lab.builder.cache({
    keyCodec: KV_CODEC.f32,
    valueCodec: KV_CODEC.f32,
    keyZeroInt: 0,
    valueZeroInt: 0,
    keyClipF: 1,
    valueClipF: 1,
    hadamard: 0,
    queryBits: 32,
    poolAt: lab.output("pool", "f32", new Float32Array((2 * headLines * LINE) / 4)),
    pageLines: headLines,
    headLines,
    keyLines,
    tableAt: lab.place(Int32Array.from(table)),
    layers: 1,
    maxPages: 2,
    kvHeads: 1,
    headDim,
    pages: 2,
    slots: 1,
    ...NO_TAIL,
  });
  const angles = (2 * PAGE_TOKENS * headDim) / 2;
  const common = {
    rowsReg: 0,
    positionsAt: lab.i32Rows("positions", 1, "in", () => [40]),
    sequencesAt: lab.i32Rows("sequences", 1, "in", () => [0]),
    heads: 1,
    kvHeads: 1,
    headDim,
    cacheC,
    layer: 0,
    queryAt: lab.f32Rows("query", headDim, "out"),
    queryScaleAt: -1,
    querySumAt: -1,
  };
  lab.emit("appendKv", {
    ...common,
    qkvAt: lab.f32Rows("qkv", 3 * headDim, "in"),
    ldQkv: 3 * headDim,
    cosAt: lab.floats(angles, () => 1),
    sinAt: lab.floats(angles, () => 0),
    queryGainAt: -1,
    keyGainAt: -1,
    epsilonF: 1e-5,
  });
  // A page of the token itself that cannot be written stops the program at appendKv.
  const own = table[1];
  if (own < 0 || own > 1) return lab;
  lab.emit("attention", {
    ...common,
    dstAt: lab.f32Rows("dst", headDim, "out"),
    ldDst: headDim,
    softmaxScaleF: 1,
    slidingWindow,
    partsAt: -1,
    partsLines: 0,
  });
  return lab;
}

/** Two rows over a tile of four slots; the second sees from..to. */
function tileRange(from: number, to: number): Lab {
  const lab = new Lab(1, 2);
  lab.emit("attendTile", {
    rowsReg: 0,
    queryAt: lab.f32Rows("query", 8, "in", () => new Float32Array(8)),
    ldQuery: 8,
    ...{ heads: 1, kvHeads: 1, headDim: 8, slots: 4 },
    keysAt: lab.floats(32, () => 1),
    valuesAt: lab.floats(32, () => 1),
    rangesAt: lab.i32Rows("ranges", 2, "in", (m) => (m === 1 ? [from, to] : [0, 4])),
    stateAt: lab.f32Rows("state", 10, "inout", () => new Float32Array(10)),
    logitsAt: -1,
    softmaxScaleF: 1,
  });
  return lab;
}

const LARGE = 2 ** 30;

export const FAULTS: Record<string, () => Lab> = {
  "too many rows": () => {
    const lab = makeLab(rowCases.rmsnorm, 1);
    lab.register(0, lab.maxRows + 1);
    return lab;
  },
  "a negative row count": () => {
    const lab = makeLab(rowCases.columns, 1);
    lab.register(0, -1);
    return lab;
  },
  "too many rows of a logit register": () => {
    const lab = new Lab(1, 4);
    lab.logitRows = 2;
    lab.register(3, 3);
    const at = lab.f32Rows("x", 8, "inout");
    lab.emit("rmsnorm", {
      ...{ rowsReg: 3, srcAt: at, ldSrc: 8, dstAt: at, ldDst: 8, width: 8 },
      ...{ gainAt: -1, epsilonF: 1e-5 },
    });
    return lab;
  },
  ...indexFaults("token", linearCases.embed, "tokens", [-1, LARGE]),
  ...indexFaults("row index", rowCases.gatherRows, "index", [-1, LARGE]),
  ...indexFaults("scatter index", rowCases.scatterAddRows, "index", [-1, LARGE]),
  ...indexFaults("target", statsCases.logitStats, "targets", [-1, LARGE], 6),
  ...indexFaults("position", attentionCases(true).appendKv, "positions", [-1, LARGE]),
  ...indexFaults("sequence slot", attentionCases(true).appendKv, "sequences", [-1, 3, LARGE]),
  "a tile's range that begins before it": () => tileRange(-1, 2),
  "a tile's range that ends behind it": () => tileRange(0, 5),
  "a tile's range that ends before it begins": () => tileRange(3, 2),
  "permutation entry -1": () => permutation(-1),
  "permutation entry beyond the width": () => permutation(8),
  "falling CSR row pointers": () => sparse([0, 2, 1], 1),
  "CSR row pointers beyond the arena": () => sparse([0, 1, LARGE], 1),
  "CSR row pointers beyond 2^31": () => sparse([0, 1, 2 ** 32 - 1], 1),
  "CSR column beyond the row": () => sparse([0, 2], 8),
  "page to write -1": () => pagedToken([0, -1]),
  "page to write beyond the pool": () => pagedToken([0, 2]),
  "visible page -1": () => pagedToken([-1, 1]),
  "visible page beyond the pool": () => pagedToken([LARGE, 1]),
};
