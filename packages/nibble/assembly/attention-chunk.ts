/**
 * One chunk (128 slots) of attention for a block of queries that share a sequence and a KV head: parameters of its pages,
 * scores, softmax, weighted sum of values. Exact class but for f32 queries over integer keys.
 */
import {
  codecOf, isFloat, isInt, pageAt, parametersOf, planeAt, queryBits, residual, ringAt, ringKeys, ringValues, valueBlock,
  zeroIntOf,
} from "./cache";
import { operand, operandF, place, scratch } from "./control";
import { preparePairs } from "./dot-panel";
import { safeSteps, tile1, tile2, unpackKeys } from "./dot-tile";
import { rowAt } from "./elementwise";
import { floatTile2 } from "./gemm-float";
import { foldQuery, keepLanes, kiviKeysAsFloat, kiviParameters, kiviValueAsFloat, weighCodes } from "./kivi";
import { exp4, finiteHalf, fold16, loadHalf4 } from "./math";
import {
  ATTENTION_HEADS, ATTENTION_HEAD_DIM, ATTENTION_LAYER, ATTENTION_POSITIONS_AT, ATTENTION_QUERY_AT,
  ATTENTION_QUERY_SCALE_AT, ATTENTION_QUERY_SUM_AT, ATTENTION_SEQUENCES_AT, ATTENTION_SLIDING_WINDOW,
  ATTENTION_SOFTMAX_SCALE_F, CODEC_INT4, CODEC_INT8,
} from "./ops";

const CHUNK: i32 = 128;

// The block.
let pc: usize = 0;
let m0: i32 = 0;
let kvHead: i32 = 0;
let h0: i32 = 0;
let headsInBlock: i32 = 0;
let rowsInBlock: i32 = 0;
let headDim: i32 = 0;
export let blockQueries: i32 = 0;
/** Bytes of one query's accumulated values: headDim rounded up to 16 floats. */
export let accStride: usize = 0;

// The chunk: its first slot, and the slots that any row of the block sees, counted inside it.
let start: i32 = 0;
let from: i32 = 0;
let to: i32 = 0;
/** Slots of the chunk whose keys are read as codes, and the ring of exact rows (kivi only). */
let codedKeys: i32 = 0;
let ring: usize = 0;
/** Addresses of the four pages, 0 where no slot is visible. */
let page0: usize = 0;
let page1: usize = 0;
let page2: usize = 0;
let page3: usize = 0;

// Places in scratch.
let keyScale: usize = 0;
let keyZero: usize = 0;
let valueScale: usize = 0;
let valueZero: usize = 0;
let scores: usize = 0;
export let chunkMax: usize = 0;
export let chunkSum: usize = 0;
let zeroSum: usize = 0;
export let chunkAcc: usize = 0;
let prepared: usize = 0;
let panel: usize = 0;
let tile: usize = 0;
/** Per query: address of its vector (u32), scale, scaled sum (f32); first and last visible slot of the chunk (i32). */
let vectors: usize = 0;
let queryScales: usize = 0;
let querySums: usize = 0;
let firsts: usize = 0;
let lasts: usize = 0;

/** Queries of a block: their scores and sums stay within about 200 KiB. */
export function queryLimit(dim: i32): i32 {
  return min<i32>(32, 200 * 1024 / (640 + 12 * ((dim + 15) & ~15)));
}

/** Sets the block up; the result is the place of its running state: 8 bytes a query, then accStride bytes a query. */
export function openBlock(instruction: usize, first: i32, end: i32, head: i32, headFrom: i32, headTo: i32): usize {
  pc = instruction;
  m0 = first;
  rowsInBlock = end - first;
  kvHead = head;
  h0 = headFrom;
  headsInBlock = headTo - headFrom;
  headDim = operand(pc, ATTENTION_HEAD_DIM);
  blockQueries = rowsInBlock * headsInBlock;
  const padded = (headDim + 15) & ~15;
  accStride = (<usize>padded) << 2;
  const count = <usize>blockQueries;
  keyScale = scratch;
  keyZero = keyScale + 512;
  valueScale = keyZero + 512;
  valueZero = valueScale + 512;
  tile = valueZero + 512;
  chunkMax = tile + 128;
  chunkSum = chunkMax + 128;
  zeroSum = chunkSum + 128;
  vectors = zeroSum + 128;
  queryScales = vectors + 128;
  querySums = queryScales + 128;
  firsts = querySums + 128;
  lasts = firsts + 128;
  scores = lasts + 128;
  chunkAcc = scores + count * 512;
  prepared = chunkAcc + count * accStride;
  // Half-panels of keys and pages of values use the same place one after the other.
  panel = prepared + count * accStride;
  const state = panel + 32 * accStride + 64;
  return state;
}

