#!/usr/bin/env node
// Every target of speed that can be measured on one machine within some minutes, in one Markdown table.
//   node bench/scoreboard.mjs <model.gguf> <nibble artifact> [--rounds 5] [--only llama,model,kernels,wasm,busy,browser]
// Everything that forms a ratio is measured in turn, round by round; a ratio is the median of the rounds' ratios. Peers are
// measured when bench/peers has them installed (bench/peers/run.mjs installs them).
import { fork, spawn } from "node:child_process";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { facts, interleave, markdown, median, percent, ratio, times } from "./lib.mjs";
import { bestRate, openGemm, openLinear } from "./ops.mjs";
import { installed } from "./peers/install.mjs";
import { nibbleModule } from "./source.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "5" },
    kv: { type: "string", default: "quarot-kv4" },
    only: { type: "string", default: "llama,model,kernels,wasm,busy,browser" },
  },
});
const [gguf, artifact] = positionals.map((path) => resolve(path));
if (!gguf || !artifact) {
  console.error("usage: node bench/scoreboard.mjs <model.gguf> <nibble artifact> [--rounds 5]");
  process.exit(2);
}
const rounds = Number(values.rounds);
const { kv } = values;
const parts = values.only.split(",");
const { openModel } = await nibbleModule("runtime/open");
const { benchModel } = await nibbleModule("runtime/bench");
const { measureCeilings } = await nibbleModule("kernels/ceilings");

const board = [["metric", "must", "good", "measured", "verdict", "absolute"]];
/** One row. `value`, `must` and `good` are numbers that are better when larger. */
function score(metric, value, [must, good], show, absolute) {
  const verdict = must === null ? "" : value >= good ? "good" : value >= must ? "must" : "SHORT";
  const cell = (x) => (x === null ? "" : show(x));
  board.push([metric, cell(must), cell(good), cell(value), verdict, absolute]);
  console.error(`${metric}: ${cell(value)} ${verdict} (${absolute})`);
}
const NONE = [null, null];
const digits = (x) => (x >= 100 ? x.toFixed(0) : x.toFixed(1));
const versus = (seen, a, b, unit = "tokens/s") =>
  `${digits(median(seen[a]))} / ${digits(median(seen[b]))} ${unit}, best ${times(ratio(seen[a], seen[b]).best)}`;

const open = (backend, threads, maxContext = 2304) =>
  openModel(artifact, { backend, threads, kv, maxContext });
/** Tokens per second of one round. */
async function speed(opened, test) {
  const given = { prefill: 0, decode: 0, ...test };
  const result = await benchModel(opened, { ...given, rounds: 1, warmup: false });
  return given.prefill ? result.prefillTokensPerSecond : result.decodeTokensPerSecond;
}
const PP512 = { prefill: 512 };
const TG0 = { decode: 64 };

const CASES = [
  ["pp512", PP512, [1.5, 2.3], [1.5, 2.3]],
  ["pp2048", { prefill: 2048 }, [1.3, 2], [1.3, 2]],
  ["tg@0", TG0, [1.6, 1.9], [2, 2.7]],
  ["tg@512, 4-bit KV", { decode: 64, depth: 512 }, [2, 2.6], [2.5, 3.3]],
];
async function llamaPart() {
  const { makeQ40 } = await import("./peers/gguf-q4_0.mjs");
  const { openLlama } = await import("./peers/llama.mjs");
  const q40 = join(tmpdir(), "nibble-bench-q4_0.gguf");
  await makeQ40(gguf, q40);
  for (const threads of [1, 2]) {
    const llama = await openLlama(q40, { threads, context: 2304 });
    const nibble = await open("native", threads);
    for (const [name, test, ...targets] of CASES) {
      const tasks = { nibble: () => speed(nibble, test), peer: () => llama.measure(test) };
      const seen = await interleave(tasks, test.prefill === 2048 ? Math.min(3, rounds) : rounds);
      const r = ratio(seen.nibble, seen.peer);
      const absolute = versus(seen, "nibble", "peer");
      score(
        `native ${name} / node-llama-cpp Q4_0, ${threads}T`,
        r.median,
        targets[threads - 1],
        times,
        absolute,
      );
    }
    await nibble.close();
    await llama.close();
  }
}

