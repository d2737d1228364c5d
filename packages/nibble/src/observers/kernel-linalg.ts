/**
 * The dense routines of weight solvers on a kernel engine: operands are staged in an arena of their own, so that matrix
 * products and the inverse factor run on all threads. Calls are queued; results do not depend on the thread count.
 */
import { ResourceError } from "../core/errors.js";
import { Arena } from "../graph/arena.js";
import type { Backend, Engine, LoadedProgram } from "../kernels/contract.js";
import { CONTROL_BYTES } from "../kernels/ops.js";
import { ProgramBuilder } from "../kernels/program.js";
import { scratchLines } from "../kernels/scratch.js";
import {
  type EngineLinalg,
  type GemmCall,
  type MatrixView,
  notPositiveDefinite,
} from "../linalg/engine-linalg.js";

export interface KernelLinalg extends EngineLinalg {
  dispose(): Promise<void>;
}

/** The register that holds the number of rows; this engine runs nothing else. */
const ROWS = 0;
/** Inner dimension of the products that should fit without cutting rows: GPTQ's block. */
const USUAL_INNER = 128;
/** Alignment gaps and the status word. */
const SLACK_BYTES = 1024;

/**
 * @param shape the largest weight [n, k] the solvers will see; it decides the size of the arena
 * @throws BackendError when the backend cannot make an engine of that size
 */
export async function createKernelLinalg(
  backend: Backend,
  threads: number,
  shape: { n: number; k: number },
): Promise<KernelLinalg> {
  const { n, k } = shape;
  const factorBytes = 12 * k * k;
  const productBytes = 4 * (n * k + USUAL_INNER * (n + k));
  const scratchPerThread = scratchLines(k, 0);
  const staging = Math.max(factorBytes, productBytes) + SLACK_BYTES;
  const arenaBytes = CONTROL_BYTES + scratchPerThread * threads * 64 + staging;
  const engine = await backend.createEngine({ arenaBytes, threads });
  return new StagedLinalg(engine, scratchPerThread, arenaBytes);
}

class StagedLinalg implements KernelLinalg {
  readonly name: string;
  readonly #engine: Engine;
  readonly #arena: Arena;
  readonly #scratchAt: number;
  readonly #scratchLines: number;
  readonly #arenaLines: number;
  /** Where staging begins: the arena is reset to it before every call. */
  readonly #start: number;
  readonly #programs = new Map<string, LoadedProgram>();
  #queue: Promise<unknown> = Promise.resolve();

  constructor(engine: Engine, scratchPerThread: number, arenaBytes: number) {
    this.name = `${engine.backend} ${engine.variant}`;
    this.#engine = engine;
    this.#arena = new Arena(engine, arenaBytes);
    this.#arenaLines = Math.floor(arenaBytes / 64);
    this.#scratchLines = scratchPerThread;
    this.#scratchAt = this.#arena.alloc(scratchPerThread * engine.threads * 64);
    this.#start = this.#arena.mark();
  }

  gemm(call: GemmCall): Promise<void> {
    return this.#enqueue(() => this.#gemm(call));
  }

  inverseFactor(h: Float64Array, n: number): Promise<Float32Array> {
    return this.#enqueue(() => this.#inverseFactor(h, n));
  }

  async dispose(): Promise<void> {
    await this.#queue.catch(() => {});
    for (const program of this.#programs.values()) program.dispose();
    await this.#engine.dispose();
  }

  /** One call after another: an engine runs one program at a time, and all calls share the staging area. */
  #enqueue<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(task, task);
    this.#queue = result.catch(() => {});
    return result;
  }

  /** C is cut into bands of rows that fit beside B. Rows do not depend on each other. */
  async #gemm(call: GemmCall): Promise<void> {
    const { rows, cols, inner, a, b, c, transA = false, transB = false } = call;
    if (rows === 0 || cols === 0) return;
    const arena = this.#arena;
    const free = (this.#arenaLines - this.#start) * 64 - SLACK_BYTES;
    const band = Math.min(rows, Math.floor((free - 4 * inner * cols) / (4 * (inner + cols))));
    if (band < 1) {
      throw new ResourceError(
        `a product of ${rows} x ${inner} x ${cols} does not fit in the arena`,
      );
    }
    arena.reset(this.#start);
    const bAt = arena.allocF32(inner * cols);
    const aAt = arena.allocF32(band * inner);
    const cAt = arena.allocF32(band * cols);
    const [bRows, bCols] = transB ? [cols, inner] : [inner, cols];
    load(b, 0, 0, bRows, bCols, arena.f32(bAt, inner * cols));
    for (let from = 0; from < rows; from += band) {
      const count = Math.min(band, rows - from);
      const left = arena.f32(aAt, count * inner);
      if (transA) load(a, 0, from, inner, count, left);
      else load(a, from, 0, count, inner, left);
      const out = arena.f32(cAt, count * cols);
      const { alpha = 1, beta = 0 } = call;
      if (beta !== 0) load(c, from, 0, count, cols, out);
      const key = [count, cols, inner, transA, transB, alpha, beta, bAt, aAt, cAt].join();
      await this.#run(key, count, (builder) =>
        builder.emit("gemm", {
          rowsReg: ROWS,
          cols,
          inner,
          aAt,
          aSkip: 0,
          lda: transA ? count : inner,
          transA: Number(transA),
          bAt,
          bSkip: 0,
          ldb: bCols,
          transB: Number(transB),
          cAt,
          cSkip: 0,
          ldc: cols,
          alphaF: alpha,
          betaF: beta,
        }),
      );
      for (let r = 0; r < count; r++) {
        const row = out.subarray(r * cols, (r + 1) * cols);
        c.data.set(row, c.offset + (from + r) * c.stride);
      }
    }
  }

  async #inverseFactor(h: Float64Array, n: number): Promise<Float32Array> {
    const arena = this.#arena;
    arena.reset(this.#start);
    const hessianAt = arena.alloc(8 * n * n);
    const factorAt = arena.alloc(4 * n * n);
    const statusAt = arena.alloc(4);
    arena.f64(hessianAt, n * n).set(h);
    // Kernels write the upper triangle; the rest must be zero.
    arena.f32(factorAt, n * n).fill(0);
    await this.#run(`inverseFactor ${n}`, 1, (builder) =>
      builder.emit("inverseFactor", { size: n, hessianAt, factorAt, statusAt }),
    );
    const status = arena.i32(statusAt, 1)[0] ?? 0;
    if (status !== 0) throw notPositiveDefinite(status - 1);
    return arena.f32(factorAt, n * n).slice();
  }

  async #run(key: string, rows: number, emit: (builder: ProgramBuilder) => void): Promise<void> {
    let program = this.#programs.get(key);
    if (!program) {
      const builder = new ProgramBuilder();
      emit(builder);
      program = this.#engine.load(
        builder.build({
          scratchAt: this.#scratchAt,
          scratchLines: this.#scratchLines,
          maxRows: rows,
          arenaLines: this.#arenaLines,
        }),
      );
      this.#programs.set(key, program);
    }
    new Int32Array(this.#engine.memory, 0, ROWS + 1)[ROWS] = rows;
    await this.#engine.run(program);
  }
}

/** Copies a [rows, cols] part of a view, from its element (row, col) on, into a dense array. */
function load(
  view: MatrixView,
  row: number,
  col: number,
  rows: number,
  cols: number,
  out: Float32Array,
): void {
  const { data, offset, stride } = view;
  for (let r = 0; r < rows; r++) {
    const at = offset + (row + r) * stride + col;
    out.set(data.subarray(at, at + cols), r * cols);
  }
}
