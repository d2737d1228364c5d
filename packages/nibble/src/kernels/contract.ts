/**
 * What a backend is: something that owns an arena and executes flat programs over it.
 * It knows nothing of models, recipes or files. `reference` defines truth and is for tests and debugging;
 * `wasm` runs everywhere; `native` is the fast one. Op semantics and tolerances: docs/engine.md.
 */
export type BackendId = "reference" | "wasm" | "native";

export interface EngineOptions {
  /** Size of the arena. Pages that are never touched cost no memory where the system allows it. */
  arenaBytes: number;
  /** Threads that run a program, >= 1. Results do not depend on it. */
  threads: number;
}

/** A program that the engine has validated: every offset lies inside the arena. */
export interface LoadedProgram {
  readonly words: Int32Array;
  dispose(): void;
}

export interface Engine {
  readonly backend: BackendId;
  /** Which kernels run, e.g. "avx512vnni", "wasm-relaxed", "wasm-simd", "typescript". */
  readonly variant: string;
  readonly threads: number;
  /** The arena. Views on it stay valid until dispose(). */
  readonly memory: ArrayBuffer | SharedArrayBuffer;
  /** Copies and validates a program. @throws BackendError code "program" naming the instruction that is out of bounds. */
  load(words: Int32Array): LoadedProgram;
  /** Runs the whole program on all threads without blocking the event loop. One run at a time per engine. */
  run(program: LoadedProgram): Promise<void>;
  /** The same, blocking the caller (benches, offline work in Node). */
  runSync(program: LoadedProgram): void;
  /** Ends the threads and releases the arena. */
  dispose(): Promise<void>;
}

export interface BackendStatus {
  id: BackendId;
  variant: string | null;
  available: boolean;
  /** One line each: why a variant is not used. */
  notices: string[];
}

export interface Backend {
  readonly id: BackendId;
  /** Finds the best variant that answers the known-answer probe; cached. Never throws. */
  status(): Promise<BackendStatus>;
  /** @throws BackendError when the backend cannot run here (the message says why). */
  createEngine(options: EngineOptions): Promise<Engine>;
}
