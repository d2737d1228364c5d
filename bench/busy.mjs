/**
 * Decode beside a busy process: tokens per second with 1 thread alone, with 2 threads alone, and with 1 and 2 threads while
 * another process keeps one processor busy. They take turns, so that what the machine does meanwhile meets all of them.
 *
 *   node bench/busy.mjs <model> [--tokens 64] [--rounds 5] [--threads 2]
 *
 * The target (specs/performance.md, section 9): threads beside a busy process no worse than 0.8 of one thread alone.
 * Prints one line per round and the medians; exit code 1 when the target is missed.
 */
import { spawn } from "node:child_process";
import { parseArgs } from "node:util";
import { createSession, openModel } from "../packages/nibble/dist/index.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: "2" },
  },
});
const [model] = positionals;
if (!model) {
  console.error("usage: node bench/busy.mjs <model> [--tokens 64] [--rounds 5] [--threads 2]");
  process.exit(2);
}
const [tokens, rounds, threads] = [values.tokens, values.rounds, values.threads].map(Number);

const one = await openModel(model, { backend: "native", threads: 1 });
const many = await openModel(model, { backend: "native", threads });

/** Tokens per second of one continuation. */
async function decode(opened) {
  const session = createSession(opened);
  session.reset();
  for await (const _ of session.generate("Once upon a time", { maxTokens: tokens, raw: true }));
  return session.summary.tokensPerSecond;
}

/** The same while a process of ours spins; it ends with us whatever happens. */
async function beside(opened) {
  const busy = spawn(process.execPath, ["-e", "for(;;);"], { stdio: "ignore" });
  const stop = () => busy.kill("SIGKILL");
  process.once("exit", stop);
  try {
    await new Promise((resolve) => setTimeout(resolve, 300)); // it spins by now
    return await decode(opened);
  } finally {
    stop();
    process.off("exit", stop);
  }
}

const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1];
const rows = [];
await decode(one);
await decode(many);
for (let round = 0; round < rounds; round++) {
  const row = {
    one: await decode(one),
    alone: await decode(many),
    oneBusy: await beside(one),
    busy: await beside(many),
  };
  rows.push(row);
  console.log(
    `1 thread ${row.one.toFixed(1)} · ${threads} threads ${row.alone.toFixed(1)} · beside a busy process 1 thread ${row.oneBusy.toFixed(1)}, ${threads} threads ${row.busy.toFixed(1)} tokens/s`,
  );
}
const ratio = median(rows.map(({ one: alone, busy }) => busy / alone));
console.log(
  `median: 1 thread ${median(rows.map((r) => r.one)).toFixed(1)}, ${threads} threads ${median(rows.map((r) => r.alone)).toFixed(1)}, busy ${median(rows.map((r) => r.oneBusy)).toFixed(1)} and ${median(rows.map((r) => r.busy)).toFixed(1)} tokens/s; busy / 1 thread alone ${ratio.toFixed(2)} (target 0.8)`,
);
await one.close();
await many.close();
process.exitCode = ratio >= 0.8 ? 0 : 1;