// @ts-ignore: decorator
@inline
function queryIndex(q: i32): i32 {
  return (m0 + q / headsInBlock) * operand(pc, ATTENTION_HEADS) + h0 + (q % headsInBlock);
}

/** lane16 sum of an f32 query (headDim is a multiple of 8). */
function laneSum(x: usize): f32 {
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  for (let i = 0; i < headDim; i += 16) {
    const p = x + ((<usize>i) << 2);
    a = f32x4.add(a, v128.load(p));
    b = f32x4.add(b, v128.load(p, 16));
    if (i + 8 < headDim) {
      c = f32x4.add(c, v128.load(p, 32));
      d = f32x4.add(d, v128.load(p, 48));
    }
  }
  return fold16(a, b, c, d);
}

/** Brings the queries of the block into the form the scores are computed from. */
export function prepareQueries(): void {
  const at = place(pc, ATTENTION_QUERY_AT);
  const int8 = queryBits() == 8;
  for (let q = 0; q < blockQueries; q++) {
    const index = queryIndex(q);
    const word = (<usize>q) << 2;
    let x = int8 ? at + <usize>index * <usize>headDim : rowAt(at, index, headDim);
    if (int8) {
      const scale = load<f32>(place(pc, ATTENTION_QUERY_SCALE_AT) + ((<usize>index) << 2));
      const sum = <f32>load<i32>(place(pc, ATTENTION_QUERY_SUM_AT) + ((<usize>index) << 2));
      store<f32>(queryScales + word, scale);
      store<f32>(querySums + word, scale * sum);
      if (!ASC_FEATURE_RELAXED_SIMD) {
        const pairs = prepared + <usize>q * (accStride >> 1);
        preparePairs(x, pairs, headDim);
        x = pairs;
      }
    } else if (isInt(codecOf(true))) {
      store<f32>(querySums + word, laneSum(x));
    }
    store<u32>(vectors + word, <u32>x);
  }
}

/** First and last slot of the chunk that row m sees; first > last when it sees none. */
// @ts-ignore: decorator
@inline
function firstSeen(m: i32): i32 {
  const window = operand(pc, ATTENTION_SLIDING_WINDOW);
  const p = load<i32>(place(pc, ATTENTION_POSITIONS_AT) + ((<usize>m) << 2));
  return window > 0 ? max<i32>(0, p - window + 1 - start) : 0;
}
// @ts-ignore: decorator
@inline
function lastSeen(m: i32): i32 {
  const p = load<i32>(place(pc, ATTENTION_POSITIONS_AT) + ((<usize>m) << 2));
  return min<i32>(CHUNK - 1, p - start);
}

/** Scales and zero points of one page of an int codec. */
function loadParameters(plane: usize, codec: i32, zeroInt: bool, scale: usize, zero: usize): void {
  const at = plane + parametersOf(codec, headDim);
  const none = i32x4.splat(0);
  const exponent = i16x8.splat(0x7c00);
  for (let i: usize = 0; i < 64; i += 16) {
    const s = v128.load(at + i);
    const z = v128.load(at + i, 64);
    let s0 = finiteHalf(i16x8.shuffle(none, s, 0, 8, 1, 9, 2, 10, 3, 11));
    let s1 = finiteHalf(i16x8.shuffle(none, s, 4, 12, 5, 13, 6, 14, 7, 15));
    let z0 = finiteHalf(i16x8.shuffle(none, z, 0, 8, 1, 9, 2, 10, 3, 11));
    let z1 = finiteHalf(i16x8.shuffle(none, z, 4, 12, 5, 13, 6, 14, 7, 15));
    const odd = v128.or(
      i16x8.eq(v128.and(s, exponent), exponent),
      i16x8.eq(v128.and(z, exponent), exponent),
    );
    if (v128.any_true(odd)) {
      s0 = loadHalf4(at + i);
      s1 = loadHalf4(at + i + 8);
      z0 = loadHalf4(at + 64 + i);
      z1 = loadHalf4(at + 64 + i + 8);
    }
    if (zeroInt) {
      z0 = f32x4.mul(s0, z0);
      z1 = f32x4.mul(s1, z1);
    }
    const to = i << 1;
    v128.store(scale + to, s0);
    v128.store(scale + to, s1, 16);
    v128.store(zero + to, z0);
    v128.store(zero + to, z1, 16);
  }
}

function loadPage(index: i32): usize {
  if (to < index << 5 || from >= (index + 1) << 5) return 0;
  const sequence = load<i32>(place(pc, ATTENTION_SEQUENCES_AT) + ((<usize>m0) << 2));
  const page = pageAt(sequence, operand(pc, ATTENTION_LAYER), start + (index << 5));
  if (page == 0) return 0;
  const skip = (<usize>index) << 7;
  const keyCodec = codecOf(true);
  const valueCodec = codecOf(false);
  if (isInt(keyCodec)) {
    loadParameters(planeAt(page, kvHead, true), keyCodec, zeroIntOf(true), keyScale + skip, keyZero + skip);
  }
  if (isInt(valueCodec)) {
    loadParameters(planeAt(page, kvHead, false), valueCodec, zeroIntOf(false), valueScale + skip, valueZero + skip);
  }
  return page;
}

