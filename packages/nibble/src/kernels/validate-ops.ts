/** Bounds of every instruction: which arena ranges its operands imply (docs/engine.md, section 5). */
import type { Cache, Instruction, Weight } from "./decode.js";
import { EPILOGUE, type OpName, PAGE_TOKENS, WEIGHT_KIND } from "./ops.js";
import { groupCount, paddedColumns } from "./panel32.js";
import type { Operands } from "./program.js";
import type { Checker } from "./validate.js";
import { MIN_CLIP } from "./validate-descriptors.js";

type Check<O extends OpName> = (check: Checker, operands: Operands<O>) => void;

const FINITE = 3.4e38;

function weightOf(check: Checker, index: number): Weight {
  return check.program.weights[check.integer("weight", index, 0, check.program.weights.length - 1)];
}

function checkCodeStride(check: Checker, ldCodes: number, width: number): void {
  check.require(
    ldCodes % 64 === 0 && ldCodes % 128 !== 0,
    `ldCodes is ${ldCodes}, expected a multiple of 64 that is none of 128`,
  );
  check.require(
    ldCodes >= paddedColumns(width),
    `ldCodes ${ldCodes} is less than the padded width of ${width}`,
  );
}

function checkQuantizer(check: Checker, o: Operands<"quantize">, rows: number): void {
  check.integer("width", o.width, 1, 2 ** 24);
  check.integer("bits", o.bits, 2, 8);
  check.integer("symmetric", o.symmetric, 0, 3);
  check.integer("groupSize", o.groupSize, 0, 2 ** 24);
  check.float("clip", o.clipF, MIN_CLIP, 1);
  checkCodeStride(check, o.ldCodes, o.width);
  check.bytes("codesAt", o.codesAt, rows * o.ldCodes);
  const groups = groupCount(o.width, o.groupSize);
  const scales = (o.symmetric & 2) === 2 ? 1 : groups;
  check.bytes("sumAt", o.sumAt, rows * groups * 4);
  check.bytes("scaleAt", o.scaleAt, rows * scales * 4);
  if ((o.symmetric & 1) === 0) check.bytes("zeroAt", o.zeroAt, rows * scales * 4);
  check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
}

/** Checks a transform and gives its width. */
function checkHadamard(
  check: Checker,
  o: Pick<
    Operands<"hadamard">,
    | "blocks"
    | "orderK"
    | "orderM"
    | "inner"
    | "matrixAt"
    | "transpose"
    | "preSignAt"
    | "postSignAt"
    | "normF"
  >,
): number {
  for (const name of ["blocks", "orderK", "orderM", "inner"] as const) {
    check.integer(name, o[name], 1, 2 ** 24);
  }
  const width = o.blocks * o.orderK * o.orderM * o.inner;
  check.integer("width", width, 1, 2 ** 24);
  check.require(Number.isInteger(Math.log2(o.orderM)), `orderM ${o.orderM} is no power of two`);
  check.integer("transpose", o.transpose, 0, 1);
  check.float("norm", o.normF, -FINITE, FINITE);
  if (o.orderK > 1) check.bytes("matrixAt", o.matrixAt, o.orderK * o.orderK);
  check.optional("preSignAt", o.preSignAt, width * 4);
  check.optional("postSignAt", o.postSignAt, width * 4);
  return width;
}

/** Epilogue against the weight; gives the number of outputs a row. */
function checkEpilogue(check: Checker, w: Weight, epilogue: number): number {
  check.integer("epilogue", epilogue, EPILOGUE.store, EPILOGUE.swiglu);
  check.require(
    (epilogue === EPILOGUE.swiglu) === (w.interleaved === 1),
    "swiglu goes with interleaved weights and only with them",
  );
  return epilogue === EPILOGUE.swiglu ? w.n / 2 : w.n;
}

