/**
 * The wasm backend: AssemblyScript kernels over one WebAssembly.Memory, in workers where memory can be shared, else on the
 * calling thread. Arena byte i is memory byte i; programs are copied into a region behind the arena.
 *
 * A run is posted through control words of the arena: workers spin about 100 us on the job number, then sleep; who finishes
 * the last piece of work announces the end. No message is sent per run unless the environment lacks Atomics.waitAsync.
 */
import { BackendError } from "../core/errors.js";
import type { Backend, BackendStatus, Engine, EngineOptions, LoadedProgram } from "./contract.js";
import { CONTROL_BYTES, HEADER } from "./ops.js";
import { probeArenaBytes, probeEngine } from "./probe.js";
import { runFault, validateProgram } from "./validate.js";
import {
  loadBinary,
  processorCount,
  startThread,
  type Thread,
  type ThreadMessage,
  type WasmBinary,
} from "./wasm-binaries.js";

export { setWasmSource, type WasmBinary, type WasmSource } from "./wasm-binaries.js";

/** Control words (i32 index): 256 is the status of docs/engine.md, the others are those of assembly/control.ts. */
const WORDS = {
  ...{ status: 256, job: 272, program: 273, done: 288, fault: 289, messages: 290, run: 291 },
  ...{ state: 304, word: 320, phase: 321, finished: 336, spins: 368 },
};
const WASM_PAGE = 65536;
const MAX_BYTES = 65536 * WASM_PAGE;
/** Room for the words of all loaded programs. */
const PROGRAM_BYTES = 8 * 1024 * 1024;
/**
 * Looks (about 5 ns each) for the next phase before a thread sleeps. Ops keep threads waiting a few microseconds for each
 * other; who waits 150 us waits for a thread without a processor, and lets it have this one. Less when threads share
 * processors.
 */
const PHASE_SPINS = 30_000;
const CROWDED_SPINS = 500;
/** Looks for the next job before a thread sleeps: about 100 us. */
const JOB_SPINS = 20_000;

interface Exports {
  runTickets(worker: number, workers: number): number;
}

/** First-fit places for program words behind the arena. */
class ProgramRegion {
  readonly #taken: { start: number; bytes: number }[] = [];

  constructor(
    readonly start: number,
    readonly end: number,
  ) {}