/** Finds the pages of a chunk and their parameters. False after reporting a bad page number. */
export function loadPages(chunk: i32): bool {
  start = chunk << 7;
  from = CHUNK;
  to = -1;
  for (let m = m0; m < m0 + rowsInBlock; m++) {
    if (firstSeen(m) > lastSeen(m)) continue;
    from = min<i32>(from, firstSeen(m));
    to = max<i32>(to, lastSeen(m));
  }
  for (let q = 0; q < blockQueries; q++) {
    const m = m0 + q / headsInBlock;
    store<i32>(firsts + ((<usize>q) << 2), firstSeen(m));
    store<i32>(lasts + ((<usize>q) << 2), lastSeen(m));
  }
  const exact = residual();
  if (exact > 0) {
    const at = (<usize>m0) << 2;
    const position = load<i32>(place(pc, ATTENTION_POSITIONS_AT) + at);
    codedKeys = position - position % exact - start;
    ring = ringAt(load<i32>(place(pc, ATTENTION_SEQUENCES_AT) + at), operand(pc, ATTENTION_LAYER), kvHead);
  }
  page0 = loadPage(0);
  page1 = loadPage(1);
  page2 = loadPage(2);
  page3 = loadPage(3);
  for (let i = from >> 5; i <= to >> 5; i++) if (pageOf(i) == 0) return false;
  return true;
}

// @ts-ignore: decorator
@inline
function pageOf(index: i32): usize {
  return index == 0 ? page0 : index == 1 ? page1 : index == 2 ? page2 : page3;
}

/** f32 panel [headDim][16] of 16 positions: codes, or values of an f16 cache. f32 keys are used where they are. */
function keysAsFloat(plane: usize, codec: i32, half: i32): usize {
  if (isFloat(codec)) return plane + ((<usize>(half * headDim)) << 6);
  let out = panel;
  if (!isInt(codec)) {
    let at = plane + ((<usize>(half * headDim)) << 5);
    for (let i = headDim << 2; i > 0; i--) {
      v128.store(out, loadHalf4(at));
      out += 16;
      at += 8;
    }
    return panel;
  }
  const nibbles = codec == CODEC_INT4;
  const mask = i32x4.splat(nibbles ? 15 : 255);
  const dims = nibbles ? 8 : 4;
  let at = plane + <usize>((half * headDim) / dims) * 64;
  for (let d = 0; d < headDim; d += dims) {
    for (let q: usize = 0; q < 64; q += 16) {
      const v = v128.load(at + q);
      const p = out + q;
      v128.store(p, f32x4.convert_i32x4_s(v128.and(v, mask)));
      v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 8), mask)), 64);
      v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 16), mask)), 128);
      v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 24), mask)), 192);
      if (nibbles) {
        v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 4), mask)), 256);
        v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 12), mask)), 320);
        v128.store(p, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, 20), mask)), 384);
        v128.store(p, f32x4.convert_i32x4_s(i32x4.shr_u(v, 28)), 448);
      }
    }
    at += 64;
    out += nibbles ? 512 : 256;
  }
  return panel;
}

/**
 * Exact tile: acc[2][16] += x[t] * rows[t][16], t rising, one product and one sum per step (no fma). `stride` bytes from
 * row to row. For f32 and f16 keys (t = dim) and for values (t = slot).
 */
function exactTile2(rows: usize, stride: usize, x0: usize, x1: usize, count: i32, acc0: usize, acc1: usize): void {
  let a0 = v128.load(acc0);
  let a1 = v128.load(acc0, 16);
  let a2 = v128.load(acc0, 32);
  let a3 = v128.load(acc0, 48);
  let b0 = v128.load(acc1);
  let b1 = v128.load(acc1, 16);
  let b2 = v128.load(acc1, 32);
  let b3 = v128.load(acc1, 48);
  for (; count > 0; count--) {
    const x = v128.load32_splat(x0);
    const y = v128.load32_splat(x1);
    let w = v128.load(rows);
    a0 = f32x4.add(a0, f32x4.mul(w, x));
    b0 = f32x4.add(b0, f32x4.mul(w, y));
    w = v128.load(rows, 16);
    a1 = f32x4.add(a1, f32x4.mul(w, x));
    b1 = f32x4.add(b1, f32x4.mul(w, y));
    w = v128.load(rows, 32);
    a2 = f32x4.add(a2, f32x4.mul(w, x));
    b2 = f32x4.add(b2, f32x4.mul(w, y));
    w = v128.load(rows, 48);
    a3 = f32x4.add(a3, f32x4.mul(w, x));
    b3 = f32x4.add(b3, f32x4.mul(w, y));
    rows += stride;
    x0 += 4;
    x1 += 4;
  }
  v128.store(acc0, a0);
  v128.store(acc0, a1, 16);
  v128.store(acc0, a2, 32);
  v128.store(acc0, a3, 48);
  v128.store(acc1, b0);
  v128.store(acc1, b1, 16);
  v128.store(acc1, b2, 32);
  v128.store(acc1, b3, 48);
}

