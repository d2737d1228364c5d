/** Random programs of the row ops: norms, quantizers, transforms, elementwise ops. */
import { groupCount } from "../panel32.js";
import { type Lab, type Random, randomCodeStride, randomRow, randomStride } from "./lab.js";

/** Fills a lab with one program. */
export type Make = (lab: Lab) => void;

const widthOf = (random: Random) =>
  random.pick([1, 7, 15, 16, 17, 31, 32, 33, 64, 96, 100, 130, 172, 257, 320, 576]);

/** A source buffer of random rows. */
function source(lab: Lab, width: number, name = "src") {
  const ld = randomStride(lab.random, width);
  return { at: lab.f32Rows(name, ld, "in", () => randomRow(lab.random, width)), ld };
}

const rmsnorm: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const gainAt = random.chance(0.7) ? lab.floats(width, () => 1 + random.normal() / 4) : -1;
  const common = { rowsReg: 0, width, gainAt, epsilonF: random.pick([1e-5, 1e-6]) };
  if (random.chance(0.2)) {
    const ld = randomStride(random, width);
    const at = lab.f32Rows("x", ld, "inout", () => randomRow(random, width));
    lab.emit("rmsnorm", { ...common, srcAt: at, ldSrc: ld, dstAt: at, ldDst: ld });
    return;
  }
  const src = source(lab, width);
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  lab.emit("rmsnorm", { ...common, srcAt: src.at, ldSrc: src.ld, dstAt, ldDst });
};

/** Output buffers of a quantizer and its parameters. */
function quantizer(lab: Lab, width: number) {
  const { random } = lab;
  const groupSize = random.pick([0, 0, 32, 64, 128]);
  const groups = groupCount(width, groupSize);
  const symmetric = random.int(0, 1);
  const shared = random.int(0, 1);
  const scales = shared ? 1 : groups;
  const ldCodes = randomCodeStride(random, width);
  return {
    rowsReg: 0,
    width,
    codesAt: lab.i8Rows("codes", ldCodes, "out"),
    ldCodes,
    scaleAt: lab.f32Rows("scale", scales, "out"),
    sumAt: lab.i32Rows("sum", groups, "out"),
    zeroAt: symmetric ? -1 : lab.i32Rows("zero", scales, "out"),
    bits: random.pick([2, 3, 4, 4, 5, 6, 7, 8, 8]),
    symmetric: symmetric + 2 * shared,
    groupSize,
    clipF: random.pick([1, 0.9, 0.75]),
  };
}

const quantize: Make = (lab) => {
  const width = widthOf(lab.random);
  const src = source(lab, width);
  lab.emit("quantize", { ...quantizer(lab, width), srcAt: src.at, ldSrc: src.ld });
};

const rmsnormQuantize: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const src = source(lab, width);
  const gainAt = random.chance(0.5) ? lab.floats(width, () => 1 + random.normal() / 4) : -1;
  lab.emit("rmsnormQuantize", {
    ...quantizer(lab, width),
    srcAt: src.at,
    ldSrc: src.ld,
    gainAt,
    epsilonF: 1e-5,
  });
};

/** Orders [k, m, blocks, inner] of the transforms in use, and small odd ones. */
const ORDERS = [
  [1, 1, 1, 1],
  [1, 64, 1, 1],
  [1, 16, 9, 1],
  [1, 8, 1, 64],
  [1, 4, 2, 5],
  [3, 4, 1, 7],
  [12, 2, 1, 1],
  [12, 8, 1, 1],
  [12, 128, 1, 1],
  [20, 1, 1, 1],
  [20, 4, 2, 1],
  [28, 1, 1, 1],
  [28, 2, 1, 3],
  [36, 16, 1, 1],
  [36, 4, 1, 1],
  [12, 4, 3, 16],
] as const;

function transform(lab: Lab) {
  const { random } = lab;
  const [orderK, orderM, blocks, inner] = random.pick(ORDERS);
  const width = orderK * orderM * blocks * inner;
  const sign = () => (random.chance(0.5) ? -1 : 1);
  const signs = () => (random.chance(0.4) ? lab.floats(width, sign) : -1);
  const matrixAt = orderK > 1 ? lab.place(Int8Array.from({ length: orderK * orderK }, sign)) : -1;
  return {
    width,
    operands: {
      blocks,
      orderK,
      orderM,
      inner,
      matrixAt,
      transpose: random.int(0, 1),
      preSignAt: signs(),
      postSignAt: signs(),
      normF: 1 / Math.sqrt(orderK * orderM),
    },
  };
}

const hadamard: Make = (lab) => {
  const { random } = lab;
  const { width, operands } = transform(lab);
  if (random.chance(0.3)) {
    const ld = randomStride(random, width);
    const at = lab.f32Rows("x", ld, "inout", () => randomRow(random, width));
    lab.emit("hadamard", { rowsReg: 0, srcAt: at, ldSrc: ld, dstAt: at, ldDst: ld, ...operands });
    return;
  }
  const src = source(lab, width);
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  lab.emit("hadamard", { rowsReg: 0, srcAt: src.at, ldSrc: src.ld, dstAt, ldDst, ...operands });
};

const hadamardQuantize: Make = (lab) => {
  const { width, operands } = transform(lab);
  const src = source(lab, width);
  lab.emit("hadamardQuantize", {
    ...quantizer(lab, width),
    srcAt: src.at,
    ldSrc: src.ld,
    ...operands,
  });
};