async function modelPart() {
  for (const threads of [1, 2]) {
    const opened = await open("native", threads, 1024);
    const { engine } = opened.compiled;
    const flat = await benchModel(opened, { rounds, ceilings: () => measureCeilings(engine) });
    const { readGBs, int8Gops } = flat.ceilings;
    score(
      `native decode @0 / roofline, ${threads}T`,
      flat.decodeShareOfRoofline,
      threads === 1 ? [0.75, 0.9] : NONE,
      percent,
      `${digits(flat.decodeTokensPerSecondBest)} tokens/s, ${digits(flat.decodeGBs)} of ${digits(readGBs)} GB/s`,
    );
    score(
      `native pp512 / roofline, ${threads}T`,
      flat.prefillShareOfRoofline,
      NONE,
      percent,
      `${digits(flat.prefillTokensPerSecondBest)} tokens/s, ${digits(flat.prefillGops)} of ${digits(int8Gops)} GOPS`,
    );
    await opened.close();
  }
}

async function kernelPart() {
  const SHAPES = [
    [576, 576],
    [1536, 576],
    [576, 1536],
    [4096, 4096],
  ];
  for (const [groupSize, name, targets] of [
    [0, "per channel", [0.8, 0.95]],
    [128, "group 128", [0.65, 0.85]],
    [64, "group 64", NONE],
    [32, "group 32", NONE],
  ]) {
    const shares = [];
    const rates = [];
    for (const [n, k] of SHAPES) {
      const linear = await openLinear({
        backend: "native",
        threads: 1,
        rows: 512,
        n,
        k,
        groupSize,
      });
      bestRate(linear, 1, 0.1);
      let gops = 0;
      let top = 0;
      for (let round = 0; round < rounds; round++) {
        gops = Math.max(gops, bestRate(linear, linear.operations, 0.15));
        top = Math.max(top, (await measureCeilings(linear.engine)).int8Gops ?? 0);
      }
      shares.push(gops / top);
      rates.push(`${n}x${k} ${gops.toFixed(0)}`);
      await linear.close();
    }
    score(
      `Q1 GEMM M=512, ${name} / int8 dot peak, 1T`,
      median(shares),
      targets,
      percent,
      `GOPS: ${rates.join(", ")}`,
    );
  }
  for (const [groupSize, name, targets] of [
    [0, "per channel", [0.8, 0.93]],
    [128, "group 128", NONE],
  ]) {
    const linear = await openLinear({
      backend: "native",
      threads: 1,
      rows: 1,
      n: 4096,
      k: 4096,
      groupSize,
    });
    bestRate(linear, 1, 0.1);
    let gbs = 0;
    let top = 0;
    for (let round = 0; round < rounds; round++) {
      gbs = Math.max(gbs, bestRate(linear, linear.bytes, 0.3));
      top = Math.max(top, (await measureCeilings(linear.engine)).readGBs ?? 0);
    }
    score(
      `cold GEMV 4096x4096, ${name} / read bandwidth, 1T`,
      gbs / top,
      targets,
      percent,
      `${digits(gbs)} of ${digits(top)} GB/s`,
    );
    await linear.close();
  }
  const gemm = await openGemm({ backend: "native", threads: 1, size: 1024 });
  let gflops = 0;
  for (let round = 0; round < rounds; round++) {
    gflops = Math.max(gflops, bestRate(gemm, gemm.operations, 0.2));
  }
  const { f32Gflops } = await measureCeilings(gemm.engine);
  score(
    "f32 GEMM 1024^3, GFLOPS, 1T",
    gflops,
    [60, 95],
    digits,
    `${percent(gflops / f32Gflops)} of the fma peak`,
  );
  await gemm.close();
  if (!installed()) return;
  const { openMatMul } = await import("./peers/onnx.mjs");
  for (const [n, k] of SHAPES.slice(1)) {
    const ours = await openLinear({
      backend: "native",
      threads: 1,
      rows: 512,
      n,
      k,
      groupSize: 32,
    });
    const theirs = await openMatMul({ threads: 1, rows: 512, n, k, block: 32 });
    const best = async (product) => {
      let seconds = Number.POSITIVE_INFINITY;
      for (let i = 0; i < 5; i++) seconds = Math.min(seconds, await product.run());
      return ours.operations / seconds / 1e9;
    };
    const seen = await interleave({ nibble: () => best(ours), peer: () => best(theirs) }, rounds);
    const r = ratio(seen.nibble, seen.peer);
    const absolute = versus(seen, "nibble", "peer", "GOPS");
    score(
      `Q1 GEMM M=512 ${n}x${k} group 32 / onnxruntime block 32, 1T`,
      r.median,
      [2, 3],
      times,
      absolute,
    );
    await ours.close();
    await theirs.close();
  }
}

