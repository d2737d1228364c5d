#!/usr/bin/env node
// Layer shapes of larger models from random weights: GEMM, GEMV, one whole layer, and the tokens/s they imply.
//   node bench/layers.mjs [--threads 1,2] [--backend auto] [--hidden 4096 --intermediate 11008 --heads 32 --layers 32 --vocab 32000]
//   [--bits 4] [--kv quarot-kv4] [--rounds 5]
// Defaults are LLaMA-7B. Weights: one scale a row, 8-bit activations. The head counts as 8 bit, read at the measured GEMV rate.
import { parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import { facts, markdown, percent } from "./lib.mjs";
import { nibbleModule } from "./source.mjs";

if (process.version.startsWith("v20.")) setFlagsFromString("--experimental-wasm-relaxed-simd");
const { values } = parseArgs({
  options: {
    threads: { type: "string", default: "1,2" },
    backend: { type: "string", default: "auto" },
    hidden: { type: "string", default: "4096" },
    intermediate: { type: "string", default: "11008" },
    heads: { type: "string", default: "32" },
    layers: { type: "string", default: "32" },
    vocab: { type: "string", default: "32000" },
    bits: { type: "string", default: "4" },
    kv: { type: "string", default: "quarot-kv4" },
    rounds: { type: "string", default: "5" },
  },
});
const { openModel } = await nibbleModule("runtime/open");
const { benchCases } = await nibbleModule("runtime/bench-cases");
const { measureCeilings } = await nibbleModule("kernels/ceilings");
const { bestRate, openLinear } = await import("./ops.mjs");
const { syntheticLlama } = await import("./synthetic.mjs");

const number = (name) => Number(values[name]);
const [hidden, intermediate, heads, layers, vocab, bits, rounds] = [
  "hidden",
  "intermediate",
  "heads",
  "layers",
  "vocab",
  "bits",
  "rounds",
].map(number);
const { backend, kv } = values;
const CASES = [
  { kind: "prefill", tokens: 512 },
  { kind: "decode", steps: 8, depth: 0, batch: 1, rows: 1 },
  { kind: "decode", steps: 8, depth: 2048, batch: 1, rows: 1 },
  { kind: "decode", steps: 4, depth: 0, batch: 1, rows: 4 },
  { kind: "decode", steps: 4, depth: 0, batch: 1, rows: 8 },
];
const nameOf = (item) =>
  item.kind === "prefill"
    ? `prefill ${item.tokens}`
    : `decode @${item.depth}${item.rows > 1 ? `, ${item.rows} rows` : ""}`;

console.log(`${facts()}\n`);
const products = [["product", "T", "M", "GOPS", "GB/s", "of ceiling"]];
const whole = [
  ["one layer", "T", "ms a layer", "of roofline", `tokens/s of ${layers} layers and head`],
];
for (const threads of values.threads.split(",").map(Number)) {
  let headSeconds = 0;
  const shapes = [
    [hidden, hidden],
    [2 * intermediate, hidden],
    [hidden, intermediate],
  ];
  for (const [n, k] of shapes) {
    for (const rows of [512, 1]) {
      const linear = await openLinear({ backend, threads, rows, n, k, bits });
      bestRate(linear, 1, 0.1);
      const gops = bestRate(linear, linear.operations);
      const gbs = (gops * linear.bytes) / linear.operations;
      const top = await measureCeilings(linear.engine);
      const share =
        rows === 1 ? top.readGBs && gbs / top.readGBs : top.int8Gops && gops / top.int8Gops;
      products.push([
        `${n} x ${k}`,
        threads,
        rows,
        gops.toFixed(0),
        gbs.toFixed(1),
        percent(share),
      ]);
      if (rows === 1) headSeconds = (vocab * hidden) / 1e9 / gbs;
      await linear.close();
    }
  }
  const model = syntheticLlama({ hidden, intermediate, heads, bits });
  const opened = await openModel(model, { backend, threads, kv, maxContext: 2560 });
  const { engine } = opened.compiled;
  const { cases } = await benchCases(opened, CASES, {
    rounds,
    ceilings: () => measureCeilings(engine),
  });
  for (const { case: item, tokensPerSecondBest, shareOfRoofline } of cases) {
    const tokens = item.kind === "prefill" ? item.tokens : item.rows;
    const seconds = tokens / tokensPerSecondBest;
    const implied = tokens / (layers * seconds + headSeconds);
    whole.push([
      nameOf(item),
      threads,
      (seconds * 1000).toFixed(2),
      percent(shareOfRoofline),
      implied.toFixed(1),
    ]);
  }
  await opened.close();
}
console.log(`${markdown(products)}\n\n${markdown(whole)}`);
process.exit(0);
