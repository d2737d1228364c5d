#!/usr/bin/env node
// nibble beside its peers on this machine, interleaved round by round, ratios and targets in one table each:
// node-llama-cpp (whole model), onnxruntime-node's MatMulNBits (single products), wllama in headless Chromium.
//   node bench/peers/run.mjs <model.gguf> <nibble artifact> [--only llama,onnx,wllama] [--threads 1,2] [--rounds 5] [--json]
// The peers are installed into this folder on demand (npm install --prefix bench/peers --omit=optional).
import { statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { facts, interleave, markdown, median, ratio, times } from "../lib.mjs";
import { installPeers } from "./install.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: "string", default: "llama,onnx,wllama" },
    threads: { type: "string", default: "1,2" },
    rounds: { type: "string", default: "5" },
    kv: { type: "string", default: "quarot-kv4" },
    json: { type: "boolean", default: false },
  },
});
const [gguf, artifact] = positionals.map((path) => resolve(path));
if (!gguf || !artifact) {
  console.error(
    "usage: node bench/peers/run.mjs <model.gguf> <nibble artifact> [--only llama,onnx,wllama] [--threads 1,2] [--rounds 5]",
  );
  process.exit(2);
}
installPeers();
const rounds = Number(values.rounds);
const threadCounts = values.threads.split(",").map(Number);
const only = values.only.split(",");
const { makeQ40 } = await import("./gguf-q4_0.mjs");
const q40 = join(tmpdir(), "nibble-bench-q4_0.gguf");
await makeQ40(gguf, q40);

const rows = [];
/** One line of the result. Targets: [must, good] of performance.md, for these threads. */
function record(peer, name, threads, unit, seen, targets) {
  const r = ratio(seen.nibble, seen.peer);
  rows.push({
    peer,
    case: name,
    threads,
    unit,
    nibble: median(seen.nibble),
    nibbleBest: Math.max(...seen.nibble),
    peerMedian: median(seen.peer),
    peerBest: Math.max(...seen.peer),
    ratio: r.median,
    ratioOfBest: r.best,
    must: targets?.[0] ?? null,
    good: targets?.[1] ?? null,
  });
  console.error(`${peer} ${name} ${threads}T: ${times(r.median)} (best rounds ${times(r.best)})`);
}

if (only.includes("llama")) {
  const { openModel, benchModel } = await import("../../packages/nibble/dist/index.js");
  const { openLlama } = await import("./llama.mjs");
  const CASES = [
    {
      name: "pp512",
      prefill: 512,
      targets: [
        [1.5, 2.3],
        [1.5, 2.3],
      ],
    },
    {
      name: "pp2048",
      prefill: 2048,
      targets: [
        [1.3, 2],
        [1.3, 2],
      ],
    },
    {
      name: "tg64@0",
      decode: 64,
      targets: [
        [1.6, 1.9],
        [2, 2.7],
      ],
    },
    {
      name: "tg64@512",
      decode: 64,
      depth: 512,
      targets: [
        [2, 2.6],
        [2.5, 3.3],
      ],
    },
  ];
  for (const threads of threadCounts) {
    const context = 2304;
    const llama = await openLlama(q40, { threads, context });
    const model = await openModel(artifact, { threads, kv: values.kv, maxContext: context });
    for (const { name, targets, ...test } of CASES) {
      const seen = await interleave(
        {
          async nibble() {
            const given = { prefill: 0, decode: 0, ...test };
            const result = await benchModel(model, { ...given, rounds: 1, warmup: false });
            return test.prefill ? result.prefillTokensPerSecond : result.decodeTokensPerSecond;
          },
          peer: () => llama.measure(test),
        },
        rounds,
      );
      record("node-llama-cpp Q4_0", name, threads, "tokens/s", seen, targets[threads - 1]);
    }
    await model.close();
    await llama.close();
  }
}