/** What appendKv and attention share: cache, heads, positions, the query buffers. */
function checkHeads(
  check: Checker,
  o: Pick<
    Operands<"attention">,
    | "cacheC"
    | "heads"
    | "kvHeads"
    | "headDim"
    | "layer"
    | "positionsAt"
    | "sequencesAt"
    | "queryAt"
    | "queryScaleAt"
    | "querySumAt"
  >,
  rows: number,
): Cache {
  const { caches } = check.program;
  const c = caches[check.integer("cache", o.cacheC, 0, caches.length - 1)];
  check.require(
    o.kvHeads === c.kvHeads && o.headDim === c.headDim,
    `${o.kvHeads} KV heads of ${o.headDim}, the cache has ${c.kvHeads} of ${c.headDim}`,
  );
  check.integer("heads", o.heads, 1, 2 ** 20);
  check.require(o.heads % o.kvHeads === 0, `${o.heads} heads do not share ${o.kvHeads} KV heads`);
  check.integer("layer", o.layer, 0, c.layers - 1);
  check.bytes("positionsAt", o.positionsAt, rows * 4);
  check.bytes("sequencesAt", o.sequencesAt, rows * 4);
  const queries = rows * o.heads;
  check.bytes("queryAt", o.queryAt, (queries * o.headDim * c.queryBits) / 8);
  if (c.queryBits === 8) {
    check.bytes("queryScaleAt", o.queryScaleAt, queries * 4);
    check.bytes("querySumAt", o.querySumAt, queries * 4);
  }
  return c;
}

