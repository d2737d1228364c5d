/**
 * Statistics and side-cars (float class): logitStats, klDivergence, absStats, csr; and route, which is exact. Sums in f64
 * where docs/engine.md says so.
 */
import { fail, operand, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { rowAt } from "./elementwise";
import { exp1 } from "./math";
import {
  ABS_STATS_LD_SRC, ABS_STATS_MAX_ABS_AT, ABS_STATS_SRC_AT, ABS_STATS_SUM_ABS_AT, ABS_STATS_WIDTH,
  CSR_COLUMNS_AT, CSR_DST_AT, CSR_LD_DST, CSR_LD_SRC, CSR_OUTPUTS, CSR_ROW_POINTERS_AT, CSR_SRC_AT, CSR_VALUES_AT,
  H_ARENA_LINES,
  KL_DIVERGENCE_DST_AT, KL_DIVERGENCE_LD_LOGITS, KL_DIVERGENCE_LD_REFERENCE, KL_DIVERGENCE_LOGITS_AT,
  KL_DIVERGENCE_REFERENCE_AT, KL_DIVERGENCE_WIDTH,
  LOGIT_STATS_DST_AT, LOGIT_STATS_LD_LOGITS, LOGIT_STATS_LOGITS_AT, LOGIT_STATS_TARGETS_AT, LOGIT_STATS_WIDTH,
  ROUTE_COUNT_REG, ROUTE_EXPERTS, ROUTE_INDEX_AT, ROUTE_LD_LISTS, ROUTE_LD_LOGITS, ROUTE_LOGITS_AT, ROUTE_TOP_K,
  ROUTE_WEIGHT_AT,
} from "./ops";

/** exp of two f64 <= 0: range reduction and the Taylor series to degree 11 (|r| <= 0.347, error below 1e-14). */
export function exp2x64(x: v128): v128 {
  const n = f64x2.nearest(f64x2.mul(x, f64x2.splat(1.4426950408889634)));
  let r = f64x2.sub(x, f64x2.mul(n, f64x2.splat(0.693147180369123816490)));
  r = f64x2.sub(r, f64x2.mul(n, f64x2.splat(1.90821492927058770002e-10)));
  let p = f64x2.splat(2.505210838544172e-8);
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(2.755731922398589e-7));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(2.7557319223985893e-6));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(2.48015873015873e-5));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.984126984126984e-4));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.388888888888889e-3));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(8.333333333333333e-3));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(4.1666666666666664e-2));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.6666666666666666e-1));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(0.5));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1));
  const exponent = i64x2.add(i64x2.extend_low_i32x4_s(i32x4.trunc_sat_f64x2_s_zero(n)), i64x2.splat(1023));
  return v128.andnot(f64x2.mul(p, i64x2.shl(exponent, 52)), f64x2.lt(x, f64x2.splat(-708)));
}

/** Natural logarithm of a positive normal f64, by the series of 2 artanh((m - 1) / (m + 1)), m in [0.707, 1.414]. */
export function log64(x: f64): f64 {
  const bits = reinterpret<u64>(x);
  let exponent = <i32>(bits >> 52) - 1023;
  let m = reinterpret<f64>((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent++;
  }
  const s = (m - 1) / (m + 1);
  const t = s * s;
  let sum: f64 = 0;
  for (let i = 21; i >= 1; i -= 2) sum = sum * t + 1 / <f64>i;
  return 2 * s * sum + <f64>exponent * 0.6931471805599453;
}

/** Index of the largest value; ties to the lower index. */
function argmax(row: usize, width: i32): i32 {
  let top = f32x4.splat(-Infinity);
  let i = 0;
  for (; i + 4 <= width; i += 4) top = f32x4.pmax(top, v128.load(row + ((<usize>i) << 2)));
  let best = max<f32>(
    max<f32>(f32x4.extract_lane(top, 0), f32x4.extract_lane(top, 1)),
    max<f32>(f32x4.extract_lane(top, 2), f32x4.extract_lane(top, 3)),
  );
  for (; i < width; i++) best = max<f32>(best, load<f32>(row + ((<usize>i) << 2)));
  for (i = 0; i < width; i++) if (load<f32>(row + ((<usize>i) << 2)) == best) return i;
  return 0;
}

/** max + log(sum of exp(x - max)). */
function logSumExp(row: usize, width: i32, top: f32): f64 {
  const top2 = f64x2.splat(<f64>top);
  let sum = f64x2.splat(0);
  let i = 0;
  for (; i + 2 <= width; i += 2) {
    const x = f64x2.promote_low_f32x4(v128.load64_zero(row + ((<usize>i) << 2)));
    sum = f64x2.add(sum, exp2x64(f64x2.sub(x, top2)));
  }
  let total = f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1);
  if (i < width) {
    const x = f64x2.splat(<f64>load<f32>(row + ((<usize>i) << 2)));
    total += f64x2.extract_lane(exp2x64(f64x2.sub(x, top2)), 0);
  }
  return <f64>top + log64(total);
}

