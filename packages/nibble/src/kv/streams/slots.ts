/**
 * The live slots of a stream, oldest first: place in the text and where keys and values are. A place is a reference of
 * PlaneStore: a sealed cell (>= 0) or an exact row (< 0). The part that both planes have sealed can be shared by forks.
 */
export type SlotField = "position" | "k" | "v";
const FIELDS: readonly SlotField[] = ["position", "k", "v"];

interface Base {
  readonly fields: Record<SlotField, Int32Array>;
  readonly length: number;
}

export class SlotTable {
  #base: Base | null = null;
  #own: Record<SlotField, Int32Array> = emptyFields(16);
  #ownLength = 0;

  get length(): number {
    return (this.#base?.length ?? 0) + this.#ownLength;
  }

  get(field: SlotField, slot: number): number {
    const shared = this.#base?.length ?? 0;
    return slot < shared
      ? ((this.#base as Base).fields[field][slot] as number)
      : (this.#own[field][slot - shared] as number);
  }

  set(field: SlotField, slot: number, value: number): void {
    if (slot < (this.#base?.length ?? 0)) this.#unshare();
    this.#own[field][slot - (this.#base?.length ?? 0)] = value;
  }

  push(position: number, k: number, v: number): void {
    if (this.#ownLength === this.#own.k.length) this.#grow(this.#ownLength * 2);
    const i = this.#ownLength++;
    this.#own.position[i] = position;
    this.#own.k[i] = k;
    this.#own.v[i] = v;
  }

  /** Slots from..to-1 of a field. */
  gather(field: SlotField, from: number, to: number, out: Int32Array): void {
    const shared = this.#base?.length ?? 0;
    const middle = Math.min(Math.max(from, shared), to);
    if (from < middle) out.set((this.#base as Base).fields[field].subarray(from, middle));
    if (middle < to) {
      out.set(this.#own[field].subarray(middle - shared, to - shared), middle - from);
    }
  }

  /** Drops slots (ascending). */
  remove(slots: Int32Array): void {
    if (slots.length === 0) return;
    if ((slots[0] as number) < (this.#base?.length ?? 0)) this.#unshare();
    const shared = this.#base?.length ?? 0;
    let next = 0;
    let to = (slots[0] as number) - shared;
    for (let i = to; i < this.#ownLength; i++) {
      if (next < slots.length && slots[next] === i + shared) {
        next++;
        continue;
      }
      for (const field of FIELDS) this.#own[field][to] = this.#own[field][i] as number;
      to++;
    }
    this.#ownLength = to;
    if (this.#own.k.length > 64 && to * 4 < this.#own.k.length) this.#grow(Math.max(16, to * 2));
  }

  /** A copy that shares slots 0..sealed-1 with this one. */
  fork(sealed: number): SlotTable {
    const shared = this.#base?.length ?? 0;
    // A shared part that covers half of what could be shared is kept: no chain of copies for forks of forks.
    if (sealed > shared && shared * 2 < sealed) this.#share(sealed);
    const copy = new SlotTable();
    copy.#base = this.#base;
    copy.#own = emptyFields(Math.max(16, this.#ownLength));
    for (const field of FIELDS) copy.#own[field].set(this.#own[field].subarray(0, this.#ownLength));
    copy.#ownLength = this.#ownLength;
    return copy;
  }

  /** Object that forks share, and bytes of it and of the own part. */
  get shared(): { key: object; bytes: number } | null {
    return this.#base && { key: this.#base, bytes: this.#base.length * 12 };
  }
  get ownBytes(): number {
    return this.#own.k.length * 12;
  }

  #share(length: number): void {
    const fields = emptyFields(length);
    for (const field of FIELDS) this.gather(field, 0, length, fields[field]);
    const rest = emptyFields(Math.max(16, this.length - length));
    for (const field of FIELDS) this.gather(field, length, this.length, rest[field]);
    this.#ownLength = this.length - length;
    this.#base = { fields, length };
    this.#own = rest;
  }

  #unshare(): void {
    const { length } = this;
    const own = emptyFields(Math.max(16, length));
    for (const field of FIELDS) this.gather(field, 0, length, own[field]);
    this.#base = null;
    this.#own = own;
    this.#ownLength = length;
  }

  #grow(capacity: number): void {
    const own = emptyFields(capacity);
    for (const field of FIELDS) own[field].set(this.#own[field].subarray(0, this.#ownLength));
    this.#own = own;
  }
}

function emptyFields(capacity: number): Record<SlotField, Int32Array> {
  return {
    position: new Int32Array(capacity),
    k: new Int32Array(capacity),
    v: new Int32Array(capacity),
  };
}
