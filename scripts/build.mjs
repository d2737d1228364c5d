/**
 * Builds the parts named on the command line, or all: `wasm` (AssemblyScript kernels, two variants), `ts` (src/ -> dist/,
 * one output file per source file, so that relative URLs to wasm/ and data/ hold in both; the command line bundled), `native` (C addon; skipped
 * with one line where no compiler answers).
 */
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { build } from "tsdown";
import { fail, native, nibble, root, startNode, walk } from "./common.mjs";
import { identity, markBuilt, PARTS } from "./parts.mjs";

/** Modules that scripts/docs.mjs reads; the command line has them in its bundle. */
const DOCUMENTED = [
  "eval/tasks/index",
  "formats/index",
  "kv/codecs/index",
  "kv/presets",
  "kv/retention/index",
  "methods/index",
  "recipe/presets",
  "recipe/schema",
];

const BUILDERS = { wasm: buildWasm, ts: buildTypeScript, native: buildNative };
const wanted = process.argv.slice(2);
for (const name of wanted) {
  if (!PARTS[name]) fail(`unknown part "${name}": one of ${Object.keys(PARTS).join(", ")}`, 2);
}
// The parts do not need each other, and each is mostly one processor's work.
await Promise.all((wanted.length > 0 ? wanted : Object.keys(PARTS)).map(buildPart));

async function buildPart(name) {
  const begun = performance.now();
  // Taken before building: what changes meanwhile is built next time.
  const sources = identity(name);
  if (!(await BUILDERS[name]())) return;
  markBuilt(name, sources);
  console.log(`built ${name} in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
}

async function buildWasm() {
  const code = await startNode([join(root, "scripts", "build-wasm.mjs")]);
  if (code !== 0) fail("the kernels did not compile.");
  return true;
}

async function buildTypeScript() {
  const source = join(nibble, "src");
  // Built beside its place, so that programs which are running keep finding their files until the last moment.
  const output = join(nibble, `.dist-${process.pid}`);
  await build({
    config: false,
    cwd: nibble,
    entry: ["src/index.ts", "src/browser.ts", ...DOCUMENTED.map((name) => `src/${name}.ts`)],
    outDir: output,
    format: "esm",
    platform: "node",
    target: "node20",
    unbundle: true,
    fixedExtension: false,
    dts: true,
    sourcemap: true,
    clean: false,
    logLevel: "warn",
    inputOptions: { checks: { pluginTimings: false } },
  });
  // The command line in a few files, dependencies included: opening 260 files took longer than running them. The depth of
  // src/cli equals that of src/kernels and src/recipe, so relative places hold.
  await build({
    config: false,
    cwd: nibble,
    entry: { main: "src/cli/main.ts" },
    outDir: join(output, "cli"),
    format: "esm",
    platform: "node",
    target: "node20",
    fixedExtension: false,
    dts: false,
    deps: { alwaysBundle: [/.*/], neverBundle: [/^node:/, "@nibble/native"] },
    sourcemap: true,
    clean: false,
    logLevel: "warn",
    inputOptions: { checks: { pluginTimings: false } },
  });
  // One file with every dependency inside, for pages without a bundler. Its depth equals that of src/kernels, so the
  // relative places of wasm/ and of the worker hold here too.
  await build({
    config: false,
    cwd: nibble,
    entry: { nibble: "src/browser.ts" },
    outDir: join(output, "browser"),
    format: "esm",
    platform: "browser",
    target: "es2022",
    fixedExtension: false,
    dts: false,
    deps: { alwaysBundle: [/.*/], neverBundle: [/^node:/] },
    minify: true,
    clean: false,
    logLevel: "warn",
    inputOptions: { checks: { pluginTimings: false } },
  });
  // Threads of the wasm backend start from a plain module that no bundler may rewrite.
  for (const file of walk(source).filter((path) => path.endsWith(".mjs"))) {
    const target = join(output, relative(source, file));
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(file, target);
    for (const bundle of ["browser", "cli"])
      copyFileSync(file, join(output, bundle, basename(file)));
  }
  const place = join(nibble, "dist");
  rmSync(place, { recursive: true, force: true });
  renameSync(output, place);
  if (!existsSync(PARTS.ts.makes)) fail(`tsdown made no ${relative(root, PARTS.ts.makes)}`);
  return true;
}

async function buildNative() {
  const compiler = process.env.CC ?? "cc";
  const answer = spawnSync(compiler, ["--version"], {
    stdio: "ignore",
    shell: process.platform === "win32",
  });
  if (answer.error || answer.status !== 0) {
    // Not marked as built: a compiler installed later is noticed at the next start.
    console.log(
      `native kernels skipped: no C compiler ("${compiler}") answers; WebAssembly runs instead`,
    );
    return false;
  }
  if ((await startNode([join(native, "build.mjs")])) !== 0)
    fail("the native kernels did not compile.");
  return true;
}
