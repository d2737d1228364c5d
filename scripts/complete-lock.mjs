/**
 * Completes package-lock.json with the packages of other platforms. npm leaves out optional packages that the registry at
 * hand does not carry, and then refuses the lock file in `npm ci`. Platform packages are pinned exactly by the package that
 * wants them, and their names say what they are for, so they can be written down without being seen. Run after
 * `npm install`; does nothing when the lock is complete.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./common.mjs";

const SYSTEMS = [
  "android",
  "darwin",
  "freebsd",
  "linux",
  "netbsd",
  "openbsd",
  "openharmony",
  "sunos",
  "win32",
];
const PROCESSORS = [
  "arm64",
  "arm",
  "ia32",
  "loong64",
  "ppc64",
  "riscv64",
  "s390x",
  "x64",
  "wasm32",
  "mips64el",
];
const EXACT = /^\d+\.\d+\.\d+(-[\w.]+)?$/;

const file = join(root, "package-lock.json");
const lock = JSON.parse(readFileSync(file, "utf8"));
const added = [];
for (const [path, { optionalDependencies, dev }] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(optionalDependencies ?? {})) {
    if (find(path, name) || !EXACT.test(version)) continue;
    const words = name.split(/[/-]/);
    const os = SYSTEMS.find((system) => words.includes(system));
    const cpu = PROCESSORS.find((one) => words.some((word) => word === one || word === `${one}le`));
    if (cpu === undefined && os === undefined) continue;
    lock.packages[`node_modules/${name}`] = {
      version,
      ...(cpu ? { cpu: [words.includes("ppc64le") ? "ppc64" : cpu] } : {}),
      ...(dev ? { dev } : {}),
      optional: true,
      ...(os ? { os: [os] } : {}),
      ...(words.includes("musl") ? { libc: ["musl"] } : {}),
      ...(words.includes("gnu") ? { libc: ["glibc"] } : {}),
    };
    added.push(name);
  }
}
const entries = Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
lock.packages = Object.fromEntries(entries);
if (added.length > 0) writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
console.log(
  added.length > 0 ? `added ${added.length} platform packages` : "package-lock.json is complete",
);

/** True when the lock holds the package where the one at `path` would look for it: beside it or further out. */
function find(path, name) {
  const folders = path.split("node_modules/");
  return folders.some((_, i) => {
    const outer = folders.slice(0, folders.length - i).join("node_modules/");
    const prefix = outer === "" || outer.endsWith("/") ? outer : `${outer}/`;
    return lock.packages[`${prefix}node_modules/${name}`] !== undefined;
  });
}
