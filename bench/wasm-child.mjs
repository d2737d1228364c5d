// A model on the wasm backend in a process of its own, so that the variant can be chosen: measures what it is asked for.
//   fork(wasm-child.mjs, [artifact, kv, threads, "simd" | "relaxed"]); messages { prefill, decode, depth } -> tokens/s
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";

const [artifact, kv, threads, variant] = process.argv.slice(2);
if (process.version.startsWith("v20.")) setFlagsFromString("--experimental-wasm-relaxed-simd");
const { nibbleModule } = await import("./source.mjs");
const { setWasmSource } = await nibbleModule("kernels/wasm");
setWasmSource({
  // Bytes that are no module: the backend goes on to the next variant.
  binary: async (name) =>
    variant === "simd" && name.startsWith("relaxed")
      ? new Uint8Array(4)
      : readFileSync(
          fileURLToPath(new URL(`../packages/nibble/wasm/${name}.wasm`, import.meta.url)),
        ),
});
const { openModel } = await nibbleModule("runtime/open");
const { benchModel } = await nibbleModule("runtime/bench");
const opened = await openModel(artifact, {
  backend: "wasm",
  threads: Number(threads),
  kv,
  maxContext: 1024,
});
process.on("message", async (options) => {
  const given = { prefill: 0, decode: 0, ...options };
  const result = await benchModel(opened, { ...given, rounds: 1, warmup: false });
  process.send(given.prefill ? result.prefillTokensPerSecond : result.decodeTokensPerSecond);
});
process.on("disconnect", () => process.exit(0));
process.send(opened.compiled.engine.variant);