/** The same for one row of x and 32 columns: eight sums hide the latency of the additions. */
function exactTile1x32(rows: usize, stride: usize, x0: usize, count: i32, acc: usize): void {
  let a0 = v128.load(acc);
  let a1 = v128.load(acc, 16);
  let a2 = v128.load(acc, 32);
  let a3 = v128.load(acc, 48);
  let a4 = v128.load(acc, 64);
  let a5 = v128.load(acc, 80);
  let a6 = v128.load(acc, 96);
  let a7 = v128.load(acc, 112);
  for (; count > 0; count--) {
    const x = v128.load32_splat(x0);
    a0 = f32x4.add(a0, f32x4.mul(v128.load(rows), x));
    a1 = f32x4.add(a1, f32x4.mul(v128.load(rows, 16), x));
    a2 = f32x4.add(a2, f32x4.mul(v128.load(rows, 32), x));
    a3 = f32x4.add(a3, f32x4.mul(v128.load(rows, 48), x));
    a4 = f32x4.add(a4, f32x4.mul(v128.load(rows, 64), x));
    a5 = f32x4.add(a5, f32x4.mul(v128.load(rows, 80), x));
    a6 = f32x4.add(a6, f32x4.mul(v128.load(rows, 96), x));
    a7 = f32x4.add(a7, f32x4.mul(v128.load(rows, 112), x));
    rows += stride;
    x0 += 4;
  }
  v128.store(acc, a0);
  v128.store(acc, a1, 16);
  v128.store(acc, a2, 32);
  v128.store(acc, a3, 48);
  v128.store(acc, a4, 64);
  v128.store(acc, a5, 80);
  v128.store(acc, a6, 96);
  v128.store(acc, a7, 112);
}

/** The same for 16 columns. */
function exactTile1(rows: usize, stride: usize, x0: usize, count: i32, acc: usize): void {
  let a0 = v128.load(acc);
  let a1 = v128.load(acc, 16);
  let a2 = v128.load(acc, 32);
  let a3 = v128.load(acc, 48);
  for (; count > 0; count--) {
    const x = v128.load32_splat(x0);
    a0 = f32x4.add(a0, f32x4.mul(v128.load(rows), x));
    a1 = f32x4.add(a1, f32x4.mul(v128.load(rows, 16), x));
    a2 = f32x4.add(a2, f32x4.mul(v128.load(rows, 32), x));
    a3 = f32x4.add(a3, f32x4.mul(v128.load(rows, 48), x));
    rows += stride;
    x0 += 4;
  }
  v128.store(acc, a0);
  v128.store(acc, a1, 16);
  v128.store(acc, a2, 32);
  v128.store(acc, a3, 48);
}

/** Scaled scores of 16 slots from the 16 sums in `acc`, for query q. */
function storeScores(q: i32, slot: i32, acc: usize, int8: bool, codes: bool, softmaxScale: v128): void {
  const out = scores + ((<usize>(q * CHUNK + slot)) << 2);
  const word = (<usize>q) << 2;
  if (!codes) {
    for (let i: usize = 0; i < 64; i += 16) v128.store(out + i, f32x4.mul(v128.load(acc + i), softmaxScale));
    return;
  }
  const scale = v128.load32_splat(queryScales + word);
  const sum = v128.load32_splat(querySums + word);
  const skip = (<usize>slot) << 2;
  for (let i: usize = 0; i < 64; i += 16) {
    let score = v128.load(acc + i);
    const s = v128.load(keyScale + skip + i);
    if (int8) score = f32x4.mul(f32x4.convert_i32x4_s(score), f32x4.mul(scale, s));
    else score = f32x4.mul(score, s);
    score = f32x4.sub(score, f32x4.mul(sum, v128.load(keyZero + skip + i)));
    v128.store(out + i, f32x4.mul(score, softmaxScale));
  }
}

