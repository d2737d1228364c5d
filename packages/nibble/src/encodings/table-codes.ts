/** Nearest codes in a table of values: what solvers of the `lut` encoding round with. */

/**
 * Sorted view of a table with thresholds halfway between neighbours. Equal values keep the lowest code only (of +0 and -0
 * that is +0), entries that are not finite are never chosen.
 */
export class TableRounder {
  readonly #codes: Uint8Array;
  readonly #limits: Float32Array;
  /** A value on limit i goes up (1) or stays below (0). */
  readonly #tieUp: Uint8Array;
  /** Largest and smallest value of the table. */
  readonly max: number;
  readonly min: number;

  /** @param ties on a threshold: the smaller value, or the even code (small floats: even mantissa) */
  constructor(values: Float32Array, ties: "lower" | "even") {
    const order = Array.from(values.keys())
      .filter((code) => Number.isFinite(values[code]))
      .sort((a, b) => values[a] - values[b] || a - b)
      .filter((code, i, all) => i === 0 || values[code] !== values[all[i - 1]]);
    this.#codes = Uint8Array.from(order);
    const last = order.length - 1;
    this.#limits = new Float32Array(last);
    this.#tieUp = new Uint8Array(last);
    for (let i = 0; i < last; i++) {
      this.#limits[i] = (values[order[i]] + values[order[i + 1]]) / 2;
      this.#tieUp[i] = ties === "even" && order[i] % 2 === 1 ? 1 : 0;
    }
    this.max = values[order[last]];
    this.min = values[order[0]];
  }

  /** Code of the nearest value; x beyond the table gets the last one. */
  code(x: number): number {
    const limits = this.#limits;
    let low = 0;
    let high = limits.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const limit = limits[middle];
      if (x > limit || (x === limit && this.#tieUp[middle] === 1)) low = middle + 1;
      else high = middle;
    }
    return this.#codes[low];
  }
}
