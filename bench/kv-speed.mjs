#!/usr/bin/env node
// Decode speed by cache: nibble's presets in turn, round by round in one process, with ratios to fp16 in the same round.
//   node bench/kv-speed.mjs <nibble artifact> [--depths 512,4096,8192] [--threads 1,2] [--rounds 5] [--steps 16]
//     [--kv fp32,fp16,quarot-kv8,quarot-kv4,kivi4,kivi2] [--backend auto] [--gguf model.gguf] [--llama f16,q8_0,q4_0] [--json]
// With --gguf and the peers installed (npm install --prefix bench/peers --omit=optional), llama.cpp decodes the same model
// as Q4_0 beside them with the caches of --llama (flash attention on, as its quantized caches need).
// CPU ms: processor time of the process per token, which other processes disturb less than the clock.
import { existsSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus, loadavg, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    depths: { type: "string", default: "512,4096,8192" },
    threads: { type: "string", default: "1,2" },
    rounds: { type: "string", default: "5" },
    steps: { type: "string", default: "16" },
    kv: { type: "string", default: "fp32,fp16,quarot-kv8,quarot-kv4,kivi4,kivi2" },
    backend: { type: "string", default: "auto" },
    gguf: { type: "string" },
    llama: { type: "string", default: "f16,q8_0,q4_0" },
    json: { type: "boolean", default: false },
  },
});
const [artifact] = positionals;
if (!artifact) {
  console.error("usage: node bench/kv-speed.mjs <nibble artifact> [--depths …] [--threads …]");
  process.exit(2);
}
const { kvBitsPerElement, kvBytes, openModel } = await import("../packages/nibble/dist/index.js");

const depths = values.depths.split(",").map(Number);
const steps = Number(values.steps);
const rounds = Number(values.rounds);
const CONTEXT = Math.max(...depths) + steps + 1;
const tokens = Int32Array.from({ length: CONTEXT }, (_, i) => 1000 + ((i * 7919) % 40000));
const median = (list) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)];

/** One of our caches: `fill` brings it to a depth, `decode` runs `steps` tokens there, always the same. */
async function openNibble(kv, threads) {
  const opened = await openModel(artifact, {
    threads,
    kv,
    backend: values.backend,
    maxContext: CONTEXT,
  });
  const { runner, compiled } = opened;
  let filled = 0;
  return {
    name: kv,
    bits: kvBitsPerElement(opened.kv, compiled.config),
    bytes: kvBytes(opened.kv, compiled.config, Math.max(...depths)),
    variant: `${compiled.engine.backend} ${compiled.engine.variant}`,
    async fill(depth) {
      if (filled < depth) {
        await runner.prefill(0, tokens.subarray(filled, depth), filled, { logits: false });
      }
      filled = depth;
      runner.tables.reserve(0, depth + steps);
    },
    async decode(depth) {
      for (let position = depth; position < depth + steps; position++) {
        const rows = { tokens: [tokens[position]], positions: [position], sequences: [0] };
        await runner.step(rows, [0]);
      }
    },
    close: () => opened.close(),
  };
}

/** llama.cpp with one type of cache. */
async function openLlama(peer, type, threads) {
  const llama = await peer.getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
  });
  const model = await llama.loadModel({ modelPath: peer.file });
  const context = await model.createContext({
    contextSize: CONTEXT + 64,
    batchSize: 512,
    threads,
    sequences: 1,
    flashAttention: true,
    experimentalKvCacheKeyType: type,
    experimentalKvCacheValueType: type,
  });
  const sequence = context.getSequence();
  return {
    name: `llama.cpp ${type.toLowerCase()}`,
    variant: "llama.cpp",
    async fill(depth) {
      const missing = Array.from(tokens.subarray(sequence.nextTokenIndex, depth));
      if (missing.length > 0) await sequence.evaluateWithoutGeneratingNewTokens(missing);
    },
    async decode(depth) {
      for (let i = 0; i < steps; i++) {
        await sequence.controlledEvaluate([
          [tokens[depth + i], { generateNext: { token: true, options: { temperature: 0 } } }],
        ]);
      }
      await sequence.eraseContextTokenRanges([{ start: depth, end: depth + steps }]);
    },
    async close() {
      await context.dispose();
      await model.dispose();
      await llama.dispose();
    },
  };
}

