/** Accumulated scores, one f32 a live slot: what H2O and Keyformer remember of a stream. */
import { FormatError } from "../../core/errors.js";

/** Bytes before the scores in a snapshot: number of slots and of rows seen. */
const HEADER = 8;

export class SlotScores {
  #values = new Float32Array(64);
  /** For each slot, how many query rows came before those that could see it. */
  #born = new Uint32Array(64);
  #live = 0;
  #rows = 0;
  /** Rows of the present step that are still to come. */
  #due = 0;

  /** Scores of the live slots; valid until the next change. */
  get values(): Float32Array {
    return this.#values.subarray(0, this.#live);
  }

  get bytes(): number {
    return this.#live * 8 + HEADER;
  }

  /**
   * Takes in a step, each row of which appended a slot, or a part of one: `added` [live] is what each slot received from
   * `rows` rows.
   * @param more more rows of the same step follow
   * @throws Error when slots came or went without this object being told
   */
  add(added: ArrayLike<number>, rows: number, more: boolean): void {
    const live = added.length;
    this.#due += live - this.#live - rows;
    if (live < this.#live || (more ? this.#due <= 0 : this.#due !== 0)) {
      throw new Error(`${this.#live} scored slots and ${rows} new rows do not make ${live} slots`);
    }
    this.#grow(live);
    this.#values.fill(0, this.#live, live);
    for (let i = this.#live; i < live; i++) this.#born[i] = this.#rows + i - this.#live;
    for (let i = 0; i < live; i++)
      this.#values[i] = (this.#values[i] as number) + (added[i] as number);
    this.#live = live;
    this.#rows += rows;
  }

  /** Scores divided by the number of rows that saw the slot. */
  averages(): Float32Array {
    return this.values.map((value, i) => value / (this.#rows - (this.#born[i] as number)));
  }

  /** Forgets the slots of `evict` (ascending). */
  remove(evict: Int32Array): void {
    let to = 0;
    let next = 0;
    for (let i = 0; i < this.#live; i++) {
      if (evict[next] === i) {
        next++;
        continue;
      }
      this.#values[to] = this.#values[i] as number;
      this.#born[to++] = this.#born[i] as number;
    }
    this.#live = to;
  }

  /** Little endian: u32 live, u32 rows seen, f32 scores [live], u32 birth [live]. */
  snapshot(): Uint8Array {
    const view = new DataView(new ArrayBuffer(HEADER + this.#live * 8));
    view.setUint32(0, this.#live, true);
    view.setUint32(4, this.#rows, true);
    for (let i = 0; i < this.#live; i++) {
      view.setFloat32(HEADER + 4 * i, this.#values[i] as number, true);
      view.setUint32(HEADER + 4 * (this.#live + i), this.#born[i] as number, true);
    }
    return new Uint8Array(view.buffer);
  }

  /** @throws FormatError when the bytes are no snapshot of such scores; nothing is changed then */
  restore(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const live = bytes.length >= HEADER ? view.getUint32(0, true) : 0;
    if (bytes.length < HEADER || bytes.length !== HEADER + live * 8) {
      throw new FormatError(
        `the state of a retention policy has ${bytes.length} bytes, which ${live} slots do not make`,
        { hint: "The snapshot is damaged or of another policy; run the prompt again." },
      );
    }
    const rows = view.getUint32(4, true);
    const values = new Float32Array(Math.max(64, live));
    const born = new Uint32Array(values.length);
    for (let i = 0; i < live; i++) {
      values[i] = view.getFloat32(HEADER + 4 * i, true);
      born[i] = view.getUint32(HEADER + 4 * (live + i), true);
      if (!Number.isFinite(values[i]) || (born[i] as number) >= rows) {
        throw new FormatError(`slot ${i} of the state of a retention policy is damaged`, {
          hint: "Run the prompt again.",
        });
      }
    }
    this.#values = values;
    this.#born = born;
    this.#live = live;
    this.#rows = rows;
    this.#due = 0;
  }

  #grow(live: number): void {
    if (live <= this.#values.length) return;
    const size = Math.max(live, 2 * this.#values.length);
    const values = new Float32Array(size);
    values.set(this.values);
    const born = new Uint32Array(size);
    born.set(this.#born.subarray(0, this.#live));
    this.#values = values;
    this.#born = born;
  }
}
