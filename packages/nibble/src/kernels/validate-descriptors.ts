/** Bounds of weight and cache descriptors (docs/engine.md, sections 4 and 5). */
import type { Cache, Weight } from "./decode.js";
import {
  ATTENTION_CHUNK,
  KV_CODEC,
  PAGE_TOKENS,
  SCALAR_TYPE,
  WEIGHT_KIND,
  ZERO_KIND,
} from "./ops.js";
import { isIntCodec, isKiviCodec, planeLines, tailLines } from "./page-layout.js";
import { groupCount, PANEL, paddedColumns, segmentBytes, segmentWidths } from "./panel32.js";
import type { Checker } from "./validate.js";

/** Smallest clip ratio: keeps x / scale far inside i32. */
export const MIN_CLIP = 2 ** -10;

export const isDense = (w: Weight): boolean =>
  w.kind >= WEIGHT_KIND.f32 && w.kind <= WEIGHT_KIND.bf16;

export function checkWeight(check: Checker, w: Weight): void {
  check.integer("kind", w.kind, WEIGHT_KIND.f32, WEIGHT_KIND.lut);
  check.integer("n", w.n, 1, 2 ** 31);
  check.integer("k", w.k, 1, 2 ** 31);
  const panels = Math.ceil(w.n / PANEL);
  const dense = isDense(w);
  const kPad = dense ? w.k : paddedColumns(w.k);
  check.require(w.panels === panels, `panels is ${w.panels}, expected ${panels} for n = ${w.n}`);
  check.require(w.kPad === kPad, `kPad is ${w.kPad}, expected ${kPad} for k = ${w.k}`);
  check.integer("interleaved", w.interleaved, 0, 1);
  check.require(w.interleaved === 0 || w.n % 2 === 0, `interleaved n = ${w.n} is odd`);
  check.optional("biasAt", w.biasAt, panels * PANEL * 4);
  if (dense) {
    const size = w.kind === WEIGHT_KIND.f32 ? 4 : 2;
    check.bytes("denseAt", w.denseAt, panels * w.k * PANEL * size);
    return;
  }
  check.require(w.denseAt === -1, "denseAt of a coded weight must be absent");
  check.integer("bits", w.bits, 1, 8);
  const segments = { 8: w.seg8At, 4: w.seg4At, 2: w.seg2At, 1: w.seg1At };
  for (const width of segmentWidths(w.bits)) {
    check.bytes(`seg${width}At`, segments[width], segmentBytes(w.n, w.k, width));
  }
  check.integer("groupSize", w.groupSize, 0, 2 ** 31);
  check.require(w.groupSize % 8 === 0, `groupSize ${w.groupSize} is no multiple of 8`);
  const groups = groupCount(w.k, w.groupSize);
  check.require(w.groups === groups, `groups is ${w.groups}, expected ${groups}`);
  check.integer("scaleType", w.scaleType, SCALAR_TYPE.f32, SCALAR_TYPE.f16);
  const entries = panels * groups * PANEL;
  const scaleBytes = entries * (w.scaleType === SCALAR_TYPE.f16 ? 2 : 4);
  check.optional("codeSumAt", w.codeSumAt, entries * 4);
  if (w.kind === WEIGHT_KIND.lut) {
    check.optional("scaleAt", w.scaleAt, scaleBytes);
    check.optional("negativeScaleAt", w.negativeScaleAt, scaleBytes);
    check.require(w.negativeScaleAt < 0 || w.scaleAt >= 0, "negativeScaleAt without scaleAt");
    check.integer("tableScope", w.tableScope, 0, 1);
    check.bytes("tableAt", w.tableAt, 2 ** w.bits * 4 * (w.tableScope === 1 ? panels * PANEL : 1));
    return;
  }
  check.bytes("scaleAt", w.scaleAt, scaleBytes);
  check.require(w.negativeScaleAt === -1, "negativeScaleAt belongs to lut weights");
  check.integer("zeroKind", w.zeroKind, ZERO_KIND.const, ZERO_KIND.float);
  if (w.zeroKind === ZERO_KIND.const) check.float("zeroConstF", w.zeroConstF, -(2 ** 20), 2 ** 20);
  else check.bytes("zeroAt", w.zeroAt, w.zeroKind === ZERO_KIND.int ? entries : scaleBytes);
}