async function openPeer() {
  const folder = join(here, "peers");
  if (!values.gguf || !existsSync(join(folder, "node_modules", "node-llama-cpp"))) return null;
  const { makeQ40 } = await import("./peers/gguf-q4_0.mjs");
  const file = join(tmpdir(), "nibble-bench-q4_0.gguf");
  await makeQ40(values.gguf, file);
  const entry = createRequire(join(folder, "package.json")).resolve("node-llama-cpp");
  const { getLlama } = await import(pathToFileURL(entry).href);
  return { getLlama, file };
}

const peer = await openPeer();
const rows = [];
for (const threads of values.threads.split(",").map(Number)) {
  const lanes = [];
  for (const kv of values.kv.split(",")) lanes.push(await openNibble(kv, threads));
  for (const type of peer ? values.llama.toUpperCase().split(",") : []) {
    lanes.push(await openLlama(peer, type, threads));
  }
  const base = Math.max(
    0,
    lanes.findIndex(({ name }) => name === "fp16"),
  );
  for (const depth of depths.toSorted((a, b) => a - b)) {
    for (const lane of lanes) await lane.fill(depth);
    const seen = lanes.map(() => ({ wall: [], cpu: [] }));
    for (let round = -1; round < rounds; round++) {
      for (const [i, lane] of lanes.entries()) {
        const before = process.cpuUsage();
        const started = performance.now();
        await lane.decode(depth);
        const wall = (performance.now() - started) / steps;
        const { user, system } = process.cpuUsage(before);
        if (round < 0) continue;
        seen[i].wall.push(wall);
        seen[i].cpu.push((user + system) / 1000 / steps);
      }
    }
    for (const [i, lane] of lanes.entries()) {
      rows.push({
        cache: lane.name,
        variant: lane.variant,
        threads,
        depth,
        tokensPerSecond: 1000 / median(seen[i].wall),
        best: 1000 / Math.min(...seen[i].wall),
        ratio: median(seen[i].wall.map((ms, round) => seen[base].wall[round] / ms)),
        ratioOfBest: Math.min(...seen[base].wall) / Math.min(...seen[i].wall),
        cpuMs: Math.min(...seen[i].cpu),
        bitsPerElement: lane.bits ?? null,
        cacheBytes: lane.bytes ?? null,
      });
    }
  }
  for (const lane of lanes) await lane.close();
}
const facts = {
  cpu: cpus()[0].model,
  load: loadavg()[0],
  node: process.version,
  rounds,
  steps,
  weights: statSync(join(artifact, "model.safetensors")).size,
};
if (values.json) console.log(JSON.stringify({ ...facts, rows }, null, 1));
else {
  console.log(`${facts.cpu}, load ${facts.load.toFixed(2)}, Node ${facts.node}`);
  console.log(
    `decode tokens/s, median of ${rounds} interleaved rounds of ${steps} tokens (best in brackets); ratio to fp16 in the same round\n`,
  );
  console.log("T depth  cache             tokens/s          ratio (of best)  CPU ms  bits");
  for (const r of rows) {
    const speed = `${r.tokensPerSecond.toFixed(0)} (${r.best.toFixed(0)})`.padEnd(17);
    const ratio = `${r.ratio.toFixed(2)} (${r.ratioOfBest.toFixed(2)})`.padEnd(16);
    const bits = r.bitsPerElement === null ? "" : r.bitsPerElement.toFixed(2);
    console.log(
      `${r.threads} ${String(r.depth).padEnd(6)} ${r.cache.padEnd(17)} ${speed} ${ratio} ${r.cpuMs.toFixed(2).padEnd(7)} ${bits}`,
    );
  }
}
process.exit(0);
