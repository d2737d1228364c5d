/**
 * Keys, values and queries of one layer on calibration text, for codecs of the cache that learn from them. Bounded memory:
 * a seeded sample of the tokens is kept, and attention is computed for a few queries of each window only.
 */
import { Philox } from "../core/rng.js";
import { PAGE_TOKENS } from "../kernels/ops.js";
import { keyFloatIndex } from "../kernels/page-layout.js";
import { valueAtRank } from "../linalg/order.js";
import type { ModelConfig } from "../model/config.js";
import { ropeTables } from "../model/rope.js";
import type { BlockRunner, CacheChunk } from "./block-runner.js";

/** What a codec learns from: one layer of the model on calibration text, sampled tokens. */
export interface CalibrationSamples {
  kvHeads: number;
  headDim: number;
  /** Sampled tokens. */
  rows: number;
  /** Keys before RoPE, and values [rows, kvHeads * headDim]. */
  keys: Float32Array;
  values: Float32Array;
  /** Place of each token in its window [rows]. */
  positions: Int32Array;
  /** Sum over sampled queries of the squared attention probability a token received, per KV head [rows, kvHeads]. */
  attention: Float64Array;
  /** Mean square of the query channels that meet a key channel, both of a RoPE pair [kvHeads * headDim]. */
  queries: Float64Array;
  /** 90 % quantile of the squared norm of a query, per KV head [kvHeads]. */
  queryNorm: Float32Array;
}

export interface KvSamplerOptions {
  windows: number;
  seqlen: number;
  seed: number;
  /** Bytes of the keys and values that are kept of a layer. */
  maxBytes?: number;
  /** Queries of a window whose attention is computed. */
  queries?: number;
}

const MAX_BYTES = 2 ** 28;
const QUERIES = 32;
const QUERY_QUANTILE = 0.9;

/** The same tokens and queries are sampled of every layer. */
export class KvSampler {
  readonly #config: ModelConfig;
  readonly #seqlen: number;
  readonly #rope: { cos: Float32Array; sin: Float32Array };
  /** Place of each token among the samples, -1 when it is not one [windows * seqlen]. */
  readonly #place: Int32Array;
  readonly #rows: number;
  /** 1 for tokens whose query's attention is computed [windows * seqlen]. */
  readonly #asks: Uint8Array;

