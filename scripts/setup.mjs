/**
 * Makes a checkout runnable, and does nothing when it is: installs the locked dependencies when node_modules is missing
 * or differs from package-lock.json, builds the parts whose sources have changed. Plain Node, no dependencies.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fail, root, runNode } from "./common.mjs";
import { staleParts } from "./parts.mjs";

const [major] = process.versions.node.split(".").map(Number);
if (major < 20) fail(`nibble needs Node 20 or newer; this is ${process.version}.`);

if (!installed()) {
  console.error("installing dependencies (npm ci) …");
  if (npm(["ci", "--include=dev"]) !== 0) {
    console.error("npm ci refused the lock file; trying npm install with the same versions …");
    const code = npm(["install", "--include=dev", "--no-save"]);
    if (code !== 0) {
      fail(
        "the dependencies could not be installed: see above. The first start needs a registry.",
        code,
      );
    }
  }
}
const stale = staleParts();
if (stale.length > 0) {
  const code = runNode([join(root, "scripts", "build.mjs"), ...stale]);
  if (code !== 0) fail("the build failed: see above.", code);
}

/** True when node_modules holds exactly the versions that package-lock.json names (optional packages may be absent). */
function installed() {
  const marker = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(marker)) return false;
  const wanted = packages(join(root, "package-lock.json"));
  const present = packages(marker);
  for (const [path, entry] of Object.entries(wanted)) {
    if (!path.startsWith("node_modules/") && !path.includes("/node_modules/")) continue;
    if (entry.link) {
      if (!existsSync(join(root, path))) return false;
    } else if (!present[path]) {
      if (!entry.optional) return false;
    } else if (present[path].version !== entry.version) return false;
  }
  return true;
}

function packages(lockfile) {
  return JSON.parse(readFileSync(lockfile, "utf8")).packages;
}

/** Runs the npm that runs us, or the one on the path. */
function npm(args) {
  const self = process.env.npm_execpath;
  const useSelf = self !== undefined && /npm-cli\.[cm]?js$/.test(self);
  const done = useSelf
    ? spawnSync(process.execPath, [self, ...args], { cwd: root, stdio: ["ignore", 2, 2] })
    : spawnSync("npm", args, {
        cwd: root,
        stdio: ["ignore", 2, 2],
        shell: process.platform === "win32",
      });
  if (done.error) fail(`npm could not be started: ${done.error.message}`);
  return done.status ?? 1;
}
