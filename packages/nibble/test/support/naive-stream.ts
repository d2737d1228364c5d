/**
 * One KV head with exact rows in plain arrays: the order of events of the cache without pages, codecs or RoPE, as an
 * oracle for retention policies and for streams.
 */
import type {
  AttentionStats,
  RetentionDefinition,
  StreamInfo,
  StreamPolicy,
} from "../../src/kv/contract.js";

export interface NaiveSlot {
  key: Float64Array;
  value: Float64Array;
  /** Position of the newest token in it. */
  position: number;
}

export interface NaiveOptions {
  headDim: number;
  /** Query heads that share the KV head. */
  heads: number;
  promptLength: number;
}

export class NaiveStream<O> {
  readonly policy: StreamPolicy;
  slots: NaiveSlot[] = [];
  /** What the policy was last told. */
  stats: AttentionStats | null = null;
  readonly #definition: RetentionDefinition<O>;
  readonly #options: O;
  readonly #shape: NaiveOptions;
  #length = 0;

  constructor(
    definition: RetentionDefinition<O>,
    options: unknown,
    shape: NaiveOptions,
    info: Partial<StreamInfo> = {},
  ) {
    this.#definition = definition;
    this.#options = definition.options.parse(options);
    this.#shape = shape;
    this.policy = definition.create(this.#options, {
      layer: 0,
      kvHead: 0,
      kvHeads: 1,
      headDim: shape.headDim,
      seed: 0,
      ...info,
    });
  }

  get positions(): number[] {
    return this.slots.map((slot) => slot.position);
  }

  /** queries [rows * heads, d], keys and values [rows, d]; @returns attention output [rows * heads, d] */
  step(queries: Float32Array, keys: Float32Array, values: Float32Array): Float64Array {
    const { headDim: d, heads, promptLength } = this.#shape;
    const rows = keys.length / d;
    const k = keys.slice();
    const v = values.slice();
    const decisions = this.policy.preAppend?.({ k, v, rows, position: this.#length });
    if (decisions && rows > 1) throw new Error("this oracle merges one row at a time");
    for (let r = 0; r < rows; r++) {
      const slot = {
        key: Float64Array.from(k.subarray(r * d, (r + 1) * d)),
        value: Float64Array.from(v.subarray(r * d, (r + 1) * d)),
        position: this.#length + r,
      };
      const decision = decisions?.[r] ?? "append";
      const last = this.slots.at(-1);
      if (decision === "append" || !last) this.slots.push(slot);
      else {
        const { oldWeight, newWeight } = decision.merge;
        const mix = (a: Float64Array, b: Float64Array) =>
          a.map((x, i) => oldWeight * x + newWeight * (b[i] as number));
        this.slots[this.slots.length - 1] = {
          key: mix(last.key, slot.key),
          value: mix(last.value, slot.value),
          position: slot.position,
        };
      }
    }
    const prompt = this.#length === 0;
    this.#length += rows;
    const live = this.slots.length;
    const logits = new Float32Array(rows * heads * live).fill(Number.NEGATIVE_INFINITY);
    const columns = new Float32Array(live);
    const out = new Float64Array(rows * heads * d);
    const aux = this.policy.auxPart?.(queries, rows * heads) ?? null;
    for (let q = 0; q < rows * heads; q++) {
      const end = live - rows + Math.floor(q / heads) + 1;
      const scores = this.slots.slice(0, end).map(({ key }) => {
        let dot = 0;
        for (let i = 0; i < d; i++) dot += (key[i] as number) * (queries[q * d + i] as number);
        return dot / Math.sqrt(d);
      });
      const max = Math.max(...scores, aux?.max[q] ?? Number.NEGATIVE_INFINITY);
      const weights = scores.map((x) => Math.exp(x - max));
      const sparse = weights.reduce((a, b) => a + b, 0);
      const shift = aux ? Math.exp((aux.max[q] as number) - max) : 0;
      const total = sparse + (aux ? shift * (aux.sum[q] as number) : 0);
      for (const [s, w] of weights.entries()) {
        logits[q * live + s] = scores[s] as number;
        // The score of a token uses the softmax over the rows alone, whatever an auxiliary part adds.
        columns[s] = (columns[s] as number) + w / sparse;
        for (let i = 0; i < d; i++) {
          out[q * d + i] =
            (out[q * d + i] as number) +
            (w * ((this.slots[s] as NaiveSlot).value[i] as number)) / total;
        }
      }
      if (aux) {
        for (let i = 0; i < d; i++) {
          out[q * d + i] =
            (out[q * d + i] as number) + (shift * (aux.acc[q * d + i] as number)) / total;
        }
      }
    }
    const want = this.#definition.stats(this.#options).kind;
    this.stats = {
      rows,
      position: this.#length - 1,
      live,
      prompt,
      more: false,
      promptLength,
      ...(want === "colSumProb" ? { columns } : {}),
      ...(want === "rawLogits" ? { logits, heads } : {}),
    };
    const plan = this.policy.afterAttend?.(this.stats) ?? null;
    const gone = new Set(plan?.evict ?? []);
    for (const i of gone) {
      const slot = this.slots[i] as NaiveSlot;
      this.policy.onEvict?.(Float32Array.from(slot.key), Float32Array.from(slot.value));
    }
    this.slots = this.slots.filter((_, i) => !gone.has(i));
    return out;
  }
}
