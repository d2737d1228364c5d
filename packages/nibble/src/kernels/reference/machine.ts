/**
 * The state an instruction of the reference executor sees: typed views of the arena, the decoded descriptors, and the
 * checks on values that address something (docs/engine.md, section 2).
 */
import type { Cache, DecodedProgram, Weight } from "../decode.js";
import { LINE } from "../ops.js";

/** Thrown by an instruction that met a bad index; the executor turns it into an error status. */
export class Fault extends Error {}

export class Machine {
  readonly memory: ArrayBuffer | SharedArrayBuffer;
  readonly f32: Float32Array;
  readonly f64: Float64Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly u16: Uint16Array;
  readonly i8: Int8Array;
  readonly u8: Uint8Array;
  /** Set by the executor before each program. */
  maxRows = 0;
  arenaBytes = 0;
  weights: Weight[] = [];
  caches: Cache[] = [];

  constructor(memory: ArrayBuffer | SharedArrayBuffer) {
    this.memory = memory;
    this.f32 = new Float32Array(memory);
    this.f64 = new Float64Array(memory);
    this.i32 = new Int32Array(memory);
    this.u32 = new Uint32Array(memory);
    this.u16 = new Uint16Array(memory);
    this.i8 = new Int8Array(memory);
    this.u8 = new Uint8Array(memory);
  }

  enter(program: DecodedProgram): void {
    this.maxRows = program.header.maxRows;
    this.arenaBytes = program.header.arenaLines * LINE;
    this.weights = program.weights;
    this.caches = program.caches;
  }

  /** `value` when it is an integer of 0..limit-1. */
  checked(value: number, limit: number): number {
    if (!(value >= 0 && value < limit)) throw new Fault();
    return value;
  }

  /** i32 number `i` of the array at line `at`, as an index below `limit`. */
  index(at: number, i: number, limit: number): number {
    return this.checked(this.i32[at * 16 + i], limit);
  }
}
