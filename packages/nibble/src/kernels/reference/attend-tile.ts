/** Attention of f32 queries over one decoded tile of keys and values, into a running softmax (docs/engine.md, section 5). */
import { ATTENTION_CHUNK } from "../ops.js";
import type { Operands } from "../program.js";
import { Fault, type Machine } from "./machine.js";
import { exp, Lane16 } from "./numerics.js";

const f = Math.fround;
const lanes = new Lane16();
const scores = new Float32Array(ATTENTION_CHUNK);

/** Sizes and places (indices of elements) of one call. */
export interface TileShape {
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Slots a tile has room for. */
  slots: number;
  scale: number;
}

export interface TileBuffers {
  /** [rows, ldQuery]. */
  queries: Float32Array;
  ldQuery: number;
  /** [kvHeads, slots, headDim]. */
  keys: Float32Array;
  values: Float32Array;
  /** [rows, kvHeads, 2]: first slot and end of what a row sees. */
  ranges: Int32Array;
  /** [rows, heads, headDim + 2]: maximum, sum, accumulated values. */
  state: Float32Array;
  /** [rows, heads, slots] scaled scores of what a row sees; null: not wanted. */
  logits: Float32Array | null;
}

/** @returns false when a range is impossible */
export function attendTileRows(shape: TileShape, buffers: TileBuffers, rows: number): boolean {
  const { heads, kvHeads, slots } = shape;
  const { ranges } = buffers;
  for (let m = 0; m < rows; m++) {
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor((h * kvHeads) / heads);
      const from = ranges[(m * kvHeads + kvHead) * 2] as number;
      const to = ranges[(m * kvHeads + kvHead) * 2 + 1] as number;
      if (!(from >= 0 && from <= to && to <= slots)) return false;
      for (let start = from; start < to; ) {
        const end = Math.min(to, start - (start % ATTENTION_CHUNK) + ATTENTION_CHUNK);
        attendChunk(shape, buffers, m, h, kvHead * slots, start, end);
        start = end;
      }
    }
  }
  return true;
}

function attendChunk(
  { heads, headDim, slots, scale }: TileShape,
  { queries, ldQuery, keys, values, state, logits }: TileBuffers,
  m: number,
  h: number,
  tile: number,
  start: number,
  end: number,
): void {
  const q = m * ldQuery + h * headDim;
  const offset = start - (start % ATTENTION_CHUNK);
  let max = Number.NEGATIVE_INFINITY;
  for (let t = start; t < end; t++) {
    const at = (tile + t) * headDim;
    let dot = 0;
    for (let d = 0; d < headDim; d++) {
      dot = f(dot + f((queries[q + d] as number) * (keys[at + d] as number)));
    }
    const score = f(dot * scale);
    if (logits) logits[(m * heads + h) * slots + t] = score;
    scores[t - offset] = score;
    max = Math.max(max, score);
  }
  const s = (m * heads + h) * (headDim + 2);
  const newMax = Math.max(state[s] as number, max);
  const a = exp(f((state[s] as number) - newMax));
  const b = exp(f(max - newMax));
  lanes.reset();
  for (let t = start - offset; t < end - offset; t++) {
    scores[t] = exp(f((scores[t] as number) - max));
    lanes.add(t, scores[t] as number);
  }
  state[s] = newMax;
  state[s + 1] = f(f((state[s + 1] as number) * a) + f(lanes.fold() * b));
  for (let d = 0; d < headDim; d++) {
    let sum = 0;
    for (let t = start; t < end; t++) {
      const value = values[(tile + t) * headDim + d] as number;
      sum = f(sum + f((scores[t - offset] as number) * value));
    }
    state[s + 2 + d] = f(f((state[s + 2 + d] as number) * a) + f(sum * b));
  }
}

export function attendTile(machine: Machine, o: Operands<"attendTile">, rows: number): void {
  const { f32, i32 } = machine;
  const shape = { ...o, scale: o.softmaxScaleF };
  const fine = attendTileRows(
    shape,
    {
      queries: f32.subarray(o.queryAt * 16),
      ldQuery: o.ldQuery,
      keys: f32.subarray(o.keysAt * 16),
      values: f32.subarray(o.valuesAt * 16),
      ranges: i32.subarray(o.rangesAt * 16),
      state: f32.subarray(o.stateAt * 16),
      logits: o.logitsAt < 0 ? null : f32.subarray(o.logitsAt * 16),
    },
    rows,
  );
  if (!fine) throw new Fault();
}
