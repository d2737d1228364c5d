/** Softmax attention straight over the packed pages, 128 positions at a time (docs/engine.md, section 5). */
import type { Cache } from "../decode.js";
import { ATTENTION_CHUNK, PAGE_TOKENS } from "../ops.js";
import { isIntCodec } from "../page-layout.js";
import type { Operands } from "../program.js";
import { KiviChunk } from "./kivi.js";
import { loadToken } from "./kv.js";
import type { Machine } from "./machine.js";
import { exp, Lane16 } from "./numerics.js";
import { pageOf, planeOf } from "./pages.js";

const f = Math.fround;
const lanes = new Lane16();

/** One chunk of keys and values of one sequence and KV head, decoded when a row first asks for a slot. */
class Chunk {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly keyScale = new Float32Array(ATTENTION_CHUNK);
  readonly keyZero = new Float32Array(ATTENTION_CHUNK);
  readonly valueScale = new Float32Array(ATTENTION_CHUNK);
  readonly valueZero = new Float32Array(ATTENTION_CHUNK);
  readonly #loaded = new Uint8Array(ATTENTION_CHUNK);
  #sequence = -1;

  constructor(
    readonly machine: Machine,
    readonly cache: Cache,
    readonly layer: number,
  ) {
    this.keys = new Float32Array(ATTENTION_CHUNK * cache.headDim);
    this.values = new Float32Array(ATTENTION_CHUNK * cache.headDim);
  }

  clear(): void {
    this.#sequence = -1;
  }

