/**
 * linearInt (Q1): y[m, n] = (codes of the weight) . (codes of the activation), exact integer sums per group, then one
 * scale, zero point correction, bias and epilogue (docs/engine.md). One row runs straight from the packed panel
 * (dot-panel.ts), more rows from an unpacked half-panel (dot-tile.ts). Panels are split over threads.
 */
import { operand, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { dotPanel1, dotPanel2, dotPanel4, dotPanel8, preparePairs } from "./dot-panel";
import { quadBytes, safeSteps, tile2, tileBits, unpackHalf } from "./dot-tile";
import {
  LINEAR_INT_ACTIVATION_GROUPS, LINEAR_INT_CODES_AT, LINEAR_INT_DST_AT, LINEAR_INT_EPILOGUE, LINEAR_INT_LD_CODES,
  LINEAR_INT_LD_DST, LINEAR_INT_SCALE_AT, LINEAR_INT_SUM_AT, LINEAR_INT_WEIGHT_W, LINEAR_INT_ZERO_AT,
} from "./ops";
import {
  finishGroup, finishHalf, groupSize, groups, k, kPad, openTarget, openWeight, panels, seg1, seg2, seg4, seg8, shift1,
  shift2,
} from "./weight";

let codes: usize = 0;
let ldCodes: i32 = 0;
let scales: usize = 0;
let sums: usize = 0;
let zeros: usize = 0;
let activationGroups: i32 = 1;

// Scratch: integer sums of two rows (or of a panel), their outputs, then prepared activations, then the panel.
const ACC: usize = 0;
const Y: usize = 128;
const REST: usize = 256;

/** Scale, zero point and outputs of group g for one row and half. */
function finish(acc: usize, y: usize, p: i32, half: i32, g: i32, m: i32): void {
  const ag = m * activationGroups + (activationGroups == 1 ? 0 : g);
  finishGroup(
    acc, y, p, half, g,
    load<f32>(scales + (<usize>ag << 2)),
    load<i32>(sums + (<usize>(m * groups + g) << 2)),
    zeros != 0,
    zeros == 0 ? 0 : load<i32>(zeros + (<usize>ag << 2)),
  );
}

function clear(at: usize): void {
  const zero = i32x4.splat(0);
  for (let i: usize = 0; i < 128; i += 16) v128.store(at + i, zero);
}

/** Blocks of 32 columns of group g. */
// @ts-ignore: decorator
@inline
function blocksOf(g: i32): i32 {
  return (min<i32>(groupSize, k - g * groupSize) + 31) >> 5;
}

function oneRow(from: i32, to: i32): void {
  const acc = scratch + ACC;
  const y = scratch + Y;
  let x = codes;
  if (!ASC_FEATURE_RELAXED_SIMD) {
    x = scratch + REST;
    preparePairs(codes, x, kPad);
  }
  for (let p = from; p < to; p++) {
    const columns = <usize>p * <usize>kPad << 2;
    for (let g = 0; g < groups; g++) {
      const start = <usize>(g * groupSize);
      const blocks = blocksOf(g);
      const xg = x + (ASC_FEATURE_RELAXED_SIMD ? start : start << 1);
      const at = columns + (start << 2);
      clear(acc);
      if (seg8 != 0) dotPanel8(seg8 + (at << 3), xg, blocks, acc, 0);
      if (seg4 != 0) dotPanel4(seg4 + (at << 2), xg, blocks, acc, 0);
      if (seg2 != 0) dotPanel2(seg2 + (at << 1), xg, blocks, acc, shift2);
      if (seg1 != 0) dotPanel1(seg1 + at, xg, blocks, acc, shift1);
      finish(acc, y, p, 0, g, 0);
      finish(acc + 64, y + 64, p, 1, g, 0);
    }
    finishHalf(y, p, 0, 0);
    finishHalf(y + 64, p, 1, 0);
  }
}

/** Activations (s8) that all panels pass by before the next rows come: they stay in the second-level cache. */
const BLOCK_BYTES: i32 = 192 * 1024;

function manyRows(from: i32, to: i32, rows: i32): void {
  const block = max<i32>(2, (BLOCK_BYTES / kPad) & ~1);
  const pairBytes = <usize>kPad << 1;
  const pairs = scratch + REST;
  const panel = ASC_FEATURE_RELAXED_SIMD ? pairs : pairs + <usize>min<i32>(block, rows) * pairBytes;
  for (let m0 = 0; m0 < rows; m0 += block) {
    const m1 = min<i32>(m0 + block, rows);
    let x = codes + <usize>m0 * <usize>ldCodes;
    let stride = <usize>ldCodes;
    if (!ASC_FEATURE_RELAXED_SIMD) {
      for (let m = m0; m < m1; m++) {
        preparePairs(codes + <usize>m * <usize>ldCodes, pairs + <usize>(m - m0) * pairBytes, kPad);
      }
      x = pairs;
      stride = pairBytes;
    }
    for (let p = from; p < to; p++) {
      for (let half = 0; half < 2; half++) {
        unpackHalf(p, half, panel);
        tileRows(p, half, m0, m1, x, stride, panel);
      }
    }
  }
}

/** Rows m0..m1 of one half-panel, two by two. x: activations of row m0, `stride` bytes a row. */
function tileRows(p: i32, half: i32, m0: i32, m1: i32, x: usize, stride: usize, panel: usize): void {
  const acc0 = scratch + ACC;
  const acc1 = acc0 + 64;
  const y0 = scratch + Y;
  const y1 = y0 + 64;
  const safe = safeSteps(tileBits());
  const quad = quadBytes();
  const highPlane = ASC_FEATURE_RELAXED_SIMD && seg8 != 0;
  for (let m = m0; m < m1; m += 2) {
    // An odd last row is computed twice; the copy is dropped.
    const paired = m + 1 < m1;
    const x1 = paired ? x + stride : x;
    for (let g = 0; g < groups; g++) {
      const start = <usize>(g * groupSize);
      const steps = blocksOf(g) << 3;
      const w = panel + (start >> 2) * quad;
      const skip = ASC_FEATURE_RELAXED_SIMD ? start : start << 1;
      clear(acc0);
      tile2(w, x + skip, x1 + skip, steps, safe, acc0, acc1, 0);
      if (highPlane) tile2(w + (<usize>kPad << 4), x + skip, x1 + skip, steps, safe, acc0, acc1, 4);
      finish(acc0, y0, p, half, g, m);
      if (paired) finish(acc1, y1, p, half, g, m + 1);
    }
    finishHalf(y0, p, half, m);
    if (paired) finishHalf(y1, p, half, m + 1);
    x += 2 * stride;
  }
}

export function linearInt(pc: usize, program: usize, rows: i32): void {
  openWeight(program, operand(pc, LINEAR_INT_WEIGHT_W));
  openTarget(place(pc, LINEAR_INT_DST_AT), operand(pc, LINEAR_INT_LD_DST), operand(pc, LINEAR_INT_EPILOGUE));
  codes = place(pc, LINEAR_INT_CODES_AT);
  ldCodes = operand(pc, LINEAR_INT_LD_CODES);
  scales = place(pc, LINEAR_INT_SCALE_AT);
  sums = place(pc, LINEAR_INT_SUM_AT);
  zeros = placeOrZero(pc, LINEAR_INT_ZERO_AT);
  activationGroups = operand(pc, LINEAR_INT_ACTIVATION_GROUPS);
  const from = shareOf(panels, thread);
  const to = shareOf(panels, thread + 1);
  if (from == to) return;
  if (rows == 1) oneRow(from, to);
  else manyRows(from, to, rows);
}
