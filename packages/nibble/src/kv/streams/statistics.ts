/**
 * Attention statistics of one stream, computed exactly from the scaled logits of each tile and the finished softmax:
 * what a policy asked for, and per head the largest recent probability of each slot when a codec asked for that.
 */
import type { StatRequest } from "../contract.js";
import type { TileAttender } from "./attender.js";

/** Probabilities of the last few query rows, largest over the heads of a group; one entry a live slot. */
class RecentRows {
  readonly #depth: number;
  readonly #rows: Float32Array[] = [];

  constructor(depth: number) {
    this.#depth = depth;
  }

  push(row: Float32Array): void {
    this.#rows.push(row);
    if (this.#rows.length > this.#depth) this.#rows.shift();
  }

  max(slot: number): number {
    let max = 0;
    for (const row of this.#rows) max = Math.max(max, row[slot] ?? 0);
    return max;
  }

  remove(slots: Int32Array): void {
    this.#rows.forEach((row, i) => {
      const gone = new Set(slots);
      this.#rows[i] = row.filter((_, slot) => !gone.has(slot));
    });
  }

  truncate(live: number): void {
    this.#rows.forEach((row, i) => {
      if (row.length > live) this.#rows[i] = row.slice(0, live);
    });
  }

  clone(): RecentRows {
    const copy = new RecentRows(this.#depth);
    for (const row of this.#rows) copy.#rows.push(row.slice());
    return copy;
  }

  get rows(): readonly Float32Array[] {
    return this.#rows;
  }
  restore(rows: Float32Array[]): void {
    this.#rows.splice(0, this.#rows.length, ...rows);
  }
}

export class Statistics {
  readonly policy: StatRequest;
  readonly #codecRows: number;
  /** KV heads of the stream and query heads of each. */
  readonly #kvHeads: number;
  readonly #groupHeads: number;
  /** One per KV head. */
  readonly #recent: RecentRows[];
  /** colSumProb over the parts of a step. */
  #columns = new Float64Array(0);
  #logits = new Float32Array(0);
  /** Per row and head: maximum of the logits, and one over the sum of the weights. */
  #norms = new Float32Array(0);
  #live = 0;

  constructor(policy: StatRequest, codecRows: number, kvHeads: number, groupHeads: number) {
    this.policy = policy;
    this.#codecRows = codecRows;
    this.#kvHeads = kvHeads;
    this.#groupHeads = groupHeads;
    const depth = this.depth;
    this.#recent = depth > 0 ? Array.from({ length: kvHeads }, () => new RecentRows(depth)) : [];
  }

  /** Query rows that are remembered. */
  get depth(): number {
    return Math.max(this.#codecRows, this.policy.kind === "colMaxProb" ? this.policy.lastRows : 0);
  }

  /** Whether the logits of the tiles are needed at all. */
  get needed(): boolean {
    return this.policy.kind !== "none" || this.#codecRows > 0;
  }

  /** Heads whose rows make up the logits of a query row. */
  get heads(): number {
    return this.#kvHeads * this.#groupHeads;
  }

  /** Slots of the rows that were begun. */
  get live(): number {
    return this.#live;
  }

  /** Before the tiles of `rows` query rows over `live` slots. */
  begin(rows: number, live: number): void {
    const size = rows * this.heads * live;
    if (this.#logits.length < size || this.#logits.length > 4 * size + 4096) {
      this.#logits = new Float32Array(size);
    }
    this.#logits.fill(Number.NEGATIVE_INFINITY, 0, size);
    this.#live = live;
  }

  /** Takes what the rows see of the tile that was just run and begins at slot `from`. */
  collect(attender: TileAttender, rows: number, from: number, firstKvHead: number): void {
    const { logits, ranges, slots, heads, kvHeads } = attender;
    for (let m = 0; m < rows; m++) {
      for (let h = 0; h < this.heads; h++) {
        const kv = firstKvHead + Math.floor(h / this.#groupHeads);
        const low = ranges[(m * kvHeads + kv) * 2] as number;
        const high = ranges[(m * kvHeads + kv) * 2 + 1] as number;
        const at = (m * heads + firstKvHead * this.#groupHeads + h) * slots;
        const to = (m * this.heads + h) * this.#live + from;
        for (let t = low; t < high; t++) this.#logits[to + t] = logits[at + t] as number;
      }
    }
  }

  /** After the last tile: keeps what turns logits into probabilities. */
  settle(attender: TileAttender, rows: number, firstKvHead: number): void {
    const { state, headDim, heads } = attender;
    this.#norms = new Float32Array(rows * this.heads * 2);
    for (let m = 0; m < rows; m++) {
      for (let h = 0; h < this.heads; h++) {
        const s = (m * heads + firstKvHead * this.#groupHeads + h) * (headDim + 2);
        const to = (m * this.heads + h) * 2;
        this.#norms[to] = state[s] as number;
        this.#norms[to + 1] = 1 / (state[s + 1] as number);
      }
    }
  }

  /**
   * Keeps some of the settled rows, and of their slots the first `committed` and those of the kept rows: what is left
   * of a draft. Row m of the draft stands at slot committed + m.
   */
  select(kept: Int32Array, committed: number): void {
    const before = this.#live;
    const live = committed + kept.length;
    const logits = new Float32Array(kept.length * this.heads * live);
    const norms = new Float32Array(kept.length * this.heads * 2);
    kept.forEach((m, i) => {
      for (let h = 0; h < this.heads; h++) {
        const from = (m * this.heads + h) * before;
        const to = (i * this.heads + h) * live;
        logits.set(this.#logits.subarray(from, from + committed), to);
        kept.forEach((other, j) => {
          logits[to + committed + j] = this.#logits[from + committed + other] as number;
        });
        const n = (m * this.heads + h) * 2;
        norms.set(this.#norms.subarray(n, n + 2), (i * this.heads + h) * 2);
      }
    });
    this.#logits = logits;
    this.#norms = norms;
    this.#live = live;
  }

  /** Adds the settled rows to what a policy or codec asked for. */
  finish(rows: number): void {
    const live = this.#live;
    if (this.#columns.length < live) {
      const columns = new Float64Array(live);
      columns.set(this.#columns);
      this.#columns = columns;
    }
    const wantSums = this.policy.kind === "colSumProb";
    const depth = this.depth;
    if (!wantSums && depth === 0) return;
    for (let m = wantSums ? 0 : Math.max(0, rows - depth); m < rows; m++) {
      for (let kv = 0; kv < this.#kvHeads; kv++) {
        const largest = m >= rows - depth ? new Float32Array(live) : null;
        for (let g = 0; g < this.#groupHeads; g++) {
          const h = m * this.heads + kv * this.#groupHeads + g;
          const max = this.#norms[2 * h] as number;
          const inverse = this.#norms[2 * h + 1] as number;
          for (let t = 0; t < live; t++) {
            const logit = this.#logits[h * live + t] as number;
            if (logit === Number.NEGATIVE_INFINITY) continue;
            const p = Math.exp(logit - max) * inverse;
            if (wantSums) this.#columns[t] = (this.#columns[t] as number) + p;
            if (largest && p > (largest[t] as number)) largest[t] = p;
          }
        }
        if (largest) this.#recent[kv]?.push(largest);
      }
    }
  }

  /** Logits of the part that was just finished [rows * heads, live]. */
  logitsOf(rows: number): Float32Array {
    return this.#logits.subarray(0, rows * this.heads * this.#live);
  }

  /** The columns a policy asked for [live]; sums start anew. */
  takeColumns(live: number): Float32Array | undefined {
    if (this.policy.kind === "colSumProb") {
      const columns = Float32Array.from(this.#columns.subarray(0, live));
      this.#columns = new Float64Array(0);
      return columns;
    }
    if (this.policy.kind !== "colMaxProb") return undefined;
    return Float32Array.from({ length: live }, (_, t) =>
      Math.max(...this.#recent.map((recent) => recent.max(t))),
    );
  }

  /** What a codec is told of slots from..from+n-1; null when it asked for nothing. */
  recentMax(head: number, from: number, n: number): Float32Array | null {
    const recent = this.#recent[head];
    if (this.#codecRows === 0 || !recent) return null;
    return Float32Array.from({ length: n }, (_, i) => recent.max(from + i));
  }

  remove(slots: Int32Array): void {
    for (const recent of this.#recent) recent.remove(slots);
  }
  truncate(live: number): void {
    for (const recent of this.#recent) recent.truncate(live);
  }

  fork(): Statistics {
    const copy = new Statistics(this.policy, this.#codecRows, this.#kvHeads, this.#groupHeads);
    this.#recent.forEach((recent, i) => {
      copy.#recent[i] = recent.clone();
    });
    return copy;
  }

  /** Rows that the next steps still look back on, per KV head. */
  get recentRows(): readonly (readonly Float32Array[])[] {
    return this.#recent.map((recent) => recent.rows);
  }
  restoreRecent(heads: Float32Array[][]): void {
    heads.forEach((rows, i) => {
      this.#recent[i]?.restore(rows);
    });
  }

  /** Bytes that stay between steps. */
  get bytes(): number {
    let bytes = 0;
    for (const { rows } of this.#recent) for (const row of rows) bytes += row.byteLength;
    return bytes;
  }
}
