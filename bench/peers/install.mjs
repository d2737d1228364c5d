// Installs the peers into this folder when they are not there. They are never dependencies of the product.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const here = dirname(fileURLToPath(import.meta.url));
const PACKAGES = ["node-llama-cpp", "onnxruntime-node", "@wllama/wllama"];

export const installed = () =>
  PACKAGES.every((name) => existsSync(join(here, "node_modules", ...name.split("/"))));

/** @throws Error when npm fails */
export function installPeers() {
  if (installed()) return;
  console.error("installing the peers into bench/peers …");
  const done = spawnSync("npm", ["install", "--omit=optional", "--no-save", "--no-package-lock"], {
    cwd: here,
    stdio: ["ignore", 2, 2],
    env: { ...process.env, NODE_LLAMA_CPP_SKIP_DOWNLOAD: "true", ONNXRUNTIME_NODE_INSTALL: "skip" },
  });
  if (done.status !== 0) throw new Error("npm could not install the peers");
}