const CHECKS: { [O in OpName]: Check<O> } = {
  embed(check, o) {
    const rows = check.rows(o.rowsReg);
    const w = weightOf(check, o.tableW);
    check.require(w.kind !== WEIGHT_KIND.lut, "an embedding table is dense or gint");
    check.require(w.interleaved === 0, "an embedding table is not interleaved");
    check.bytes("tokensAt", o.tokensAt, rows * 4);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, w.k);
  },
  rmsnorm(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
    check.optional("gainAt", o.gainAt, o.width * 4);
    check.float("epsilon", o.epsilonF, 0, 1);
  },
  quantize(check, o) {
    checkQuantizer(check, o, check.rows(o.rowsReg));
  },
  rmsnormQuantize(check, o) {
    checkQuantizer(check, o, check.rows(o.rowsReg));
    check.optional("gainAt", o.gainAt, o.width * 4);
    check.float("epsilon", o.epsilonF, 0, 1);
  },
  hadamardQuantize(check, o) {
    checkQuantizer(check, o, check.rows(o.rowsReg));
    const width = checkHadamard(check, o);
    check.require(width === o.width, `the transform has ${width} channels, the row ${o.width}`);
  },
  hadamard(check, o) {
    const rows = check.rows(o.rowsReg);
    const width = checkHadamard(check, o);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, width);
  },
  mixHeads(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("count", o.count, 1, 2 ** 16);
    check.integer("inner", o.inner, 1, 2 ** 24);
    check.bytes("matrixAt", o.matrixAt, o.count * o.count * 4);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.count * o.inner);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.count * o.inner);
  },
  columns(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
    check.optional("permAt", o.permAt, o.width * 4);
    check.optional("scaleAt", o.scaleAt, o.width * 4);
  },
  linearInt(check, o) {
    const rows = check.rows(o.rowsReg);
    const w = weightOf(check, o.weightW);
    check.require(w.kind === WEIGHT_KIND.gint, "linearInt needs gint weights");
    check.require(w.groupSize % 32 === 0, `groupSize ${w.groupSize} is no multiple of 32`);
    checkCodeStride(check, o.ldCodes, w.k);
    check.bytes("codesAt", o.codesAt, rows * o.ldCodes);
    check.require(
      o.activationGroups === 1 || o.activationGroups === w.groups,
      `${o.activationGroups} activation groups meet ${w.groups} weight groups`,
    );
    check.bytes("sumAt", o.sumAt, rows * w.groups * 4);
    check.bytes("scaleAt", o.scaleAt, rows * o.activationGroups * 4);
    check.optional("zeroAt", o.zeroAt, rows * o.activationGroups * 4);
    check.require(
      o.zeroAt === -1 || w.codeSumAt >= 0,
      "asymmetric activations need the weight's codeSum",
    );
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, checkEpilogue(check, w, o.epilogue));
  },
  linearFloat(check, o) {
    const rows = check.rows(o.rowsReg);
    const w = weightOf(check, o.weightW);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, w.k);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, checkEpilogue(check, w, o.epilogue));
  },
  siluMul(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("gateAt", o.gateAt, rows, o.ldGate, o.width);
    check.matrix("upAt", o.upAt, rows, o.ldUp, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
  },
  add(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
    check.float("alpha", o.alphaF, -FINITE, FINITE);
  },
  appendKv(check, o) {
    const rows = check.rows(o.rowsReg);
    const c = checkHeads(check, o, rows);
    check.matrix("qkvAt", o.qkvAt, rows, o.ldQkv, (o.heads + 2 * o.kvHeads) * o.headDim);
    const tableBytes = c.maxPages * PAGE_TOKENS * (o.headDim / 2) * 4;
    check.bytes("cosAt", o.cosAt, tableBytes);
    check.bytes("sinAt", o.sinAt, tableBytes);
    check.optional("queryGainAt", o.queryGainAt, o.headDim * 4);
    check.optional("keyGainAt", o.keyGainAt, o.headDim * 4);
    check.float("epsilon", o.epsilonF, 0, 1);
  },
  attention(check, o) {
    const rows = check.rows(o.rowsReg);
    checkHeads(check, o, rows);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.heads * o.headDim);
    check.float("softmaxScale", o.softmaxScaleF, -FINITE, FINITE);
    check.integer("slidingWindow", o.slidingWindow, 0, 2 ** 31);
    check.integer("partsLines", o.partsLines, 0, 2 ** 31);
    if (o.partsLines > 0) check.bytes("partsAt", o.partsAt, o.partsLines * 64);
  },
  attendTile(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("kvHeads", o.kvHeads, 1, 2 ** 16);
    check.integer("heads", o.heads, 1, 2 ** 20);
    check.require(o.heads % o.kvHeads === 0, `${o.heads} heads do not share ${o.kvHeads} KV heads`);
    check.integer("headDim", o.headDim, 1, 2 ** 16);
    check.integer("slots", o.slots, 1, 2 ** 20);
    check.float("softmaxScale", o.softmaxScaleF, -FINITE, FINITE);
    const tileBytes = o.kvHeads * o.slots * o.headDim * 4;
    check.matrix("queryAt", o.queryAt, rows, o.ldQuery, o.heads * o.headDim);
    check.bytes("keysAt", o.keysAt, tileBytes);
    check.bytes("valuesAt", o.valuesAt, tileBytes);
    check.bytes("rangesAt", o.rangesAt, rows * o.kvHeads * 8);
    check.bytes("stateAt", o.stateAt, rows * o.heads * (o.headDim + 2) * 4);
    check.optional("logitsAt", o.logitsAt, rows * o.heads * o.slots * 4);
  },
  gatherRows(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, check.program.header.maxRows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
    check.bytes("indexAt", o.indexAt, rows * 4);
  },
  scatterAddRows(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, check.program.header.maxRows, o.ldDst, o.width);
    check.bytes("indexAt", o.indexAt, rows * 4);
    check.optional("weightAt", o.weightAt, rows * 4);
  },
  route(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("experts", o.experts, 1, 256);
    check.integer("topK", o.topK, 1, o.experts);
    check.integer("countReg", o.countReg, 0, 256 - o.experts);
    check.matrix("logitsAt", o.logitsAt, rows, o.ldLogits, o.experts);
    check.matrix("indexAt", o.indexAt, o.experts, o.ldLists, rows);
    check.matrix("weightAt", o.weightAt, o.experts, o.ldLists, rows);
  },
  logitStats(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("logitsAt", o.logitsAt, rows, o.ldLogits, o.width);
    check.optional("targetsAt", o.targetsAt, rows * 4);
    check.bytes("dstAt", o.dstAt, rows * 16);
  },
  klDivergence(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("referenceAt", o.referenceAt, rows, o.ldReference, o.width);
    check.matrix("logitsAt", o.logitsAt, rows, o.ldLogits, o.width);
    check.bytes("dstAt", o.dstAt, rows * 8);
  },
  csr(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("outputs", o.outputs, 1, 2 ** 31);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.ldSrc);
    check.bytes("rowPointersAt", o.rowPointersAt, (o.outputs + 1) * 4);
    check.bytes("columnsAt", o.columnsAt, 0);
    check.bytes("valuesAt", o.valuesAt, 0);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.outputs);
  },
  gram(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.bytes("gramAt", o.gramAt, o.width * o.width * 8);
  },
  absStats(check, o) {
    const rows = check.rows(o.rowsReg);
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.bytes("sumAbsAt", o.sumAbsAt, o.width * 8);
    check.bytes("maxAbsAt", o.maxAbsAt, o.width * 4);
  },
  gemm(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("cols", o.cols, 1, 2 ** 31);
    check.integer("inner", o.inner, 1, 2 ** 31);
    for (const name of ["aSkip", "bSkip", "cSkip"] as const)
      check.integer(name, o[name], 0, 2 ** 31);
    check.integer("transA", o.transA, 0, 1);
    check.integer("transB", o.transB, 0, 1);
    check.float("alpha", o.alphaF, -FINITE, FINITE);
    check.float("beta", o.betaF, -FINITE, FINITE);
    const [aRows, aWidth] = o.transA ? [o.inner, rows] : [rows, o.inner];
    const [bRows, bWidth] = o.transB ? [o.cols, o.inner] : [o.inner, o.cols];
    const part = (
      at: string,
      place: number,
      skip: number,
      r: number,
      ld: number,
      width: number,
    ) => {
      check.matrix(at, place, r, ld, width);
      check.bytes(at, place, (skip + (r - 1) * ld + width) * 4);
    };
    part("aAt", o.aAt, o.aSkip, aRows, o.lda, aWidth);
    part("bAt", o.bAt, o.bSkip, bRows, o.ldb, bWidth);
    part("cAt", o.cAt, o.cSkip, rows, o.ldc, o.cols);
  },
  inverseFactor(check, o) {
    check.integer("size", o.size, 1, 2 ** 20);
    check.bytes("hessianAt", o.hessianAt, o.size * o.size * 8);
    check.bytes("factorAt", o.factorAt, o.size * o.size * 4);
    check.bytes("statusAt", o.statusAt, 4);
  },
  roundFloat(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("mantissa", o.mantissa, 0, 10);
    check.integer("minExponent", o.minExponent, -30, 0);
    check.require(o.largestF >= 1 && o.largestF <= 65504, "largest is not between 1 and 65504");
    check.matrix("srcAt", o.srcAt, rows, o.ldSrc, o.width);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
  },
  dequantize(check, o) {
    const rows = check.rows(o.rowsReg);
    check.integer("groupSize", o.groupSize, 0, 2 ** 31);
    const groups = groupCount(o.width, o.groupSize);
    check.matrix("codesAt", o.codesAt, rows, o.ldCodes, o.width, 1);
    check.bytes("scaleAt", o.scaleAt, rows * groups * 4);
    check.optional("zeroAt", o.zeroAt, rows * groups * 4);
    check.matrix("dstAt", o.dstAt, rows, o.ldDst, o.width);
  },
};

/** @throws BackendError code "program" */
export function checkInstruction(check: Checker, instruction: Instruction): void {
  // The table is keyed by op; TypeScript cannot see that op and operands belong together.
  (CHECKS[instruction.op] as Check<OpName>)(check, instruction.operands as Operands<OpName>);
}
