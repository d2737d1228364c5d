#!/usr/bin/env node
// Every weight method on one model at comparable bits: quality of what is stored, size, cost, speed. Rows that the output
// file already has are not measured again, so the run may be stopped and continued.
//   node bench/weights-table.mjs <model> <text> --calibration <text> [--out table.json] [--rows id,id] [--gguf name=file,…]
//        [--ctx 2048] [--windows 4] [--threads 1] [--backend native] [--keep dir] [--only-speed] [--busy] [--print] [--docs]
// The original's logits are computed once a run and kept in <out>.logits (1.6 GB for 8192 tokens of 49152 words) until it ends.
// `--busy`: others use the machine. Decode speed is not measured, and seconds are marked with "~"; a run without it measures
// such rows again.
// Decode speed is that of the saved artifact: one token at a time into an empty cache, the median of 5 rounds of 64 tokens.
// `--keep dir` keeps the artifacts (dir/<row>); `--keep dir --only-speed` measures nothing but the decode speed of finished rows whose
// artifact is there, e.g. of a table that was made with --busy.
// `--print` only prints what the file holds; `--docs` also writes the measured rows into docs/methods/*.md and docs/weights.md.
// `--gguf` adds rows for GGUF files of the same model (bench/llama-quantize.mjs makes them): read by our own reader, measured
// in the same harness. Every row runs in processes of its own, so peak memory is that of the row.
import { spawn } from "node:child_process";
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ROWS } from "./weights-rows.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    calibration: { type: "string" },
    out: { type: "string", default: "weights-table.json" },
    rows: { type: "string" },
    gguf: { type: "string" },
    ctx: { type: "string", default: "2048" },
    windows: { type: "string", default: "4" },
    threads: { type: "string", default: "1" },
    backend: { type: "string", default: "native" },
    keep: { type: "string" },
    "only-speed": { type: "boolean", default: false },
    busy: { type: "boolean", default: false },
    print: { type: "boolean", default: false },
    docs: { type: "boolean", default: false },
  },
});
const [model, text] = positionals;
const onlySpeed = values["only-speed"];
const measures = !values.print && !values.docs && !onlySpeed;
if ((measures && (!model || !text || !values.calibration)) || (onlySpeed && !values.keep)) {
  console.error(
    "usage: node bench/weights-table.mjs <model> <text> --calibration <text> [--out …]",
  );
  process.exit(2);
}
const cli = fileURLToPath(new URL("../packages/nibble/bin/nibble.js", import.meta.url));

/** Standard output of a program of ours. @throws when it prints nothing */
function output(name, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    let out = "";
    child.stdout.on("data", (chunk) => (out += chunk));
    child.on("close", () => (out ? resolve(out) : reject(new Error(`${name}: no result`))));
  });
}

/** Result of a verb, run with --json. */
async function nibble(verb, ...args) {
  const shared = ["--json", "--quiet", "--threads", values.threads];
  const document = JSON.parse(await output(`nibble ${verb}`, [cli, verb, ...args, ...shared]));
  if (!document.ok) throw new Error(`nibble ${verb}: ${document.error?.message ?? "no result"}`);
  return document.result;
}

const known = existsSync(values.out) ? JSON.parse(readFileSync(values.out, "utf8")) : { rows: {} };
function save() {
  writeFileSync(`${values.out}.tmp`, `${JSON.stringify(known, null, 1)}\n`);
  renameSync(`${values.out}.tmp`, values.out);
}

const logits = `${values.out}.logits`;
const evaluator = fileURLToPath(new URL("./weights-eval.mjs", import.meta.url));

async function evaluate(path, ...args) {
  const { ctx, windows, threads } = values;
  const shared = ["--ctx", ctx, "--windows", windows, "--threads", threads, "--logits", logits];
  return JSON.parse(await output("weights-eval", [evaluator, path, text, ...shared, ...args]));
}

/** What the original gives; writes its logits for the rows that follow. */
let original = null;
async function quality(path, isOriginal) {
  original ??= await evaluate(model, "--record");
  return isOriginal ? original : evaluate(path);
}