/** Queries under the scales of a coded page of keys, and what its minima add to their scores (into querySums). */
function foldQueries(plane: usize, codec: i32): void {
  const scales = plane + kiviParameters(codec, headDim);
  const minima = scales + ((<usize>headDim) << 1);
  for (let q: usize = 0; q < <usize>blockQueries; q++) {
    const x = <usize>load<u32>(vectors + (q << 2));
    foldQuery(x, scales, headDim, prepared + q * accStride);
    let a = f32x4.splat(0);
    let b = a;
    let c = a;
    let d = a;
    for (let i: usize = 0; i < <usize>headDim; i += 16) {
      const at = x + (i << 2);
      const m = minima + (i << 1);
      a = f32x4.add(a, f32x4.mul(v128.load(at), loadHalf4(m)));
      b = f32x4.add(b, f32x4.mul(v128.load(at, 16), loadHalf4(m + 8)));
      c = f32x4.add(c, f32x4.mul(v128.load(at, 32), loadHalf4(m + 16)));
      d = f32x4.add(d, f32x4.mul(v128.load(at, 48), loadHalf4(m + 24)));
    }
    store<f32>(querySums + (q << 2), fold16(a, b, c, d));
  }
}

/** Scores of all queries with the codes of a half-panel that stand in `panel`. */
function scoreKiviCodes(half: i32, softmaxScale: v128): void {
  const other = tile + 64;
  for (let q = 0; q < blockQueries; q += 2) {
    const paired = q + 1 < blockQueries;
    const x0 = prepared + <usize>q * accStride;
    for (let i: usize = 0; i < 128; i += 16) v128.store(tile + i, i32x4.splat(0));
    exactTile2(panel, 64, x0, paired ? x0 + accStride : x0, headDim, tile, other);
    const count = paired ? 2 : 1;
    for (let j = 0; j < count; j++) {
      const constant = v128.load32_splat(querySums + ((<usize>(q + j)) << 2));
      const from = j == 0 ? tile : other;
      const out = scores + ((<usize>((q + j) * CHUNK + (half << 4))) << 2);
      for (let i: usize = 0; i < 64; i += 16) {
        v128.store(out + i, f32x4.mul(f32x4.add(v128.load(from + i), constant), softmaxScale));
      }
    }
  }
}

/** Scores of all queries for every half-panel with a visible slot. */
export function scoreKeys(): void {
  const codec = codecOf(true);
  const int8 = queryBits() == 8;
  const codes = isInt(codec);
  const wide = codec == CODEC_INT8;
  const highPlane = ASC_FEATURE_RELAXED_SIMD && wide;
  const zero = i32x4.splat(0);
  const softmaxScale = f32x4.splat(operandF(pc, ATTENTION_SOFTMAX_SCALE_F));
  const safe = safeSteps(4, 128);
  const steps = headDim >> 2;
  const other = tile + 64;
  const kivi = residual() > 0;
  let foldedPage = -1;
  for (let half = from >> 4; half <= to >> 4; half++) {
    const plane = planeAt(pageOf(half >> 1), kvHead, true);
    let keys = panel;
    if (int8) {
      const bytes = (<usize>headDim) << (wide ? 4 : 3);
      unpackKeys(plane + <usize>(half & 1) * bytes, headDim, wide, panel);
    } else if (kivi) {
      if (half << 4 < codedKeys) {
        if (foldedPage != half >> 1) foldQueries(plane, codec);
        foldedPage = half >> 1;
        kiviKeysAsFloat(plane, codec, half & 1, headDim, panel);
        scoreKiviCodes(half, softmaxScale);
        continue;
      }
      keys = ringKeys(ring, start + (half << 4));
    } else {
      keys = keysAsFloat(plane, codec, half & 1);
    }
    const high = panel + ((<usize>headDim) << 4);
    for (let q = 0; q < blockQueries; q += 2) {
      const paired = q + 1 < blockQueries;
      const x0 = <usize>load<u32>(vectors + ((<usize>q) << 2));
      const x1 = paired ? <usize>load<u32>(vectors + ((<usize>q) << 2), 4) : x0;
      for (let i: usize = 0; i < 128; i += 16) v128.store(tile + i, zero);
      if (int8 && paired) {
        tile2(panel, x0, x1, steps, safe, tile, other, 0);
        if (highPlane) tile2(high, x0, x1, steps, safe, tile, other, 4);
      } else if (int8) {
        tile1(panel, x0, steps, safe, tile, 0);
        if (highPlane) tile1(high, x0, steps, safe, tile, 4);
      } else if (codes) {
        floatTile2(keys, x0, x1, 4, headDim, tile, other);
      } else {
        exactTile2(keys, 64, x0, x1, headDim, tile, other);
      }
      storeScores(q, half << 4, tile, int8, codes, softmaxScale);
      if (paired) storeScores(q + 1, half << 4, other, int8, codes, softmaxScale);
    }
  }
}

