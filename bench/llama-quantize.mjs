#!/usr/bin/env node
// llama.cpp's own quantization of a model, by its own library (the one node-llama-cpp ships; needs a C compiler):
//   node bench/llama-quantize.mjs <model.gguf> <Q4_K_S|Q4_K_M|Q4_1|…> <out.gguf> [--permute] [--pure]
// A model that was restored from a quantized file lies on that file's grid, so quantizing it to the same format again loses
// nothing and says nothing. `--permute` reorders residual, MLP and value channels first: the same function and the same
// weights, but other neighbours in every block.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { fileSource, openGguf, writeGguf } from "../packages/nibble/dist/index.js";

const FTYPES = {
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 7,
  Q5_0: 8,
  Q5_1: 9,
  Q3_K_M: 12,
  Q4_K_S: 14,
  Q4_K_M: 15,
  Q5_K_S: 16,
  Q5_K_M: 17,
  Q6_K: 18,
};
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    permute: { type: "boolean", default: false },
    pure: { type: "boolean", default: false },
  },
});
const [from, type, to] = positionals;
if (!from || !(type in FTYPES) || !to) {
  console.error(
    `usage: node bench/llama-quantize.mjs <model.gguf> <${Object.keys(FTYPES).join("|")}> <out.gguf>`,
  );
  process.exit(2);
}
const here = dirname(fileURLToPath(import.meta.url));
const work = mkdtempSync(join(tmpdir(), "nibble-llama-"));

/** A fixed pseudo-random order of 0..n-1. */
function shuffled(n, seed) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let state = (seed * 2654435761 + 12345) >>> 0;
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

const columns = (w, n, k, order) => {
  const out = new Float32Array(w.length);
  for (let r = 0; r < n; r++) for (let c = 0; c < k; c++) out[r * k + c] = w[r * k + order[c]];
  return out;
};
const rows = (w, n, k, order) => {
  const out = new Float32Array(w.length);
  for (let r = 0; r < n; r++) out.set(w.subarray(order[r] * k, (order[r] + 1) * k), r * k);
  return out;
};

/** Writes the model with f32 weights. */
async function writeFloats(path) {
  const file = await openGguf(await fileSource(from));
  const number = (key) =>
    Number(file.metadata.get(`${file.metadata.get("general.architecture").value}.${key}`).value);
  const heads = number("attention.head_count");
  const kvHeads = number("attention.head_count_kv");
  const hidden = number("embedding_length");
  const headDim = hidden / heads;
  const residual = shuffled(hidden, 1);
  const mlp = shuffled(number("feed_forward_length"), 2);
  // Each KV head has an order of its own, which all query heads that read it follow.
  const within = Array.from({ length: kvHeads }, (_, h) => shuffled(headDim, 3 + h));
  const perHead = (count, headOf) =>
    Uint32Array.from({ length: count * headDim }, (_, i) => {
      const head = Math.floor(i / headDim);
      return head * headDim + within[headOf(head)][i % headDim];
    });
  const v = perHead(kvHeads, (h) => h);
  const o = perHead(heads, (h) => Math.floor((h * kvHeads) / heads));
  function permuted(name, w, ne) {
    const [k, n = 1] = ne;
    if (/norm\.weight$/.test(name)) return columns(w, 1, k, residual);
    if (/token_embd|output\.weight$/.test(name) && !/attn_output/.test(name))
      return columns(w, n, k, residual);
    if (/attn_(q|k)\.weight/.test(name)) return columns(w, n, k, residual);
    if (/attn_v\.weight/.test(name)) return rows(columns(w, n, k, residual), n, k, v);
    if (/attn_output\.weight/.test(name)) return rows(columns(w, n, k, o), n, k, residual);
    if (/ffn_(gate|up)\.weight/.test(name)) return rows(columns(w, n, k, residual), n, k, mlp);
    if (/ffn_down\.weight/.test(name)) return rows(columns(w, n, k, mlp), n, k, residual);
    throw new Error(`--permute does not know ${name}`);
  }
  const metadata = new Map(file.metadata);
  metadata.set("general.file_type", { type: "u32", value: 0 });
  const tensors = [...file.tensors.values()].map(({ name, ne }) => ({
    name,
    type: "F32",
    ne,
    async data() {
      const w = await file.readF32(name);
      return new Uint8Array((values.permute ? permuted(name, w, ne) : w).buffer);
    },
  }));
  const out = await open(path, "w");
  await writeGguf({ write: async (bytes) => void (await out.writeFile(bytes)) }, metadata, tensors);
  await out.close();
}

try {
  const peers = join(here, "peers");
  const installed = join(
    peers,
    "node_modules",
    "@node-llama-cpp",
    "linux-x64",
    "bins",
    "linux-x64",
  );
  if (!existsSync(installed)) {
    console.error("installing node-llama-cpp into bench/peers …");
    const done = spawnSync(
      "npm",
      ["install", "--omit=optional", "--no-save", "--no-package-lock"],
      {
        cwd: peers,
        stdio: ["ignore", 2, 2],
        env: {
          ...process.env,
          NODE_LLAMA_CPP_SKIP_DOWNLOAD: "true",
          ONNXRUNTIME_NODE_INSTALL: "skip",
        },
      },
    );
    if (done.status !== 0) process.exit(1);
  }
  const library = readdirSync(installed).find((name) => /^libllama\.v.*\.so$/.test(name));
  const program = join(work, "quantize");
  const built = spawnSync(
    "cc",
    [
      "-O1",
      "-o",
      program,
      join(here, "llama-quantize.c"),
      join(installed, library),
      `-Wl,-rpath,${installed}`,
      "-Wl,--allow-shlib-undefined",
    ],
    { stdio: "inherit" },
  );
  if (built.status !== 0) process.exit(1);
  const floats = join(work, "f32.gguf");
  await writeFloats(floats);
  const made = spawnSync(program, [floats, to, String(FTYPES[type]), values.pure ? "1" : "0"], {
    stdio: ["ignore", 2, 2],
  });
  if (made.status !== 0) {
    console.error(`llama.cpp refused (status ${made.status})`);
    process.exit(1);
  }
  console.log(`${to}: ${statSync(to).size} bytes`);
} finally {
  rmSync(work, { recursive: true, force: true });
}
