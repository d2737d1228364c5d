/**
 * Builds one small random program together with the arena it runs in, for the conformance suite. Every buffer is followed by
 * a line of canary bytes, gaps inside buffers hold canaries too, and the whole image is compared after the run: an executor
 * that writes one byte too many fails.
 */

import { CONTROL_BYTES, LINE, type OpName } from "../ops.js";
import { type Operands, ProgramBuilder } from "../program.js";
import { requiredScratchLines } from "../scratch.js";

/** Small deterministic generator (xorshift32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bd1e995) | 1;
    for (let i = 0; i < 4; i++) this.uniform();
  }

  /** In [0, 1). */
  uniform(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) / 2 ** 32;
  }
  /** Integer of low..high, inclusive. */
  int(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }
  chance(p: number): boolean {
    return this.uniform() < p;
  }
  pick<T>(list: readonly T[]): T {
    return list[this.int(0, list.length - 1)] as T;
  }
  /** Roughly normal, mean 0, deviation 1. */
  normal(): number {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += this.uniform();
    return sum;
  }
  shuffle<T>(list: T[]): T[] {
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.int(0, i);
      const x = list[i] as T;
      list[i] = list[j] as T;
      list[j] = x;
    }
    return list;
  }
}

const CANARY = 0x3b; // as f32 0.00286: finite, so that reading a gap shows as a wrong value and not as NaN

export type Role = "in" | "out" | "inout";

/** A named part of the arena. */
export interface Region {
  name: string;
  /** First byte. */
  start: number;
  bytes: number;
  type: "f32" | "i32" | "f64" | "i8";
  /** Bytes from row to row; 0 when the region is no row buffer. */
  rowBytes: number;
  role: Role;
  /** Largest allowed difference of each element; absent: bits must be equal. */
  tolerance?: Float64Array | number;
  /** Contents after the run do not matter. */
  ignored?: boolean;
}

type Data =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint32Array
  | Int8Array
  | Uint8Array
  | Uint16Array;

export class Lab {
  readonly random: Random;
  readonly builder = new ProgramBuilder();
  /** Rows of this run, and the limit the buffers are sized for. */
  readonly rows: number;
  readonly maxRows: number;
  readonly regions: Region[] = [];
  /** Row limit of registers 1..15; 0: as maxRows. */
  logitRows = 0;
  /** False when the op carries sums from row to row, so that a split of the rows gives other bits. */
  splittable = true;
  #image = new Uint8Array(1 << 16).fill(CANARY);
  #used = CONTROL_BYTES;

  constructor(seed: number, rows?: number) {
    this.random = new Random(seed);
    this.rows = rows ?? this.random.pick([1, 1, 2, 3, 4, 5, 8, 13, 25]);
    this.maxRows = this.rows + this.random.int(0, 2);
    this.#image.fill(0, 0, CONTROL_BYTES);
    this.register(0, this.rows);
  }

