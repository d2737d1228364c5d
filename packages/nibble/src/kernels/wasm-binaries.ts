/**
 * The four WebAssembly binaries of the kernels: where they come from, and threads that run them. Everything that differs
 * between Node and a browser is in this file; nothing of Node is imported statically, so a bundler need not know it.
 */
import { BackendError } from "../core/errors.js";

export type WasmBinary = "simd" | "relaxed" | "simd-threads" | "relaxed-threads";

/** How an application that moves the files around says where they are. */
export interface WasmSource {
  /** Bytes of a binary. */
  binary?: (name: WasmBinary) => Promise<BufferSource>;
  /** A browser Worker that runs `wasm-worker.mjs`. */
  worker?: () => Worker;
}

// Literal URLs: bundlers copy the files they see in this form.
const URLS: Record<WasmBinary, URL> = {
  simd: new URL("../../wasm/simd.wasm", import.meta.url),
  relaxed: new URL("../../wasm/relaxed.wasm", import.meta.url),
  "simd-threads": new URL("../../wasm/simd-threads.wasm", import.meta.url),
  "relaxed-threads": new URL("../../wasm/relaxed-threads.wasm", import.meta.url),
};

let source: WasmSource = {};

/** Overrides where binaries and workers come from. Call it before the first use of the wasm backend. */
export function setWasmSource(override: WasmSource): void {
  source = override;
}

const inNode = typeof process === "object" && process.versions?.node !== undefined;

/** A module of Node, by a name that bundlers do not resolve. */
function nodeModule<T>(name: string): Promise<T> {
  return import(/* @vite-ignore */ `node:${name}`) as Promise<T>;
}

/** @throws BackendError when the file cannot be read */
export async function loadBinary(name: WasmBinary): Promise<BufferSource> {
  try {
    if (source.binary) return await source.binary(name);
    const url = URLS[name];
    if (inNode && url.protocol === "file:") {
      const { readFile } = await nodeModule<typeof import("node:fs/promises")>("fs/promises");
      return new Uint8Array(await readFile(url));
    }
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url.pathname}: HTTP ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (cause) {
    throw new BackendError(
      `cannot read the WebAssembly kernels (${name}): ${cause instanceof Error ? cause.message : String(cause)}`,
      { hint: "Run `npm run build`, or name another place with setWasmSource().", cause },
    );
  }
}

export interface ThreadMessage {
  ready?: number;
  done?: number;
  failure?: string | null;
}

/** A worker of either world. */
export interface Thread {
  post(message: unknown): void;
  /** Whether the thread keeps the process alive. Nothing in a browser. */
  keepAlive(on: boolean): void;
  terminate(): Promise<void>;
}

/** Starts `wasm-worker.mjs`. `onError` gets what ends the thread unexpectedly. */
export async function startThread(
  onMessage: (message: ThreadMessage) => void,
  onError: (error: Error) => void,
): Promise<Thread> {
  if (inNode && !source.worker) {
    const { Worker } = await nodeModule<typeof import("node:worker_threads")>("worker_threads");
    const worker = new Worker(new URL("./wasm-worker.mjs", import.meta.url));
    worker.on("message", onMessage);
    worker.on("error", onError);
    return {
      post: (message) => worker.postMessage(message),
      keepAlive: (on) => (on ? worker.ref() : worker.unref()),
      terminate: async () => {
        await worker.terminate();
      },
    };
  }
  const worker =
    source.worker?.() ??
    new Worker(new URL("./wasm-worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<ThreadMessage>) => onMessage(data);
  worker.onerror = (event) => onError(new Error(event.message || "the worker did not start"));
  return {
    post: (message) => worker.postMessage(message),
    keepAlive: () => {},
    terminate: async () => worker.terminate(),
  };
}

/** Processors, as far as this environment tells. */
export async function processorCount(): Promise<number> {
  if (!inNode) return navigator.hardwareConcurrency || 1;
  const { availableParallelism } = await nodeModule<typeof import("node:os")>("os");
  return availableParallelism();
}
