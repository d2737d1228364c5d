/**
 * Hands out places in an engine's arena: 64-byte lines, rising, never freed (an arena belongs to one compiled model).
 * The control block at the start (registers, executor state) is left alone.
 */
import { ResourceError } from "../core/errors.js";
import type { Engine, PackJob } from "../kernels/contract.js";
import { CONTROL_BYTES, LINE } from "../kernels/ops.js";

export class Arena {
  readonly memory: ArrayBuffer | SharedArrayBuffer;
  /** The engine's own way to pack codes into panels, where it has one. */
  readonly pack: ((job: PackJob) => void) | null;
  #nextLine = CONTROL_BYTES / LINE;

  readonly #bytes: number;

  /** @param bytes what the engine was asked for; its memory may be longer, since backends keep programs behind it */
  constructor(engine: Pick<Engine, "memory" | "pack">, bytes: number) {
    this.memory = engine.memory;
    this.pack = engine.pack ? (job) => engine.pack?.(job) : null;
    this.#bytes = Math.min(bytes, this.memory.byteLength);
  }

  /** First line of `bytes` fresh bytes. @throws ResourceError when the arena is full. */
  alloc(bytes: number): number {
    const at = this.#nextLine;
    const next = at + Math.ceil(bytes / LINE);
    if (next * LINE > this.#bytes) {
      throw new ResourceError(
        `the model needs more than the ${(this.#bytes / 2 ** 30).toFixed(2)} GiB that this backend's arena holds`,
        { hint: "use fewer bits, a shorter context (--max-context) or the native backend" },
        "arena-full",
      );
    }
    this.#nextLine = next;
    return at;
  }

  /** Goes on at a multiple of `bytes` bytes, itself one of a line. */
  align(bytes: number): void {
    const lines = bytes / LINE;
    this.#nextLine = Math.ceil(this.#nextLine / lines) * lines;
  }

  allocF32(count: number): number {
    return this.alloc(count * 4);
  }

  /** Places a copy of an array. */
  place(
    data: Float32Array | Int32Array | Uint32Array | Int8Array | Uint8Array | Uint16Array,
  ): number {
    const at = this.alloc(data.byteLength);
    new Uint8Array(this.memory, at * LINE, data.byteLength).set(
      new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    );
    return at;
  }

  f32(at: number, count: number): Float32Array {
    return new Float32Array(this.memory, at * LINE, count);
  }
  i32(at: number, count: number): Int32Array {
    return new Int32Array(this.memory, at * LINE, count);
  }
  f64(at: number, count: number): Float64Array {
    return new Float64Array(this.memory, at * LINE, count);
  }
  u8(at: number, count: number): Uint8Array {
    return new Uint8Array(this.memory, at * LINE, count);
  }
  u16(at: number, count: number): Uint16Array {
    return new Uint16Array(this.memory, at * LINE, count);
  }

  /** A point to come back to: `reset(mark())` frees everything placed since. */
  mark(): number {
    return this.#nextLine;
  }
  reset(mark: number): void {
    this.#nextLine = mark;
  }

  /** Everything handed out so far, in bytes. */
  get usedBytes(): number {
    return this.#nextLine * LINE;
  }
  get usedLines(): number {
    return this.#nextLine;
  }
}

/** Row stride for s8 activation codes of `width` channels: a multiple of 64, not of 128 (rows must not alias in L1). */
export function codeStride(width: number): number {
  return (Math.ceil(width / LINE) | 1) * LINE;
}