  /** Makes slots from..to (positions, inclusive, in one chunk) of a sequence available. */
  load(sequence: number, head: number, from: number, to: number): void {
    const { machine, cache: c } = this;
    if (sequence !== this.#sequence) this.#loaded.fill(0);
    this.#sequence = sequence;
    for (let position = from; position <= to; position++) {
      const t = position % ATTENTION_CHUNK;
      if (this.#loaded[t]) continue;
      const page = pageOf(machine, c, sequence, this.layer, position);
      const slot = position % PAGE_TOKENS;
      const at = t * c.headDim;
      const key = loadToken(machine, planeOf(c, page, head, true), slot, this.keys, at);
      const value = loadToken(machine, planeOf(c, page, head, false), slot, this.values, at);
      this.keyScale[t] = key.scale;
      this.keyZero[t] = key.zero;
      this.valueScale[t] = value.scale;
      this.valueZero[t] = value.zero;
      this.#loaded[t] = 1;
    }
  }
}

/** Running softmax of one query head: maximum, sum, accumulated values. */
interface State {
  max: number;
  sum: number;
  acc: Float32Array;
}

export function attention(machine: Machine, o: Operands<"attention">, rows: number): void {
  const c = machine.caches[o.cacheC];
  const { heads, kvHeads, headDim } = o;
  const positions = Array.from({ length: rows }, (_, m) =>
    machine.index(o.positionsAt, m, c.maxPages * PAGE_TOKENS),
  );
  const sequences = Array.from({ length: rows }, (_, m) =>
    machine.index(o.sequencesAt, m, c.slots),
  );
  const lastChunk = Math.floor(Math.max(...positions) / ATTENTION_CHUNK);
  const chunk = new Chunk(machine, c, o.layer);
  const kivi = c.residual > 0 ? new KiviChunk(machine, c, o.layer) : null;
  const part: State = { max: 0, sum: 0, acc: new Float32Array(headDim) };
  const states: State[] = [];
  for (let i = 0; i < rows * heads; i++) {
    states.push({ max: Number.NEGATIVE_INFINITY, sum: 0, acc: new Float32Array(headDim) });
  }
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    for (let index = 0; index <= lastChunk; index++) {
      chunk.clear();
      for (let m = 0; m < rows; m++) {
        const low = o.slidingWindow > 0 ? Math.max(0, positions[m] - o.slidingWindow + 1) : 0;
        const from = Math.max(low, index * ATTENTION_CHUNK);
        const to = Math.min(positions[m], index * ATTENTION_CHUNK + ATTENTION_CHUNK - 1);
        if (from > to) continue;
        if (kivi) kivi.load(sequences[m], kvHead, from, to, positions[m]);
        else chunk.load(sequences[m], kvHead, from, to);
        for (let h = 0; h < heads; h++) {
          if (Math.floor((h * kvHeads) / heads) !== kvHead) continue;
          attendChunk(machine, o, c, kivi ?? chunk, m * heads + h, from, to, part);
          merge(states[m * heads + h], part);
        }
      }
    }
  }
  for (let m = 0; m < rows; m++) {
    for (let h = 0; h < heads; h++) {
      const { sum, acc } = states[m * heads + h];
      const inverse = f(1 / sum);
      const dst = o.dstAt * 16 + m * o.ldDst + h * headDim;
      for (let d = 0; d < headDim; d++) machine.f32[dst + d] = acc[d] * inverse;
    }
  }
}

const scores = new Float32Array(ATTENTION_CHUNK);

/** One query head over the visible positions from..to of one chunk, into `part`. */
function attendChunk(
  machine: Machine,
  o: Operands<"attention">,
  c: Cache,
  chunk: Chunk | KiviChunk,
  query: number,
  from: number,
  to: number,
  part: State,
): void {
  const first = from % ATTENTION_CHUNK;
  const last = to % ATTENTION_CHUNK;
  if (chunk instanceof KiviChunk) {
    chunk.score(o.queryAt * 16 + query * o.headDim, first, last, scores);
  } else {
    score(machine, o, c, chunk, query, first, last);
  }
  part.max = Number.NEGATIVE_INFINITY;
  for (let t = first; t <= last; t++) {
    scores[t] *= o.softmaxScaleF;
    part.max = Math.max(part.max, scores[t]);
  }
  lanes.reset();
  for (let t = first; t <= last; t++) {
    scores[t] = exp(f(scores[t] - part.max));
    lanes.add(t, scores[t]);
  }
  part.sum = lanes.fold();
  const { acc } = part;
  if (chunk instanceof KiviChunk) {
    chunk.accumulate(scores, first, last, acc);
    return;
  }
  const { headDim } = o;
  const int = isIntCodec(c.valueCodec);
  acc.fill(0);
  lanes.reset();
  for (let t = first; t <= last; t++) {
    const weight = int ? f(scores[t] * chunk.valueScale[t]) : scores[t];
    const at = t * headDim;
    for (let d = 0; d < headDim; d++) acc[d] += f(weight * chunk.values[at + d]);
    lanes.add(t, f(scores[t] * chunk.valueZero[t]));
  }
  if (int) {
    const zero = lanes.fold();
    for (let d = 0; d < headDim; d++) acc[d] -= zero;
  }
}

/** Unscaled scores of slots first..last of the chunk. */
function score(
  { f32, i8, i32 }: Machine,
  o: Operands<"attention">,
  c: Cache,
  chunk: Chunk,
  query: number,
  first: number,
  last: number,
): void {
  const { headDim } = o;
  if (c.queryBits === 8) {
    const q = o.queryAt * 64 + query * headDim;
    const scale = f32[o.queryScaleAt * 16 + query];
    const scaledSum = f(scale * f(i32[o.querySumAt * 16 + query]));
    for (let t = first; t <= last; t++) {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += chunk.keys[t * headDim + d] * i8[q + d];
      const product = f(f(dot) * f(scale * chunk.keyScale[t]));
      scores[t] = product - f(scaledSum * chunk.keyZero[t]);
    }
    return;
  }
  const q = o.queryAt * 16 + query * headDim;
  lanes.reset();
  for (let d = 0; d < headDim; d++) lanes.add(d, f32[q + d]);
  const sum = lanes.fold();
  const int = isIntCodec(c.keyCodec);
  for (let t = first; t <= last; t++) {
    let dot = 0;
    for (let d = 0; d < headDim; d++) dot = f(dot + f(f32[q + d] * chunk.keys[t * headDim + d]));
    scores[t] = int ? f(dot * chunk.keyScale[t]) - f(sum * chunk.keyZero[t]) : dot;
  }
}

/** Adds the next chunk to the running softmax. */
function merge(state: State, part: State): void {
  const max = Math.max(state.max, part.max);
  const a = exp(f(state.max - max));
  const b = exp(f(part.max - max));
  state.max = max;
  state.sum = f(f(state.sum * a) + f(part.sum * b));
  for (let d = 0; d < state.acc.length; d++) {
    state.acc[d] = f(state.acc[d] * a) + f(part.acc[d] * b);
  }
}
