/**
 * attendTile (float class): f32 queries over one decoded tile of keys and values, into a running softmax. Chunks of 128 slots
 * merge in rising order; a (row, KV head) pair belongs to one ticket, so the bits do not depend on their number.
 */
import { fail, operand, operandF, place, placeOrZero, scratch, shareOf, thread } from "./control";
import { exp1, exp4, fold16, madd } from "./math";
import {
  ATTEND_TILE_HEADS, ATTEND_TILE_HEAD_DIM, ATTEND_TILE_KEYS_AT, ATTEND_TILE_KV_HEADS, ATTEND_TILE_LD_QUERY,
  ATTEND_TILE_LOGITS_AT, ATTEND_TILE_QUERY_AT, ATTEND_TILE_RANGES_AT, ATTEND_TILE_SLOTS,
  ATTEND_TILE_SOFTMAX_SCALE_F, ATTEND_TILE_STATE_AT, ATTEND_TILE_VALUES_AT,
} from "./ops";

const CHUNK: i32 = 128;

function dot(a: usize, b: usize, count: i32): f32 {
  let s0 = f32x4.splat(0);
  let s1 = f32x4.splat(0);
  let s2 = f32x4.splat(0);
  let s3 = f32x4.splat(0);
  let i: i32 = 0;
  for (; i + 16 <= count; i += 16) {
    s0 = madd(v128.load(a), v128.load(b), s0);
    s1 = madd(v128.load(a, 16), v128.load(b, 16), s1);
    s2 = madd(v128.load(a, 32), v128.load(b, 32), s2);
    s3 = madd(v128.load(a, 48), v128.load(b, 48), s3);
    a += 64;
    b += 64;
  }
  let sum = fold16(s0, s1, s2, s3);
  for (; i < count; i++) {
    sum += load<f32>(a) * load<f32>(b);
    a += 4;
    b += 4;
  }
  return sum;
}

/** acc[d] = acc[d] * keep + (sum over slots of p * value[d]) * take, four channels at a time. */
function addValues(
  acc: usize, values: usize, scores: usize, count: i32, headDim: i32, keep: f32, take: f32,
): void {
  const step = (<usize>headDim) << 2;
  let d: i32 = 0;
  for (; d + 8 <= headDim; d += 8) {
    let a = f32x4.splat(0);
    let b = f32x4.splat(0);
    let at = values + ((<usize>d) << 2);
    for (let t: usize = 0; t < (<usize>count) << 2; t += 4) {
      const p = v128.load32_splat(scores + t);
      a = madd(p, v128.load(at), a);
      b = madd(p, v128.load(at, 16), b);
      at += step;
    }
    const to = acc + ((<usize>d) << 2);
    const k = f32x4.splat(keep);
    const n = f32x4.splat(take);
    v128.store(to, f32x4.add(f32x4.mul(v128.load(to), k), f32x4.mul(a, n)));
    v128.store(to, f32x4.add(f32x4.mul(v128.load(to, 16), k), f32x4.mul(b, n)), 16);
  }
  for (; d < headDim; d++) {
    let sum: f32 = 0;
    let at = values + ((<usize>d) << 2);
    for (let t: usize = 0; t < (<usize>count) << 2; t += 4) {
      sum += load<f32>(scores + t) * load<f32>(at);
      at += step;
    }
    const to = acc + ((<usize>d) << 2);
    store<f32>(to, load<f32>(to) * keep + sum * take);
  }
}

/** `count` slots of one chunk for one query. `logits` may be 0. */
function attendChunk(
  query: usize, keys: usize, values: usize, count: i32, headDim: i32, scale: f32, state: usize, logits: usize,
): void {
  const scores = scratch;
  const step = (<usize>headDim) << 2;
  let top: f32 = -Infinity;
  for (let t: usize = 0; t < <usize>count; t++) {
    const score = dot(query, keys + t * step, headDim) * scale;
    store<f32>(scores + (t << 2), score);
    top = max<f32>(top, score);
  }
  if (logits != 0) memory.copy(logits, scores, (<usize>count) << 2);
  // Lanes behind the last slot add nothing.
  for (let t = count; t < ((count + 3) & ~3); t++) store<f32>(scores + ((<usize>t) << 2), -Infinity);
  let total = f32x4.splat(0);
  const tops = f32x4.splat(top);
  for (let t: usize = 0; t < (<usize>count) << 2; t += 16) {
    const e = exp4(f32x4.sub(v128.load(scores + t), tops));
    v128.store(scores + t, e);
    total = f32x4.add(total, e);
  }
  const zero = f32x4.splat(0);
  const old = load<f32>(state);
  const merged = max<f32>(old, top);
  const keep = exp1(old - merged);
  const take = exp1(top - merged);
  store<f32>(state, merged);
  store<f32>(state, load<f32>(state, 4) * keep + fold16(total, zero, zero, zero) * take, 4);
  addValues(state + 8, values, scores, count, headDim, keep, take);
}

export function attendTile(pc: usize, rows: i32): void {
  const heads = operand(pc, ATTEND_TILE_HEADS);
  const kvHeads = operand(pc, ATTEND_TILE_KV_HEADS);
  const headDim = operand(pc, ATTEND_TILE_HEAD_DIM);
  const slots = operand(pc, ATTEND_TILE_SLOTS);
  const scale = operandF(pc, ATTEND_TILE_SOFTMAX_SCALE_F);
  const queries = place(pc, ATTEND_TILE_QUERY_AT);
  const ldQuery = operand(pc, ATTEND_TILE_LD_QUERY);
  const keys = place(pc, ATTEND_TILE_KEYS_AT);
  const values = place(pc, ATTEND_TILE_VALUES_AT);
  const ranges = place(pc, ATTEND_TILE_RANGES_AT);
  const states = place(pc, ATTEND_TILE_STATE_AT);
  const logits = placeOrZero(pc, ATTEND_TILE_LOGITS_AT);
  const group = heads / kvHeads;
  const end = shareOf(rows * kvHeads, thread + 1);
  for (let item = shareOf(rows * kvHeads, thread); item < end; item++) {
    const m = item / kvHeads;
    const kv = item % kvHeads;
    const from = load<i32>(ranges + ((<usize>item) << 3));
    const to = load<i32>(ranges + ((<usize>item) << 3), 4);
    if (from < 0 || from > to || to > slots) {
      fail();
      return;
    }
    for (let start = from; start < to; ) {
      const stop = min<i32>(to, (start & ~(CHUNK - 1)) + CHUNK);
      const tile = ((<usize>kv * <usize>slots + <usize>start) * <usize>headDim) << 2;
      for (let h = kv * group; h < (kv + 1) * group; h++) {
        const q = <usize>m * <usize>heads + <usize>h;
        attendChunk(
          queries + ((<usize>m * <usize>ldQuery + <usize>h * <usize>headDim) << 2),
          keys + tile, values + tile, stop - start, headDim, scale,
          states + ((q * <usize>(headDim + 2)) << 2),
          logits == 0 ? 0 : logits + ((q * <usize>slots + <usize>start) << 2),
        );
      }
      start = stop;
    }
  }
}
