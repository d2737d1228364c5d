// node-llama-cpp: one sequence, prompts and decoding of given tokens as nibble's own bench does them.
import { getLlama } from "node-llama-cpp";

/** Tokens that prompts and decoding take, any of the vocabulary. */
export const benchTokens = (length) =>
  Array.from({ length }, (_, i) => 1000 + ((i * 7919) % 40000));

export async function openLlama(gguf, { threads, context }) {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
  });
  const model = await llama.loadModel({ modelPath: gguf });
  const opened = await model.createContext({
    contextSize: context,
    batchSize: 512,
    threads,
    sequences: 1,
  });
  const sequence = opened.getSequence();
  const tokens = benchTokens(context);
  return {
    /** Tokens per second of a prompt, or of decoding at a depth. */
    async measure({ prefill = 0, decode = 0, depth = 0 }) {
      await sequence.clearHistory();
      if (depth > 0) await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, depth));
      const started = performance.now();
      if (prefill > 0) await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, prefill));
      for (let i = 0; i < decode; i++) {
        // One given token at a time with its logits; no sampling chain.
        await sequence.controlledEvaluate([
          [tokens[depth + i], { generateNext: { token: true, options: { temperature: 0 } } }],
        ]);
      }
      return (prefill + decode) / ((performance.now() - started) / 1000);
    },
    async close() {
      await opened.dispose();
      await model.dispose();
      await llama.dispose();
    },
  };
}
