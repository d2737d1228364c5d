/**
 * Compiles packages/nibble/assembly (AssemblyScript) to four binaries in packages/nibble/wasm: `simd` and `relaxed`
 * (relaxed SIMD), each for one thread and, as `…-threads`, for shared memory. Binaries newer than their sources stay.
 *
 *   node scripts/build-wasm.mjs            build what is stale
 *   node scripts/build-wasm.mjs --force    build all
 *   node scripts/build-wasm.mjs relaxed …  only these
 */
import { mkdirSync, renameSync, rmSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import asc from "assemblyscript/asc";
import { fail, nibble, root, walk } from "./common.mjs";

const source = join(nibble, "assembly");
const target = join(nibble, "wasm");
/** 4 GiB: the module only states an upper bound, the host decides how much memory there is. */
const MAX_PAGES = "65536";

const VARIANTS = [
  { name: "simd", features: ["simd"], shared: false },
  { name: "relaxed", features: ["simd", "relaxed-simd"], shared: false },
  { name: "simd-threads", features: ["simd", "threads"], shared: true },
  { name: "relaxed-threads", features: ["simd", "relaxed-simd", "threads"], shared: true },
];

const time = (file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;

async function compile({ name, features, shared }) {
  const output = join(target, `${name}.wasm`);
  const part = join(target, `.${name}.${process.pid}.part`);
  const flags = [
    relative(root, join(source, "index.ts")),
    ...["--baseDir", root],
    ...["--outFile", relative(root, part)],
    ...["-O3", "--converge", "--noAssert", "--uncheckedBehavior", "always"],
    ...["--runtime", "stub", "--importMemory", "--noExportMemory"],
    ...["--initialMemory", "1", "--maximumMemory", MAX_PAGES],
    ...features.flatMap((feature) => ["--enable", feature]),
    ...(shared ? ["--sharedMemory"] : []),
  ];
  // AS112 tells embedders that v128 does not cross into JavaScript; ours only crosses between modules of one binary.
  flags.push("--disableWarning", "112");
  const { error, stderr } = await asc.main(flags);
  if (error) {
    rmSync(part, { force: true });
    fail(`${name}: ${error.message}\n${stderr}`);
  }
  renameSync(part, output);
}

mkdirSync(target, { recursive: true });
const newest = Math.max(
  time(new URL(import.meta.url)),
  ...walk(source).map((file) => time(pathToFileURL(file))),
);
const force = process.argv.includes("--force");
const names = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const stale = VARIANTS.filter(
  ({ name }) =>
    (names.length === 0 || names.includes(name)) &&
    (force || time(join(target, `${name}.wasm`)) < newest),
);
for (const variant of stale) {
  await compile(variant);
  const { size } = statSync(join(target, `${variant.name}.wasm`));
  console.log(`wasm/${variant.name}.wasm ${(size / 1024).toFixed(1)} KiB`);
}
