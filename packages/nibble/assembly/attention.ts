/**
 * attention (Q4): softmax attention straight over the packed pages (docs/engine.md, section 5), in chunks of 128 slots that
 * are merged in rising order. A block is up to 32 queries that share a KV head and a sequence (rows x heads of the group):
 * keys of a half-panel and values of a page are unpacked once for all of them. v1.
 *
 * Work: blocks over tickets; with few blocks (decode) single (row, KV head, chunk) items, whose parts a second phase merges
 * in the same order, so the bits do not depend on the way.
 */
import { openCache, positionLimit, residual, slotLimit } from "./cache";
import { fail, operand, place, scratch, thread, threads } from "./control";
import { rowAt } from "./elementwise";
import {
  addValues, finishHead, loadPages, openBlock, prepareQueries, scoreKeys, softmaxChunk, chunkAcc, chunkMax, chunkSum,
  accStride, queryLimit, blockQueries,
} from "./attention-chunk";
import { exp1 } from "./math";
import {
  ATTENTION_CACHE_C, ATTENTION_DST_AT, ATTENTION_HEADS, ATTENTION_HEAD_DIM, ATTENTION_KV_HEADS, ATTENTION_LD_DST,
  ATTENTION_PARTS_AT, ATTENTION_PARTS_LINES, ATTENTION_POSITIONS_AT, ATTENTION_SEQUENCES_AT,
  ATTENTION_SLIDING_WINDOW,
} from "./ops";

/** acc = acc * a + part * b over `count` floats. */
function blend(acc: usize, part: usize, a: f32, b: f32, count: i32): void {
  const a4 = f32x4.splat(a);
  const b4 = f32x4.splat(b);
  for (let i: usize = 0; i < ((<usize>count) << 2); i += 16) {
    v128.store(acc + i, f32x4.add(f32x4.mul(v128.load(acc + i), a4), f32x4.mul(v128.load(part + i), b4)));
  }
}

/** Merges one chunk into the running softmax (state: max, sum). */
function merge(state: usize, acc: usize, mx: f32, sum: f32, part: usize, count: i32): void {
  const old = load<f32>(state);
  const top = max<f32>(old, mx);
  const a = exp1(old - top);
  const b = exp1(mx - top);
  store<f32>(state, top);
  store<f32>(state, load<f32>(state, 4) * a + sum * b, 4);
  blend(acc, part, a, b, count);
}

// @ts-ignore: decorator
@inline
function wordAt(at: usize, m: i32): i32 {
  return load<i32>(at + ((<usize>m) << 2));
}

// @ts-ignore: decorator
@inline
function lowest(position: i32, window: i32): i32 {
  return window > 0 ? max<i32>(0, position - window + 1) : 0;
}

/** All chunks of one block: rows m0..m1 of one sequence, heads h0..h1 of one KV head. */
function runBlock(pc: usize, m0: i32, m1: i32, kvHead: i32, h0: i32, h1: i32): void {
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const window = operand(pc, ATTENTION_SLIDING_WINDOW);
  const headDim = operand(pc, ATTENTION_HEAD_DIM);
  const state = openBlock(pc, m0, m1, kvHead, h0, h1);
  const acc = state + <usize>blockQueries * 8;
  for (let q = 0; q < blockQueries; q++) {
    store<f32>(state + <usize>q * 8, -Infinity);
    store<f32>(state + <usize>q * 8, 0, 4);
  }
  memory.fill(acc, 0, <usize>blockQueries * accStride);
  prepareQueries();
  let first = i32.MAX_VALUE;
  let last = 0;
  for (let m = m0; m < m1; m++) {
    const p = wordAt(positions, m);
    first = min<i32>(first, lowest(p, window));
    last = max<i32>(last, p);
  }
  const heads = h1 - h0;
  for (let chunk = first >> 7; chunk <= last >> 7; chunk++) {
    if (!loadPages(chunk)) return;
    scoreKeys();
    softmaxChunk();
    addValues();
    for (let q = 0; q < blockQueries; q++) {
      const p = wordAt(positions, m0 + q / heads);
      if (p < chunk << 7 || lowest(p, window) > (chunk << 7) + 127) continue;
      const part = <usize>q;
      merge(
        state + part * 8, acc + part * accStride,
        load<f32>(chunkMax + (part << 2)), load<f32>(chunkSum + (part << 2)),
        chunkAcc + part * accStride, headDim,
      );
    }
  }
  for (let q = 0; q < blockQueries; q++) {
    const dst = rowAt(place(pc, ATTENTION_DST_AT), m0 + q / heads, operand(pc, ATTENTION_LD_DST));
    finishHead(
      rowAt(dst, h0 + (q % heads), headDim),
      acc + <usize>q * accStride, load<f32>(state + <usize>q * 8, 4), headDim,
    );
  }
}