export function checkCache(check: Checker, c: Cache): void {
  for (const name of ["keyCodec", "valueCodec"] as const) {
    check.integer(name, c[name], KV_CODEC.f32, KV_CODEC.kivi2);
  }
  for (const name of ["keyZeroInt", "valueZeroInt", "hadamard"] as const) {
    check.integer(name, c[name], 0, 1);
  }
  check.float("keyClipF", c.keyClipF, MIN_CLIP, 1);
  check.float("valueClipF", c.valueClipF, MIN_CLIP, 1);
  check.integer("headDim", c.headDim, 8, 1024);
  check.require(c.headDim % 8 === 0, `headDim ${c.headDim} is no multiple of 8`);
  check.require(
    c.hadamard === 0 || Number.isInteger(Math.log2(c.headDim)),
    `the head Hadamard needs a power of two, headDim is ${c.headDim}`,
  );
  check.require(
    c.queryBits === 32 || (c.queryBits === 8 && isIntCodec(c.keyCodec)),
    `queryBits is ${c.queryBits}: 32, or 8 with integer keys`,
  );
  for (const name of ["layers", "maxPages", "kvHeads", "pages", "slots"] as const) {
    check.integer(name, c[name], 1, 2 ** 26);
  }
  const keyLines = planeLines(c.keyCodec, c.headDim);
  const valueLines = planeLines(c.valueCodec, c.headDim);
  check.require(c.keyLines >= keyLines, `keyLines is ${c.keyLines}, keys take ${keyLines}`);
  check.require(
    c.headLines >= c.keyLines + valueLines,
    `headLines is ${c.headLines}, keys and values take ${c.keyLines + valueLines}`,
  );
  check.require(
    c.pageLines >= c.kvHeads * c.headLines,
    `pageLines is ${c.pageLines}, the heads take ${c.kvHeads * c.headLines}`,
  );
  check.bytes("poolAt", c.poolAt, c.pages * c.pageLines * 64);
  check.bytes("tableAt", c.tableAt, c.slots * c.layers * c.maxPages * 4);
  checkTail(check, c);
  check.integer("maxPages", c.maxPages, 1, (2 ** 31 - 1) / PAGE_TOKENS);
}

/** Both planes are kivi or none is; the ring of exact rows holds the residual and all rows of a run. */
function checkTail(check: Checker, c: Cache): void {
  const kivi = isKiviCodec(c.keyCodec);
  check.require(kivi === isKiviCodec(c.valueCodec), "kivi keys and values go together");
  if (!kivi) {
    check.require(
      c.residual === 0 && c.tailTokens === 0 && c.tailAt === -1,
      "only kivi codecs have exact rows",
    );
    return;
  }
  check.require(c.headDim % 32 === 0, `kivi groups are 32 wide, headDim is ${c.headDim}`);
  check.require(c.keyZeroInt === 0 && c.valueZeroInt === 0, "kivi stores minima, no zero points");
  check.integer("residual", c.residual, PAGE_TOKENS, 2 ** 20);
  check.require(c.residual % PAGE_TOKENS === 0, `residual ${c.residual} is no multiple of 32`);
  check.integer("tailTokens", c.tailTokens, c.residual + check.program.header.maxRows, 2 ** 22);
  check.require(
    c.tailTokens % ATTENTION_CHUNK === 0,
    `tailTokens ${c.tailTokens} is no multiple of ${ATTENTION_CHUNK}`,
  );
  const lines = tailLines(c.tailTokens, c.headDim);
  check.bytes("tailAt", c.tailAt, c.slots * c.layers * c.kvHeads * lines * 64);
}
