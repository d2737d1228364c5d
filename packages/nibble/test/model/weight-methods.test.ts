/**
 * Data-free weight methods on SmolLM2-135M beside an independent reference run (WikiText-2 test, 8 windows of 512 tokens,
 * only the linears of the blocks quantized, f32 activations). The reference rows simulate f32 or f16 scales; ours run as
 * stored. 4088 targets: differences below about 3 % are ties.
 */
import { readFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { decode } from "../../src/encodings/quant-tensor.js";
import { encodeStream, evaluatePerplexity } from "../../src/eval/perplexity.js";
import type { SolverMethod } from "../../src/methods/contract.js";
import { methods } from "../../src/methods/index.js";
import { loadModel } from "../../src/runtime/load-model.js";
import { openModel } from "../../src/runtime/open.js";
import { solveContext } from "../support/solver.js";
import { requires, sharedFile, smollm2 } from "./locate.js";

const text = sharedFile("data/wikitext2-test.txt");

/** Method, options, perplexity of the reference run. */
const ROWS: [name: string, id: string, options: object, reference: number][] = [
  ["original", "", {}, 30.64],
  ["fp6", "float", { format: "e3m2" }, 32.63],
  ["nf4 two scales", "afpq", { table: "nf4", groupSize: 64 }, 37.04],
  ["nf4", "nf4", { scale: "f16" }, 38.5],
  ["hqq", "hqq", { bits: 4 }, 38.52],
  ["rtn", "rtn", { bits: 4, groupSize: 64 }, 40.98],
  ["easyquant", "easyquant", {}, 41.02],
  ["fp4", "afpq", { table: "fp4", groupSize: 64, twoScale: false }, 41.37],
  ["rtn, a scale a row", "rtn", { bits: 4, groupSize: "channel", sym: "narrow" }, 64.72],
  ["nf3 two scales", "afpq", { table: "nf3", groupSize: 64 }, 77.19],
  ["nf3", "afpq", { table: "nf3", groupSize: 64, twoScale: false }, 99.79],
];
const TOLERANCE = 0.03;

describe(
  "data-free weight methods on SmolLM2-135M",
  requires({ "the model": smollm2, "the text": text }),
  () => {
    const measured = new Map<string, number>();
    afterAll(() => console.log(Object.fromEntries(measured)));

    it.each(ROWS)(
      "%s: perplexity within 3 % of the reference run",
      async (name, id, options, reference) => {
        const model = await loadModel(smollm2 ?? "");
        try {
          if (id) {
            const method = methods.get(id) as SolverMethod<unknown>;
            const parsed = method.options.parse(options);
            for (const target of model.parameters.values()) {
              const { spec, weight } = target;
              if (spec.kind !== "linear" || "quant" in weight) continue;
              const [n = 0, k = 0] = spec.shape;
              const shape = { n, k, path: spec.path };
              const { tensor } = await method.solve(
                await weight.read(),
                shape,
                null,
                parsed,
                solveContext(),
              );
              target.weight = { quant: async () => tensor };
            }
          }
          const opened = await openModel(model, { maxContext: 512 });
          try {
            const lines = readFileSync(text ?? "", "utf8").replaceAll("\r\n", "\n");
            const ids = encodeStream(opened, lines);
            const { perplexity } = await evaluatePerplexity(opened, ids, { ctx: 512, windows: 8 });
            measured.set(name, perplexity);
            expect(Math.abs(perplexity / reference - 1)).toBeLessThan(TOLERANCE);
          } finally {
            await opened.close();
          }
        } finally {
          await model.close();
        }
      },
    );

    it("orderings: 6-bit floats before every 4-bit format, two scales before one, clearly so at 3 bits", () => {
      const of = (name: string) => measured.get(name) ?? Number.NaN;
      for (const [name] of ROWS.slice(2)) expect(of("fp6")).toBeLessThan(of(name));
      expect(of("nf4 two scales")).toBeLessThan(of("nf4"));
      expect(of("nf4")).toBeLessThan(of("rtn"));
      expect(of("nf4")).toBeLessThan(of("fp4"));
      expect(of("hqq")).toBeLessThan(of("rtn"));
      expect(of("easyquant")).toBeLessThan(0.75 * of("rtn, a scale a row"));
      expect(of("nf3 two scales")).toBeLessThan(0.85 * of("nf3"));
    });

    it("neuzip: every weight of a block as it was, bit for bit", async () => {
      const model = await loadModel(smollm2 ?? "");
      const neuzip = methods.get("neuzip") as SolverMethod<unknown>;
      for (const { spec, weight } of model.parameters.values()) {
        if (spec.layer !== 7 || spec.kind !== "linear" || "quant" in weight) continue;
        const [n = 0, k = 0] = spec.shape;
        const original = await weight.read();
        const shape = { n, k, path: spec.path };
        const options = neuzip.options.parse({});
        const { tensor } = await neuzip.solve(
          original.slice(),
          shape,
          null,
          options,
          solveContext(),
        );
        expect(
          Buffer.compare(Buffer.from(decode(tensor).buffer), Buffer.from(original.buffer)),
        ).toBe(0);
      }
      await model.close();
    });
  },
);
