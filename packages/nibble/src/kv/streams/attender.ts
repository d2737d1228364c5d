/**
 * What computes attention over one decoded tile: buffers that a stream fills, and a run that adds the tile to a running
 * softmax per query row and head. The engine's is in runtime/; this one works in plain TypeScript.
 */
import { attendTileRows } from "../../kernels/reference/attend-tile.js";

export interface TileAttender {
  readonly maxRows: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Slots of a tile. */
  readonly slots: number;
  /** [maxRows, heads * headDim]. */
  readonly queries: Float32Array;
  /** [kvHeads, slots, headDim]. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** [maxRows, kvHeads, 2]: first slot of the tile that a row sees, and the end. */
  readonly ranges: Int32Array;
  /** [maxRows, heads, headDim + 2]: maximum, sum, accumulated values. */
  readonly state: Float32Array;
  /** [maxRows, heads, slots]: scaled scores of the last run that wanted them; only what a row sees is written. */
  readonly logits: Float32Array;
  run(rows: number, logits: boolean): void | Promise<void>;
}

/** Empties the running softmax of `rows` rows. */
export function beginRows(attender: TileAttender, rows: number): void {
  const { state, heads, headDim } = attender;
  const stride = headDim + 2;
  const used = rows * heads * stride;
  state.fill(0, 0, used);
  for (let at = 0; at < used; at += stride) state[at] = Number.NEGATIVE_INFINITY;
}

export interface AttenderShape {
  maxRows: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  slots: number;
}

export class DenseAttender implements TileAttender {
  readonly maxRows: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly slots: number;
  readonly queries: Float32Array;
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly ranges: Int32Array;
  readonly state: Float32Array;
  readonly logits: Float32Array;

  constructor(shape: AttenderShape) {
    const { maxRows, heads, kvHeads, headDim, slots } = shape;
    this.maxRows = maxRows;
    this.heads = heads;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.slots = slots;
    this.queries = new Float32Array(maxRows * heads * headDim);
    this.keys = new Float32Array(kvHeads * slots * headDim);
    this.values = new Float32Array(kvHeads * slots * headDim);
    this.ranges = new Int32Array(maxRows * kvHeads * 2);
    this.state = new Float32Array(maxRows * heads * (headDim + 2));
    this.logits = new Float32Array(maxRows * heads * slots);
  }

  run(rows: number, logits: boolean): void {
    const { heads, kvHeads, headDim, slots } = this;
    const scale = Math.fround(1 / Math.sqrt(headDim));
    const buffers = { ...this.#buffers(), logits: logits ? this.logits : null };
    if (!attendTileRows({ heads, kvHeads, headDim, slots, scale }, buffers, rows)) {
      throw new Error("a row sees slots outside its tile");
    }
  }

  #buffers() {
    const { queries, keys, values, ranges, state, heads, headDim } = this;
    return { queries, ldQuery: heads * headDim, keys, values, ranges, state };
  }
}
