/**
 * The `relaxed` binaries against the reference. Node 20 has relaxed SIMD only behind a V8 flag, which is set here before
 * anything is compiled, as bin/nibble.js does; where the flag is gone, the instructions are always there.
 */
import { setFlagsFromString } from "node:v8";
import { describe, expect, it } from "vitest";
import { conformanceSuite } from "./conformance.js";
import { wasmBackend } from "./wasm.js";

if (process.version.startsWith("v20.")) {
  setFlagsFromString("--experimental-wasm-relaxed-simd");
}

describe("choice of the variant", () => {
  it("takes relaxed SIMD where it answers the probe", async () => {
    const status = await wasmBackend.status();
    expect(status).toEqual({
      id: "wasm",
      variant: "wasm-relaxed",
      available: true,
      notices: [],
    });
  });
});

conformanceSuite(wasmBackend, { exactAttention: true });
