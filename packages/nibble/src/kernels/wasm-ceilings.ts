/** Ceilings of one thread of WebAssembly, with the binary that the wasm backend chose (assembly/ceilings.ts). */
import { BackendError } from "../core/errors.js";
import { chosenWasm } from "./wasm.js";

interface Exports {
  ceilingDot(at: number, steps: number): number;
  ceilingFma(at: number, steps: number): number;
  ceilingRead(at: number, steps: number): number;
  dotOperations(): number;
}

const PAGE = 65536;
/** More than the caches hold. */
const READ_BYTES = 192 * 2 ** 20;
const READ_SLICE = 2 ** 21;
/** Steps of a slice, about 0.1 ms: short enough to fall between the interruptions of a busy machine. */
const STEPS = 50_000;
/** Enough for the optimizing compiler to take over. */
const MILLISECONDS = 150;

/** Largest rate of many slices, 10^9 a second. */
function best(amount: number, slice: (i: number) => void): number {
  let rate = 0;
  const end = performance.now() + MILLISECONDS;
  for (let i = 0; performance.now() < end; i++) {
    const start = performance.now();
    slice(i);
    rate = Math.max(rate, amount / (performance.now() - start) / 1e6);
  }
  return rate;
}

let opened: Promise<Exports> | null = null;

async function open(): Promise<Exports> {
  const { module, shared, status } = await chosenWasm();
  if (!module) throw new BackendError(`no wasm backend here: ${status.notices.join("; ")}`);
  const pages = READ_BYTES / PAGE + 1;
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  new Uint8Array(memory.buffer).fill(1); // pages that were never written are all the same page of zeros
  const instance = new WebAssembly.Instance(module, { env: { memory } });
  return instance.exports as unknown as Exports;
}

/** @throws BackendError when the wasm backend cannot run here */
export async function measureWasmCeilings(): Promise<{
  int8Gops: number;
  f32Gflops: number;
  readGBs: number;
}> {
  opened ??= open();
  const exports = await opened;
  const slices = READ_BYTES / READ_SLICE;
  return {
    int8Gops: best(STEPS * 8 * exports.dotOperations(), () => exports.ceilingDot(PAGE, STEPS)),
    f32Gflops: best(STEPS * 8 * 8, () => exports.ceilingFma(PAGE, STEPS)),
    readGBs: best(READ_SLICE, (i) =>
      exports.ceilingRead(PAGE + (i % slices) * READ_SLICE, READ_SLICE / 128),
    ),
  };
}