async function speed(path) {
  const result = await nibble(
    ...["bench", path, "--backend", values.backend],
    ...["--prefill", "32", "--decode", "64", "--depth", "0", "--rounds", "5"],
  );
  return {
    decode: result.decodeTokensPerSecond,
    decodeBest: result.decodeTokensPerSecondBest,
    weightBytes: result.weightBytes,
    variant: `${result.backend} ${result.variant}`,
  };
}

const scratch = join(tmpdir(), `nibble-weights-${process.pid}`);
/** Where the artifact of a row is made. */
const folderOf = (id) => (values.keep ? join(values.keep, id.replace(":", "-")) : scratch);

async function measureRow(row) {
  const bare = row.bare || row.steps.length === 0;
  const recipe = {
    version: 1,
    seed: 0,
    calibration: row.calibration,
    steps: [...row.steps, ...(bare ? [] : [{ embeddings: { bits: 8 } }])],
    ...(row.overrides ? { overrides: row.overrides } : {}),
  };
  const key = JSON.stringify([recipe, row.args ?? []]);
  const before = known.rows[row.id];
  if (before?.key === key && (values.busy || !before.busy)) return;
  const recipeFile = `${scratch}.json`;
  const folder = folderOf(row.id);
  writeFileSync(recipeFile, JSON.stringify(recipe));
  try {
    const made = await nibble(
      ...["compress", model, "--recipe", recipeFile, "--calibration", values.calibration],
      ...["-o", folder, ...(row.args ?? [])],
    );
    const { title, method, golden } = row;
    known.rows[row.id] = {
      key,
      ...(title ? { title } : {}),
      ...(method ? { method } : {}),
      ...(golden ? { golden } : {}),
      bitsPerWeight: made.bitsPerWeight,
      bytes: made.bytes,
      seconds: made.seconds,
      peakBytes: made.peakBytes,
      ...(await quality(folder, row.id === "original")),
      ...(values.busy ? { busy: true } : await speed(folder)),
    };
    save();
  } finally {
    if (!values.keep) rmSync(folder, { recursive: true, force: true });
    rmSync(recipeFile, { force: true });
  }
}

async function measureFile(id, path) {
  const { openGguf, fileSource } = await import("../packages/nibble/dist/index.js");
  const file = await openGguf(await fileSource(path));
  const sizes = { linears: [0, 0], whole: [0, 0] };
  const types = {};
  for (const { name, ne, type, bytes } of file.tensors.values()) {
    const count = ne.reduce((a, b) => a * b, 1);
    const linear = /^blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight$/.test(name);
    for (const part of linear ? ["linears", "whole"] : ["whole"]) {
      sizes[part][0] += bytes * 8;
      sizes[part][1] += count;
    }
    if (linear || name === "token_embd.weight") types[type] = (types[type] ?? 0) + 1;
  }
  const bits = ([stored, count]) => stored / count;
  known.rows[id] = {
    title: `GGUF ${Object.entries(types)
      .map(([type, count]) => `${type} x ${count}`)
      .join(", ")}`,
    bitsPerWeight: { linears: bits(sizes.linears), whole: bits(sizes.whole) },
    bytes: sizes.whole[0] / 8,
    ...(known.rows[id] ? measured(known.rows[id]) : await quality(path, false)),
  };
  save();
}

const measured = ({ perplexity, kl, topAgreement, tokens }) => ({
  perplexity,
  kl,
  topAgreement,
  tokens,
});