/** Scores -> weights of the values; maximum, sum and (int values) sum of weighted zero points of every query. */
export function softmaxChunk(): void {
  const intValues = isInt(codecOf(false));
  const none = f32x4.splat(0);
  for (let q = 0; q < blockQueries; q++) {
    const first = load<i32>(firsts + ((<usize>q) << 2));
    const last = load<i32>(lasts + ((<usize>q) << 2));
    if (first > last) continue;
    const row = scores + ((<usize>(q * CHUNK)) << 2);
    const groupFrom = first & ~15;
    const groupTo = last | 15;
    for (let t = groupFrom; t < first; t++) store<f32>(row + ((<usize>t) << 2), -Infinity);
    for (let t = last + 1; t <= groupTo; t++) store<f32>(row + ((<usize>t) << 2), -Infinity);
    let top = f32x4.splat(-Infinity);
    const begin = row + ((<usize>groupFrom) << 2);
    const end = row + ((<usize>(groupTo + 1)) << 2);
    for (let p = begin; p < end; p += 16) top = f32x4.pmax(top, v128.load(p));
    const mx = max<f32>(
      max<f32>(f32x4.extract_lane(top, 0), f32x4.extract_lane(top, 1)),
      max<f32>(f32x4.extract_lane(top, 2), f32x4.extract_lane(top, 3)),
    );
    const mx4 = f32x4.splat(mx);
    let a = none;
    let b = none;
    let c = none;
    let d = none;
    let za = none;
    let zb = none;
    let zc = none;
    let zd = none;
    for (let p = begin; p < end; p += 64) {
      const e0 = exp4(f32x4.sub(v128.load(p), mx4));
      const e1 = exp4(f32x4.sub(v128.load(p, 16), mx4));
      const e2 = exp4(f32x4.sub(v128.load(p, 32), mx4));
      const e3 = exp4(f32x4.sub(v128.load(p, 48), mx4));
      a = f32x4.add(a, e0);
      b = f32x4.add(b, e1);
      c = f32x4.add(c, e2);
      d = f32x4.add(d, e3);
      if (intValues) {
        const at = p - row;
        // Slots outside the visible range may hold any bits as parameters: their products are forced to 0.
        const v0 = f32x4.ne(e0, none);
        const v1 = f32x4.ne(e1, none);
        const v2 = f32x4.ne(e2, none);
        const v3 = f32x4.ne(e3, none);
        za = f32x4.add(za, v128.and(v0, f32x4.mul(e0, v128.load(valueZero + at))));
        zb = f32x4.add(zb, v128.and(v1, f32x4.mul(e1, v128.load(valueZero + at, 16))));
        zc = f32x4.add(zc, v128.and(v2, f32x4.mul(e2, v128.load(valueZero + at, 32))));
        zd = f32x4.add(zd, v128.and(v3, f32x4.mul(e3, v128.load(valueZero + at, 48))));
        v128.store(p, v128.and(v0, f32x4.mul(e0, v128.load(valueScale + at))));
        v128.store(p, v128.and(v1, f32x4.mul(e1, v128.load(valueScale + at, 16))), 16);
        v128.store(p, v128.and(v2, f32x4.mul(e2, v128.load(valueScale + at, 32))), 32);
        v128.store(p, v128.and(v3, f32x4.mul(e3, v128.load(valueScale + at, 48))), 48);
      } else {
        v128.store(p, e0);
        v128.store(p, e1, 16);
        v128.store(p, e2, 32);
        v128.store(p, e3, 48);
      }
    }
    const at = (<usize>q) << 2;
    store<f32>(chunkMax + at, mx);
    store<f32>(chunkSum + at, fold16(a, b, c, d));
    store<f32>(zeroSum + at, fold16(za, zb, zc, zd));
  }
}

/**
 * Four vectors of f32 from bits `shift`, shift + 8, + 16, + 24 of each i32 lane: dims r, 4 + r, 8 + r, 12 + r of a group of
 * 16 in vector r. Cheaper than widening in order; `finishHead` transposes the sums back.
 */
// @ts-ignore: decorator
@inline
function spread16(v: v128, shift: i32, mask: v128, out: usize): void {
  v128.store(out, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, shift), mask)));
  v128.store(out, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, shift + 8), mask)), 16);
  v128.store(out, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, shift + 16), mask)), 32);
  v128.store(out, f32x4.convert_i32x4_s(v128.and(i32x4.shr_u(v, shift + 24), mask)), 48);
}

/** Whether sums of values stand transposed in groups of 16 dims. */
export function isSpread(codec: i32, dim: i32): bool {
  return isInt(codec) && (dim & 31) == 0;
}

