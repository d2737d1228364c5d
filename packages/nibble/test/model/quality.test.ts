/**
 * SmolLM2-135M-Instruct against values of independent implementations: greedy tokens and logits of transformers, the
 * perplexities of `golden/quarot-smollm2.json`. Everything quantized is saved, opened again and run by the real kernels.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readTextFile } from "../../src/core/text-file.js";
import { encodeStream, evaluatePerplexity } from "../../src/eval/perplexity.js";
import type { BackendId } from "../../src/kernels/contract.js";
import { recipeFromObject } from "../../src/recipe/load.js";
import { compress } from "../../src/recipe/run.js";
import { type OpenOptions, openModel } from "../../src/runtime/open.js";
import { requires, sharedFile, smollm2 } from "./locate.js";

const text = sharedFile("data/wikitext2-test.txt");
const calibration = sharedFile("data/wikitext2-valid.txt");
const greedyFile = sharedFile("golden/smollm2-greedy.json");
const CTX = 2048;

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-quality-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function perplexity(
  model: string,
  windows: number,
  options: OpenOptions = {},
): Promise<number> {
  const opened = await openModel(model, { maxContext: CTX, ...options });
  try {
    const ids = encodeStream(opened, await readTextFile(text as string));
    return (await evaluatePerplexity(opened, ids, { ctx: CTX, windows })).perplexity;
  } finally {
    await opened.close();
  }
}

interface Greedy {
  rows: { prompt: string; ids: number[]; top5: [number, number][]; greedy: number[] }[];
}

describe(
  "unquantized",
  requires({ "the model": smollm2, "smollm2-greedy.json": greedyFile }),
  () => {
    it.each(["auto", "wasm"] as (BackendId | "auto")[])(
      "%s: prompt ids, top-5 logits within 2e-2, first 16 greedy tokens of transformers",
      async (backend) => {
        const { rows } = JSON.parse(await readFile(greedyFile as string, "utf8")) as Greedy;
        const opened = await openModel(smollm2 as string, { backend, maxContext: 512 });
        const { runner, tokenizer } = opened;
        try {
          for (const row of rows) {
            expect(tokenizer?.encode(row.prompt, { special: false })).toEqual(row.ids);
            runner.tables.truncate(0, 0);
            await runner.prefill(0, row.ids, 0, { logits: true });
            for (const [id, logit] of row.top5) {
              expect(Math.abs((runner.logits(0)[id] ?? 0) - logit)).toBeLessThan(2e-2);
            }
            for (let i = 0; i < 16 && i < row.greedy.length; i++) {
              const logits = runner.logits(0);
              const best = logits.indexOf(Math.max(...logits));
              expect(best).toBe(row.greedy[i]);
              const position = row.ids.length + i;
              runner.tables.reserve(0, position + 1);
              await runner.step({ tokens: [best], positions: [position], sequences: [0] }, [0]);
            }
          }
        } finally {
          await opened.close();
        }
      },
    );
  },
);

describe(
  "perplexity at ctx 2048",
  requires({ "the model": smollm2, texts: text && calibration }),
  () => {
    it("original, 8 windows: 19.134 within 0.02", async () => {
      expect(Math.abs((await perplexity(smollm2 as string, 8)) - 19.134)).toBeLessThan(0.02);
    });

    it("4-bit cache alone, 4 windows: no worse than 27.909 + 2 %", async () => {
      const plane = { codec: "int4-token", clip: 0.95, zero: "int" } as const;
      expect(await perplexity(smollm2 as string, 4, { kv: { k: plane, v: plane } })).toBeLessThan(
        27.9094 * 1.02,
      );
    });

    it("rotated and not quantized, 4 windows: 24.145 within 0.025; with the 4-bit cache no worse than 25.390 + 2 %", async () => {
      const output = join(folder, "rotated");
      await compress(smollm2 as string, recipeFromObject({ version: 1, steps: ["quarot"] }), {
        output,
      });
      expect(Math.abs((await perplexity(output, 4, { kv: "fp32" })) - 24.145)).toBeLessThan(0.025);
      expect(await perplexity(output, 4, { kv: "quarot-kv4-paper" })).toBeLessThan(25.3898 * 1.02);
      await rm(output, { recursive: true });
    });

    it("W8A8KV8 after rotation without data: no worse than 24.347 + 2 %, and within 1 % of the original", async () => {
      const output = join(folder, "w8");
      const steps = [
        "quarot",
        { rtn: { bits: 8, groupSize: "channel", sym: "narrow" } },
        "activations",
        { kv: "quarot-kv8" },
      ];
      await compress(smollm2 as string, recipeFromObject({ version: 1, steps }), { output });
      const ppl = await perplexity(output, 4);
      expect(ppl).toBeLessThan(24.347 * 1.02);
      expect(ppl).toBeLessThan(24.145 * 1.01);
    });

    it("W4A4KV4 with GPTQ after rotation: no worse than 54.571 + 5 %; both backends agree within 0.05 %", async () => {
      const output = join(folder, "w4a4");
      const recipe = recipeFromObject(
        {
          version: 1,
          calibration: { samples: 32, seqlen: 512 },
          steps: [
            "quarot",
            { gptq: { bits: 4, groupSize: "channel", sym: "narrow", clip: "mse" } },
            { activations: { bits: 4, clip: 0.9 } },
            { kv: "quarot-kv4-paper" },
          ],
        },
        { calibration: calibration as string },
      );
      await compress(smollm2 as string, recipe, { output });
      const ppl = await perplexity(output, 4);
      expect(ppl).toBeLessThan(54.5708 * 1.05);
      const wasm = await perplexity(output, 1, { backend: "wasm" });
      const fast = await perplexity(output, 1);
      expect(Math.abs(wasm / fast - 1)).toBeLessThan(5e-4);
    });
  },
);
