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

/** Tile64 codes of one segment on their way into panel 32 (docs/engine.md, section 4). */
export interface PackJob {
  /** Rows of the segment, each `ceil(k / 64)` tiles of `8 * width` bytes. */
  source: Uint8Array;
  width: 8 | 4 | 2 | 1;
  k: number;
  /** Line of the segment of all n channels. */
  targetAt: number;
  n: number;
  /** Source row r is channel `first + r`. */
  first: number;
  rows: number;
  /** Channels 0..n/2-1 are gate, the rest up; n is a multiple of 32. */
  interleaved: boolean;
}

/** Lines, bytes and offsets of panel files are multiples of this many bytes: at least a page of memory everywhere. */
export const PANEL_GRAIN = 1 << 16;

/** A file that holds a part of an arena as it lies there. */
export interface PanelFile {
  path: string;
  /** Size that the whole file has. */
  fileBytes: number;
  /** Where in the file the panels begin, and where in the arena. */
  offset: number;
  line: number;
  bytes: number;
  /** What `panelSums` gave for these bytes. */
  sums: Uint8Array;
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
  /** Packs codes on all threads; absent on backends that have no faster way than `PanelWriter`. */
  pack?(job: PackJob): void;
  /**
   * Makes the pages of a file a part of the arena, without a copy: what the arena reads there are the file's bytes, what is
   * written there stays in this process. Once an engine; absent on backends that cannot.
   * @returns false when the bytes are not those that were summed; the part then holds zeros
   * @throws an error when there is no such file, or the system does not map it
   */
  mapPanels?(file: PanelFile): boolean;
  /** Checksums of a part of the arena, 8 bytes for every 2 MiB. */
  panelSums?(line: number, bytes: number): Uint8Array;
  /** Lines [from, to) will be touched here and there only: memory is better given in small pages. */
  sparse?(fromLine: number, toLine: number): void;
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