/** dst[headDim] = acc * (1 / sum), dims in order. */
export function finishHead(dst: usize, acc: usize, sum: f32, dim: i32): void {
  const inverse = f32x4.splat(<f32>1 / sum);
  const end = (<usize>dim) << 2;
  if (!isSpread(codecOf(false), dim)) {
    for (let i: usize = 0; i < end; i += 16) v128.store(dst + i, f32x4.mul(v128.load(acc + i), inverse));
    return;
  }
  for (let i: usize = 0; i < end; i += 64) {
    const a = f32x4.mul(v128.load(acc + i), inverse);
    const b = f32x4.mul(v128.load(acc + i, 16), inverse);
    const c = f32x4.mul(v128.load(acc + i, 32), inverse);
    const d = f32x4.mul(v128.load(acc + i, 48), inverse);
    const ab0 = i32x4.shuffle(a, b, 0, 4, 1, 5);
    const ab1 = i32x4.shuffle(a, b, 2, 6, 3, 7);
    const cd0 = i32x4.shuffle(c, d, 0, 4, 1, 5);
    const cd1 = i32x4.shuffle(c, d, 2, 6, 3, 7);
    v128.store(dst + i, i64x2.shuffle(ab0, cd0, 0, 2));
    v128.store(dst + i, i64x2.shuffle(ab0, cd0, 1, 3), 16);
    v128.store(dst + i, i64x2.shuffle(ab1, cd1, 0, 2), 32);
    v128.store(dst + i, i64x2.shuffle(ab1, cd1, 1, 3), 48);
  }
}

/** Values of slots first..last of a page as f32 [slot][accStride] (isSpread: in that order); slot 0 stands at `panel`. */
function valuesAsFloat(plane: usize, codec: i32, first: i32, last: i32): void {
  const spread = isSpread(codec, headDim);
  for (let slot = first; slot <= last; slot++) {
    const out = panel + <usize>slot * accStride;
    const row = <usize>slot * <usize>headDim;
    if (isFloat(codec)) {
      memory.copy(out, plane + (row << 2), (<usize>headDim) << 2);
    } else if (codec == CODEC_INT8) {
      let d: usize = 0;
      if (spread) {
        for (; d < <usize>headDim; d += 16) spread16(v128.load(plane + row + d), 0, i32x4.splat(255), out + (d << 2));
      }
      for (; d < <usize>headDim; d += 4) {
        const v = i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(plane + row + d)));
        v128.store(out + (d << 2), f32x4.convert_i32x4_s(v));
      }
    } else if (codec == CODEC_INT4) {
      const mask = i32x4.splat(15);
      const half = (<usize>valueBlock(headDim)) >> 1;
      let at = plane + (row >> 1);
      let block = out;
      const end = at + ((<usize>headDim) >> 1);
      while (at < end) {
        let i: usize = 0;
        if (spread) {
          for (; i < half; i += 16) {
            const v = v128.load(at);
            spread16(v, 0, mask, block + (i << 2));
            spread16(v, 4, mask, block + ((i + half) << 2));
            at += 16;
          }
        }
        for (; i < half; i += 4) {
          const v = i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(at)));
          v128.store(block + (i << 2), f32x4.convert_i32x4_s(v128.and(v, mask)));
          v128.store(block + ((i + half) << 2), f32x4.convert_i32x4_s(i32x4.shr_u(v, 4)));
          at += 4;
        }
        block += half << 3;
      }
    } else {
      for (let d: usize = 0; d < <usize>headDim; d += 4) v128.store(out + (d << 2), loadHalf4(plane + ((row + d) << 1)));
    }
  }
}

/** Sum of the weighted minima of channel group g over slots first..coded - 1 of the chunk. */
function minimumSum(q: i32, g: i32, first: i32, coded: i32): f32 {
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  const e = scores + ((<usize>(q * CHUNK)) << 2);
  const skip = kiviParameters(codecOf(false), headDim) + ((<usize>headDim) << 1) + ((<usize>g) << 6);
  for (let t = first & ~15; t < coded; t += 16) {
    const minima = planeAt(pageOf(t >> 5), kvHead, false) + skip + ((<usize>(t & 31)) << 1);
    const at = e + ((<usize>t) << 2);
    a = f32x4.add(a, keepLanes(f32x4.mul(v128.load(at), loadHalf4(minima)), t, first, coded));
    b = f32x4.add(b, keepLanes(f32x4.mul(v128.load(at, 16), loadHalf4(minima + 8)), t + 4, first, coded));
    c = f32x4.add(c, keepLanes(f32x4.mul(v128.load(at, 32), loadHalf4(minima + 16)), t + 8, first, coded));
    d = f32x4.add(d, keepLanes(f32x4.mul(v128.load(at, 48), loadHalf4(minima + 24)), t + 12, first, coded));
  }
  return fold16(a, b, c, d);
}

/** Slots of the chunk whose values query q reads as codes. */
function codedValues(q: i32): i32 {
  const position = load<i32>(place(pc, ATTENTION_POSITIONS_AT) + ((<usize>(m0 + q / headsInBlock)) << 2));
  return position - residual() - start;
}

