/**
 * The keys or the values of one stream: exact rows, and sealed groups in pages. Whoever holds a row or a cell holds a
 * reference: cells are numbers >= 0 (group * tokens of a group + place in it), exact rows are -1 - row.
 */
import { FormatError } from "../../core/errors.js";
import type { PlaneCodec, SealInfo } from "../contract.js";
import type { ByteReader, ByteWriter } from "./image.js";
import type { PagePool } from "./pages.js";
import { RowBlocks } from "./rows.js";

export interface PlaneSpec {
  /** One codec per KV head of the stream; their caps are equal. */
  codecs: PlaneCodec[];
  headDim: number;
  pool: PagePool;
}

export class PlaneStore {
  readonly spec: PlaneSpec;
  /** Tokens of a sealed group. */
  readonly group: number;
  #rows: RowBlocks;
  #pages: number[] = [];
  /** Groups that were handed out, freed ones included. */
  #groups = 0;
  #freeGroups: number[] = [];
  /** Cells in use of each group; only for groups of several tokens. */
  #live: number[] = [];
  readonly #scratch: Float32Array;

  constructor(spec: PlaneSpec) {
    this.spec = spec;
    this.group = (spec.codecs[0] as PlaneCodec).caps.group;
    this.#rows = new RowBlocks(spec.codecs.length * spec.headDim);
    this.#scratch = new Float32Array(this.group * spec.headDim);
  }

  /** Reference to a copy of source[at .. at + heads * headDim). */
  add(source: Float32Array, at: number): number {
    return -1 - this.#rows.add(source, at);
  }

  /** The exact row behind a reference, to be changed in place. */
  exact(reference: number): Float32Array {
    return this.#rows.row(-1 - reference);
  }

