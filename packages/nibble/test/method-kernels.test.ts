/**
 * What every weight method stores runs: a small model whose linears it quantized gives the logits of the same model with
 * the decoded weights, on the reference and on the WebAssembly kernels.
 */
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { decode } from "../src/encodings/quant-tensor.js";
import type { QuantTensor } from "../src/encodings/types.js";
import type { BackendId } from "../src/kernels/contract.js";
import type { SolverMethod } from "../src/methods/contract.js";
import { methods } from "../src/methods/index.js";
import type { Model } from "../src/model/model.js";
import { loadModel } from "../src/runtime/load-model.js";
import { openModel } from "../src/runtime/open.js";
import { activations, solveContext, statsOf } from "./support/solver.js";

const FOLDER = fileURLToPath(new URL("golden/models/llama-tied", import.meta.url));
const IDS = [5, 17, 200, 3, 77, 12, 9, 310];
const weightMethods = [...methods].filter((m): m is SolverMethod<unknown> => m.kind === "weights");
const stats = new Map([96, 192].map((k) => [k, statsOf(activations(300, k), k)]));

async function quantize(model: Model, method: SolverMethod<unknown>, options: unknown) {
  const tensors = new Map<string, QuantTensor>();
  for (const { spec, weight } of model.parameters.values()) {
    if (spec.kind !== "linear" || "quant" in weight) continue;
    const [n = 0, k = 0] = spec.shape;
    const given = method.needs(options).calibration ? (stats.get(k) ?? null) : null;
    const shape = { n, k, path: spec.path };
    const { tensor } = await method.solve(
      await weight.read(),
      shape,
      given,
      options,
      solveContext(),
    );
    tensors.set(spec.path, tensor);
  }
  return tensors;
}

async function logits(
  tensors: Map<string, QuantTensor>,
  stored: boolean,
  backend: BackendId,
): Promise<Float32Array> {
  const model = await loadModel(FOLDER);
  for (const [path, tensor] of tensors) {
    const target = model.parameters.get(path);
    if (!target) throw new Error(path);
    target.weight = stored
      ? { quant: async () => tensor }
      : { shape: [tensor.n, tensor.k], read: async () => decode(tensor) };
  }
  const opened = await openModel(model, { backend, threads: 1, maxContext: 32 });
  try {
    const { vocabSize } = model.config;
    const out = new Float32Array(IDS.length * vocabSize);
    await opened.runner.score(0, IDS);
    for (let i = 0; i < IDS.length; i++)
      out.set(opened.runner.logits(i).subarray(0, vocabSize), i * vocabSize);
    return out;
  } finally {
    await opened.close();
    await model.close();
  }
}

describe.each(weightMethods.map((m) => [m.id, m] as const))("%s", (_, method) => {
  it("runs as stored, logits within 1e-3 of the decoded weights", async () => {
    const model = await loadModel(FOLDER);
    const tensors = await quantize(model, method, method.options.parse({}));
    await model.close();
    const expected = await logits(tensors, false, "reference");
    expect(expected.every(Number.isFinite)).toBe(true);
    for (const backend of ["reference", "wasm"] as const) {
      const got = await logits(tensors, true, backend);
      let worst = 0;
      got.forEach((x, i) => {
        worst = Math.max(worst, Math.abs(x - (expected[i] as number)));
      });
      expect(worst, backend).toBeLessThan(1e-3);
    }
  });
});
