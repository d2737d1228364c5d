/**
 * The native backend: the C addon of `@nibble/native`, which has one set of kernels per instruction set and picks none by
 * itself. A variant is used when the processor has it and it answers the known-answer probe; `NIBBLE_NATIVE_VARIANT`
 * (avx512vnni, avxvnni, avx2, neon, baseline, avx512bf16) forces one. avx512bf16 rounds float products to bf16 and is only used when forced.
 */
import { createRequire } from "node:module";
import { BackendError, nearestName, ResourceError } from "../core/errors.js";
import type { MapFile } from "../core/file-source.js";
import type {
  Backend,
  BackendStatus,
  Engine,
  EngineOptions,
  LoadedProgram,
  PackJob,
  PanelFile,
} from "./contract.js";
import { CONTROL_BYTES, LINE } from "./ops.js";
import { probeArenaBytes, probeEngine } from "./probe.js";
import { runFault } from "./validate.js";

/** What packages/native/src/addon.c exports. Handles are opaque. */
interface Addon {
  /** Where it was loaded from. */
  file: string;
  /** Best first; `only`: why a variant has to be asked for, or "". */
  variants(): { name: string; runs: boolean; needs: string; only: string }[];
  create(arenaBytes: number, threads: number, variant: string): EngineHandle;
  memory(engine: EngineHandle): ArrayBuffer;
  load(engine: EngineHandle, words: Int32Array): ProgramHandle;
  run(engine: EngineHandle, program: ProgramHandle): Promise<number>;
  runSync(engine: EngineHandle, program: ProgramHandle): number;
  pack(
    engine: EngineHandle,
    source: Uint8Array,
    line: number,
    ...sizes: [
      width: number,
      k: number,
      n: number,
      first: number,
      rows: number,
      interleaved: number,
    ]
  ): void;
  sparse(engine: EngineHandle, fromLine: number, toLine: number): void;
  /** How many threads work, op by op, around and around; empty: the team decides (packages/native/src/pace.h). */
  schedule(engine: EngineHandle, counts: Int32Array): void;
  /** What pace.h decides for a team of `threads` after windows of [now, wall, worst, total] ns. */
  pace(threads: number, windows: Float64Array): number[];
  dispose(engine: EngineHandle): void;
  /** A file of exactly this size as memory. Codes of its errors: packages/native/src/map_file.h. */
  mapFile(path: string, bytes: number): ArrayBuffer;
  /** Drops what was read of it; false when it was cut short. */
  dropPages(buffer: ArrayBuffer): boolean;
  mapPanels(
    engine: EngineHandle,
    path: string,
    ...places: [fileBytes: number, offset: number, line: number, bytes: number, sums: Uint8Array]
  ): boolean;
  panelSums(engine: EngineHandle, line: number, bytes: number): ArrayBuffer;
  /** Rate of the machine for one kind of work ("dot", "fma": operations, "read": bytes a second); 0 when unknown. */
  ceiling(name: "dot" | "fma" | "read", threads: number, variant: string): number;
}
type EngineHandle = object & { readonly engine: unique symbol };
type ProgramHandle = object & { readonly program: unique symbol };

let addon: Addon | null = null;

/** @throws Error with the reason when there is no addon for this platform or it does not load. */
export function loadAddon(): Addon {
  addon ??= createRequire(import.meta.url)("@nibble/native") as Addon;
  return addon;
}

/**
 * Maps a file through the addon, for any backend; null where there is no addon or the system does not map this file.
 * @param size what the file's size is known to be
 */
export const mapFile: MapFile = (path, size) => {
  try {
    const native = loadAddon();
    const buffer = native.mapFile(path, size);
    return { bytes: new Uint8Array(buffer), drop: () => native.dropPages(buffer) };
  } catch {
    return null; // then it is read, with the same result; what is wrong with a file shows there
  }
};

/** File of the addon, or null where there is none: what it packs depends on how it was built. */
export function addonPath(): string | null {
  try {
    return loadAddon().file;
  } catch {
    return null;
  }
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));
const codeOf = (error: unknown) =>
  error instanceof Error && "code" in error ? String(error.code) : "";

