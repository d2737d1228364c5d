/**
 * Rows per second of zero-shot scoring against the engine's plain prefill, in interleaved rounds on the same model:
 *   npm run bench -- scoring <model> [--threads n] [--rounds n] [--context tokens]
 * Long questions: a context of `context` tokens, four choices of 12 tokens. `ratio` is the median over rounds.
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { scoreGroups } from "../dist/eval/batch-score.js";
import { openModel } from "../dist/runtime/open.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: String(cpus().length) },
    rounds: { type: "string", default: "5" },
    context: { type: "string", default: "200" },
  },
});
const context = Number(values.context);
const opened = await openModel(positionals[0] ?? "smollm2-135m", {
  threads: Number(values.threads),
  maxContext: 512,
  sequences: 32,
  log: (line) => console.error(line),
});
const { runner, compiled } = opened;
const token = (i) => (i * 7919 + 13) % 40000;
const groups = Array.from({ length: 9 }, (_, q) =>
  Array.from({ length: 4 }, (_, c) => ({
    ids: Array.from({ length: context + 12 }, (_, i) =>
      token(i < context ? q * 1000 + i : q * 9000 + c * 100 + i),
    ),
    from: context,
  })),
);
const prompt = Array.from({ length: 512 }, (_, i) => token(i));
const prefill = async (rows) => {
  const started = performance.now();
  for (let done = 0; done < rows; done += 512) {
    runner.tables.truncate(0, 0);
    await runner.prefill(0, prompt, 0, { logits: true });
  }
  const runs = Math.ceil(rows / 512);
  runner.tables.truncate(0, 0);
  return (runs * 512) / ((performance.now() - started) / 1000);
};
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const rounds = { prefill: [], scoring: [], ratio: [] };
let last;
for (let round = -1; round < Number(values.rounds); round++) {
  const before = await prefill(1024);
  last = await scoreGroups(runner, groups);
  const after = await prefill(1024);
  if (round < 0) continue; // warms code and caches
  const speed = (before + after) / 2;
  rounds.prefill.push(speed);
  rounds.scoring.push(last.rows / last.seconds);
  rounds.ratio.push(last.rows / last.seconds / speed);
}
console.log(
  JSON.stringify({
    ratio: median(rounds.ratio),
    ratioBest: Math.max(...rounds.ratio),
    scoringRowsPerSecond: median(rounds.scoring),
    prefillTokensPerSecond: median(rounds.prefill),
    rows: last.rows,
    logitRows: last.logitRows,
    rowsWithoutSharing: last.rowsUnshared,
    rounds: Number(values.rounds),
    threads: compiled.engine.threads,
    backend: `${compiled.engine.backend} ${compiled.engine.variant}`,
    cpu: cpus()[0]?.model,
    node: process.version,
  }),
);
await opened.close();
