/**
 * Chooses the backend of a run: the one that was asked for, or the fastest that answers its known-answer probe. Also runs in
 * a browser, where the native module is never touched. `NIBBLE_BACKEND` is read by the caller (command line, bench).
 */
import { BackendError } from "../core/errors.js";
import type { Backend, BackendId, BackendStatus, Engine, EngineOptions } from "./contract.js";

/** Fastest first. */
const BACKEND_ORDER: readonly BackendId[] = ["native", "wasm", "reference"];

const inNode = typeof process !== "undefined" && process.versions?.node !== undefined;

const LOADERS: Record<BackendId, () => Promise<Backend>> = {
  async native() {
    if (!inNode) throw new BackendError("native code runs in Node only");
    return (await import("./native.js")).nativeBackend;
  },
  async wasm() {
    return (await import("./wasm.js")).wasmBackend;
  },
  async reference() {
    return (await import("./reference.js")).referenceBackend;
  },
};

/** Loads the module of a backend. */
export type LoadBackend = (id: BackendId) => Promise<Backend>;
const loadBackend: LoadBackend = (id) => LOADERS[id]();

/** A backend whose module is loaded when it is first asked for; one that does not load is not available. */
class LazyBackend implements Backend {
  readonly id: BackendId;
  readonly #load: LoadBackend;
  #backend: Promise<Backend> | null = null;

  constructor(id: BackendId, load: LoadBackend) {
    this.id = id;
    this.#load = load;
  }

  #get(): Promise<Backend> {
    this.#backend ??= this.#load(this.id);
    return this.#backend;
  }

  async status(): Promise<BackendStatus> {
    try {
      return await (await this.#get()).status();
    } catch (error) {
      const notice = error instanceof Error ? error.message : String(error);
      return { id: this.id, variant: null, available: false, notices: [notice] };
    }
  }

  async createEngine(options: EngineOptions): Promise<Engine> {
    return (await this.#get()).createEngine(options);
  }
}

/** Every backend, fastest first. Nothing is loaded before a status or an engine is asked for. */
function allBackends(load: LoadBackend): Backend[] {
  return BACKEND_ORDER.map((id) => new LazyBackend(id, load));
}

/** Status of every backend, fastest first (`nibble doctor`). Never throws. */
export function backendStatuses(load: LoadBackend = loadBackend): Promise<BackendStatus[]> {
  return Promise.all(allBackends(load).map((backend) => backend.status()));
}

/**
 * @param choice a backend, or "auto": native, then wasm, then reference
 * @param log gets one line for every step down from the fastest backend
 * @param load where backends come from; tests give their own
 * @throws BackendError when a backend was asked for by name and cannot run here
 */
export async function selectBackend(
  choice: "auto" | BackendId,
  log: (line: string) => void,
  load: LoadBackend = loadBackend,
): Promise<Backend> {
  for (const backend of allBackends(load)) {
    if (choice !== "auto" && choice !== backend.id) continue;
    const status = await backend.status();
    if (status.available) return backend;
    const reason = status.notices.join("; ") || "it did not say why";
    if (choice === backend.id) {
      throw new BackendError(
        `the ${choice} backend cannot run here: ${reason}`,
        { hint: 'Use backend "auto", or see `nibble doctor` for what runs.' },
        "backend-unavailable",
      );
    }
    log(`${backend.id} backend not used: ${reason}`);
  }
  throw new BackendError("no backend runs here", { hint: "`nibble doctor` shows why." });
}
