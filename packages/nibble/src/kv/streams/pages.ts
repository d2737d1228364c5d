/**
 * Fixed-size pages with reference counts. One pool serves one kind of data (plane, codec, heads of a stream) of all layers
 * and sequences. A page holds `groupsPerPage` groups of each head, head by head; the variable part of a group lies beside
 * it and is never changed, only replaced. A shared page is copied before the first write to it.
 */

/** Bytes that are claimed from the system at once. */
const SLAB_BYTES = 256 * 1024;

type Variable = Uint8Array | null;

export interface PageShape {
  /** Fixed bytes of one group of one head. */
  groupBytes: number;
  groupsPerPage: number;
  heads: number;
}

export class PagePool {
  readonly shape: PageShape;
  readonly pageBytes: number;
  readonly #pagesPerSlab: number;
  readonly #slabs: Uint8Array[] = [];
  readonly #references: number[] = [];
  readonly #free: number[] = [];
  readonly #variable: (Variable[] | undefined)[] = [];
  #variableBytes = 0;

  constructor(shape: PageShape) {
    this.shape = shape;
    this.pageBytes = shape.groupBytes * shape.groupsPerPage * shape.heads;
    this.#pagesPerSlab = Math.max(1, Math.floor(SLAB_BYTES / this.pageBytes));
  }

  /** A page of its own, contents undefined. */
  alloc(): number {
    let id = this.#free.pop();
    if (id === undefined) {
      id = this.#references.length;
      if (id % this.#pagesPerSlab === 0) {
        this.#slabs.push(new Uint8Array(this.#pagesPerSlab * this.pageBytes));
      }
    }
    this.#references[id] = 1;
    this.#variable[id] = undefined;
    return id;
  }

  retain(id: number): void {
    this.#references[id] = this.references(id) + 1;
  }

  release(id: number): void {
    const left = this.references(id) - 1;
    this.#references[id] = left;
    if (left > 0) return;
    for (const part of this.#variable[id] ?? []) this.#variableBytes -= part?.length ?? 0;
    this.#variable[id] = undefined;
    this.#free.push(id);
  }

  /** The page itself when nobody else uses it, else a copy, for which the reference of the original is given up. */
  writable(id: number): number {
    if (this.references(id) === 1) return id;
    const copy = this.alloc();
    this.#page(copy).set(this.#page(id));
    const variable = this.#variable[id];
    if (variable) {
      this.#variable[copy] = variable.slice();
      for (const part of variable) this.#variableBytes += part?.length ?? 0;
    }
    this.release(id);
    return copy;
  }

  references(id: number): number {
    return this.#references[id] ?? 0;
  }

  /** Bytes of one group of one head. */
  group(id: number, index: number, head: number): Uint8Array {
    const { groupBytes, groupsPerPage } = this.shape;
    const slab = this.#slabs[Math.floor(id / this.#pagesPerSlab)] as Uint8Array;
    const at =
      (id % this.#pagesPerSlab) * this.pageBytes + (head * groupsPerPage + index) * groupBytes;
    return slab.subarray(at, at + groupBytes);
  }

  variable(id: number, index: number, head: number): Variable {
    return this.#variable[id]?.[head * this.shape.groupsPerPage + index] ?? null;
  }

  setVariable(id: number, index: number, head: number, part: Variable): void {
    let parts = this.#variable[id];
    if (!parts) {
      if (part === null) return;
      parts = new Array<Variable>(this.shape.groupsPerPage * this.shape.heads).fill(null);
      this.#variable[id] = parts;
    }
    const place = head * this.shape.groupsPerPage + index;
    this.#variableBytes += (part?.length ?? 0) - (parts[place]?.length ?? 0);
    parts[place] = part;
  }

  get usedPages(): number {
    return this.#references.length - this.#free.length;
  }

  /** Bytes of the pages in use, each counted once however many sequences share it, variable parts included. */
  get bytes(): number {
    return this.usedPages * this.pageBytes + this.#variableBytes;
  }

  #page(id: number): Uint8Array {
    const at = (id % this.#pagesPerSlab) * this.pageBytes;
    const slab = this.#slabs[Math.floor(id / this.#pagesPerSlab)] as Uint8Array;
    return slab.subarray(at, at + this.pageBytes);
  }
}