/** addValues of a kivi cache: codes under the scales of their group, then exact rows, in one sum over rising slots. */
function addKiviValues(): void {
  const codec = codecOf(false);
  const groups = headDim >> 5;
  for (let index = from >> 5; index <= to >> 5; index++) {
    const base = index << 5;
    const plane = planeAt(pageOf(index), kvHead, false);
    const scales = plane + kiviParameters(codec, headDim);
    const exact = ringValues(ring, start + base);
    let most = 0;
    for (let q = 0; q < blockQueries; q++) most = max<i32>(most, codedValues(q) - base);
    most = min<i32>(min<i32>(most, 32), to - base + 1);
    for (let slot = max<i32>(from - base, 0); slot < most; slot++) {
      kiviValueAsFloat(plane, codec, slot, headDim, panel + <usize>slot * accStride);
    }
    for (let q = 0; q < blockQueries; q++) {
      const first = max<i32>(load<i32>(firsts + ((<usize>q) << 2)) - base, 0);
      const end = min<i32>(load<i32>(lasts + ((<usize>q) << 2)) - base, 31) + 1;
      if (first >= end) continue;
      const split = max<i32>(first, min<i32>(end, codedValues(q) - base));
      const e = scores + ((<usize>(q * CHUNK + base)) << 2);
      for (let g = 0; g < groups; g++) {
        const acc = chunkAcc + <usize>q * accStride + ((<usize>g) << 7);
        if (first < split) {
          weighCodes(e, scales + ((<usize>g) << 6), first, split, tile);
          const rows = panel + <usize>first * accStride + ((<usize>g) << 7);
          exactTile1x32(rows, accStride, tile + ((<usize>first) << 2), split - first, acc);
        }
        if (split < end) {
          const rows = exact + <usize>split * accStride + ((<usize>g) << 7);
          exactTile1x32(rows, accStride, e + ((<usize>split) << 2), end - split, acc);
        }
      }
    }
  }
  for (let q = 0; q < blockQueries; q++) {
    const first = load<i32>(firsts + ((<usize>q) << 2));
    const coded = min<i32>(codedValues(q), load<i32>(lasts + ((<usize>q) << 2)) + 1);
    for (let g = 0; g < groups; g++) {
      const minimum = f32x4.splat(minimumSum(q, g, first, coded));
      const acc = chunkAcc + <usize>q * accStride + ((<usize>g) << 7);
      for (let i: usize = 0; i < 128; i += 16) v128.store(acc + i, f32x4.add(v128.load(acc + i), minimum));
    }
  }
}

/** Weighted sums of the values of the chunk for every query, slots rising; int values less their zero points. */
export function addValues(): void {
  const codec = codecOf(false);
  if (residual() > 0) {
    memory.fill(chunkAcc, 0, <usize>blockQueries * accStride);
    addKiviValues();
    return;
  }
  memory.fill(chunkAcc, 0, <usize>blockQueries * accStride);
  for (let index = from >> 5; index <= to >> 5; index++) {
    const base = index << 5;
    valuesAsFloat(planeAt(pageOf(index), kvHead, false), codec, max<i32>(from - base, 0), min<i32>(to - base, 31));
    let head = 0;
    for (let q = 0; q < blockQueries; ) {
      const first = max<i32>(load<i32>(firsts + ((<usize>q) << 2)) - base, 0);
      const count = min<i32>(load<i32>(lasts + ((<usize>q) << 2)) - base, 31) - first + 1;
      // Two heads of one row see the same slots.
      const paired = head + 1 < headsInBlock;
      if (count > 0) {
        const x = scores + ((<usize>(q * CHUNK + base + first)) << 2);
        const acc = chunkAcc + <usize>q * accStride;
        const rows = panel + <usize>first * accStride;
        let d: usize = 0;
        if (paired) {
          for (; d < accStride; d += 64) {
            exactTile2(rows + d, accStride, x, x + 512, count, acc + d, acc + accStride + d);
          }
        } else {
          for (; d + 128 <= accStride; d += 128) exactTile1x32(rows + d, accStride, x, count, acc + d);
          for (; d < accStride; d += 64) exactTile1(rows + d, accStride, x, count, acc + d);
        }
      }
      head += paired ? 2 : 1;
      q += paired ? 2 : 1;
      if (head == headsInBlock) head = 0;
    }
  }
  if (!isInt(codec)) return;
  for (let q: usize = 0; q < <usize>blockQueries; q++) {
    const zero = v128.load32_splat(zeroSum + (q << 2));
    const acc = chunkAcc + q * accStride;
    for (let d: usize = 0; d < accStride; d += 16) v128.store(acc + d, f32x4.sub(v128.load(acc + d), zero));
  }
}
