/**
 * Chooses the backend of a run: the one that was asked for, or the fastest that answers its known-answer probe. Also runs in
 * a browser, where the native module is never touched. `NIBBLE_BACKEND` is read by the caller (command line, bench).
 */
import { BackendError } from "../core/errors.js";
import type { Backend, BackendId, BackendStatus } from "./contract.js";

/** Fastest first. */
export const BACKEND_ORDER: readonly BackendId[] = ["native", "wasm", "reference"];

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

/** @throws BackendError when this system cannot even load the backend's module. */
export function loadBackend(id: BackendId): Promise<Backend> {
  return LOADERS[id]();
}

/** The backend and its status; a module that does not load counts as not available. */
async function examine(
  id: BackendId,
  load: typeof loadBackend,
): Promise<{ backend: Backend | null; status: BackendStatus }> {
  try {
    const backend = await load(id);
    return { backend, status: await backend.status() };
  } catch (error) {
    const notice = error instanceof Error ? error.message : String(error);
    return { backend: null, status: { id, variant: null, available: false, notices: [notice] } };
  }
}

/** Status of every backend, fastest first (`nibble doctor`). */
export async function backendStatuses(): Promise<BackendStatus[]> {
  const all = await Promise.all(BACKEND_ORDER.map((id) => examine(id, loadBackend)));
  return all.map(({ status }) => status);
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
  load: typeof loadBackend = loadBackend,
): Promise<Backend> {
  if (choice !== "auto") {
    const { backend, status } = await examine(choice, load);
    if (backend && status.available) return backend;
    throw new BackendError(
      `the ${choice} backend cannot run here: ${reason(status)}`,
      { hint: 'Use backend "auto", or see `nibble doctor` for what runs.' },
      "backend-unavailable",
    );
  }
  for (const id of BACKEND_ORDER) {
    const { backend, status } = await examine(id, load);
    if (backend && status.available) return backend;
    log(`${id} backend not used: ${reason(status)}`);
  }
  throw new BackendError("no backend runs here", { hint: "`nibble doctor` shows why." });
}

function reason(status: BackendStatus): string {
  return status.notices.join("; ") || "it did not say why";
}
