/** Exact rows of a plane (sinks, tail, scratch) in blocks of 32, so that room comes and goes with the rows. */

const BLOCK = 32;

export class RowBlocks {
  readonly #width: number;
  readonly #blocks: ({ data: Float32Array; used: number } | null)[] = [];
  /** No block before this one has room. */
  #hint = 0;

  constructor(width: number) {
    this.#width = width;
  }

  /** Number of a row that now holds source[at .. at + width). */
  add(source: Float32Array, at: number): number {
    let b = this.#hint;
    while (b < this.#blocks.length && this.#blocks[b]?.used === -1) b++;
    this.#hint = b;
    let block = this.#blocks[b];
    if (!block) {
      block = { data: new Float32Array(BLOCK * this.#width), used: 0 };
      this.#blocks[b] = block;
    }
    const i = Math.clz32(lowestBit(~block.used)) ^ 31;
    block.used |= 1 << i;
    const to = i * this.#width;
    for (let d = 0; d < this.#width; d++) block.data[to + d] = source[at + d] as number;
    return b * BLOCK + i;
  }

  free(row: number): void {
    const b = Math.floor(row / BLOCK);
    const block = this.#block(row);
    block.used &= ~(1 << (row % BLOCK));
    if (block.used === 0) this.#blocks[b] = null;
    while (this.#blocks.length > 0 && !this.#blocks.at(-1)) this.#blocks.pop();
    this.#hint = Math.min(this.#hint, b);
  }

  /** The row [width]; valid until it is freed. */
  row(row: number): Float32Array {
    const at = (row % BLOCK) * this.#width;
    return this.#block(row).data.subarray(at, at + this.#width);
  }

  /** Copies `count` values of a row from column `column` on to out[at..). */
  read(row: number, column: number, count: number, out: Float32Array, at: number): void {
    const { data } = this.#block(row);
    const from = (row % BLOCK) * this.#width + column;
    for (let d = 0; d < count; d++) out[at + d] = data[from + d] as number;
  }

  clone(): RowBlocks {
    const copy = new RowBlocks(this.#width);
    for (const block of this.#blocks) {
      copy.#blocks.push(block && { data: block.data.slice(), used: block.used });
    }
    copy.#hint = this.#hint;
    return copy;
  }

  get bytes(): number {
    let blocks = 0;
    for (const block of this.#blocks) if (block) blocks++;
    return blocks * BLOCK * this.#width * 4;
  }

  #block(row: number): { data: Float32Array; used: number } {
    const block = this.#blocks[Math.floor(row / BLOCK)];
    if (!block) throw new Error(`cache row ${row} is not in use`);
    return block;
  }
}

/** `bits` with everything but its lowest set bit cleared. */
function lowestBit(bits: number): number {
  return bits & -bits;
}