/** A child that measures one wasm variant on request. */
async function wasmChild(variant, threads) {
  const path = fileURLToPath(new URL("./wasm-child.mjs", import.meta.url));
  const child = fork(path, [artifact, kv, String(threads), variant]);
  const answer = () =>
    new Promise((resolve, reject) => {
      child.once("message", resolve);
      child.once("exit", () => reject(new Error(`the wasm-${variant} process ended`)));
    });
  const running = await answer();
  if (running !== `wasm-${variant}`)
    throw new Error(`wasm-${variant} does not run here: ${running}`);
  return {
    measure(test) {
      child.send(test);
      return answer();
    },
    close: () => child.disconnect(),
  };
}

async function wasmPart() {
  const native = await open("native", 1, 1024);
  const relaxed = await wasmChild("relaxed", 1);
  const relaxed2 = await wasmChild("relaxed", 2);
  const simd = await wasmChild("simd", 1);
  const run = (test) =>
    interleave(
      {
        native: () => speed(native, test),
        relaxed: () => relaxed.measure(test),
        simd: () => simd.measure(test),
        relaxed2: () => relaxed2.measure(test),
      },
      rounds,
    );
  for (const [name, test, targets, simdTargets] of [
    ["decode @0", TG0, [0.5, 0.75], [0.5, 0.6]],
    ["decode @512, 4-bit KV", { decode: 32, depth: 512 }, NONE, NONE],
    ["pp512", PP512, [0.2, 0.3], [0.5, 0.6]],
  ]) {
    const seen = await run(test);
    const row = (metric, a, b, goals) =>
      score(metric, ratio(seen[a], seen[b]).median, goals, percent, versus(seen, a, b));
    row(`wasm-relaxed ${name} / native, 1T`, "relaxed", "native", targets);
    row(`wasm-simd ${name} / wasm-relaxed, 1T`, "simd", "relaxed", simdTargets);
    row(`wasm-relaxed ${name}, 2T / 1T`, "relaxed2", "relaxed", NONE);
  }
  for (const child of [relaxed, relaxed2, simd]) child.close();
  await native.close();
}

async function busyPart() {
  const one = await open("native", 1, 1024);
  const two = await open("native", 2, 1024);
  const seen = { alone: [], beside: [] };
  for (let round = -1; round < rounds; round++) {
    const alone = await speed(one, TG0);
    const busy = spawn(process.execPath, ["-e", "for (;;);"], { stdio: "ignore" });
    await new Promise((resolve) => setTimeout(resolve, 150));
    const beside = await speed(two, TG0);
    const gone = new Promise((resolve) => busy.once("exit", resolve));
    busy.kill("SIGKILL");
    await gone;
    if (round < 0) continue;
    seen.alone.push(alone);
    seen.beside.push(beside);
  }
  const r = ratio(seen.beside, seen.alone);
  const absolute = versus(seen, "beside", "alone");
  score("native decode 2T beside a busy process / 1T alone", r.median, [0.8, 1], times, absolute);
  await one.close();
  await two.close();
}

async function browserPart() {
  const { makeQ40 } = await import("./peers/gguf-q4_0.mjs");
  const { openBrowsers } = await import("./peers/browser.mjs");
  const q40 = join(tmpdir(), "nibble-bench-q4_0.gguf");
  await makeQ40(gguf, q40);
  const browsers = await openBrowsers({ gguf: q40, artifact, threads: 1, kv, maxContext: 768 });
  for (const test of [{ prefill: 128 }, { decode: 16 }]) {
    const tasks = {
      nibble: () => browsers.nibble.measure(test),
      peer: () => browsers.wllama.measure(test),
    };
    const seen = await interleave(tasks, Math.min(rounds, 2));
    const name = test.prefill ? "pp128" : "tg16@0";
    const r = ratio(seen.nibble, seen.peer);
    score(
      `in the browser, ${name} / wllama Q4_0, 1T`,
      r.median,
      [8, 20],
      times,
      versus(seen, "nibble", "peer"),
    );
  }
  await browsers.close();
}

const started = performance.now();
const PARTS = {
  llama: [llamaPart, true],
  model: [modelPart, false],
  kernels: [kernelPart, false],
  wasm: [wasmPart, false],
  busy: [busyPart, false],
  browser: [browserPart, true],
};
console.error(facts());
for (const [name, [run, peers]] of Object.entries(PARTS)) {
  if (!parts.includes(name)) continue;
  if (peers && !installed()) {
    console.error(
      `${name}: left out, bench/peers is not installed (node bench/peers/run.mjs does it)`,
    );
    continue;
  }
  await run();
}
console.log(`${facts()}; ${((performance.now() - started) / 60000).toFixed(1)} min\n`);
console.log(markdown(board));
process.exit(0);
