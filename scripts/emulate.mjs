/**
 * The conformance suite on the arm64 kernels without an arm64 machine: cross-compiles them (aarch64-linux-gnu-gcc, or
 * NIBBLE_ARM64_CC) and runs every program under qemu-aarch64 (or NIBBLE_QEMU). Minutes.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fail, native, root } from "./common.mjs";

const emulator = process.env.NIBBLE_QEMU ?? "qemu-aarch64";
for (const name of [process.env.NIBBLE_ARM64_CC ?? "aarch64-linux-gnu-gcc", emulator]) {
  if (spawnSync(name, ["--version"]).status !== 0) fail(`${name} is not installed`, 2);
}
const node = (args, env) =>
  spawnSync(process.execPath, args, {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, ...env },
  }).status ?? 1;
const built = node([join(native, "build.mjs"), "--emulate"]);
if (built !== 0) fail("the arm64 kernels did not compile");
process.exit(
  node(
    [
      join(root, "node_modules", "vitest", "vitest.mjs"),
      "run",
      join(root, "packages", "nibble", "src", "kernels", "native-emulated.test.ts"),
      "--testTimeout=600000",
      ...process.argv.slice(2),
    ],
    { NIBBLE_EMULATED: `${emulator} ${join(native, "build", "arm64", "run")}` },
  ),
);
