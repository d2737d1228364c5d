/**
 * `npm run bench -- <name> [args]`: runs one file of packages/nibble/bench and leaves its JSON on stdout. Without a name:
 * what there is. A bench reports best and median, repetitions, threads, CPU and Node version.
 */
import { basename, join } from "node:path";
import { fail, nibble, runNode, walk } from "./common.mjs";

const benches = new Map(
  walk(join(nibble, "bench"))
    .filter((file) => file.endsWith(".bench.mjs"))
    .map((file) => [basename(file, ".bench.mjs"), file]),
);
const [name, ...args] = process.argv.slice(2);
const list = [...benches.keys()].join(", ") || "none yet";
if (name === undefined) fail(`name a bench: ${list}`, 2);
const file = benches.get(name);
if (!file) fail(`no bench "${name}": ${list}`, 2);
process.exit(runNode([file, ...args], { stdout: 1 }));