  take(bytes: number): number {
    let at = this.start;
    let i = 0;
    for (; i < this.#taken.length && at + bytes > this.#taken[i].start; i++) {
      at = Math.ceil((this.#taken[i].start + this.#taken[i].bytes) / 64) * 64;
    }
    if (at + bytes > this.end) {
      throw new BackendError("too many programs are loaded at a time", {
        hint: "Dispose of programs that are no longer needed.",
      });
    }
    this.#taken.splice(i, 0, { start: at, bytes });
    return at;
  }

  release(start: number): void {
    const i = this.#taken.findIndex((entry) => entry.start === start);
    if (i >= 0) this.#taken.splice(i, 1);
  }
}

class WasmProgram implements LoadedProgram {
  #disposed = false;

  constructor(
    readonly words: Int32Array,
    /** Byte address of the copy in memory. */
    readonly at: number,
    readonly region: ProgramRegion,
  ) {}

  get disposed(): boolean {
    return this.#disposed;
  }

  dispose(): void {
    if (!this.#disposed) this.region.release(this.at);
    this.#disposed = true;
  }
}

function createMemory(arenaBytes: number, shared: boolean): WebAssembly.Memory {
  const pages = Math.ceil((arenaBytes + PROGRAM_BYTES) / WASM_PAGE);
  try {
    if (pages * WASM_PAGE > MAX_BYTES) throw new RangeError("WebAssembly memory ends at 4 GiB");
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  } catch (cause) {
    throw new BackendError(
      `the wasm backend cannot allocate ${(arenaBytes / 2 ** 30).toFixed(2)} GiB`,
      { hint: "Use a smaller model, a shorter context or the native backend.", cause },
      "arena",
    );
  }
}

/** What engines on the calling thread and engines with workers share: memory, programs, the rules of a run. */
abstract class WasmEngine implements Engine {
  readonly backend = "wasm";
  readonly #arenaBytes: number;
  readonly #region: ProgramRegion;
  readonly #state: BigInt64Array;
  protected readonly control: Int32Array;
  protected disposed = false;
  /** Number of the current or last run. */
  protected runs = 0;
  protected running = false;

  constructor(
    readonly variant: string,
    readonly threads: number,
    protected readonly wasmMemory: WebAssembly.Memory,
    arenaBytes: number,
  ) {
    this.#arenaBytes = arenaBytes;
    this.control = new Int32Array(wasmMemory.buffer, 0, CONTROL_BYTES / 4);
    this.#state = new BigInt64Array(wasmMemory.buffer, WORDS.state * 4, 1);
    this.#region = new ProgramRegion(Math.ceil(arenaBytes / 64) * 64, wasmMemory.buffer.byteLength);
  }

  get memory(): ArrayBuffer | SharedArrayBuffer {
    return this.wasmMemory.buffer;
  }

  load(words: Int32Array): LoadedProgram {
    if (this.disposed) throw new BackendError("the engine was disposed");
    validateProgram(words, this.#arenaBytes, this.threads);
    const copy = words.slice();
    const at = this.#region.take(copy.byteLength);
    new Int32Array(this.memory, at, copy.length).set(copy);
    return new WasmProgram(copy, at, this.#region);
  }

  /** Checks that `program` may run now and marks the engine as busy. */
  protected begin(program: LoadedProgram): WasmProgram {
    if (this.disposed) throw new BackendError("the engine was disposed");
    if (this.running) throw new BackendError("the engine is already running a program");
    if (!(program instanceof WasmProgram) || program.region !== this.#region) {
      throw new BackendError("the program was loaded by another engine");
    }
    if (program.disposed) throw new BackendError("the program was disposed");
    this.running = true;
    const { control } = this;
    control[WORDS.status] = 0;
    control[WORDS.program] = program.at;
    control[WORDS.word] = program.words[HEADER.indexOf("codeStart")];
    control[WORDS.phase] = 0;
    this.runs = (this.runs + 1) | 0;
    control[WORDS.run] = this.runs;
    control[WORDS.finished] = 0;
    // The next generation, as many tickets as threads, the first one free. From here on, threads that have not yet left
    // the last run may work on this one.
    const generation = (Atomics.load(this.#state, 0) >> 32n) + 1n;
    Atomics.store(this.#state, 0, (generation << 32n) | BigInt(this.threads << 16));
    return program;
  }

  /** Ends a run: throws what the executor reported. */
  protected finish(program: WasmProgram): void {
    const status = this.control[WORDS.status];
    if (status !== 0) throw runFault(program.words, status);
  }

  abstract run(program: LoadedProgram): Promise<void>;
  abstract runSync(program: LoadedProgram): void;
  abstract dispose(): Promise<void>;
}

/** One thread, the caller's: where memory cannot be shared, and for the probe. `run` blocks as `runSync` does. */
class CallerEngine extends WasmEngine {
  readonly #exports: Exports;

  constructor(variant: string, module: WebAssembly.Module, arenaBytes: number, shared: boolean) {
    super(variant, 1, createMemory(arenaBytes, shared), arenaBytes);
    const instance = new WebAssembly.Instance(module, { env: { memory: this.wasmMemory } });
    this.#exports = instance.exports as unknown as Exports; // assembly/index.ts
  }

  async run(program: LoadedProgram): Promise<void> {
    this.runSync(program);
  }

  runSync(program: LoadedProgram): void {
    const loaded = this.begin(program);
    try {
      this.#exports.runTickets(0, 1);
      this.finish(loaded);
    } finally {
      this.running = false;
    }
  }

  async dispose(): Promise<void> {
    this.disposed = true;
  }
}

/** Atomics.waitAsync as far as we use it (TypeScript's ES2023 library does not list it). */
type WaitAsync = (
  words: Int32Array,
  index: number,
  value: number,
) => { async: false } | { async: true; value: Promise<string> };
const waitAsync = (Atomics as unknown as { waitAsync?: WaitAsync }).waitAsync;

/** All threads are workers over shared memory. */
class WorkerEngine extends WasmEngine {
  #threads: Thread[] = [];
  #failure: Error | null = null;
  /** Wakes the run that waits for a message (no waitAsync), or whoever waits when a thread dies. */
  #wake: (() => void) | null = null;

  static async create(
    variant: string,
    module: WebAssembly.Module,
    { arenaBytes, threads }: EngineOptions,
  ): Promise<WorkerEngine> {
    const engine = new WorkerEngine(variant, threads, createMemory(arenaBytes, true), arenaBytes);
    engine.control[WORDS.messages] = waitAsync ? 0 : 1;
    const crowded = threads > (await processorCount());
    engine.control[WORDS.spins] = crowded ? CROWDED_SPINS : PHASE_SPINS;
    try {
      await engine.#start(module, crowded ? 0 : JOB_SPINS);
    } catch (error) {
      await engine.dispose();
      throw error;
    }
    return engine;
  }

  async #start(module: WebAssembly.Module, spins: number): Promise<void> {
    let ready = 0;
    const setup = { module, memory: this.wasmMemory, threads: this.threads, spins, words: WORDS };
    await new Promise<void>((resolve, reject) => {
      const onMessage = (message: ThreadMessage) => {
        if (message.failure) this.#fail(new Error(message.failure));
        if (message.ready !== undefined && ++ready === this.threads) resolve();
        if (message.done !== undefined) this.#wake?.();
      };
      const onError = (error: Error) => {
        this.#fail(error);
        reject(new BackendError(`a thread did not start: ${error.message}`, { cause: error }));
      };
      for (let thread = 0; thread < this.threads; thread++) {
        startThread(onMessage, onError).then((worker) => {
          this.#threads.push(worker);
          worker.post({ ...setup, thread });
        }, onError);
      }
    });
    for (const thread of this.#threads) thread.keepAlive(false);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#wake?.();
  }

  /** Wakes the threads. */
  #wakeThreads(): void {
    Atomics.add(this.control, WORDS.job, 1);
    Atomics.notify(this.control, WORDS.job);
  }

  #done(): boolean {
    return this.#failure !== null || Atomics.load(this.control, WORDS.done) === this.runs;
  }

  #end(program: WasmProgram): void {
    this.running = false;
    if (this.#failure !== null || this.control[WORDS.fault] !== 0) {
      // The ticket of the dead thread is never finished: this engine cannot be used again.
      this.disposed = true;
      void this.dispose();
      throw new BackendError(
        `a thread of the wasm backend died: ${this.#failure?.message ?? "trap"}`,
        this.#failure ? { cause: this.#failure } : {},
        "run",
      );
    }
    this.finish(program);
  }

  async run(program: LoadedProgram): Promise<void> {
    const loaded = this.begin(program);
    // A pending wait does not keep Node alive, a referenced worker does.
    this.#threads[0].keepAlive(true);
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wakeThreads();
    while (!this.#done()) {
      const wait = waitAsync?.(this.control, WORDS.done, (this.runs - 1) | 0);
      if (!wait) await woken;
      else if (wait.async) await Promise.race([wait.value, woken]);
    }
    this.#wake = null;
    this.#threads[0].keepAlive(false);
    this.#end(loaded);
  }

  runSync(program: LoadedProgram): void {
    const loaded = this.begin(program);
    this.#wakeThreads();
    try {
      while (!this.#done()) Atomics.wait(this.control, WORDS.done, (this.runs - 1) | 0);
    } catch (cause) {
      // The posted run goes on; this thread may not wait for it.
      void this.dispose();
      throw new BackendError(
        "this thread may not block",
        { hint: "Use run(), or call runSync() from a worker.", cause },
        "run",
      );
    }
    this.#end(loaded);
  }

  async dispose(): Promise<void> {
    this.disposed = true;
    const threads = this.#threads;
    this.#threads = [];
    if (!this.running && this.#failure === null) {
      this.control[WORDS.program] = 0;
      this.#wakeThreads();
    }
    await Promise.all(threads.map((thread) => thread.terminate()));
  }
}

// ---- choice of the variant ------------------------------------------------------------------------------------------

interface Choice {
  status: BackendStatus;
  shared: boolean;
  module: WebAssembly.Module | null;
}

/** Whether workers can see this thread's memory (in a browser: only when the page is cross-origin isolated). */
function canShare(): boolean {
  if (typeof SharedArrayBuffer === "undefined") return false;
  return (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated !== false;
}

/** Compiles a binary and asks it the known answers, first call included, before any optimizing compiler saw it. */
async function tryVariant(
  name: "simd" | "relaxed",
  shared: boolean,
): Promise<{ module: WebAssembly.Module } | { reason: string }> {
  const binary: WasmBinary = shared ? `${name}-threads` : name;
  try {
    const bytes = await loadBinary(binary);
    if (!WebAssembly.validate(bytes)) return { reason: "this runtime lacks its instructions" };
    const module = await WebAssembly.compile(bytes);
    const engine = new CallerEngine(`wasm-${name}`, module, probeArenaBytes(1), shared);
    const wrong = probeEngine(engine);
    return wrong === null ? { module } : { reason: wrong };
  } catch (error) {
    return { reason: error instanceof Error ? error.message : String(error) };
  }
}

async function choose(): Promise<Choice> {
  const status: BackendStatus = { id: "wasm", variant: null, available: false, notices: [] };
  if (typeof WebAssembly === "undefined") {
    status.notices.push("wasm: this runtime has no WebAssembly");
    return { status, shared: false, module: null };
  }
  const shared = canShare();
  if (!shared) {
    status.notices.push(
      "wasm threads: no SharedArrayBuffer here (is the page cross-origin isolated?); one thread runs",
    );
  }
  for (const name of ["relaxed", "simd"] as const) {
    const tried = await tryVariant(name, shared);
    if ("module" in tried) {
      return {
        status: { ...status, variant: `wasm-${name}`, available: true },
        shared,
        module: tried.module,
      };
    }
    status.notices.push(`wasm-${name}: ${tried.reason}`);
  }
  return { status, shared, module: null };
}

let choice: Promise<Choice> | null = null;
/** The variant that runs here, found once. */
export function chosenWasm(): Promise<Choice> {
  choice ??= choose();
  return choice;
}

export const wasmBackend: Backend = {
  id: "wasm",
  async status() {
    return (await chosenWasm()).status;
  },
  async createEngine(options: EngineOptions): Promise<Engine> {
    const { arenaBytes, threads } = options;
    if (!Number.isInteger(threads) || threads < 1) {
      throw new BackendError(`${threads} threads, expected 1 or more`);
    }
    const { status, module, shared } = await chosenWasm();
    if (!module || !status.variant) {
      throw new BackendError(`the wasm backend cannot run here: ${status.notices.join("; ")}`);
    }
    const bytes = Math.ceil(Math.max(arenaBytes, CONTROL_BYTES) / 64) * 64;
    if (shared) return WorkerEngine.create(status.variant, module, { arenaBytes: bytes, threads });
    return new CallerEngine(status.variant, module, bytes, false);
  },
};
