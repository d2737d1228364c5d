/** `nibble start`, the end of `npm start`: makes the default model small, shows what that gained and cost, then chats. */
import { formatBytes, formatSeconds } from "../../core/memory.js";
import { chatLoop } from "../chat.js";
import { defined, type EngineFlags, engineOptions } from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

export const start = defineVerb<EngineFlags>({
  name: "start",
  summary: "make the default model small and show the result (npm start)",
  examples: ["nibble start", "nibble start --backend wasm"],
  resumable: true,
  define(command) {
    engineOptions(command);
  },
  async run(context, _args, options) {
    const { onProgress, signal, interactive, output } = context;
    const { runMainJob } = await import("../../recipe/main-job.js");
    const { report, artifact, cached } = await runMainJob({
      backend: options.backend,
      onProgress,
      signal,
      ...defined({ threads: options.threads }),
    });
    const [original] = report.rows;
    const lines = [
      "",
      `${report.model} on ${report.backend}, ${report.threads} threads; perplexity over ${report.tokens} tokens in windows of ${report.ctx}`,
      "",
      table([
        [
          "model",
          "weights",
          "bits/weight",
          "perplexity",
          "KL",
          "same top-1",
          "prefill t/s",
          "decode t/s",
          "",
        ],
        ...report.rows.map((row) => [
          row.name,
          formatBytes(row.weightBytes),
          row.bitsPerWeight.toFixed(2),
          row.perplexity.toFixed(2),
          row === original ? "" : row.kl.toFixed(4),
          row === original ? "" : `${(100 * row.topAgreement).toFixed(1)}%`,
          row.prefillTokensPerSecond.toFixed(0),
          row.decodeTokensPerSecond.toFixed(0),
          row.note,
        ]),
      ]),
      "",
      cached ? "(from an earlier start)" : `took ${formatSeconds(report.seconds)}`,
      `artifact: ${artifact}`,
      `run it again: node packages/nibble/bin/nibble.js run ${artifact} -p "…"`,
    ];
    const text = lines.join("\n");
    const { openModel } = await import("../../runtime/open.js");
    const { createSession } = await import("../../runtime/session.js");
    const opened = await openModel(artifact, {
      backend: options.backend,
      signal,
      ...defined({ threads: options.threads }),
    });
    try {
      const session = createSession(opened);
      if (interactive) {
        output.stream(`${text}\n`);
        const answers = await chatLoop(context, session, { temperature: 0.7, maxTokens: 256 });
        return { result: { ...report, artifact, cached, answers }, text: "" };
      }
      const question = "What is gravity?";
      const pieces: string[] = [];
      const prompt = session.encodeChat([{ role: "user", content: question }]);
      for await (const piece of session.generate(prompt, { maxTokens: 64, signal })) {
        pieces.push(piece.text);
      }
      const sample = { question, answer: pieces.join("") };
      return {
        result: { ...report, artifact, cached, sample },
        text: `${text}\n\n> ${sample.question}\n${sample.answer}`,
      };
    } finally {
      await opened.close();
    }
  },
});