// @ts-ignore: decorator
@inline
function floatAt(row: usize, i: i32): f32 {
  return load<f32>(row + ((<usize>i) << 2));
}

export function logitStats(pc: usize, rows: i32): void {
  const width = operand(pc, LOGIT_STATS_WIDTH);
  const targets = placeOrZero(pc, LOGIT_STATS_TARGETS_AT);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const row = rowAt(place(pc, LOGIT_STATS_LOGITS_AT), m, operand(pc, LOGIT_STATS_LD_LOGITS));
    const dst = rowAt(place(pc, LOGIT_STATS_DST_AT), m, 4);
    const best = argmax(row, width);
    store<i32>(dst, best);
    store<f32>(dst, floatAt(row, best), 4);
    store<f32>(dst, <f32>logSumExp(row, width, floatAt(row, best)), 8);
    let target: f32 = 0;
    if (targets != 0) {
      const index = load<i32>(targets + ((<usize>m) << 2));
      if (<u32>index >= <u32>width) {
        fail();
        return;
      }
      target = floatAt(row, index);
    }
    store<f32>(dst, target, 12);
  }
}

export function klDivergence(pc: usize, rows: i32): void {
  const width = operand(pc, KL_DIVERGENCE_WIDTH);
  const end = shareOf(rows, thread + 1);
  for (let m = shareOf(rows, thread); m < end; m++) {
    const reference = rowAt(place(pc, KL_DIVERGENCE_REFERENCE_AT), m, operand(pc, KL_DIVERGENCE_LD_REFERENCE));
    const model = rowAt(place(pc, KL_DIVERGENCE_LOGITS_AT), m, operand(pc, KL_DIVERGENCE_LD_LOGITS));
    const bestReference = argmax(reference, width);
    const bestModel = argmax(model, width);
    const lse = f64x2.splat(logSumExp(reference, width, floatAt(reference, bestReference)));
    const lseModel = f64x2.splat(logSumExp(model, width, floatAt(model, bestModel)));
    let sum: f64 = 0;
    for (let i = 0; i < width; i += 2) {
      const at = (<usize>i) << 2;
      const last = i + 1 == width;
      let x = last ? v128.load32_zero(reference + at) : v128.load64_zero(reference + at);
      let y = last ? v128.load32_zero(model + at) : v128.load64_zero(model + at);
      x = f64x2.sub(f64x2.promote_low_f32x4(x), lse);
      y = f64x2.sub(f64x2.promote_low_f32x4(y), lseModel);
      const terms = f64x2.mul(exp2x64(x), f64x2.sub(x, y));
      sum += f64x2.extract_lane(terms, 0);
      if (!last) sum += f64x2.extract_lane(terms, 1);
    }
    const dst = rowAt(place(pc, KL_DIVERGENCE_DST_AT), m, 2);
    store<f32>(dst, <f32>sum);
    store<f32>(dst, bestReference == bestModel ? 1 : 0, 4);
  }
}

/** sumAbs (f64) += |x|, maxAbs = max(maxAbs, |x|), rows in order; columns over threads. */
export function absStats(pc: usize, rows: i32): void {
  const width = operand(pc, ABS_STATS_WIDTH);
  const sums = place(pc, ABS_STATS_SUM_ABS_AT);
  const tops = place(pc, ABS_STATS_MAX_ABS_AT);
  const from = shareOf(width, thread);
  const to = shareOf(width, thread + 1);
  for (let m = 0; m < rows; m++) {
    const row = rowAt(place(pc, ABS_STATS_SRC_AT), m, operand(pc, ABS_STATS_LD_SRC));
    for (let i = from; i < to; i++) {
      const at = (<usize>i) << 2;
      const x = abs<f32>(load<f32>(row + at));
      store<f64>(sums + (at << 1), load<f64>(sums + (at << 1)) + <f64>x);
      store<f32>(tops + at, max<f32>(load<f32>(tops + at), x));
    }
  }
}