const mixHeads: Make = (lab) => {
  const { random } = lab;
  const count = random.pick([1, 2, 3, 9, 12]);
  const inner = random.pick([1, 8, 24, 64]);
  const src = source(lab, count * inner);
  const ldDst = randomStride(random, count * inner);
  const matrixAt = lab.floats(count * count, () => random.normal());
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  lab.emit("mixHeads", {
    rowsReg: 0,
    srcAt: src.at,
    ldSrc: src.ld,
    dstAt,
    ldDst,
    count,
    inner,
    matrixAt,
  });
};

const columns: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const src = source(lab, width);
  const order = random.shuffle(Array.from({ length: width }, (_, i) => i));
  const permAt = random.chance(0.6) ? lab.place(Int32Array.from(order)) : -1;
  const scaleAt = random.chance(0.6) ? lab.floats(width, () => random.normal()) : -1;
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  lab.emit("columns", {
    rowsReg: 0,
    srcAt: src.at,
    ldSrc: src.ld,
    dstAt,
    ldDst,
    width,
    permAt,
    scaleAt,
  });
};

const siluMul: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const gate = source(lab, width, "gate");
  const up = source(lab, width, "up");
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  lab.emit("siluMul", {
    rowsReg: 0,
    gateAt: gate.at,
    ldGate: gate.ld,
    upAt: up.at,
    ldUp: up.ld,
    dstAt,
    ldDst,
    width,
  });
};

const add: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const src = source(lab, width);
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "inout", () => randomRow(random, width));
  const alphaF = random.pick([1, 0.3, -2]);
  lab.emit("add", { rowsReg: 0, srcAt: src.at, ldSrc: src.ld, dstAt, ldDst, width, alphaF });
};

const gatherRows: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const ldSrc = randomStride(random, width);
  const table = lab.floats(lab.maxRows * ldSrc, () => random.normal());
  const ldDst = randomStride(random, width);
  const dstAt = lab.f32Rows("dst", ldDst, "out");
  const indexAt = lab.i32Rows("index", 1, "in", () => [random.int(0, lab.maxRows - 1)]);
  lab.emit("gatherRows", { rowsReg: 0, srcAt: table, ldSrc, dstAt, ldDst, width, indexAt });
};

const scatterAddRows: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const src = source(lab, width);
  const ldDst = randomStride(random, width);
  const targets = random.shuffle(Array.from({ length: lab.maxRows }, (_, i) => i));
  const dst = Float32Array.from({ length: lab.maxRows * ldDst }, () => random.normal());
  lab.emit("scatterAddRows", {
    rowsReg: 0,
    srcAt: src.at,
    ldSrc: src.ld,
    dstAt: lab.output("dst", "f32", dst),
    ldDst,
    width,
    indexAt: lab.i32Rows("index", 1, "in", (m) => [targets[m] ?? 0]),
    weightAt: random.chance(0.6) ? lab.f32Rows("weight", 1, "in", () => [random.uniform()]) : -1,
  });
};

const dequantize: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const ldCodes = randomCodeStride(random, width);
  const groupSize = random.pick([0, 32, 64]);
  const groups = groupCount(width, groupSize);
  const ldDst = randomStride(random, width);
  lab.emit("dequantize", {
    rowsReg: 0,
    codesAt: lab.i8Rows("codes", ldCodes, "in", () =>
      Array.from({ length: width }, () => random.int(-128, 127)),
    ),
    ldCodes,
    width,
    scaleAt: lab.f32Rows("scale", groups, "in", () =>
      Array.from({ length: groups }, () => random.uniform()),
    ),
    zeroAt: random.chance(0.5)
      ? lab.i32Rows("zero", groups, "in", () =>
          Array.from({ length: groups }, () => random.int(-128, 127)),
        )
      : -1,
    groupSize,
    dstAt: lab.f32Rows("dst", ldDst, "out"),
    ldDst,
  });
};

const roundFloat: Make = (lab) => {
  const { random } = lab;
  const width = widthOf(random);
  const src = source(lab, width);
  const [mantissa, minExponent, largestF] = random.pick([
    [3, -6, 448],
    [2, -14, 57344],
    [1, 0, 6],
  ]);
  const ldDst = randomStride(random, width);
  lab.emit("roundFloat", {
    rowsReg: 0,
    srcAt: src.at,
    ldSrc: src.ld,
    width,
    mantissa,
    minExponent,
    largestF,
    dstAt: lab.f32Rows("dst", ldDst, "out"),
    ldDst,
  });
};

const route: Make = (lab) => {
  const { random } = lab;
  lab.splittable = false;
  const experts = random.pick([1, 2, 4, 8, 15]);
  const topK = random.int(1, Math.min(experts, 3));
  const ldLogits = randomStride(random, experts);
  const coarse = random.chance(0.4); // makes ties
  const row = () =>
    Array.from({ length: experts }, () => (coarse ? random.int(-1, 1) : random.normal() * 3));
  const ldLists = Math.ceil(lab.maxRows / 16) * 16;
  lab.emit("route", {
    rowsReg: 0,
    logitsAt: lab.f32Rows("logits", ldLogits, "in", row),
    ldLogits,
    experts,
    topK,
    indexAt: lab.output("index", "i32", new Int32Array(experts * ldLists).fill(-7)),
    weightAt: lab.output("weight", "f32", new Float32Array(experts * ldLists).fill(-7)),
    ldLists,
    countReg: 20,
  });
  lab.region({
    name: "counts",
    start: 80,
    bytes: 4 * experts,
    type: "i32",
    rowBytes: 0,
    role: "out",
  });
};

export const rowCases: Record<string, Make> = {
  rmsnorm,
  quantize,
  rmsnormQuantize,
  hadamard,
  hadamardQuantize,
  mixHeads,
  columns,
  siluMul,
  add,
  gatherRows,
  scatterAddRows,
  dequantize,
  roundFloat,
  route,
};