/** Bytes of the part of one query head. */
// @ts-ignore: decorator
@inline
function partBytes(headDim: i32): usize {
  return (<usize>(2 + headDim)) << 2;
}

/** Chunks a row sees. */
// @ts-ignore: decorator
@inline
function chunksOf(position: i32, window: i32): i32 {
  return (position >> 7) - (lowest(position, window) >> 7) + 1;
}

/** First phase: (row, KV head, chunk) items; part number `item` belongs to all heads of the group. */
function runParts(pc: usize, rows: i32): void {
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const window = operand(pc, ATTENTION_SLIDING_WINDOW);
  const headDim = operand(pc, ATTENTION_HEAD_DIM);
  const kvHeads = operand(pc, ATTENTION_KV_HEADS);
  const group = operand(pc, ATTENTION_HEADS) / kvHeads;
  const parts = place(pc, ATTENTION_PARTS_AT);
  const bytes = partBytes(headDim);
  const step = queryLimit(headDim);
  let item = 0;
  for (let m = 0; m < rows; m++) {
    const p = wordAt(positions, m);
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      for (let chunk = lowest(p, window) >> 7; chunk <= p >> 7; chunk++) {
        if (item % threads == thread) {
          for (let h = 0; h < group; h += step) {
            const h0 = kvHead * group + h;
            openBlock(pc, m, m + 1, kvHead, h0, min<i32>(h0 + step, (kvHead + 1) * group));
            prepareQueries();
            if (!loadPages(chunk)) break;
            scoreKeys();
            softmaxChunk();
            addValues();
            for (let q: usize = 0; q < <usize>blockQueries; q++) {
              const to = parts + (<usize>(item * group + h) + q) * bytes;
              store<f32>(to, load<f32>(chunkMax + (q << 2)));
              store<f32>(to, load<f32>(chunkSum + (q << 2)), 4);
              memory.copy(to + 8, chunkAcc + q * accStride, (<usize>headDim) << 2);
            }
          }
        }
        item++;
      }
    }
  }
}

/** Second phase: merges the parts of each head in rising chunk order. */
function mergeParts(pc: usize, rows: i32): void {
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const window = operand(pc, ATTENTION_SLIDING_WINDOW);
  const headDim = operand(pc, ATTENTION_HEAD_DIM);
  const kvHeads = operand(pc, ATTENTION_KV_HEADS);
  const group = operand(pc, ATTENTION_HEADS) / kvHeads;
  const parts = place(pc, ATTENTION_PARTS_AT);
  const bytes = partBytes(headDim);
  // Scratch: state, then the merged head.
  const acc = scratch + 64;
  let done = 0;
  let item = 0;
  for (let m = 0; m < rows; m++) {
    const chunks = chunksOf(wordAt(positions, m), window);
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      for (let h = 0; h < group; h++) {
        if (done++ % threads != thread) continue;
        store<f32>(scratch, -Infinity);
        store<f32>(scratch, 0, 4);
        memory.fill(acc, 0, (<usize>headDim) << 2);
        for (let chunk = 0; chunk < chunks; chunk++) {
          const part = parts + <usize>((item + chunk) * group + h) * bytes;
          merge(scratch, acc, load<f32>(part), load<f32>(part, 4), part + 8, headDim);
        }
        const dst = rowAt(place(pc, ATTENTION_DST_AT), m, operand(pc, ATTENTION_LD_DST));
        finishHead(rowAt(dst, kvHead * group + h, headDim), acc, load<f32>(scratch, 4), headDim);
      }
      item += chunks;
    }
  }
}

