#!/usr/bin/env node
// nibble beside its peers on this machine, interleaved round by round in one process, ratios included.
//   node bench/peers/run.mjs <model.gguf> <nibble artifact> [--threads 1,2] [--rounds 5] [--json]
// The peers are installed into this folder on demand: npm install --prefix bench/peers --omit=optional
import { spawnSync } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
if (!existsSync(join(here, "node_modules", "node-llama-cpp"))) {
  console.error("installing the peers into bench/peers …");
  const done = spawnSync("npm", ["install", "--omit=optional", "--no-save", "--no-package-lock"], {
    cwd: here,
    stdio: ["ignore", 2, 2],
    env: { ...process.env, NODE_LLAMA_CPP_SKIP_DOWNLOAD: "true", ONNXRUNTIME_NODE_INSTALL: "skip" },
  });
  if (done.status !== 0) process.exit(1);
}
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "1,2" },
    rounds: { type: "string", default: "5" },
    kv: { type: "string", default: "quarot-kv4" },
    json: { type: "boolean", default: false },
  },
});
const [gguf, artifact] = positionals;
if (!gguf || !artifact) {
  console.error(
    "usage: node bench/peers/run.mjs <model.gguf> <nibble artifact> [--threads 1,2] [--rounds 5] [--json]",
  );
  process.exit(2);
}
const { benchModel, openModel } = await import("../../packages/nibble/dist/index.js");
const { makeQ40 } = await import("./gguf-q4_0.mjs");
const { getLlama } = await import("node-llama-cpp");

const q40 = join(tmpdir(), "nibble-bench-q4_0.gguf");
await makeQ40(gguf, q40);
const CONTEXT = 2304;
const tokens = Array.from({ length: CONTEXT }, (_, i) => 1000 + ((i * 7919) % 40000));
const median = (list) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)];
const CASES = [
  { name: "pp512", prefill: 512, decode: 0, depth: 0 },
  { name: "pp2048", prefill: 2048, decode: 0, depth: 0 },
  { name: "tg64@0", prefill: 0, decode: 64, depth: 0 },
  { name: "tg64@512", prefill: 0, decode: 64, depth: 512 },
];

async function openLlama(threads) {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
  });
  const model = await llama.loadModel({ modelPath: q40 });
  const context = await model.createContext({
    contextSize: CONTEXT,
    batchSize: 512,
    threads,
    sequences: 1,
  });
  const sequence = context.getSequence();
  return {
    async measure({ prefill, decode, depth }) {
      await sequence.clearHistory();
      if (depth > 0) await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, depth));
      const started = performance.now();
      if (prefill > 0) await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, prefill));
      for (let i = 0; i < decode; i++) {
        // One given token at a time with its logits, as our own bench does; no sampling chain.
        await sequence.controlledEvaluate([
          [tokens[depth + i], { generateNext: { token: true, options: { temperature: 0 } } }],
        ]);
      }
      return (prefill + decode) / ((performance.now() - started) / 1000);
    },
    async close() {
      await context.dispose();
      await model.dispose();
      await llama.dispose();
    },
  };
}

const rows = [];
for (const threads of values.threads.split(",").map(Number)) {
  const llama = await openLlama(threads);
  const nibble = await openModel(artifact, { threads, kv: values.kv, maxContext: CONTEXT });
  const ours = async ({ prefill, decode, depth }) => {
    const result = await benchModel(nibble, { prefill, decode, depth, rounds: 1, warmup: false });
    return prefill > 0 ? result.prefillTokensPerSecond : result.decodeTokensPerSecond;
  };
  for (const test of CASES) {
    const seen = { nibble: [], llama: [], ratio: [] };
    for (let round = -1; round < Number(values.rounds); round++) {
      const a = await ours(test);
      const b = await llama.measure(test);
      if (round < 0) continue;
      seen.nibble.push(a);
      seen.llama.push(b);
      seen.ratio.push(a / b);
    }
    rows.push({
      case: test.name,
      threads,
      nibble: median(seen.nibble),
      nibbleBest: Math.max(...seen.nibble),
      llamaCpp: median(seen.llama),
      llamaCppBest: Math.max(...seen.llama),
      ratio: median(seen.ratio),
      ratioOfBest: Math.max(...seen.nibble) / Math.max(...seen.llama),
    });
    if (!values.json) console.error(`${test.name} ${threads}T: ${rows.at(-1).ratio.toFixed(2)}x`);
  }
  await nibble.close();
  await llama.close();
}
const facts = {
  cpu: cpus()[0].model,
  load: loadavg()[0],
  node: process.version,
  backend: "auto",
  rounds: Number(values.rounds),
  llamaCppBytes: statSync(q40).size,
  nibbleBytes: statSync(join(artifact, "model.safetensors")).size,
};
if (values.json) console.log(JSON.stringify({ ...facts, rows }, null, 1));
else {
  console.log(
    `\n${facts.cpu}, load ${facts.load.toFixed(2)}, Node ${facts.node}; file sizes: nibble ${(facts.nibbleBytes / 1e6).toFixed(1)} MB, Q4_0 ${(facts.llamaCppBytes / 1e6).toFixed(1)} MB`,
  );
  console.log("tokens/s, medians of interleaved rounds (best round in brackets)\n");
  console.log("case       T   nibble            llama.cpp Q4_0    ratio (of best)");
  for (const r of rows) {
    const pair = (a, b) => `${a.toFixed(0)} (${b.toFixed(0)})`.padEnd(17);
    console.log(
      `${r.case.padEnd(10)} ${r.threads}   ${pair(r.nibble, r.nibbleBest)} ${pair(r.llamaCpp, r.llamaCppBest)} ${r.ratio.toFixed(2)} (${r.ratioOfBest.toFixed(2)})`,
    );
  }
}
process.exit(0);
