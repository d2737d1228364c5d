#!/usr/bin/env node
// One row a cache preset: stored bits, perplexity, pass keys found, decoding speed, bytes. Resumable: parts that the output
// file already holds are not measured again.
//   node bench/kv-table.mjs <model> <text> [--presets fp16,kivi2] [--calibration text] [-o kv-table] …
// Writes <out>.json and <out>.md after every part. Each part is a process of its own, so that peaks and caches are its own.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    presets: { type: "string" },
    /** Text the calibrated presets learn from; must not be the measured one. Default: the model writes its own. */
    calibration: { type: "string" },
    "calibration-samples": { type: "string", default: "16" },
    "calibration-seqlen": { type: "string", default: "2048" },
    parts: { type: "string", default: "perplexity,passkey,decode,size" },
    ctx: { type: "string", default: "2048" },
    windows: { type: "string", default: "4" },
    passkey: { type: "string", default: "1024,2048,4096" },
    "passkey-depths": { type: "string", default: "0,0.25,0.5,0.75,1" },
    "passkey-trials": { type: "string", default: "5" },
    /** f32 or i8: what meets the weights in perplexity and pass keys; i8 is several times faster and an approximation. */
    activations: { type: "string", default: "f32" },
    depths: { type: "string", default: "512,4096,8192" },
    decode: { type: "string", default: "32" },
    rounds: { type: "string", default: "3" },
    size: { type: "string", default: "8192" },
    threads: { type: "string", default: "2" },
    out: { type: "string", short: "o", default: "kv-table" },
  },
});
const [model, text] = positionals;
if (!model || !text) {
  console.error("usage: node bench/kv-table.mjs <model> <text> [--presets a,b] [-o kv-table]");
  process.exit(2);
}

/** Presets that need a calibration file, and what --kv gets for each row that is no preset. */
const CALIBRATED = ["kvquant-nuq3-1", "qaq", "qaq window 5"];
const token = (bits, hadamard) => ({
  k: { codec: `int${bits}-token`, hadamard },
  v: { codec: `int${bits}-token` },
});
const kept = (retention) => ({ k: { codec: "fp16" }, v: { codec: "fp16" }, retention });
const EXTRA = {
  "int4 not rotated": token(4, false),
  // Without sinks: as many tokens as streaming, and as h2o-20 keeps of 2048.
  "window 1024": kept({ type: "window", sinks: 0, recent: 1024 }),
  "window 408": kept({ type: "window", sinks: 0, recent: 408 }),
  // H2O without heavy hitters is a window whose size is a share of the prompt, as the budgets of h2o-20 and keyformer-50.
  "window 20 %": kept({ type: "h2o", heavy: 0, recent: 0.2 }),
  "window 50 %": kept({ type: "h2o", heavy: 0, recent: 0.5 }),
  "qaq qNorm 300": {
    k: { codec: "qaq", window: 33, qNorm: 300 },
    v: { codec: "qaq", window: 33, qNorm: 300 },
  },
  "qaq window 5": { k: { codec: "qaq" }, v: { codec: "qaq" } },
};
const DEFAULT = [
  "fp32",
  "fp16",
  "quarot-kv8",
  "quarot-kv4",
  "quarot-kv4-paper",
  "int4 not rotated",
  "kivi4",
  "kivi2",
  "gear-kivi2",
  "kvquant-nuq3-1",
  "qaq",
  "streaming",
  "window 1024",
  "window 408",
  "h2o-20",
  "window 20 %",
  "keyformer-50",
  "window 50 %",
];
const names = flags.presets?.split(",") ?? DEFAULT;
const list = (flag) => flag.split(",").map(Number);

const out = resolve(flags.out);
mkdirSync(dirname(out), { recursive: true });
/** What every number of the file depends on; another setting is another file. */
const settings = {
  model,
  text,
  calibration: flags.calibration ?? "written by the model",
  ctx: Number(flags.ctx),
  windows: Number(flags.windows),
  passkey: list(flags.passkey),
  passkeyDepths: list(flags["passkey-depths"]),
  passkeyTrials: Number(flags["passkey-trials"]),
  activations: flags.activations,
  depths: list(flags.depths),
  size: Number(flags.size),
  threads: Number(flags.threads),
};
const table = existsSync(`${out}.json`)
  ? JSON.parse(readFileSync(`${out}.json`, "utf8"))
  : { settings, rows: {} };
if (JSON.stringify(table.settings) !== JSON.stringify(settings)) {
  console.error(`${out}.json was measured with other settings; give another -o`);
  process.exit(2);
}

/** Result of a verb, or the error it ended with. */
function nibble(...args) {
  const started = performance.now();
  const done = spawnSync(
    process.execPath,
    [join(root, "packages/nibble/bin/nibble.js"), ...args, "--json"],
    { encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "inherit"] },
  );
  const seconds = (performance.now() - started) / 1000;
  try {
    const document = JSON.parse(done.stdout);
    return document.ok ? { ...document.result, seconds } : { error: document.error.message };
  } catch {
    return { error: `the process ended with ${done.signal ?? done.status}` };
  }
}

function save() {
  const write = (path, content) => {
    writeFileSync(`${path}.tmp`, content);
    renameSync(`${path}.tmp`, path);
  };
  write(`${out}.json`, `${JSON.stringify(table, null, 1)}\n`);
  write(`${out}.md`, markdown());
}