function markdown(table) {
  const number = (x, digits) => (typeof x === "number" ? x.toFixed(digits) : "");
  const head = [
    "row",
    "bits linears",
    "bits whole",
    "perplexity",
    "KL",
    "same top-1",
    "seconds",
    "peak MB",
    "decode tok/s",
  ];
  // Fewest bits first, and among equal bits the best.
  const order = ([, a], [, b]) =>
    a.bitsPerWeight.linears - b.bitsPerWeight.linears || (a.kl ?? 0) - (b.kl ?? 0);
  const cells = Object.entries(table.rows)
    .sort(order)
    .map(([id, r]) => [
      r.title ? `${id} (${r.title})` : id,
      number(r.bitsPerWeight.linears, 3),
      number(r.bitsPerWeight.whole, 3),
      number(r.perplexity, 3) + (r.golden ? ` (golden ${r.golden})` : ""),
      number(r.kl, 4),
      `${number(100 * r.topAgreement, 1)} %`,
      (r.busy ? "~" : "") + number(r.seconds, 0),
      number(r.peakBytes === undefined ? undefined : r.peakBytes / 1e6, 0),
      number(r.decode, 1),
    ]);
  const timed = cells.some((row) => row.at(-1) !== "");
  return [head, head.map(() => "---"), ...cells]
    .map((row) => `| ${(timed ? row : row.slice(0, -1)).join(" | ")} |`)
    .join("\n");
}

/** Replaces what stands between the marks of a page. */
function fill(path, text) {
  const page = readFileSync(path, "utf8");
  const [begin, end] = ["<!-- measured:begin -->", "<!-- measured:end -->"];
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) return;
  writeFileSync(path, `${page.slice(0, from + begin.length)}\n${text}\n${page.slice(to)}`);
}

/** Measured rows in every method's page, beside the original and plain rounding. */
function writeDocs() {
  const page = (name) => fileURLToPath(new URL(`../docs/${name}.md`, import.meta.url));
  const protocol = `WikiText-2 test, ctx ${known.ctx}, first ${known.windows} windows, through the real runtime; KL(original || row) in nats. Embedding and head in 8 bits unless the row is "golden" or "original". All rows: [weights.md](%).`;
  const part = (ids) =>
    markdown({
      rows: Object.fromEntries(
        ids.filter((id) => known.rows[id]).map((id) => [id, known.rows[id]]),
      ),
    });
  const methods = new Set(ROWS.flatMap(({ method }) => method ?? []));
  for (const method of methods) {
    const own = ROWS.filter((row) => row.method === method && known.rows[row.id]).map(
      ({ id }) => id,
    );
    if (own.length === 0) continue;
    const beside = ["original", "rtn-g64"].filter((id) => !own.includes(id));
    const path = page(`methods/${method}`);
    if (existsSync(path))
      fill(path, `\n${protocol.replace("%", "../weights.md")}\n\n${part([...own, ...beside])}\n`);
  }
  fill(page("weights"), `\n${markdown(known)}\n`);
}

if (measures) {
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      for (const made of [logits, scratch, `${scratch}.json`])
        rmSync(made, { recursive: true, force: true });
      process.exit(130);
    });
  }
  const only = values.rows?.split(",");
  Object.assign(known, { ctx: Number(values.ctx), windows: Number(values.windows) });
  let failed = 0;
  const files = (values.gguf?.split(",") ?? []).map((pair) => {
    const at = pair.indexOf("=");
    return { id: pair.slice(0, at), file: pair.slice(at + 1) };
  });
  for (const row of [...files, ...ROWS]) {
    if (only && !only.includes(row.id)) continue;
    const started = performance.now();
    try {
      await (row.file ? measureFile(row.id, row.file) : measureRow(row));
    } catch (error) {
      failed++;
      console.error(`${row.id}: ${error.message}`);
      continue;
    }
    const { perplexity, kl } = known.rows[row.id];
    console.error(
      `${row.id}: perplexity ${perplexity.toFixed(4)}, KL ${kl.toFixed(4)}, ${((performance.now() - started) / 1000).toFixed(0)} s`,
    );
  }
  rmSync(logits, { force: true });
  if (failed > 0) process.exitCode = 1;
}
if (onlySpeed) {
  const only = values.rows?.split(",");
  for (const [id, row] of Object.entries(known.rows)) {
    const folder = folderOf(id);
    if ((only && !only.includes(id)) || !existsSync(join(folder, "nibble.json"))) continue;
    Object.assign(row, await speed(folder));
    save();
    console.error(`${id}: ${row.decode.toFixed(1)} tokens/s (best ${row.decodeBest.toFixed(1)})`);
  }
}
if (values.docs) writeDocs();
console.log(markdown(known));