/** Whether all positions and slots are in range; every ticket asks this for all rows, so that all go the same way. */
function rowsAreValid(pc: usize, rows: i32): bool {
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const sequences = place(pc, ATTENTION_SEQUENCES_AT);
  for (let m = 0; m < rows; m++) {
    if (<u32>wordAt(positions, m) >= <u32>positionLimit()) return false;
    if (<u32>wordAt(sequences, m) >= <u32>slotLimit()) return false;
  }
  return true;
}

/** Whether single chunks are dealt out: few rows, more than one chunk to see, and room for the parts. */
function usesParts(pc: usize, rows: i32, tickets: i32): bool {
  const kvHeads = operand(pc, ATTENTION_KV_HEADS);
  if (tickets == 1 || rows * kvHeads >= 4 * tickets) return false;
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const window = operand(pc, ATTENTION_SLIDING_WINDOW);
  let chunks = 0;
  for (let m = 0; m < rows; m++) chunks += chunksOf(wordAt(positions, m), window);
  const partsLines = operand(pc, ATTENTION_PARTS_LINES);
  if (chunks == rows || partsLines <= 0) return false;
  const heads = <u64>operand(pc, ATTENTION_HEADS);
  return <u64>chunks * heads * <u64>partBytes(operand(pc, ATTENTION_HEAD_DIM)) <= (<u64>partsLines) << 6;
}

/** Phases of the instruction in this run, after its first phase found all rows valid. */
export function attentionPhases(pc: usize, program: usize, rows: i32, tickets: i32): i32 {
  return usesParts(pc, rows, tickets) ? 2 : 1;
}

/** Whether rows m and n of one sequence read the same keys as codes (kivi; always for other codecs). */
// @ts-ignore: decorator
@inline
function sameCodedKeys(positions: usize, m: i32, n: i32): bool {
  const exact = residual();
  return exact == 0 || wordAt(positions, m) / exact == wordAt(positions, n) / exact;
}

export function attention(pc: usize, program: usize, rows: i32, phase: i32): void {
  openCache(program, operand(pc, ATTENTION_CACHE_C));
  if (phase == 1) return mergeParts(pc, rows);
  if (!rowsAreValid(pc, rows)) return fail();
  if (usesParts(pc, rows, threads)) return runParts(pc, rows);
  const positions = place(pc, ATTENTION_POSITIONS_AT);
  const sequences = place(pc, ATTENTION_SEQUENCES_AT);
  const kvHeads = operand(pc, ATTENTION_KV_HEADS);
  const group = operand(pc, ATTENTION_HEADS) / kvHeads;
  const limit = queryLimit(operand(pc, ATTENTION_HEAD_DIM));
  const step = min<i32>(group, limit);
  const rowStep = max<i32>(1, limit / step);
  let item = 0;
  for (let m0 = 0; m0 < rows; ) {
    const sequence = wordAt(sequences, m0);
    let m1 = m0 + 1;
    while (
      m1 < rows && m1 < m0 + rowStep && wordAt(sequences, m1) == sequence && sameCodedKeys(positions, m0, m1)
    ) m1++;
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      const stop = (kvHead + 1) * group;
      for (let h = kvHead * group; h < stop; h += step) {
        // Later rows see more: dealing blocks in turn balances the tickets.
        if (item++ % threads == thread) runBlock(pc, m0, m1, kvHead, h, min<i32>(h + step, stop));
      }
    }
    m0 = m1;
  }
}