  register(index: number, value: number): void {
    new Int32Array(this.#image.buffer)[index] = value;
  }

  /** Line of `bytes` fresh canary bytes. */
  alloc(bytes: number): number {
    const start = this.#used;
    this.#used = (Math.ceil((start + bytes) / LINE) + 1) * LINE;
    if (this.#used > this.#image.length) {
      const larger = new Uint8Array(this.#used * 2).fill(CANARY);
      larger.set(this.#image.subarray(0, start));
      this.#image = larger;
    }
    return start / LINE;
  }

  /** Line of a copy of `data`. */
  place(data: Data): number {
    const at = this.alloc(data.byteLength);
    this.#image.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at * LINE);
    return at;
  }

  floats(count: number, make: (i: number) => number): number {
    return this.place(Float32Array.from({ length: count }, (_, i) => make(i)));
  }

  /** A named result that is no row buffer. */
  output(
    name: string,
    type: Region["type"],
    data: Data,
    tolerance?: Float64Array | number,
  ): number {
    const at = this.place(data);
    this.region(
      { name, start: at * LINE, bytes: data.byteLength, type, rowBytes: 0, role: "out" },
      tolerance,
    );
    return at;
  }

  /** Rows of `width` f32, `ld` apart; `row` gives the contents of each, absent: canaries. */
  f32Rows(name: string, ld: number, role: Role, row?: (m: number) => ArrayLike<number>): number {
    const at = this.#rowBuffer(name, "f32", ld * 4, role);
    const view = new Float32Array(this.#image.buffer);
    if (row) for (let m = 0; m < this.maxRows; m++) view.set(row(m), at * 16 + m * ld);
    return at;
  }

  i32Rows(name: string, ld: number, role: Role, row?: (m: number) => ArrayLike<number>): number {
    const at = this.#rowBuffer(name, "i32", ld * 4, role);
    const view = new Int32Array(this.#image.buffer);
    if (row) for (let m = 0; m < this.maxRows; m++) view.set(row(m), at * 16 + m * ld);
    return at;
  }

  i8Rows(name: string, ld: number, role: Role, row?: (m: number) => ArrayLike<number>): number {
    const at = this.#rowBuffer(name, "i8", ld, role);
    const view = new Int8Array(this.#image.buffer);
    if (row) for (let m = 0; m < this.maxRows; m++) view.set(row(m), at * 64 + m * ld);
    return at;
  }

  #rowBuffer(name: string, type: Region["type"], rowBytes: number, role: Role): number {
    const bytes = this.maxRows * rowBytes;
    const at = this.alloc(bytes);
    this.region({ name, start: at * LINE, bytes, type, rowBytes, role });
    return at;
  }

  region(region: Region, tolerance?: Float64Array | number): void {
    this.regions.push(tolerance === undefined ? region : { ...region, tolerance });
  }

  /** Allows elements of a named region to differ. */
  tolerate(name: string, tolerance: Float64Array | number): void {
    const region = this.regions.find((r) => r.name === name);
    if (!region) throw new Error(`no region ${name}`);
    region.tolerance = tolerance;
  }

  emit<O extends OpName>(op: O, operands: Operands<O>): void {
    this.builder.emit(op, operands);
  }

  /** Arena contents before the run, control block included. Views stay valid until the next alloc. */
  get image(): Uint8Array {
    return this.#image.subarray(0, this.#used);
  }
  /** The whole buffer behind `image`, for typed views. */
  get buffer(): ArrayBuffer {
    return this.#image.buffer;
  }

  /** The program, with scratch for `threads` behind the image. */
  words(threads: number): Int32Array {
    const scratchAt = this.#used / LINE;
    const { maxRows } = this;
    const maxLogitRows = this.logitRows || maxRows;
    const limits = { scratchAt, scratchLines: 0, maxRows, maxLogitRows, arenaLines: scratchAt };
    const scratchLines = requiredScratchLines(this.builder.build(limits));
    const arenaLines = scratchAt + threads * scratchLines;
    return this.builder.build({ ...limits, scratchLines, arenaLines });
  }
}

const ROW_KINDS = [
  "normal",
  "normal",
  "normal",
  "zeros",
  "constant",
  "outlier",
  "subnormal",
  "signed zeros",
  "large",
  "tiny",
  "negative",
] as const;

/** A row of f32, now and then an extreme one; never NaN or infinite. */
export function randomRow(random: Random, width: number): Float32Array {
  const kind = random.pick(ROW_KINDS);
  const constant = random.normal();
  const row = Float32Array.from({ length: width }, () => {
    const x = random.normal();
    switch (kind) {
      case "zeros":
        return 0;
      case "constant":
        return constant;
      case "subnormal":
        return random.int(-20, 20) * 2 ** -148;
      case "signed zeros":
        return random.chance(0.5) ? -0 : 0;
      case "large":
        return x * 1000;
      case "tiny":
        return x * 1e-20;
      case "negative":
        return -Math.abs(x);
      default:
        return x;
    }
  });
  if (kind === "outlier") row[random.int(0, width - 1)] = random.pick([-300, 300]);
  return row;
}

/** A stride of at least `width`. */
export function randomStride(random: Random, width: number): number {
  return random.chance(0.5) ? width : width + random.int(1, 20);
}

/** A stride for s8 codes: a multiple of 64 that is none of 128. */
export function randomCodeStride(random: Random, width: number): number {
  return (Math.ceil(width / 64) | 1) * 64 + (random.chance(0.2) ? 128 : 0);
}