/** Flags that choose the cache of a row. */
function cacheFlags(name) {
  const kv = ["--kv", Object.hasOwn(EXTRA, name) ? JSON.stringify(EXTRA[name]) : name];
  if (!CALIBRATED.includes(name)) return kv;
  const preset = name.split(" ")[0];
  const file = `${out}.${preset}.safetensors`;
  if (!existsSync(file)) {
    console.error(`${name}: calibrating`);
    const made = nibble(
      ...["calibrate-kv", model, "--preset", preset, "-o", file],
      ...["--samples", flags["calibration-samples"], "--seqlen", flags["calibration-seqlen"]],
      ...(flags.calibration ? ["--calibration", flags.calibration] : []),
      ...["--threads", flags.threads],
    );
    if (made.error) throw new Error(`calibration of ${name}: ${made.error}`);
  }
  return [...kv, "--kv-calibration", file];
}

const activations = flags.activations === "f32" ? [] : ["--activations", flags.activations];
const PARTS = {
  perplexity: (cache) =>
    nibble(
      ...["eval", model, "--ppl", text, "--ctx", flags.ctx, "--windows", flags.windows],
      ...["--threads", flags.threads, ...cache, ...activations],
    ),
  passkey: (cache) =>
    nibble(
      ...["eval", model, "--passkey", flags.passkey, "--threads", flags.threads, ...cache],
      ...["--passkey-depths", flags["passkey-depths"], "--passkey-trials", flags["passkey-trials"]],
      ...activations,
    ),
  decode: (cache) =>
    Object.fromEntries(
      list(flags.depths).map((depth) => [
        depth,
        nibble(
          ...["bench", model, "--prefill", "0", "--decode", flags.decode, "--depth", String(depth)],
          ...["--rounds", flags.rounds, "--threads", flags.threads, ...cache],
        ),
      ]),
    ),
  size: (cache) => measureSize(cache),
};

/** Bytes that a cache holds after a text of `--size` tokens, everything included. */
async function measureSize([, kv, , calibration]) {
  const library = await import("../packages/nibble/dist/index.js");
  const opened = await library.openModel(model, {
    kv: {
      ...(kv.startsWith("{") ? JSON.parse(kv) : library.kvPreset(kv)),
      ...(calibration ? { calibration } : {}),
    },
    maxContext: settings.size,
    threads: settings.threads,
  });
  try {
    const { config } = opened.model;
    const { cache } = opened.runner;
    const ids = opened.tokenizer.encode(readFileSync(text, "utf8")).slice(0, settings.size);
    // Bytes of the packed tier follow from the recipe; those of a managed cache depend on the text.
    if (cache) await opened.runner.prefill(0, ids, 0, { logits: false });
    const cacheBytes = cache?.bytes().total ?? library.kvBytes(opened.kv, config, ids.length);
    const elements =
      2 * ids.length * config.numHiddenLayers * config.numKeyValueHeads * config.headDim;
    return { tokens: ids.length, cacheBytes, bitsPerElement: (8 * cacheBytes) / elements };
  } catch (error) {
    return { error: error.message };
  } finally {
    await opened.close();
  }
}

const wanted = flags.parts.split(",");
for (const part of wanted) {
  if (!Object.hasOwn(PARTS, part)) {
    console.error(`no part "${part}": ${Object.keys(PARTS).join(", ")}`);
    process.exit(2);
  }
}
for (const name of names) {
  table.rows[name] ??= {};
  const row = table.rows[name];
  const failed = (result) =>
    !result || result.error || Object.values(result).some((value) => value?.error);
  const missing = wanted.filter((part) => failed(row[part]));
  if (missing.length === 0) continue;
  let cache;
  try {
    cache = cacheFlags(name);
  } catch (error) {
    console.error(error.message);
    continue;
  }
  for (const part of missing) {
    console.error(`${name}: ${part} (load ${loadavg()[0].toFixed(1)})`);
    row[part] = await PARTS[part](cache);
    save();
  }
}
save();
console.log(markdown());

function markdown() {
  const found = (row, length) => {
    const cells = row.passkey?.passkey?.cells.filter((cell) => cell.length === length) ?? [];
    if (cells.length === 0) return row.passkey?.error ?? "";
    return `${Math.round((100 * cells.reduce((sum, c) => sum + c.accuracy, 0)) / cells.length)} %`;
  };
  const speed = (row, depth) => {
    const result = row.decode?.[depth];
    return result?.error ?? result?.decodeTokensPerSecond?.toFixed(1) ?? "";
  };
  const head = [
    "cache",
    "bits / element",
    `perplexity, ${settings.windows} x ${settings.ctx}`,
    ...settings.passkey.map((n) => `pass keys at ${n}`),
    ...settings.depths.map((n) => `tokens/s at ${n}`),
    `MB at ${settings.size}`,
  ];
  const rows = Object.entries(table.rows).map(([name, row]) => [
    name,
    row.size?.bitsPerElement?.toFixed(2) ?? "",
    row.perplexity?.error ?? row.perplexity?.perplexity?.toFixed(3) ?? "",
    ...settings.passkey.map((n) => found(row, n)),
    ...settings.depths.map((n) => speed(row, n)),
    row.size?.cacheBytes ? (row.size.cacheBytes / 1e6).toFixed(1) : (row.size?.error ?? ""),
  ]);
  const line = (cells) => `| ${cells.join(" | ")} |`;
  return [
    `Activations ${settings.activations}, ${settings.threads} threads, ${cpus()[0]?.model.trim() ?? "unknown processor"}, Node ${process.version}.`,
    "",
    line(head),
    line(head.map((_, i) => (i === 0 ? "---" : "---:"))),
    ...rows.map(line),
    "",
  ].join("\n");
}
