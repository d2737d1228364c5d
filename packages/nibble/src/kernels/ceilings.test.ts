import { describe, expect, it } from "vitest";
import { measureCeilings } from "./ceilings.js";
import { nativeBackend } from "./native.js";
import { wasmBackend } from "./wasm.js";

describe("ceilings", () => {
  it("the reference has none", async () => {
    const none = await measureCeilings({ backend: "reference", variant: "typescript", threads: 1 });
    expect(none).toEqual({ int8Gops: null, f32Gflops: null, readGBs: null });
  });

  it("wasm: arithmetic of its own instructions, whatever else is known", async (context) => {
    const { available, variant } = await wasmBackend.status();
    if (!available || variant === null) return context.skip("wasm does not run here");
    const ceilings = await measureCeilings({ backend: "wasm", variant, threads: 1 });
    expect(ceilings.int8Gops).toBeGreaterThan(0.1);
    expect(ceilings.f32Gflops).toBeGreaterThan(0.1);
    expect(ceilings.readGBs).toBeGreaterThan(0.1);
  });

  it("native: known for AVX2 and AVX-512, null elsewhere", async (context) => {
    const { available, variant } = await nativeBackend.status();
    if (!available || variant === null) return context.skip("native does not run here");
    const ceilings = await measureCeilings({ backend: "native", variant, threads: 1 });
    if (!variant.startsWith("avx")) expect(ceilings.int8Gops).toBeNull();
    else for (const value of Object.values(ceilings)) expect(value).toBeGreaterThan(0.1);
    await expect(
      measureCeilings({ backend: "native", variant: "none", threads: 1 }),
    ).rejects.toThrow("does not run");
  });
});
