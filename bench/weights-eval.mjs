// Quality of one model for bench/weights-table.mjs: perplexity, KL to the original and top-1 agreement, as `nibble eval
// --reference` gives them. The original's logits are computed once and read from a file for every row after that:
//   node bench/weights-eval.mjs <model> <text> --logits <file> [--record] [--ctx 2048] [--windows 4] [--threads 1]
// `--record`: the model is the original; writes the file (f32, 4 * vocabulary * ctx * windows bytes) and measures KL 0.
import { closeSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { parseArgs } from "node:util";
import { encodeStream, evaluatePerplexity, openModel } from "../packages/nibble/dist/index.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    logits: { type: "string" },
    record: { type: "boolean", default: false },
    ctx: { type: "string", default: "2048" },
    windows: { type: "string", default: "4" },
    threads: { type: "string", default: "1" },
  },
});
const [model, text] = positionals;
const { logits: path, record } = values;
const [ctx, windows, threads] = [values.ctx, values.windows, values.threads].map(Number);
if (!model || !text || !path) {
  console.error("usage: node bench/weights-eval.mjs <model> <text> --logits <file> [--record]");
  process.exit(2);
}
const opened = await openModel(model, { maxContext: ctx, sequences: 1, threads });
const file = openSync(path, record ? "w" : "r");
const { runner } = opened;
const bytes = 4 * runner.vocabSize;
const row = new Float32Array(runner.vocabSize);
const view = new Uint8Array(row.buffer);
let slice = 0; // first row of the slice that is scored
let length = 0;

/** Stands where evaluatePerplexity expects an opened reference: its rows come in order, whatever the chunks are. */
const reference = {
  runner: {
    model: runner.model,
    tables: { truncate() {}, reserve() {} },
    step: async () => {},
    async score(_first, targets) {
      slice += length;
      length = targets.length;
      return [];
    },
    logits(i) {
      const at = (slice + i) * bytes;
      if (record) {
        const own = runner.logits(i);
        writeSync(file, new Uint8Array(own.buffer, own.byteOffset, bytes), 0, bytes, at);
        return own;
      }
      if (readSync(file, view, 0, bytes, at) !== bytes)
        throw new Error(`${path}: has no row ${slice + i}; it was written for another text`);
      return row;
    },
  },
};
try {
  // Universal newlines, as `nibble eval` reads its text: they are tokens.
  const ids = encodeStream(opened, readFileSync(text, "utf8").replace(/\r\n?/g, "\n"));
  const { perplexity, kl, topAgreement, tokens } = await evaluatePerplexity(opened, ids, {
    ctx,
    windows,
    reference,
  });
  console.log(JSON.stringify({ perplexity, kl, topAgreement, tokens }));
} finally {
  closeSync(file);
  await opened.close();
}