if (only.includes("onnx")) {
  const { coldCopies, openLinear } = await import("../ops.mjs");
  const { openMatMul } = await import("./onnx.mjs");
  const SHAPES = [
    [4096, 4096],
    [11008, 4096],
    [1536, 576],
    [576, 1536],
    [576, 576],
  ];
  for (const threads of threadCounts) {
    for (const [n, k] of SHAPES) {
      for (const block of [32, 128]) {
        for (const m of [512, 1]) {
          // Both walk through equally many copies. Small shapes stay in the cache: sessions are no light things.
          const copies = m === 1 ? coldCopies(n, k, 4, 16) : 1;
          const where = m > 1 ? "" : copies === coldCopies(n, k, 4) ? ", cold" : ", in cache";
          const ours = await openLinear({ threads, rows: m, n, k, groupSize: block, copies });
          const theirs = await openMatMul({ threads, rows: m, n, k, block, copies });
          const seconds = async (product) => {
            let best = Number.POSITIVE_INFINITY;
            const end = performance.now() + 60;
            do best = Math.min(best, await product.run());
            while (performance.now() < end);
            return m === 1 ? ours.bytes / best / 1e9 : ours.operations / best / 1e9;
          };
          const seen = await interleave(
            { nibble: () => seconds(ours), peer: () => seconds(theirs) },
            rounds,
          );
          const name = `${m === 1 ? "GEMV" : "GEMM M=512"} ${n}x${k} block ${block}${where}`;
          const targets = m === 512 && block === 32 && threads === 1 ? [2, 3] : null;
          record(
            "onnxruntime MatMulNBits",
            name,
            threads,
            m === 1 ? "GB/s" : "GOPS",
            seen,
            targets,
          );
          await ours.close();
          await theirs.close();
        }
      }
    }
  }
}

if (only.includes("wllama")) {
  const { openBrowsers } = await import("./browser.mjs");
  for (const threads of threadCounts) {
    const given = { gguf: q40, artifact, threads, kv: values.kv, maxContext: 768 };
    const browsers = await openBrowsers(given);
    const { nibble, wllama } = browsers;
    console.error(`in the browser: nibble ${nibble.variant}; wllama ${wllama.variant}`);
    for (const test of [{ prefill: 128 }, { decode: 16 }]) {
      const seen = await interleave(
        { nibble: () => nibble.measure(test), peer: () => wllama.measure(test) },
        Math.min(rounds, 3),
      );
      const name = test.prefill ? "browser pp128" : "browser tg16@0";
      record("wllama Q4_0", name, threads, "tokens/s", seen, [8, 20]);
    }
    await browsers.close();
  }
}

const sizes = {
  nibbleBytes: statSync(join(artifact, "model.safetensors")).size,
  ggufBytes: statSync(q40).size,
};
if (values.json) console.log(JSON.stringify({ machine: facts(), ...sizes, rounds, rows }, null, 1));
else {
  const digits = (x) => (x >= 100 ? x.toFixed(0) : x.toFixed(1));
  console.log(
    `\n${facts()}; files: nibble ${(sizes.nibbleBytes / 1e6).toFixed(1)} MB, Q4_0 ${(sizes.ggufBytes / 1e6).toFixed(1)} MB`,
  );
  console.log(`medians of ${rounds} interleaved rounds, best round in brackets\n`);
  console.log(
    markdown([
      ["peer", "case", "T", "unit", "nibble", "peer", "ratio", "of best", "must", "good"],
      ...rows.map((r) => [
        r.peer,
        r.case,
        r.threads,
        r.unit,
        `${digits(r.nibble)} (${digits(r.nibbleBest)})`,
        `${digits(r.peerMedian)} (${digits(r.peerBest)})`,
        times(r.ratio),
        times(r.ratioOfBest),
        r.must === null ? "" : `${r.must}x`,
        r.good === null ? "" : `${r.good}x`,
      ]),
    ]),
  );
}
process.exit(0);
