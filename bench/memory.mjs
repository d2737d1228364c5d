#!/usr/bin/env node
// Peak memory of `compress` against `plan`, without a limit and with the smallest --max-memory the plan names; the artifacts
// of both runs must have the same hash.
//   node bench/memory.mjs <model> <calibration text> [--rows rtn,gptq,…] [--threads 1] [--samples 32] [--seqlen 512]
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rows: { type: "string" },
    threads: { type: "string", default: "1" },
    samples: { type: "string", default: "32" },
    seqlen: { type: "string", default: "512" },
  },
});
const [model, text] = positionals;
if (!model || !text) {
  console.error("usage: node bench/memory.mjs <model> <calibration text> [--rows rtn,gptq]");
  process.exit(2);
}
const cli = fileURLToPath(new URL("../packages/nibble/bin/nibble.js", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "nibble-memory-"));
const embeddings = { embeddings: { bits: 8 } };
const recipe = (name, ...steps) => {
  const file = join(folder, `${name}.json`);
  const calibration = { samples: Number(values.samples), seqlen: Number(values.seqlen) };
  writeFileSync(file, JSON.stringify({ version: 1, calibration, steps }));
  return ["--recipe", file];
};
const ROWS = {
  rtn: ["--preset", "rtn-w4a16-g128"],
  gptq: recipe("gptq", { gptq: { bits: 4, groupSize: 128, sym: false } }, embeddings),
  quarot: [
    "--preset",
    "quarot-w4a8kv4",
    ...["--samples", values.samples, "--seqlen", values.seqlen],
  ],
  squeezellm: recipe("squeezellm", "squeezellm", embeddings),
  awq: recipe("awq", { awq: { bits: 4, groupSize: 128, sym: false } }, embeddings),
  sparsegpt: recipe("sparsegpt", { sparsegpt: { pattern: "2:4" } }, embeddings),
  neuzip: recipe("neuzip", "neuzip"),
};

function nibble(...args) {
  const out = execFileSync(process.execPath, [cli, ...args, "--json", "--quiet"], {
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 1 << 28,
  });
  const document = JSON.parse(out);
  if (!document.ok) throw new Error(document.error.message);
  return document.result;
}

const MiB = (bytes) => (bytes / 2 ** 20).toFixed(0);
const table = ["| recipe | limit | plan MiB | measured MiB | plan / measured | s |"];
table.push("| --- | --- | --- | --- | --- | --- |");
try {
  for (const name of values.rows?.split(",") ?? Object.keys(ROWS)) {
    const flags = [...ROWS[name], "--calibration", text];
    const { memory } = nibble("plan", model, ...flags);
    const limit = Math.ceil(memory.smallest.bytes);
    const hashes = [];
    for (const [planned, extra] of [
      [memory.peak, []],
      [memory.smallest, ["--max-memory", String(limit)]],
    ]) {
      const output = join(folder, "out");
      const run = ["-o", output, "--no-resume", "--threads", values.threads];
      const made = nibble("compress", model, ...flags, ...run, ...extra);
      hashes.push(made.sha256);
      const ratio = planned.bytes / made.peakBytes;
      const row = [name, extra.length > 0 ? "smallest" : "none", MiB(planned.bytes)];
      row.push(MiB(made.peakBytes), ratio.toFixed(2), made.seconds.toFixed(0));
      table.push(`| ${row.join(" | ")} |`);
      console.error(`${table.at(-1)} ${planned.name}`);
      rmSync(output, { recursive: true, force: true });
    }
    if (hashes[0] !== hashes[1]) {
      console.error(`${name}: the artifacts differ: ${hashes.join(" and ")}`);
      process.exitCode = 1;
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(table.join("\n"));
