/**
 * Which method loses less on SmolLM2-135M, as the specifications' checks order them, where full runs take too long for a
 * test: only the first two blocks are quantized (calibrated, propagated and run as in any run), and the measure is
 * KL(original || quantized) over 511 tokens, which two blocks change far more visibly than perplexity. The same orders over
 * the whole model are rows of bench/weights-table.mjs; docs/weights-checks.md lists both.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultThreads } from "../../src/core/memory.js";
import { readTextFile } from "../../src/core/text-file.js";
import { decode } from "../../src/encodings/quant-tensor.js";
import { encodeStream, evaluatePerplexity } from "../../src/eval/perplexity.js";
import { selectBackend } from "../../src/kernels/select.js";
import { planCache } from "../../src/kv/cache.js";
import { kvPreset } from "../../src/kv/presets.js";
import { parameter } from "../../src/model/model.js";
import { SITE_OF } from "../../src/model/roles.js";
import { BlockRunner, type Probe } from "../../src/observers/block-runner.js";
import { sampleWindows } from "../../src/observers/calibration.js";
import { createKernelLinalg } from "../../src/observers/kernel-linalg.js";
import { assignModules } from "../../src/recipe/assign.js";
import { recipeFromObject } from "../../src/recipe/load.js";
import { quantizeModel } from "../../src/recipe/quantize-model.js";
import { noState } from "../../src/recipe/resume.js";
import { loadModel } from "../../src/runtime/load-model.js";
import { type OpenedModel, openModel } from "../../src/runtime/open.js";
import { solveContext } from "../support/solver.js";
import { requires, sharedFile, smollm2 } from "./locate.js";

const text = sharedFile("data/wikitext2-test.txt");
const calibration = sharedFile("data/wikitext2-valid.txt");
const CTX = 512;

const targets = ["layers.0-1.*"];
const three = { bits: 3, groupSize: 64, sym: false, targets };
const dense = { sensitivity: 0, outliers: 0 };
const half = { pattern: "2:4", targets };
const ROWS: Record<string, object> = {
  rtn: { rtn: three },
  awq: { awq: three },
  "awq without clip": { awq: { ...three, clip: false } },
  "rtn, a scale a row": { rtn: { ...three, groupSize: "channel" } },
  "k-means": { squeezellm: { bits: 3, fisher: "none", ...dense, targets } },
  "weighted k-means": { squeezellm: { bits: 3, ...dense, targets } },
  "weighted k-means, sparse": { squeezellm: { bits: 3, targets } },
  magnitude: { wanda: { ...half, score: "magnitude" } },
  wanda: { wanda: half },
  sparsegpt: { sparsegpt: half },
  "neuzip 3": { neuzip: { precision: 3, targets } },
  "neuzip 1": { neuzip: { precision: 1, targets } },
  "neuzip 0": { neuzip: { precision: 0, targets } },
  ternary: { ternary: { targets } },
};

describe(
  "orderings on the first blocks of SmolLM2-135M",
  requires({ "the model": smollm2, "the text": text, "the calibration text": calibration }),
  () => {
    let reference: OpenedModel;
    let ids: number[];
    let windows: Int32Array[];
    const kl: Record<string, number> = {};
    beforeAll(async () => {
      reference = await openModel(smollm2 as string, { maxContext: CTX });
      ids = [...encodeStream(reference, await readTextFile(text as string))];
      const own = encodeStream(reference, await readTextFile(calibration as string));
      windows = sampleWindows(own, 8, CTX, 0);
    });
    afterAll(async () => {
      console.log(kl);
      await reference?.close();
    });

    it.each(Object.keys(ROWS))("%s", async (name) => {
      const recipe = recipeFromObject({ version: 1, steps: [ROWS[name]] });
      const model = await loadModel(smollm2 as string);
      const backend = await selectBackend("auto", () => {});
      const threads = defaultThreads();
      const { hiddenSize, intermediateSize } = model.config;
      const linalg = await createKernelLinalg(backend, threads, {
        n: intermediateSize,
        k: Math.max(hiddenSize, intermediateSize),
      });
      const specs = [...model.parameters.values()].map(({ spec }) => spec);
      try {
        await quantizeModel(model, {
          assignments: new Map(assignModules(recipe, specs).map((a) => [a.spec.path, a])),
          seed: 0,
          linalg,
          createRunner: () =>
            BlockRunner.create(model, {
              backend,
              threads,
              windows,
              cache: (tokens, sequences) =>
                planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
            }),
          state: noState,
          onProgress() {},
        });
        const opened = await openModel(model, { maxContext: CTX });
        try {
          const score = await evaluatePerplexity(opened, ids, { ctx: CTX, windows: 1, reference });
          kl[name] = score.kl ?? Number.NaN;
          expect(kl[name]).toBeGreaterThan(0);
        } finally {
          await opened.close();
        }
      } finally {
        await linalg.dispose();
        await model.close();
      }
    });

    it.each([
      [
        "3 bits in groups of 64: AWQ < AWQ without clip < rounding",
        "awq",
        "awq without clip",
        "rtn",
      ],
      [
        "3 bits, a table or scale a row: outliers apart < weighted k-means < rounding < k-means",
        "weighted k-means, sparse",
        "weighted k-means",
        "rtn, a scale a row",
        "k-means",
      ],
      ["2 of 4: SparseGPT < Wanda < magnitude", "sparsegpt", "wanda", "magnitude"],
      [
        "fewer mantissa bits lose more, and rounding to ternary ruins",
        ...["neuzip 3", "neuzip 1", "neuzip 0", "ternary"],
      ],
    ])("%s", (_what, ...names) => {
      for (let i = 1; i < names.length; i++) {
        const [better = "", worse = ""] = [names[i - 1], names[i]];
        expect(kl[better], `${better} < ${worse}`).toBeLessThan(kl[worse] as number);
      }
    });

    it("3 bits in groups of 64: GPTQ has less output error than rounding in every linear of a block, act-order helps in most", async () => {
      const model = await loadModel(smollm2 as string);
      const backend = await selectBackend("auto", () => {});
      const threads = defaultThreads();
      const cache = (tokens: number, sequences: number) =>
        planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 });
      const runner = await BlockRunner.create(model, { backend, threads, windows, cache });
      const { intermediateSize: wide } = model.config;
      const engineLinalg = await createKernelLinalg(backend, threads, { n: wide, k: wide });
      try {
        await runner.advance(0);
        const stats = await runner.observe(1, { hessian: true, absStats: false });
        const steps = {
          rtn: { rtn: three },
          gptq: { gptq: three },
          ordered: { gptq: { ...three, actOrder: true } },
        };
        const specs = [...model.parameters.values()].map(({ spec }) => spec);
        const probes: Probe[] = [];
        for (const step of Object.values(steps)) {
          const recipe = recipeFromObject({ version: 1, steps: [step] });
          for (const { spec, method, options } of assignModules(recipe, specs)) {
            const { weight } = parameter(model, spec.path);
            if (spec.layer !== 1 || !spec.role || "quant" in weight) continue;
            const [n = 0, k = 0] = spec.shape;
            const site = SITE_OF[spec.role];
            const values = await weight.read();
            const shape = { n, k, path: spec.path };
            const context = { ...solveContext(), engineLinalg };
            const own = stats.get(site) ?? null;
            const { tensor } = await method.solve(values.slice(), shape, own, options, context);
            const error = decode(tensor).map((v, i) => v - (values[i] as number));
            probes.push({ site, expert: null, n, k, values: error });
          }
        }
        const energy = await runner.outputEnergy(1, probes);
        const linears = probes.length / 3;
        expect(linears).toBe(7);
        let helped = 0;
        const ratios: number[] = [];
        for (let i = 0; i < linears; i++) {
          const [rtn = 0, gptq = 0, ordered = 0] = [0, 1, 2].map((s) => energy[s * linears + i]);
          expect(gptq).toBeLessThan(rtn);
          ratios.push(gptq / rtn);
          if (ordered < gptq) helped++;
        }
        console.log("GPTQ / rounding", ratios, "act-order helps in", helped);
        expect(helped).toBeGreaterThan(linears / 2);
      } finally {
        await engineLinalg.dispose();
        await runner.dispose();
        await model.close();
      }
    });
  },
);
