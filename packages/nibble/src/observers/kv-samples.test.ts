import { describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { referenceBackend } from "../kernels/reference.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import type { Model } from "../model/model.js";
import { BlockRunner } from "./block-runner.js";
import { type CalibrationSamples, KvSampler, type KvSamplerOptions } from "./kv-samples.js";

const SEQLEN = 40;
const windows = [0, 1, 2].map((w) =>
  Int32Array.from({ length: SEQLEN }, (_, i) => (i * (w + 3) + w) % 50),
);

async function collect(model: Model, options: Partial<KvSamplerOptions> = {}) {
  const runner = await BlockRunner.create(model, {
    backend: referenceBackend,
    threads: 1,
    windows,
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
  });
  const sampler = new KvSampler(model.config, {
    windows: windows.length,
    seqlen: SEQLEN,
    seed: 1,
    ...options,
  });
  const layers: CalibrationSamples[] = [];
  try {
    for (let layer = 0; layer < model.config.numHiddenLayers; layer++)
      layers.push(await sampler.collect(runner, layer));
  } finally {
    await runner.dispose();
  }
  return layers;
}

async function read(model: Model, path: string): Promise<Float32Array> {
  const { weight } = model.parameters.get(path) ?? expect.unreachable(path);
  return "read" in weight ? weight.read() : expect.unreachable(path);
}

/** Layer 0 in plain loops: projections of the normed embedding, and attention over rotated vectors. */
async function oracle(model: Model) {
  const { hiddenSize, headDim, numAttentionHeads: heads, numKeyValueHeads: kvHeads } = model.config;
  const [embed, gain] = [await read(model, "embed"), await read(model, "layers.0.inputNorm")];
  const project = async (path: string) => {
    const w = await read(model, path);
    return (token: number) => {
      const x = embed.subarray(token * hiddenSize, (token + 1) * hiddenSize);
      const rms = Math.sqrt(x.reduce((s, v) => s + v * v, 0) / hiddenSize + 1e-5);
      return Float64Array.from({ length: w.length / hiddenSize }, (_, r) => {
        let sum = 0;
        for (let i = 0; i < hiddenSize; i++)
          sum += ((w[r * hiddenSize + i] as number) * (x[i] as number) * (gain[i] as number)) / rms;
        return sum;
      });
    };
  };
  const [q, k, v] = [
    await project("layers.0.q"),
    await project("layers.0.k"),
    await project("layers.0.v"),
  ];
  const rotate = (x: Float64Array, position: number) =>
    x.map((value, i) => {
      const half = headDim / 2;
      const [head, j] = [i - (i % headDim), i % half];
      const angle = position * 10000 ** (-j / half);
      const other = i % headDim < half ? -(x[head + j + half] as number) : (x[head + j] as number);
      return value * Math.cos(angle) + other * Math.sin(angle);
    });
  const attention = new Float64Array(windows.length * SEQLEN * kvHeads);
  for (const [w, window] of windows.entries()) {
    const keys = [...window].map((token, t) => rotate(k(token), t));
    for (let m = 0; m < SEQLEN; m++) {
      const query = rotate(q(window[m] as number), m);
      for (let h = 0; h < heads; h++) {
        const g = Math.floor((h * kvHeads) / heads);
        const e = keys.slice(0, m + 1).map((key) => {
          let sum = 0;
          for (let i = 0; i < headDim; i++)
            sum += (query[h * headDim + i] as number) * (key[g * headDim + i] as number);
          return Math.exp(sum / Math.sqrt(headDim));
        });
        const total = e.reduce((a, b) => a + b, 0);
        for (const [t, x] of e.entries()) {
          const at = (w * SEQLEN + t) * kvHeads + g;
          attention[at] = (attention[at] as number) + (x / total) ** 2;
        }
      }
    }
  }
  return { q, k, v, attention };
}

describe("KvSampler", () => {
  it("gives keys before RoPE, values, attention and query norms as plain loops do", async () => {
    const model = tinyModel();
    const [layer] = await collect(model, { queries: SEQLEN });
    if (!layer) expect.unreachable();
    const want = await oracle(model);
    const { kvHeads, headDim } = layer;
    expect(layer.rows).toBe(windows.length * SEQLEN);
    let squares = 0;
    const norms: number[] = [];
    for (let i = 0; i < layer.rows; i++) {
      const token = windows[Math.floor(i / SEQLEN)]?.[i % SEQLEN] as number;
      expect(layer.positions[i]).toBe(i % SEQLEN);
      const [key, value, query] = [want.k(token), want.v(token), want.q(token)];
      for (let c = 0; c < kvHeads * headDim; c++) {
        expect(layer.keys[i * kvHeads * headDim + c]).toBeCloseTo(key[c] as number, 4);
        expect(layer.values[i * kvHeads * headDim + c]).toBeCloseTo(value[c] as number, 4);
      }
      for (let h = 0; h < 2; h++) {
        const head = query.subarray(h * headDim, (h + 1) * headDim);
        norms.push(head.reduce((s, x) => s + x * x, 0));
        squares += (head[1] as number) ** 2 + (head[1 + headDim / 2] as number) ** 2;
      }
    }
    for (const [i, a] of want.attention.entries()) expect(layer.attention[i]).toBeCloseTo(a, 4);
    expect(layer.queries[1]).toBeCloseTo(squares / 2 / norms.length, 3);
    expect(layer.queries[1 + headDim / 2]).toBeCloseTo(layer.queries[1] as number, 10);
    norms.sort((a, b) => a - b);
    expect(layer.queryNorm[0]).toBeCloseTo(norms[Math.floor(0.9 * norms.length)] as number, 3);
  });

  it("keeps a seeded sample within its memory, the same tokens in every layer", async () => {
    const model = tinyModel();
    const maxBytes = 30 * 8 * 16;
    const [first, second] = await collect(model, { maxBytes });
    const [again] = await collect(model, { maxBytes });
    const [other] = await collect(model, { maxBytes, seed: 2 });
    expect(first?.rows).toBe(30);
    expect(again).toEqual(first);
    expect(second?.positions).toEqual(first?.positions);
    expect(second?.keys).not.toEqual(first?.keys);
    expect(other?.positions).not.toEqual(first?.positions);
  });
});