  constructor(config: ModelConfig, options: KvSamplerOptions) {
    const { windows, seqlen, seed, maxBytes = MAX_BYTES, queries = QUERIES } = options;
    this.#config = config;
    this.#seqlen = seqlen;
    this.#rope = ropeTables(config, seqlen);
    const tokens = windows * seqlen;
    const rowBytes = 8 * config.numKeyValueHeads * config.headDim;
    this.#rows = Math.max(1, Math.min(tokens, Math.floor(maxBytes / rowBytes)));
    const rng = new Philox(seed, "kv-samples");
    this.#place = new Int32Array(tokens).fill(-1);
    for (const [i, token] of sample(rng, tokens, this.#rows).entries()) this.#place[token] = i;
    this.#asks = new Uint8Array(tokens);
    for (let w = 0; w < windows; w++) {
      for (const q of sample(rng, seqlen, Math.min(queries, seqlen)))
        this.#asks[w * seqlen + q] = 1;
    }
  }

  /** Runs a layer and moves the runner on. The runner's cache must be fp32. */
  async collect(runner: BlockRunner, layer: number): Promise<CalibrationSamples> {
    const { numKeyValueHeads: kvHeads, numAttentionHeads: heads, headDim } = this.#config;
    const width = kvHeads * headDim;
    const perHead = heads / kvHeads;
    const out: CalibrationSamples = {
      kvHeads,
      headDim,
      rows: this.#rows,
      keys: new Float32Array(this.#rows * width),
      values: new Float32Array(this.#rows * width),
      positions: new Int32Array(this.#rows),
      attention: new Float64Array(this.#rows * kvHeads),
      queries: new Float64Array(width),
      queryNorm: new Float32Array(kvHeads),
    };
    const norms = Array.from({ length: kvHeads }, () => new Float32Array(this.#rows * perHead));
    const slidingWindow = this.#config.slidingWindow[layer] ?? null;
    await runner.advance(layer, (chunk) => {
      for (let row = 0; row < chunk.rows; row++) {
        const token = this.#token(chunk, row);
        const place = this.#place[token] as number;
        if (place >= 0) {
          this.#keep(chunk, row, place, out);
          this.#keepQuery(chunk, row, place, out, norms);
        }
        if (this.#asks[token] === 1) this.#attend(chunk, row, slidingWindow, out);
      }
    });
    const count = this.#rows * perHead;
    for (let c = 0; c < width; c++) out.queries[c] = (out.queries[c] as number) / count;
    const rank = Math.min(count - 1, Math.floor(QUERY_QUANTILE * count));
    for (const [head, values] of norms.entries()) out.queryNorm[head] = valueAtRank(values, rank);
    return out;
  }

  #token({ windows, positions }: CacheChunk, row: number): number {
    return (windows[row] as number) * this.#seqlen + (positions[row] as number);
  }

  /** Key (turned back) and value of one token. */
  #keep(chunk: CacheChunk, row: number, place: number, out: CalibrationSamples): void {
    const { kvHeads, headDim } = out;
    const window = chunk.windows[row] as number;
    const position = chunk.positions[row] as number;
    const [page, slot] = [Math.floor(position / PAGE_TOKENS), position % PAGE_TOKENS];
    const half = headDim / 2;
    out.positions[place] = position;
    for (let h = 0; h < kvHeads; h++) {
      const at = (place * kvHeads + h) * headDim;
      const keys = chunk.keys(window, page, h);
      const values = chunk.values(window, page, h);
      out.values.set(values.subarray(slot * headDim, (slot + 1) * headDim), at);
      for (let i = 0; i < half; i++) {
        const a = keys[keyFloatIndex(headDim, slot, i)] as number;
        const b = keys[keyFloatIndex(headDim, slot, i + half)] as number;
        const cos = this.#rope.cos[position * half + i] as number;
        const sin = this.#rope.sin[position * half + i] as number;
        // The tables hold the attention factor: its square is what is left.
        const square = cos * cos + sin * sin;
        out.keys[at + i] = (a * cos + b * sin) / square;
        out.keys[at + i + half] = (b * cos - a * sin) / square;
      }
    }
  }

  #keepQuery(
    { queries }: CacheChunk,
    row: number,
    place: number,
    out: CalibrationSamples,
    norms: Float32Array[],
  ): void {
    const { numAttentionHeads: heads } = this.#config;
    const { kvHeads, headDim } = out;
    const perHead = heads / kvHeads;
    const half = headDim / 2;
    for (let h = 0; h < heads; h++) {
      const at = (row * heads + h) * headDim;
      const kvHead = Math.floor(h / perHead);
      let norm = 0;
      for (let i = 0; i < half; i++) {
        const pair = (queries[at + i] as number) ** 2 + (queries[at + i + half] as number) ** 2;
        norm += pair;
        for (const c of [kvHead * headDim + i, kvHead * headDim + i + half]) {
          out.queries[c] = (out.queries[c] as number) + pair / 2;
        }
      }
      (norms[kvHead] as Float32Array)[place * perHead + (h % perHead)] = norm;
    }
  }

  /** Adds the squared attention of one query (all heads) to the sampled tokens it looks at. */
  #attend(
    chunk: CacheChunk,
    row: number,
    slidingWindow: number | null,
    out: CalibrationSamples,
  ): void {
    const { numAttentionHeads: heads } = this.#config;
    const { kvHeads, headDim } = out;
    const window = chunk.windows[row] as number;
    const position = chunk.positions[row] as number;
    const from = slidingWindow === null ? 0 : Math.max(0, position - slidingWindow + 1);
    const scores = new Float32Array((Math.floor(position / PAGE_TOKENS) + 1) * PAGE_TOKENS);
    const scale = 1 / Math.sqrt(headDim);
    for (let h = 0; h < heads; h++) {
      const kvHead = Math.floor((h * kvHeads) / heads);
      const query = chunk.queries.subarray(
        (row * heads + h) * headDim,
        (row * heads + h + 1) * headDim,
      );
      for (let page = Math.floor(from / PAGE_TOKENS); page * PAGE_TOKENS <= position; page++) {
        pageScores(chunk.keys(window, page, kvHead), query, scores, page * PAGE_TOKENS);
      }
      let max = Number.NEGATIVE_INFINITY;
      for (let t = from; t <= position; t++) max = Math.max(max, scores[t] as number);
      let sum = 0;
      for (let t = from; t <= position; t++) {
        const e = Math.exp(((scores[t] as number) - max) * scale);
        scores[t] = e;
        sum += e;
      }
      for (let t = from; t <= position; t++) {
        const place = this.#place[window * this.#seqlen + t] as number;
        if (place < 0) continue;
        const i = place * kvHeads + kvHead;
        out.attention[i] = (out.attention[i] as number) + ((scores[t] as number) / sum) ** 2;
      }
    }
  }
}

/** `count` of the numbers below `total`, rising, each set equally likely (selection sampling: Knuth, algorithm S). */
function sample(rng: Philox, total: number, count: number): Int32Array {
  const out = new Int32Array(count);
  let taken = 0;
  for (let i = 0; taken < count; i++) {
    if (rng.uniform() * (total - i) < count - taken) out[taken++] = i;
  }
  return out;
}

/** Dot products of a query with the 32 keys of a page, to scores[at ..]. */
function pageScores(
  keys: Float32Array,
  query: Float32Array,
  scores: Float32Array,
  at: number,
): void {
  const d = query.length;
  scores.fill(0, at, at + PAGE_TOKENS);
  for (let half = 0; half < 2; half++) {
    for (let i = 0; i < d; i++) {
      const q = query[i] as number;
      const from = (half * d + i) * 16;
      const to = at + half * 16;
      for (let t = 0; t < 16; t++)
        scores[to + t] = (scores[to + t] as number) + q * (keys[from + t] as number);
    }
  }
}
