/**
 * Builds the native addon with the system's C compiler and node-api-headers; no node-gyp, no network.
 *
 *   node build.mjs             compile what changed
 *   node build.mjs --force     compile everything
 *   node build.mjs --sanitize  compile with AddressSanitizer and UndefinedBehaviorSanitizer into build/sanitize
 *   node build.mjs --emulate   cross-compile the arm64 kernels into build/arm64/run, a program for an emulator
 *
 * Without a compiler it prints one line and succeeds: WebAssembly runs instead.
 */
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const source = join(here, "src");
const sanitize = process.argv.includes("--sanitize");
const emulate = process.argv.includes("--emulate");
const arch = emulate ? "arm64" : process.arch;
const build = join(here, "build", sanitize ? "sanitize" : emulate ? "arm64" : "");
const output = join(build, emulate ? "run" : "nibble.node");
const run = promisify(execFile);

/** Sources compiled once per instruction set, with NIBBLE_ISA set to its name. */
const KERNELS = [
  "append_kv",
  "attend_tile",
  "attention",
  "decode",
  "exact_tile",
  "float_tile",
  "gemm",
  "hadamard",
  "kivi",
  "linalg",
  "linear_float",
  "linear_int",
  "norm_quantize",
  "rows",
  "stats",
  "table",
];
const COMMON = emulate
  ? ["../emulate/main", "pace", "threads", "validate"]
  : ["addon", "ceilings", "cpu", "map_file", "pace", "pack", "threads", "validate"];

const AVX512 = [
  ..."-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni".split(" "),
  ..."-mavx2 -mfma -mf16c -mprefer-vector-width=512".split(" "),
];

const ISAS = {
  x64: {
    baseline: [],
    avx2: ["-mavx2", "-mfma", "-mf16c"],
    avxvnni: ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
    avx512vnni: AVX512,
    avx512bf16: [...AVX512, "-mavx512bf16"],
  },
  arm64: { baseline: [], neon: ["-march=armv8.2-a+dotprod"] },
};

const FLAGS = [
  ..."-O3 -std=gnu11 -fPIC -fvisibility=hidden -pthread".split(" "),
  // Exact ops round after every operation; errno and traps are never looked at; integer sums wrap (docs/engine.md).
  ..."-ffp-contract=off -fno-math-errno -fno-trapping-math -fno-strict-aliasing -fwrapv".split(" "),
  ..."-Wall -Wextra -Wno-psabi -Wno-unknown-pragmas".split(" "),
];

/**
 * Every finding ends the process. Vector code reads memory at any address on purpose, so alignment is not checked; of the
 * other checks of pointers, which AddressSanitizer covers, the float kernels would take ten minutes to compile.
 */
const SANITIZE = sanitize
  ? [
      ..."-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined".split(" "),
      "-fno-sanitize=alignment,null,object-size,pointer-overflow",
      "-fno-sanitize-recover=all",
    ]
  : [];

/** Platforms whose system calls the sources use. */
const PLATFORMS = ["linux", "darwin", "freebsd"];

function findCompiler() {
  if (emulate) return process.env.NIBBLE_ARM64_CC ?? "aarch64-linux-gnu-gcc";
  const candidates = [process.env.CC, "cc", "gcc", "clang"].filter(Boolean);
  return candidates.find(
    (name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status === 0,
  );
}

/** Drops the instruction sets that an old compiler does not know; the sources then leave them out of their table. */
function dropUnknown(compiler) {
  for (const [isa, flags] of Object.entries(ISAS[arch])) {
    const args = [...flags, "-x", "c", "-c", "-o", "/dev/null", "-"];
    if (spawnSync(compiler, args, { input: "int nibble;\n" }).status === 0) continue;
    console.log(`native: ${compiler} does not know ${flags.join(" ")}; built without ${isa}`);
    delete ISAS[arch][isa];
    FLAGS.push(`-DNIBBLE_WITHOUT_${isa}`);
  }
}

/** Modification time, 0 when the file is missing. */
const modified = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);

/** One compilation: [object file, arguments]. */
function jobs(include) {
  const list = COMMON.map((name) => [`${basename(name)}.o`, [join(source, `${name}.c`)]]);
  for (const [isa, flags] of Object.entries(ISAS[arch])) {
    if (emulate && isa === "baseline") continue;
    if (isa === "avx512bf16") {
      // Two ops of its own, the others are those of avx512vnni.
      if (!ISAS[arch].avx512vnni) continue;
      list.push([`bf16.o`, [...flags, "-DNIBBLE_ISA=avx512vnni", join(source, "bf16.c")]]);
      continue;
    }
    for (const name of KERNELS) {
      list.push([`${name}-${isa}.o`, [...flags, `-DNIBBLE_ISA=${isa}`, join(source, `${name}.c`)]]);
    }
  }
  return list.map(([object, args]) => {
    const path = join(build, object);
    return [path, [...FLAGS, ...SANITIZE, "-I", include, "-c", "-o", path, ...args]];
  });
}

async function compile(compiler, list) {
  const queue = [...list];
  const worker = async () => {
    for (let job = queue.pop(); job; job = queue.pop()) {
      const { stderr } = await run(compiler, job[1]);
      if (stderr) process.stderr.write(stderr);
    }
  };
  await Promise.all(Array.from({ length: Math.min(4, availableParallelism()) }, worker));
}

async function main() {
  if (!ISAS[arch] || !PLATFORMS.includes(process.platform)) {
    console.log(
      `native: not built on ${process.platform}-${process.arch}; WebAssembly runs instead`,
    );
    return;
  }
  const compiler = findCompiler();
  if (!compiler) {
    console.log("native: no C compiler (cc, gcc or clang) found; WebAssembly runs instead");
    return;
  }
  dropUnknown(compiler);
  const include = createRequire(import.meta.url)("node-api-headers").include_dir;
  mkdirSync(build, { recursive: true });
  const headers = readdirSync(source).filter((name) => name.endsWith(".h"));
  const newestHeader = Math.max(
    modified(fileURLToPath(import.meta.url)),
    ...headers.map((name) => modified(join(source, name))),
  );
  const force = process.argv.includes("--force");
  const stale = jobs(include).filter(([path, args]) => {
    const built = modified(path);
    return force || built < newestHeader || built < modified(args.at(-1));
  });
  if (stale.length === 0 && modified(output) > 0) return;
  const started = performance.now();
  await compile(compiler, stale);
  const shared =
    process.platform === "darwin" ? ["-bundle", "-undefined", "dynamic_lookup"] : ["-shared"];
  const link = emulate ? ["-static"] : shared;
  const objects = jobs(include).map(([path]) => path);
  const fresh = `${output}.${process.pid}`;
  try {
    await run(compiler, [...link, ...SANITIZE, "-pthread", "-o", fresh, ...objects, "-lm"]);
    renameSync(fresh, output); // a process that has the old file loaded keeps it
  } finally {
    rmSync(fresh, { force: true });
  }
  console.log(
    `native: built with ${compiler} in ${((performance.now() - started) / 1000).toFixed(1)} s`,
  );
}

main().catch((error) => {
  console.error(
    `native: the build failed; WebAssembly runs instead\n${error.stderr ?? error.stack}`,
  );
  process.exitCode = process.argv.includes("--force") ? 1 : 0;
});