/** What a run answers when mapped weights are gone (packages/native/src/addon.c). */
const STATUS_LOST = -2;

class NativeProgram implements LoadedProgram {
  readonly words: Int32Array;
  handle: ProgramHandle | null;

  constructor(words: Int32Array, handle: ProgramHandle) {
    this.words = words;
    this.handle = handle;
  }
  dispose(): void {
    this.handle = null; // freed with the garbage, after a run that may still use it
  }
}

class NativeEngine implements Engine {
  readonly backend = "native";
  readonly variant: string;
  readonly threads: number;
  readonly memory: ArrayBuffer;
  readonly #addon: Addon;
  #handle: EngineHandle | null;
  #running: Promise<number> | null = null;

  constructor(
    native: Addon,
    { arenaBytes, threads }: EngineOptions,
    variant: string,
    schedule: readonly number[] = [],
  ) {
    if (!Number.isInteger(threads) || threads < 1) {
      throw new BackendError(`${threads} threads, expected 1 or more`);
    }
    const bytes = Math.ceil(Math.max(arenaBytes, CONTROL_BYTES) / LINE) * LINE;
    this.#addon = native;
    this.variant = variant;
    this.threads = threads;
    try {
      this.#handle = native.create(bytes, threads, variant);
      this.memory = native.memory(this.#handle);
      native.schedule(this.#handle, Int32Array.from(schedule));
    } catch (cause) {
      const size = `${(bytes / 2 ** 30).toFixed(2)} GiB, ${threads} threads`;
      const text = `the native backend cannot make an arena (${size}): ${messageOf(cause)}`;
      if (codeOf(cause) !== "memory") throw new BackendError(text, { cause });
      throw new ResourceError(text, {
        hint: "Use a smaller model, a shorter context or a newer Node.",
        cause,
      });
    }
  }

  load(words: Int32Array): LoadedProgram {
    const handle = this.#live();
    try {
      return new NativeProgram(words.slice(), this.#addon.load(handle, words));
    } catch (cause) {
      if (codeOf(cause) !== "program") throw cause;
      throw new BackendError(messageOf(cause), { place: "program", cause }, "program");
    }
  }

  async run(program: LoadedProgram): Promise<void> {
    const [engine, handle] = this.#ready(program);
    this.#running = this.#addon.run(engine, handle);
    let status: number;
    try {
      status = await this.#running;
    } finally {
      this.#running = null;
    }
    if (status !== 0) throw this.#fault(program, status);
  }

  runSync(program: LoadedProgram): void {
    const [engine, handle] = this.#ready(program);
    const status = this.#addon.runSync(engine, handle);
    if (status !== 0) throw this.#fault(program, status);
  }

  pack(job: PackJob): void {
    const { source, targetAt, width, k, n, first, rows } = job;
    const interleaved = job.interleaved ? 1 : 0;
    this.#addon.pack(this.#live(), source, targetAt, width, k, n, first, rows, interleaved);
  }

  mapPanels({ path, fileBytes, offset, line, bytes, sums }: PanelFile): boolean {
    return this.#addon.mapPanels(this.#live(), path, fileBytes, offset, line, bytes, sums);
  }

  panelSums(line: number, bytes: number): Uint8Array {
    return new Uint8Array(this.#addon.panelSums(this.#live(), line, bytes));
  }

  sparse(fromLine: number, toLine: number): void {
    this.#addon.sparse(this.#live(), fromLine, toLine);
  }

  async dispose(): Promise<void> {
    await this.#running;
    if (this.#handle) this.#addon.dispose(this.#handle);
    this.#handle = null;
  }

  #fault(program: LoadedProgram, status: number): Error {
    if (status !== STATUS_LOST) return runFault(program.words, status);
    return new ResourceError("the file of prepared weights was cut short while the model ran", {
      hint: "Something outside of nibble wrote to that file; open the model again.",
    });
  }

  #live(): EngineHandle {
    if (!this.#handle) throw new BackendError("the engine was disposed");
    return this.#handle;
  }

  #ready(program: LoadedProgram): [EngineHandle, ProgramHandle] {
    const engine = this.#live();
    if (!(program instanceof NativeProgram)) {
      throw new BackendError("the program was loaded by another backend");
    }
    if (!program.handle) throw new BackendError("the program was disposed");
    if (this.#running) throw new BackendError("the engine is already running a program");
    return [engine, program.handle];
  }
}

/**
 * What only runs when NIBBLE_NATIVE_VARIANT asks for it and this processor has, one line each; none when the addon does not load.
 */
export function optionalVariants(): string[] {
  try {
    return loadAddon()
      .variants()
      .flatMap(({ name, runs, only }) =>
        runs && only ? [`NIBBLE_NATIVE_VARIANT=${name}: ${only}`] : [],
      );
  } catch {
    return [];
  }
}

/** Relative bound of the probe's float answers where products are rounded to bf16. */
const BF16_BOUND = 0.03;

/** One line that says why a variant is not used, or null when it answers the probe. */
async function tryVariant(native: Addon, name: string, floatBound: number): Promise<string | null> {
  const threads = 2;
  const options = { arenaBytes: probeArenaBytes(threads), threads };
  try {
    const engine = new NativeEngine(native, options, name);
    const wrong = probeEngine(engine, floatBound);
    await engine.dispose();
    return wrong && `${name} not used: ${wrong}`;
  } catch (error) {
    return `${name} not used: ${messageOf(error)}`;
  }
}

async function findVariant(forced: string | undefined): Promise<BackendStatus> {
  const status: BackendStatus = { id: "native", variant: null, available: false, notices: [] };
  let native: Addon;
  try {
    native = loadAddon();
  } catch (error) {
    status.notices.push(messageOf(error).split("\n", 1)[0] as string); // split gives one part at least
    return status;
  }
  const all = native.variants();
  if (forced && !all.some((variant) => variant.name === forced)) {
    const names = all.map((variant) => variant.name);
    const near = nearestName(forced, names);
    status.notices.push(
      `NIBBLE_NATIVE_VARIANT is ${forced}, expected ${names.join(", ")}${near ? ` (${near}?)` : ""}`,
    );
    return status;
  }
  for (const { name, runs, needs, only } of all) {
    if (forced ? name !== forced : only) continue;
    const notice = runs
      ? await tryVariant(native, name, only ? BF16_BOUND : 1e-3)
      : `${name} not used: the processor lacks ${needs}`;
    if (!notice) {
      status.variant = name;
      status.available = true;
      return status;
    }
    status.notices.push(notice);
  }
  return status;
}

const found = new Map<string, Promise<BackendStatus>>();

/**
 * The native backend restricted to one variant, or choosing the best (null).
 * @param schedule how many threads of an engine work, op by op, around and around, in place of what the machine allows
 */
export function makeNativeBackend(
  variant: string | null,
  schedule: readonly number[] = [],
): Backend {
  const status = () => {
    const forced = variant ?? process.env.NIBBLE_NATIVE_VARIANT ?? "";
    let known = found.get(forced);
    if (!known) {
      known = findVariant(forced || undefined);
      found.set(forced, known);
    }
    return known;
  };
  return {
    id: "native",
    status,
    async createEngine(options) {
      const { variant: best, notices } = await status();
      if (!best) {
        throw new BackendError(`the native backend cannot run here: ${notices.join("; ")}`, {
          hint: "Run npm run build where a C compiler is installed, or use --backend wasm.",
        });
      }
      return new NativeEngine(loadAddon(), options, best, schedule);
    },
  };
}

export const nativeBackend: Backend = makeNativeBackend(null);

/**
 * Rate of the machine for one kind of work with a variant's instructions, 10^9 a second, all threads together; null when
 * this variant's is not known. @throws Error when the addon does not load
 */
export function nativeCeiling(
  name: "dot" | "fma" | "read",
  threads: number,
  variant: string,
): number | null {
  return loadAddon().ceiling(name, threads, variant) / 1e9 || null;
}
