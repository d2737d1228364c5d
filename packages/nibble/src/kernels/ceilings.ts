/**
 * What this machine can do at most with the instructions of a backend: benches state results as shares of these, so that a
 * regression shows as a percentage of the machine. To be measured in the same process and minute as the results.
 */
import type { Engine } from "./contract.js";

/** All threads together; null where nothing is known to measure it. */
export interface Ceilings {
  /** Operations of the 8-bit integer dot product, multiply and add counted apart, 10^9 a second. */
  int8Gops: number | null;
  /** Operations of the f32 multiply-add, 10^9 a second. */
  f32Gflops: number | null;
  /** Bytes read from memory, 10^9 a second. */
  readGBs: number | null;
}

const UNKNOWN: Ceilings = { int8Gops: null, f32Gflops: null, readGBs: null };

/** Bandwidth belongs to the machine, not to the backend: the addon's streams of all threads measure it where it loads. */
async function nativeRead(threads: number): Promise<number | null> {
  const { nativeBackend, nativeCeiling } = await import("./native.js");
  const { variant } = await nativeBackend.status();
  return variant === null ? null : nativeCeiling("read", threads, variant);
}

/** Measures for some tenths of a second. Node only; the reference backend has no ceilings. */
export async function measureCeilings(
  engine: Pick<Engine, "backend" | "variant" | "threads">,
): Promise<Ceilings> {
  const { backend, variant, threads } = engine;
  if (backend === "native") {
    const { nativeCeiling } = await import("./native.js");
    return {
      int8Gops: nativeCeiling("dot", threads, variant),
      f32Gflops: nativeCeiling("fma", threads, variant),
      readGBs: nativeCeiling("read", threads, variant),
    };
  }
  if (backend === "wasm") {
    const { measureWasmCeilings } = await import("./wasm-ceilings.js");
    const { processorCount } = await import("./wasm-binaries.js");
    const one = await measureWasmCeilings();
    // Arithmetic is measured on the calling thread; cores do not share it.
    const cores = Math.min(threads, await processorCount());
    const read = await nativeRead(threads);
    return {
      int8Gops: one.int8Gops * cores,
      f32Gflops: one.f32Gflops * cores,
      readGBs: read ?? (threads === 1 ? one.readGBs : null),
    };
  }
  return UNKNOWN;
}
