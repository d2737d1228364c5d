/**
 * What speculation, batching and shared prefixes give, each beside plain decoding in interleaved rounds:
 *   npm run bench -- decoding <model> [--draft model] [--threads n] [--rounds n] [--kv preset] [--tokens n]
 * Prints one JSON document. `speedup` is the median over rounds of seconds without / seconds with; every speculative
 * answer is compared with the plain one token for token.
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { DraftModel } from "../dist/runtime/draft-model.js";
import { openModel } from "../dist/runtime/open.js";
import { createSession } from "../dist/runtime/session.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: String(cpus().length) },
    rounds: { type: "string", default: "5" },
    kv: { type: "string" },
    tokens: { type: "string", default: "96" },
    draft: { type: "string" },
  },
});
const SEQUENCES = 8;
const rounds = Number(values.rounds);
const maxTokens = Number(values.tokens);
const model = positionals[0] ?? "smollm2-135m";
const engine = { threads: Number(values.threads), maxContext: 2048, log: (l) => console.error(l) };
const opened = await openModel(model, {
  ...engine,
  sequences: SEQUENCES,
  ...(values.kv ? { kv: values.kv } : {}),
});
const draft = values.draft ? await openModel(values.draft, engine) : null;

const TEXT =
  "The committee met on Tuesday to review the proposal for the new library wing. Members discussed the budget, the " +
  "schedule and the materials. The architect explained that the roof would be made of copper, and that the walls would " +
  "be made of local stone. The treasurer asked whether the cost could be reduced by using brick instead of stone.";
const CODE =
  "function area(shape) {\n  if (shape.kind === 'circle') return Math.PI * shape.radius * shape.radius;\n  if (shape.kind === " +
  "'square') return shape.side * shape.side;\n  throw new Error('unknown shape ' + shape.kind);\n}";
const PROMPTS = {
  copy: `Copy the following text word for word:\n${TEXT}`,
  code: `Repeat this code and add a case for rectangles:\n${CODE}`,
  list: "Write the numbers from one to sixty as digits, separated by commas.",
  free: "Write a short story about a lighthouse keeper who finds a letter.",
};

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const round = (x) => Number(x.toPrecision(4));

async function generate(slot, ids, options) {
  const session = createSession(opened, slot);
  session.reset();
  opened.prefixes?.clear();
  for await (const _ of session.generate(ids, { maxTokens, ...options })) void _;
  return session.summary;
}

const speculation = [];
const drafters = [
  ...[2, 4, 8].map((k) => [`ngram ${k}`, k, () => "ngram"]),
  ...(draft ? [2, 4].map((k) => [`draft ${k}`, k, () => new DraftModel(opened, draft)]) : []),
];
for (const [name, prompt] of Object.entries(PROMPTS)) {
  const ids = createSession(opened).encodeChat([{ role: "user", content: prompt }]);
  for (const [label, draftTokens, drafter] of drafters) {
    const ratios = [];
    let last;
    let plain;
    let identical = true;
    for (let i = -1; i < rounds; i++) {
      plain = await generate(0, ids, {});
      last = await generate(0, ids, { speculate: drafter(), draftTokens });
      identical &&= plain.tokens.join() === last.tokens.join();
      if (i >= 0) ratios.push(plain.decodeSeconds / last.decodeSeconds);
    }
    const { acceptance, tokensPerPass, drafted, accepted } = last.speculation;
    speculation.push({
      prompt: name,
      drafter: label,
      tokens: last.tokens.length,
      identical,
      drafted,
      accepted,
      acceptance: round(acceptance),
      tokensPerPass: round(tokensPerPass),
      plainTokensPerSecond: round(plain.tokensPerSecond),
      speedup: round(median(ratios)),
    });
    console.error(JSON.stringify(speculation.at(-1)));
  }
}

/** Tokens per second of `count` sessions at once, prompts included. */
const batching = [];
const short = PROMPTS.free;
for (const count of [1, 2, 4, 8]) {
  const rates = [];
  for (let i = -1; i < rounds; i++) {
    opened.prefixes?.clear();
    const ids = createSession(opened).encodeChat([{ role: "user", content: short }]);
    const started = performance.now();
    const answers = await Promise.all(
      Array.from({ length: count }, (_, slot) =>
        generate(slot, ids, { temperature: 0.8, seed: slot }),
      ),
    );
    const tokens = answers.reduce((sum, a) => sum + a.tokens.length, 0);
    if (i >= 0) rates.push((1000 * tokens) / (performance.now() - started));
  }
  batching.push({ sessions: count, tokensPerSecond: round(median(rates)) });
  console.error(JSON.stringify(batching.at(-1)));
}
for (const entry of batching) {
  entry.ratio = round(entry.tokensPerSecond / batching[0].tokensPerSecond);
}

/** Prefill of a long prompt: cold, and with its prefix there. */
const long = createSession(opened).encodeChat([
  { role: "user", content: `${TEXT} `.repeat(16) + PROMPTS.free },
]);
const prefix = { tokens: long.length, cold: [], shared: [] };
for (let i = 0; i < rounds; i++) {
  prefix.cold.push((await generate(0, long, { maxTokens: 1 })).prefillSeconds);
  const session = createSession(opened, 1);
  session.reset();
  for await (const _ of session.generate(long, { maxTokens: 1 })) void _;
  prefix.shared.push(session.summary.prefillSeconds);
}
prefix.cold = round(median(prefix.cold));
prefix.shared = opened.prefixes ? round(median(prefix.shared)) : null;

console.log(
  JSON.stringify({ model, kv: opened.kv, threads: engine.threads, speculation, batching, prefix }),
);
await draft?.close();
await opened.close();