  /**
   * Codes `group` exact rows, oldest first. The rows stay until they are released.
   * @param info what the codec of each head is told
   * @returns the first cell; the others follow it
   */
  seal(references: Int32Array, info: (head: number) => SealInfo): number {
    const { codecs, headDim, pool } = this.spec;
    const group = this.#freeGroups.pop() ?? this.#groups++;
    const { groupsPerPage } = pool.shape;
    const page = Math.floor(group / groupsPerPage);
    const index = group % groupsPerPage;
    const id = this.#pages[page];
    const writable = id === undefined ? pool.alloc() : pool.writable(id);
    this.#pages[page] = writable;
    codecs.forEach((codec, head) => {
      for (let i = 0; i < this.group; i++) {
        const row = -1 - (references[i] as number);
        this.#rows.read(row, head * headDim, headDim, this.#scratch, i * headDim);
      }
      const target = pool.group(writable, index, head);
      const variable = codec.encode(this.#scratch, this.group, target, info(head));
      pool.setVariable(writable, index, head, variable);
    });
    if (this.group > 1) this.#live[group] = this.group;
    return group * this.group;
  }

  /** Gives up a row or a cell. */
  release(reference: number): void {
    if (reference < 0) {
      this.#rows.free(-1 - reference);
      return;
    }
    const group = Math.floor(reference / this.group);
    if (this.group > 1) {
      const left = (this.#live[group] as number) - 1;
      this.#live[group] = left;
      if (left > 0) return;
    }
    this.#freeGroups.push(group);
    this.#trim();
  }

  /** Decodes references of one head into out [n, headDim]. Rows of a group that follow each other cost one decode. */
  read(head: number, references: Int32Array, n: number, out: Float32Array): void {
    const { codecs, headDim, pool } = this.spec;
    const codec = codecs[head] as PlaneCodec;
    const { groupsPerPage } = pool.shape;
    const size = this.group;
    let decoded = -1;
    for (let i = 0; i < n; i++) {
      const reference = references[i] as number;
      const at = i * headDim;
      if (reference < 0) {
        this.#rows.read(-1 - reference, head * headDim, headDim, out, at);
        continue;
      }
      const group = Math.floor(reference / size);
      const page = this.#pages[Math.floor(group / groupsPerPage)] as number;
      const index = group % groupsPerPage;
      const offset = reference % size;
      if (
        offset === 0 &&
        i + size <= n &&
        (size === 1 || references[i + size - 1] === reference + size - 1)
      ) {
        const source = pool.group(page, index, head);
        const target = out.subarray(at, at + size * headDim);
        codec.decode(source, pool.variable(page, index, head), size, target);
        i += size - 1;
        continue;
      }
      if (group !== decoded) {
        const source = pool.group(page, index, head);
        codec.decode(source, pool.variable(page, index, head), size, this.#scratch);
        decoded = group;
      }
      for (let d = 0; d < headDim; d++) {
        out[at + d] = this.#scratch[offset * headDim + d] as number;
      }
    }
  }

  /** Writes the groups of sealed cells (rising order of groups as the cells come), and where each cell is among them. */
  save(cells: Int32Array, writer: ByteWriter): void {
    const { pool, codecs } = this.spec;
    const { groupsPerPage } = pool.shape;
    const groups = [...new Set(Array.from(cells, (cell) => Math.floor(cell / this.group)))];
    const place = new Map(groups.map((group, i) => [group, i]));
    writer.integer(groups.length);
    for (const group of groups) {
      const page = this.#pages[Math.floor(group / groupsPerPage)] as number;
      for (let head = 0; head < codecs.length; head++) {
        writer.bytes(pool.group(page, group % groupsPerPage, head));
        const variable = pool.variable(page, group % groupsPerPage, head);
        writer.integer(variable === null ? 0 : 1);
        if (variable) writer.bytes(variable);
      }
    }
    for (const cell of cells) {
      const group = place.get(Math.floor(cell / this.group)) as number;
      writer.integer(group * this.group + (cell % this.group));
    }
  }

  /**
   * Reads what save() wrote into this empty plane, and decodes each group once: what a forged file holds must be found
   * here and not by attention later.
   * @returns the cells
   * @throws FormatError
   */
  load(count: number, reader: ByteReader): Int32Array {
    const { pool, codecs } = this.spec;
    const { groupsPerPage, groupBytes } = pool.shape;
    const groups = reader.integer(0, count);
    for (let group = 0; group < groups; group++) {
      if (group % groupsPerPage === 0) this.#pages.push(pool.alloc());
      const page = this.#pages.at(-1) as number;
      for (let head = 0; head < codecs.length; head++) {
        pool.group(page, group % groupsPerPage, head).set(reader.bytes(groupBytes));
        const variable = reader.integer(0, 1) === 1 ? reader.bytes() : null;
        pool.setVariable(page, group % groupsPerPage, head, variable);
        this.#checkGroup(page, group % groupsPerPage, head);
      }
      if (this.group > 1) this.#live[group] = 0;
    }
    this.#groups = groups;
    return Int32Array.from({ length: count }, () => {
      const cell = reader.integer(0, groups * this.group - 1);
      if (this.group > 1) {
        const group = Math.floor(cell / this.group);
        this.#live[group] = (this.#live[group] as number) + 1;
      }
      return cell;
    });
  }

  /** @throws FormatError unless a group decodes to finite numbers */
  #checkGroup(page: number, index: number, head: number): void {
    const { pool, codecs } = this.spec;
    const codec = codecs[head] as PlaneCodec;
    this.#scratch.fill(0);
    const variable = pool.variable(page, index, head);
    codec.decode(pool.group(page, index, head), variable, this.group, this.#scratch);
    if (!this.#scratch.every(Number.isFinite)) {
      throw new FormatError("a sealed group of the saved cache holds numbers that are not finite");
    }
  }

  /** Share of sealed cells that nobody refers to. */
  get holes(): number {
    if (this.#groups === 0) return 0;
    if (this.group === 1) return this.#freeGroups.length / this.#groups;
    let live = 0;
    for (const count of this.#live) live += count ?? 0;
    return 1 - live / (this.#groups * this.group);
  }

  /**
   * Codecs of single tokens: moves cells to the front and gives back the pages behind. Bytes are copied as they are.
   * @param references every cell in use, in any order; changed to where the cells are now
   */
  compact(references: Int32Array): void {
    const { pool } = this.spec;
    const { groupsPerPage, heads } = pool.shape;
    const count = references.length;
    const taken = new Uint8Array(count);
    for (const cell of references) if (cell < count) taken[cell] = 1;
    let hole = 0;
    for (let i = 0; i < count; i++) {
      const cell = references[i] as number;
      if (cell < count) continue;
      while (taken[hole] === 1) hole++;
      const from = this.#pages[Math.floor(cell / groupsPerPage)] as number;
      const page = Math.floor(hole / groupsPerPage);
      const to = pool.writable(this.#pages[page] as number);
      this.#pages[page] = to;
      for (let head = 0; head < heads; head++) {
        const target = pool.group(to, hole % groupsPerPage, head);
        target.set(pool.group(from, cell % groupsPerPage, head));
        const variable = pool.variable(from, cell % groupsPerPage, head);
        pool.setVariable(to, hole % groupsPerPage, head, variable);
      }
      references[i] = hole;
      taken[hole] = 1;
    }
    this.#groups = count;
    this.#freeGroups = [];
    this.#dropPages();
  }

  /** A copy that shares every page. */
  fork(): PlaneStore {
    const copy = new PlaneStore(this.spec);
    copy.#rows = this.#rows.clone();
    copy.#pages = this.#pages.slice();
    copy.#groups = this.#groups;
    copy.#freeGroups = this.#freeGroups.slice();
    copy.#live = this.#live.slice();
    for (const id of this.#pages) this.spec.pool.retain(id);
    return copy;
  }

  /** Gives back everything. */
  clear(): void {
    this.#rows = new RowBlocks(this.spec.codecs.length * this.spec.headDim);
    this.#groups = 0;
    this.#freeGroups = [];
    this.#live = [];
    this.#dropPages();
  }

  get pages(): readonly number[] {
    return this.#pages;
  }
  get rowBytes(): number {
    return this.#rows.bytes;
  }
  /** Bytes of lists, as they would be in a plain array. */
  get metaBytes(): number {
    return (this.#pages.length + this.#freeGroups.length) * 4 + this.#live.length * 2;
  }

  /** When the newest groups are free, the list ends earlier and their pages go back. */
  #trim(): void {
    if (this.#freeGroups.at(-1) !== this.#groups - 1) return;
    const free = new Set(this.#freeGroups);
    while (free.delete(this.#groups - 1)) this.#groups--;
    this.#freeGroups = this.#freeGroups.filter((group) => free.has(group));
    this.#live.length = Math.min(this.#live.length, this.#groups);
    this.#dropPages();
  }

  #dropPages(): void {
    const keep = Math.ceil(this.#groups / this.spec.pool.shape.groupsPerPage);
    while (this.#pages.length > keep) this.spec.pool.release(this.#pages.pop() as number);
  }
}
