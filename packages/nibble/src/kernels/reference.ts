/**
 * The reference backend: runs flat programs in plain TypeScript, one instruction after another, every float operation
 * rounded to f32 in the order docs/engine.md fixes. It is the meaning of the instruction set; the other two executors are
 * tested against it. For tests, debugging, and systems that run nothing else.
 */
import { BackendError } from "../core/errors.js";
import type { Backend, BackendStatus, Engine, EngineOptions, LoadedProgram } from "./contract.js";
import { type DecodedProgram, decodeProgram, type Instruction } from "./decode.js";
import { CONTROL_BYTES, type OpName } from "./ops.js";
import type { Operands } from "./program.js";
import { attendTile } from "./reference/attend-tile.js";
import { attention } from "./reference/attention.js";
import { hadamard, mixHeads } from "./reference/hadamard.js";
import { appendKv } from "./reference/kv.js";
import { gemm, inverseFactor } from "./reference/linalg.js";
import { csr, embed, linearFloat, linearInt } from "./reference/linear.js";
import { Fault, Machine } from "./reference/machine.js";
import { add, columns, gatherRows, rmsnorm, scatterAddRows, siluMul } from "./reference/norm.js";
import {
  dequantize,
  hadamardQuantize,
  quantize,
  rmsnormQuantize,
  roundFloat,
} from "./reference/quantize.js";
import { absStats, gram, klDivergence, logitStats, route } from "./reference/stats.js";
import { runFault, validateProgram } from "./validate.js";

type Execute<O extends OpName> = (machine: Machine, operands: Operands<O>, rows: number) => void;

const EXECUTE: { [O in OpName]: Execute<O> } = {
  embed,
  rmsnorm,
  quantize,
  rmsnormQuantize,
  hadamardQuantize,
  hadamard,
  mixHeads,
  columns,
  linearInt,
  linearFloat,
  siluMul,
  add,
  appendKv,
  attention,
  gatherRows,
  scatterAddRows,
  route,
  logitStats,
  klDivergence,
  csr,
  gram,
  absStats,
  gemm,
  inverseFactor,
  dequantize,
  attendTile,
  roundFloat,
};

/** Control word that holds the status of the last run. */
export const STATUS_WORD = 256;
/** How long `run` works before it lets the event loop turn. */
const SLICE_MS = 20;

class ReferenceProgram implements LoadedProgram {
  readonly words: Int32Array;
  readonly decoded: DecodedProgram;

  constructor(words: Int32Array) {
    this.words = words.slice();
    this.decoded = decodeProgram(this.words);
  }
  dispose(): void {}
}

class ReferenceEngine implements Engine {
  readonly backend = "reference";
  readonly variant = "typescript";
  readonly threads: number;
  readonly memory: ArrayBuffer | SharedArrayBuffer;
  #machine: Machine | null;
  #running = false;

  constructor({ arenaBytes, threads }: EngineOptions) {
    if (!Number.isInteger(threads) || threads < 1) {
      throw new BackendError(`${threads} threads, expected 1 or more`);
    }
    this.threads = threads;
    const bytes = Math.ceil(Math.max(arenaBytes, CONTROL_BYTES) / 64) * 64;
    try {
      this.memory =
        typeof SharedArrayBuffer === "undefined"
          ? new ArrayBuffer(bytes)
          : new SharedArrayBuffer(bytes);
    } catch (cause) {
      throw new BackendError(
        `the reference backend cannot allocate ${(bytes / 2 ** 30).toFixed(2)} GiB`,
        { hint: "Use a smaller model or a shorter context.", cause },
        "arena",
      );
    }
    this.#machine = new Machine(this.memory);
  }

  load(words: Int32Array): LoadedProgram {
    validateProgram(words, this.memory.byteLength, this.threads);
    return new ReferenceProgram(words);
  }

  async run(program: LoadedProgram): Promise<void> {
    let sliceEnd = performance.now() + SLICE_MS;
    for (const _ of this.#steps(program)) {
      if (performance.now() < sliceEnd) continue;
      await new Promise((resolve) => setTimeout(resolve));
      sliceEnd = performance.now() + SLICE_MS;
    }
  }

  runSync(program: LoadedProgram): void {
    for (const _ of this.#steps(program));
  }

  async dispose(): Promise<void> {
    this.#machine = null;
  }

  /** Executes the program, pausing after each instruction. */
  *#steps(program: LoadedProgram): Generator<void> {
    const machine = this.#machine;
    if (!machine) throw new BackendError("the engine was disposed");
    if (this.#running) throw new BackendError("the engine is already running a program");
    if (!(program instanceof ReferenceProgram)) {
      throw new BackendError("the program was loaded by another backend");
    }
    this.#running = true;
    try {
      machine.enter(program.decoded);
      machine.i32[STATUS_WORD] = 0;
      for (const instruction of program.decoded.instructions) {
        try {
          step(machine, program.decoded, instruction);
        } catch (error) {
          if (!(error instanceof Fault)) throw error;
          machine.i32[STATUS_WORD] = 1 + instruction.word;
          throw runFault(program.words, 1 + instruction.word);
        }
        yield;
      }
    } finally {
      this.#running = false;
    }
  }
}

function step(machine: Machine, program: DecodedProgram, { op, operands }: Instruction): void {
  let rows = 1;
  if (op !== "inverseFactor") {
    const register = operands.rowsReg;
    const { maxRows, maxLogitRows } = program.header;
    const limit = register >= 1 && register <= 15 ? maxLogitRows : maxRows;
    rows = machine.checked(machine.i32[register], limit + 1);
    if (rows === 0) return;
  }
  // The table is keyed by op; TypeScript cannot see that op and operands belong together.
  (EXECUTE[op] as Execute<OpName>)(machine, operands as Operands<OpName>, rows);
}

export const referenceBackend: Backend = {
  id: "reference",
  async status(): Promise<BackendStatus> {
    return { id: "reference", variant: "typescript", available: true, notices: [] };
  },
  async createEngine(options) {
    return new ReferenceEngine(options);
  },
};
