/**
 * Builds flat programs word by word. The only writer of the format that `ops.ts` describes; graph/lower.ts and the
 * tests use it, executors only read.
 */
import {
  CACHE,
  type CacheField,
  HEADER,
  type HeaderField,
  OPCODE,
  OPS,
  type OpName,
  PROGRAM_MAGIC,
  PROGRAM_VERSION,
  WEIGHT,
  type WeightField,
} from "./ops.js";

/** Operands of an op by name. `…F` operands are given as numbers and stored as f32 bits. */
export type Operands<O extends OpName> = { [K in (typeof OPS)[O][number]]: number };

const scratch = new DataView(new ArrayBuffer(4));

/** The i32 that carries the bits of an f32. */
export function floatBits(value: number): number {
  scratch.setFloat32(0, value, true);
  return scratch.getInt32(0, true);
}

/** The f32 whose bits an i32 carries. */
export function bitsFloat(bits: number): number {
  scratch.setInt32(0, bits, true);
  return scratch.getFloat32(0, true);
}

function encode<F extends string>(fields: readonly F[], values: Record<F, number>): number[] {
  return fields.map((name) => (name.endsWith("F") ? floatBits(values[name]) : values[name]));
}

/** A weight descriptor with everything absent; spread it and set what the kind needs. */
export const NO_WEIGHT: Record<WeightField, number> = {
  ...(Object.fromEntries(WEIGHT.map((name) => [name, name.endsWith("At") ? -1 : 0])) as Record<
    WeightField,
    number
  >),
  groups: 1,
};

export interface ProgramLimits {
  scratchAt: number;
  scratchLines: number;
  maxRows: number;
  arenaLines: number;
  /** Row limit of registers 1..15; absent: maxRows. */
  maxLogitRows?: number;
}

export class ProgramBuilder {
  readonly #weights: number[][];
  readonly #caches: number[][] = [];
  readonly #code: number[] = [];

  /** @param weights descriptors that another builder gave */
  constructor(weights: readonly (readonly number[])[] = []) {
    this.#weights = weights.map((words) => [...words]);
  }

  /** Words of the weight descriptors, by index. */
  get weights(): readonly (readonly number[])[] {
    return this.#weights;
  }

  /** Registers a weight descriptor; the result is a `…W` operand. */
  weight(fields: Record<WeightField, number>): number {
    return this.#weights.push(encode(WEIGHT, fields)) - 1;
  }

  /** Registers a cache descriptor; the result is the `cacheC` operand. */
  cache(fields: Record<CacheField, number>): number {
    return this.#caches.push(encode(CACHE, fields)) - 1;
  }

  emit<O extends OpName>(op: O, operands: Operands<O>): this {
    const names = OPS[op] as readonly (keyof Operands<O> & string)[];
    this.#code.push(OPCODE[op], names.length + 2, ...encode(names, operands));
    return this;
  }

  /** A builder with the same descriptors (so their indices stay valid) and no instructions yet. */
  fork(): ProgramBuilder {
    const other = new ProgramBuilder(this.#weights);
    other.#caches.push(...this.#caches);
    return other;
  }

  /** The finished program. May be called again after more instructions. */
  build(limits: ProgramLimits): Int32Array {
    const weightsStart = HEADER.length;
    const cachesStart = weightsStart + this.#weights.length * WEIGHT.length;
    const codeStart = cachesStart + this.#caches.length * CACHE.length;
    const header: Record<HeaderField, number> = {
      magic: PROGRAM_MAGIC,
      version: PROGRAM_VERSION,
      totalWords: codeStart + this.#code.length + 1,
      weights: this.#weights.length,
      weightsStart,
      caches: this.#caches.length,
      cachesStart,
      codeStart,
      maxLogitRows: limits.maxRows,
      ...limits,
    };
    return Int32Array.from([
      ...HEADER.map((name) => header[name]),
      ...this.#weights.flat(),
      ...this.#caches.flat(),
      ...this.#code,
      0,
    ]);
  }
}
