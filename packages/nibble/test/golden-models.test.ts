/**
 * Tiny random checkpoints of four families against logits and greedy tokens computed by transformers 5.23 (torch f32).
 * See test/golden/README.md.
 */
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { fileSource } from "../src/core/file-source.js";
import { openSafetensors } from "../src/formats/safetensors.js";
import type { BackendId } from "../src/kernels/contract.js";
import { loadModel } from "../src/runtime/load-model.js";
import { openModel } from "../src/runtime/open.js";
import { createSession } from "../src/runtime/session.js";

const FAMILIES = ["llama-tied", "llama-untied-rope3", "qwen2", "mixtral"];
const BACKENDS: BackendId[] = ["reference", "wasm"];
const folder = (name: string) => fileURLToPath(new URL(`golden/models/${name}`, import.meta.url));

async function expected(name: string) {
  const file = await openSafetensors(await fileSource(`${folder(name)}/expected.safetensors`));
  const ints = async (tensor: string) => {
    const raw = await file.readRaw(tensor);
    return [...new Int32Array(raw.slice().buffer)];
  };
  const result = {
    ids: await ints("input_ids"),
    logits: await file.readF32("logits"),
    greedy: await ints("greedy"),
  };
  await file.close();
  return result;
}

describe.each(BACKENDS)("golden models on %s", (backend) => {
  it.each(FAMILIES)(
    "%s: logits within 1e-3 of transformers, the same 24 greedy tokens",
    async (name) => {
      const golden = await expected(name);
      const opened = await openModel(await loadModel(folder(name)), {
        backend,
        threads: 2,
        maxContext: 128,
      });
      try {
        const vocab = opened.model.config.vocabSize;
        const { runner } = opened;
        await runner.prefill(0, golden.ids, 0, { logits: false });
        let worst = 0;
        for (let first = 0; first < golden.ids.length; first += 40) {
          await runner.score(first, golden.ids.slice(first, first + 40));
          for (let i = 0; i < 40; i++) {
            const logits = runner.logits(i);
            for (let v = 0; v < vocab; v++) {
              const want = golden.logits[(first + i) * vocab + v] as number;
              worst = Math.max(worst, Math.abs((logits[v] as number) - want));
            }
          }
        }
        expect(worst).toBeLessThan(1e-3);

        const session = createSession(opened);
        opened.model.config.eosTokenIds.length = 0; // the golden run did not stop at end tokens
        const tokens: number[] = [];
        for await (const piece of session.generate(golden.greedy.slice(0, 16), { maxTokens: 24 }))
          tokens.push(piece.token);
        expect(tokens).toEqual(golden.greedy.slice(16));
      } finally {
        await opened.close();
        await opened.model.close();
      }
    },
  );
});
