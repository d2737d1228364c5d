#!/usr/bin/env node
// Entry of the command line. The only place that sets V8 flags. Node 20 knows relaxed SIMD, but behind a switch, which
// holds for this process and its threads. Whether a kernel that uses it answers correctly is probed, never assumed.
// The collector is made callable because V8 does not see how much memory stands behind the tensors that loading drops.
import { existsSync } from "node:fs";
import module from "node:module";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const major = Number(process.versions.node.split(".")[0]);
if (major < 20) {
  console.error(`nibble needs Node 20 or newer; this is ${process.version}.`);
  process.exit(1);
}
if (major === 20) setFlagsFromString("--experimental-wasm-relaxed-simd");
setFlagsFromString("--expose-gc");
globalThis.gc ??= runInNewContext("gc");

// Node 22 keeps compiled code between runs, in a folder for temporary files.
module.enableCompileCache?.();

const main = new URL("../dist/cli/main.js", import.meta.url);
if (!existsSync(fileURLToPath(main))) {
  console.error(
    "nibble is not built yet: run `npm run build` (or `npm start`) in the checkout first.",
  );
  process.exit(1);
}
const { runCli } = await import(main.href);
process.exitCode = await runCli(process.argv.slice(2));