/** y[m, n] += sum of values times gathered inputs; outputs over threads. */
export function csr(pc: usize, program: usize, rows: i32): void {
  const outputs = operand(pc, CSR_OUTPUTS);
  const columns = place(pc, CSR_COLUMNS_AT);
  const values = place(pc, CSR_VALUES_AT);
  const ldSrc = operand(pc, CSR_LD_SRC);
  const pointers = place(pc, CSR_ROW_POINTERS_AT);
  const arena = (<u64>load<u32>(program + ((<usize>H_ARENA_LINES) << 2))) << 6;
  const room = (arena - <u64>max<usize>(columns, values)) >> 2;
  const stop = shareOf(outputs, thread + 1);
  for (let n = shareOf(outputs, thread); n < stop; n++) {
    const start = load<u32>(pointers + ((<usize>n) << 2));
    const end = load<u32>(pointers + ((<usize>n) << 2), 4);
    if (start > end || <u64>end > room) {
      fail();
      return;
    }
    for (let i = start; i < end; i++) {
      if (load<u32>(columns + ((<usize>i) << 2)) >= <u32>ldSrc) {
        fail();
        return;
      }
    }
    for (let m = 0; m < rows; m++) {
      const src = rowAt(place(pc, CSR_SRC_AT), m, ldSrc);
      let sum: f32 = 0;
      for (let i = start; i < end; i++) {
        const at = (<usize>i) << 2;
        sum += load<f32>(values + at) * floatAt(src, load<i32>(columns + at));
      }
      const dst = rowAt(place(pc, CSR_DST_AT), m, operand(pc, CSR_LD_DST)) + ((<usize>n) << 2);
      store<f32>(dst, load<f32>(dst) + sum);
    }
  }
}

/** Softmax, top-k and row lists per expert (exact class). Small and sequential: thread 0 does it. */
export function route(pc: usize, rows: i32): void {
  if (thread != 0) return;
  const experts = operand(pc, ROUTE_EXPERTS);
  const topK = operand(pc, ROUTE_TOP_K);
  const ldLists = operand(pc, ROUTE_LD_LISTS);
  // Scratch: probabilities [256], chosen experts [256], counts [256].
  const p = scratch;
  const chosen = scratch + 1024;
  const counts = scratch + 2048;
  memory.fill(counts, 0, 1024);
  for (let m = 0; m < rows; m++) {
    const row = rowAt(place(pc, ROUTE_LOGITS_AT), m, operand(pc, ROUTE_LD_LOGITS));
    let top = floatAt(row, 0);
    for (let e = 1; e < experts; e++) top = max<f32>(top, floatAt(row, e));
    let sum: f32 = 0;
    for (let e = 0; e < experts; e++) {
      const value = exp1(floatAt(row, e) - top);
      store<f32>(p + ((<usize>e) << 2), value);
      sum += value;
    }
    for (let e = 0; e < experts; e++) store<f32>(p + ((<usize>e) << 2), floatAt(p, e) / sum);
    let mass: f32 = 0;
    for (let rank = 0; rank < topK; rank++) {
      let best = -1;
      for (let e = 0; e < experts; e++) {
        let free = true;
        for (let i = 0; i < rank; i++) if (load<i32>(chosen + ((<usize>i) << 2)) == e) free = false;
        if (free && (best < 0 || floatAt(p, e) > floatAt(p, best))) best = e;
      }
      store<i32>(chosen + ((<usize>rank) << 2), best);
      mass += floatAt(p, best);
    }
    for (let rank = 0; rank < topK; rank++) {
      const e = load<i32>(chosen + ((<usize>rank) << 2));
      const count = counts + ((<usize>e) << 2);
      const entry = (<usize>e * <usize>ldLists + <usize>load<i32>(count)) << 2;
      store<i32>(count, load<i32>(count) + 1);
      store<i32>(place(pc, ROUTE_INDEX_AT) + entry, m);
      store<f32>(place(pc, ROUTE_WEIGHT_AT) + entry, floatAt(p, e) / mass);
    }
  }
  memory.copy((<usize>operand(pc, ROUTE_COUNT_REG)) << 2, counts, (<usize>experts) << 2);
}
