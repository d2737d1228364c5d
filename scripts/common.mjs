/** What the scripts share: where things are, how to run a command, what the sources hash to. */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..");
export const nibble = join(root, "packages", "nibble");
export const native = join(root, "packages", "native");

/** Every file below a folder, sorted, without node_modules. */
export function walk(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true })
    .flatMap((entry) => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return entry.name === "node_modules" ? [] : walk(path);
      return entry.isFile() ? [path] : [];
    })
    .sort();
}

/** SHA-256 over names and contents of files and folders (missing ones count as empty). */
export function hashOf(paths, keep = () => true) {
  const hash = createHash("sha256");
  for (const path of paths) {
    const files = statSync(path, { throwIfNoEntry: false })?.isFile() ? [path] : walk(path);
    for (const file of files.filter(keep)) {
      hash.update(`${relative(root, file).split(sep).join("/")}\0`).update(readFileSync(file));
    }
  }
  return hash.digest("hex");
}

/** Runs a Node script of this repository; its exit code. Output goes to stderr, so that stdout stays the product's. */
export function runNode(args, { env = process.env, stdout = 2 } = {}) {
  const done = spawnSync(process.execPath, args, {
    cwd: root,
    env,
    stdio: ["inherit", stdout, "inherit"],
  });
  if (done.error) throw done.error;
  return done.status ?? 1;
}

/** The same beside other work. */
export function startNode(args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: root, stdio: ["ignore", 2, "inherit"] });
    child.on("error", reject);
    child.on("exit", (code) => resolve(code ?? 1));
  });
}

/** Ends the script with one line for a person. */
export function fail(message, code = 1) {
  console.error(message);
  process.exit(code);
}
