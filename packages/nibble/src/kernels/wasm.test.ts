/** The `simd` binaries against the reference, and the engines around them. wasm-relaxed.test.ts tests the other two. */
import { readFile } from "node:fs/promises";
import { afterEach, describe, expect, it, vi } from "vitest";
import { conformanceSuite } from "./conformance.js";
import type { Engine } from "./contract.js";
import { CONTROL_BYTES } from "./ops.js";
import { probeArenaBytes, probeEngine } from "./probe.js";
import { ProgramBuilder } from "./program.js";
import { scratchLines } from "./scratch.js";
import { setWasmSource, type WasmBinary, wasmBackend } from "./wasm.js";

const fileOf = (name: WasmBinary) => new URL(`../../wasm/${name}.wasm`, import.meta.url);
const simdOnly = {
  binary: async (name: WasmBinary) =>
    name.startsWith("relaxed") ? new Uint8Array(4) : new Uint8Array(await readFile(fileOf(name))),
};

setWasmSource(simdOnly);

describe("choice of the variant", () => {
  it("takes the best one that answers the probe", async () => {
    const status = await wasmBackend.status();
    expect(status.variant).toBe("wasm-simd");
    expect(status.available).toBe(true);
    expect(status.notices).toEqual(["wasm-relaxed: this runtime lacks its instructions"]);
  });
});

conformanceSuite(wasmBackend, { exactAttention: true });

/** A program that sets `count` floats to themselves times 2 (dst += 1 * src, src a copy), `times` times. */
function doubling(engine: Engine, count: number, times: number): Int32Array {
  const builder = new ProgramBuilder();
  const dstAt = CONTROL_BYTES / 64;
  const srcAt = dstAt + count / 16;
  const operands = {
    rowsReg: 0,
    srcAt,
    ldSrc: count,
    dstAt,
    ldDst: count,
    width: count,
    alphaF: 1,
  };
  for (let i = 0; i < times; i++) builder.emit("add", operands);
  const memory = new Float32Array(engine.memory);
  memory.fill(1, CONTROL_BYTES / 4, CONTROL_BYTES / 4 + 2 * count);
  new Int32Array(engine.memory)[0] = 1;
  const scratchAt = srcAt + count / 16;
  const lines = scratchLines(0, 0);
  return builder.build({
    scratchAt,
    scratchLines: lines,
    maxRows: 1,
    arenaLines: scratchAt + engine.threads * lines,
  });
}

describe("engines", () => {
  const arenaBytes = 8 * 2 ** 20;
  afterEach(() => vi.unstubAllGlobals());

  it("keeps the event loop turning while a program runs, and refuses a second run", async () => {
    const engine = await wasmBackend.createEngine({ arenaBytes, threads: 2 });
    const program = engine.load(doubling(engine, 65536, 3000));
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const run = engine.run(program);
    await expect(engine.run(program)).rejects.toThrow("already running");
    await run;
    clearInterval(timer);
    expect(turns).toBeGreaterThan(2);
    expect(new Float32Array(engine.memory)[CONTROL_BYTES / 4 + 65535]).toBe(3001);
    await engine.dispose();
    await expect(engine.run(program)).rejects.toThrow("disposed");
  });

  it("runs hundreds of short programs, sync and async, from one and several program slots", async () => {
    const engine = await wasmBackend.createEngine({ arenaBytes, threads: 2 });
    const programs = [1, 2, 3].map((times) => engine.load(doubling(engine, 64, times)));
    for (let i = 0; i < 100; i++) {
      for (const program of programs) {
        await engine.run(program);
        engine.runSync(program);
      }
    }
    expect(new Float32Array(engine.memory)[CONTROL_BYTES / 4]).toBe(1 + 100 * 2 * 6);
    for (const program of programs) program.dispose();
    expect(() => engine.runSync(programs[0])).toThrow("disposed");
    await engine.dispose();
  });

  it("refuses programs of another engine and absurd arenas", async () => {
    const [a, b] = await Promise.all(
      [1, 1].map((threads) => wasmBackend.createEngine({ arenaBytes, threads })),
    );
    expect(() => b.runSync(a.load(doubling(a, 64, 1)))).toThrow("another engine");
    await expect(wasmBackend.createEngine({ arenaBytes: 2 ** 33, threads: 1 })).rejects.toThrow(
      "cannot allocate 8.00 GiB",
    );
    await expect(wasmBackend.createEngine({ arenaBytes, threads: 0 })).rejects.toThrow("0 threads");
    await Promise.all([a.dispose(), b.dispose()]);
  });

  it("runs on the calling thread where memory cannot be shared, and says so", async () => {
    vi.resetModules();
    vi.stubGlobal("SharedArrayBuffer", undefined);
    const { setWasmSource: set, wasmBackend: backend } = await import("./wasm.js");
    set(simdOnly);
    const status = await backend.status();
    expect(status.variant).toBe("wasm-simd");
    expect(status.notices[0]).toContain("no SharedArrayBuffer");
    const engine = await backend.createEngine({ arenaBytes: probeArenaBytes(1), threads: 2 });
    expect(engine.threads).toBe(1);
    expect(engine.memory).toBeInstanceOf(ArrayBuffer);
    expect(probeEngine(engine)).toBeNull();
    const program = engine.load(doubling(engine, 64, 5));
    await engine.run(program);
    expect(new Float32Array(engine.memory)[CONTROL_BYTES / 4]).toBe(6);
  });

  it("works without Atomics.waitAsync", async () => {
    vi.resetModules();
    const { waitAsync } = Atomics as unknown as { waitAsync: unknown };
    Object.assign(Atomics, { waitAsync: undefined });
    try {
      const { setWasmSource: set, wasmBackend: backend } = await import("./wasm.js");
      set(simdOnly);
      const engine = await backend.createEngine({ arenaBytes, threads: 2 });
      const program = engine.load(doubling(engine, 64, 2));
      for (let i = 0; i < 50; i++) await engine.run(program);
      expect(new Float32Array(engine.memory)[CONTROL_BYTES / 4]).toBe(101);
      await engine.dispose();
    } finally {
      Object.assign(Atomics, { waitAsync });
    }
  });

  it("reports binaries that are missing", async () => {
    vi.resetModules();
    const { setWasmSource: set, wasmBackend: backend } = await import("./wasm.js");
    set({ binary: () => Promise.reject(new Error("gone")) });
    const status = await backend.status();
    expect(status.available).toBe(false);
    expect(status.notices).toHaveLength(2);
    await expect(backend.createEngine({ arenaBytes, threads: 1 })).rejects.toThrow("gone");
  });
});
