/**
 * linearInt (Q1): y[m, n] = (codes of the weight) . (codes of the activation), exact integer sums per group, then one
 * scale, zero point correction, bias and epilogue (docs/engine.md). One row runs straight from the packed panel
 * (dot-panel.ts), more rows from an unpacked half-panel (dot-tile.ts). Panels are split over threads.
 */
import { codes, largestCode, ldCodes, openActivations, rowScale, rowSum, rowZero } from "./activations";
import { operand, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { SUMS, panel1, panel2, panel4, panel8, part1, part2, part4, preparePairs } from "./dot-panel";
import { tileGroups1, tileGroups2, tileSteps, unpackHalf } from "./dot-tile";
import {
  LINEAR_INT_ACTIVATION_GROUPS, LINEAR_INT_CODES_AT, LINEAR_INT_DST_AT, LINEAR_INT_EPILOGUE, LINEAR_INT_LD_CODES,
  LINEAR_INT_LD_DST, LINEAR_INT_SCALE_AT, LINEAR_INT_SUM_AT, LINEAR_INT_WEIGHT_W, LINEAR_INT_ZERO_AT,
} from "./ops";
import {
  GROUP_BYTES, asymmetric, bits, centered, finishHalf, finishQuarter, groups, isDirect, kPad, openGroups, openTarget, openWeight, panels,
  prepareGroups, seg1, seg2, seg4, seg8, shift1, shift2, startOf,
  zeroMode,
} from "./weight";

// Scratch: outputs of a panel or of two rows of a half-panel, integer sums of a panel, group parameters of a panel, then the rest.
const Y: usize = 0;
const PARAMETERS: usize = SUMS + 128;

/** Combined codes (3, 5, 6, 7 bits): finishes all groups of a panel from their sums [group][32]. */
function finishParts(sums: usize, y: usize, parameters: usize): void {
  for (let g = 0; g < groups; g++) {
    const sum = rowSum(0, g);
    const za = rowZero(0, g);
    const scale = f32x4.splat(rowScale(0, g));
    const total = i32x4.splat(centered(sum, za, g));
    for (let half: usize = 0; half < 2; half++) {
      const at = parameters + (half * <usize>groups + <usize>g) * GROUP_BYTES;
      for (let q: usize = 0; q < 64; q += 16) {
        const to = half * 64 + q;
        const acc = i32x4.add(v128.load(sums + to), startOf(sum));
        finishQuarter(acc, at + q, scale, total, i32x4.splat(za), y + to, g == 0, zeroMode, asymmetric);
      }
    }
    sums += 128;
  }
}

function oneRow(from: i32, to: i32): void {
  const y = scratch + Y;
  const parameters = scratch + PARAMETERS;
  const sums = parameters + 2 * <usize>groups * GROUP_BYTES;
  const single = bits == 8 || bits == 4 || bits == 2 || bits == 1;
  let x = codes;
  if (!ASC_FEATURE_RELAXED_SIMD) {
    x = sums + <usize>groups * 128;
    preparePairs(codes, x, kPad);
  }
  for (let p = from; p < to; p++) {
    const at = (<usize>p * <usize>kPad) << 2;
    if (!single || !isDirect()) {
      prepareGroups(p, 0, parameters);
      prepareGroups(p, 1, parameters + <usize>groups * GROUP_BYTES);
    }
    if (bits == 4) panel4(seg4 + (at << 2), x, y, parameters, p);
    else if (bits == 8) panel8(seg8 + (at << 3), x, y, parameters, p);
    else if (bits == 2) panel2(seg2 + (at << 1), x, y, parameters, p);
    else if (bits == 1) panel1(seg1 + at, x, y, parameters, p);
    else {
      if (seg4 != 0) part4(seg4 + (at << 2), x, sums);
      if (seg2 != 0) part2(seg2 + (at << 1), x, sums, shift2, seg4 == 0);
      if (seg1 != 0) part1(seg1 + at, x, sums, shift1);
      finishParts(sums, y, parameters);
    }
    finishHalf(y, p, 0, 0);
    finishHalf(y + 64, p, 1, 0);
  }
}

/** Activations (s8) that all panels pass by before the next rows come: they stay in the second-level cache. */
const BLOCK_BYTES: i32 = 192 * 1024;

function manyRows(from: i32, to: i32, rows: i32): void {
  const safe = tileSteps(ASC_FEATURE_RELAXED_SIMD ? largestCode(rows, kPad) : 128);
  const block = max<i32>(2, (BLOCK_BYTES / kPad) & ~1);
  const pairBytes = (<usize>kPad) << 1;
  const pairs = scratch + PARAMETERS + <usize>groups * GROUP_BYTES;
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
        prepareGroups(p, half, scratch + PARAMETERS);
        unpackHalf(p, half, panel);
        tileRows(p, half, m0, m1, x, stride, panel, safe);
      }
    }
  }
}

/** Rows m0..m1 of one half-panel, two by two. x: activations of row m0, `stride` bytes a row. */
function tileRows(p: i32, half: i32, m0: i32, m1: i32, x: usize, stride: usize, panel: usize, safe: i32): void {
  const y0 = scratch + Y;
  const y1 = y0 + 64;
  const parameters = scratch + PARAMETERS;
  let m = m0;
  for (; m + 2 <= m1; m += 2) {
    tileGroups2(panel, x, x + stride, y0, y1, m, parameters, safe);
    finishHalf(y0, p, half, m);
    finishHalf(y1, p, half, m + 1);
    x += 2 * stride;
  }
  if (m < m1) {
    tileGroups1(panel, x, y0, m, parameters, safe);
    finishHalf(y0, p, half, m);
  }
}

export function linearInt(pc: usize, program: usize, rows: i32): void {
  openWeight(program, operand(pc, LINEAR_INT_WEIGHT_W));
  openTarget(place(pc, LINEAR_INT_DST_AT), operand(pc, LINEAR_INT_LD_DST), operand(pc, LINEAR_INT_EPILOGUE));
  const zeros = placeOrZero(pc, LINEAR_INT_ZERO_AT);
  openActivations(
    place(pc, LINEAR_INT_CODES_AT), operand(pc, LINEAR_INT_LD_CODES), place(pc, LINEAR_INT_SCALE_AT),
    place(pc, LINEAR_INT_SUM_AT), zeros, operand(pc, LINEAR_INT_ACTIVATION_GROUPS),
  );
  openGroups(zeros != 0);
  const from = shareOf(panels, thread);
  const to = shareOf(panels, thread + 1);
  if (from == to) return;
  if (rows == 1) oneRow(from, to);
  else manyRows(from, to, rows);
}
