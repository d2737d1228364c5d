/** A random model in memory, of any of the architectures, for tests of passes. */
import { Philox } from "../src/core/rng.js";
import type { ModelConfig } from "../src/model/config.js";
import type { LazyTensor, Model } from "../src/model/model.js";
import { parameterSpecs } from "../src/model/roles.js";

const NO_BIAS = { q: false, k: false, v: false, o: false, mlp: false };

/** Weights depend on the seed and the config only. Norm gains are far from 1, so that a forgotten fold shows. */
export function tinyModel(changes: Partial<ModelConfig> = {}, seed = 0): Model {
  const config: ModelConfig = {
    architecture: "llama",
    vocabSize: 50,
    hiddenSize: 36,
    intermediateSize: 40,
    numHiddenLayers: 2,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    headDim: 8,
    rmsNormEps: 1e-5,
    maxPositionEmbeddings: 64,
    tieWordEmbeddings: false,
    rope: { type: "default", theta: 10000, parameters: {} },
    bias: NO_BIAS,
    qkNorm: false,
    slidingWindow: [null, null],
    experts: null,
    bosTokenId: null,
    eosTokenIds: [],
    raw: {},
    ...changes,
  };
  const rng = new Philox(seed, "tiny-model");
  const tensor = (name: string, shape: readonly number[], scale: number, mean = 0): LazyTensor => ({
    shape,
    async read() {
      const count = shape.reduce((a, b) => a * b, 1);
      return Float32Array.from(rng.stream(name).normals(count), (x) => mean + scale * x);
    },
  });
  const parameters: Model["parameters"] = new Map();
  for (const spec of parameterSpecs(config)) {
    if (spec.kind === "head" && config.tieWordEmbeddings) continue;
    const { path, shape } = spec;
    const isNorm = spec.kind === "norm";
    const scale = isNorm ? 0.4 : spec.kind === "embedding" ? 1 : 1 / Math.sqrt(shape[1] as number);
    parameters.set(path, {
      spec,
      weight: tensor(path, shape, scale, isNorm ? 1 : 0),
      bias: spec.bias ? tensor(`${path}.bias`, [shape[0] as number], 0.5) : null,
    });
  }
  return {
    config,
    source: { id: "tiny", sha256: async () => "0".repeat(64) },
    files: new Map(),
    parameters,
    transforms: [],
    activations: {},
    activationOverrides: new Map(),
    kv: null,
    async close() {},
  };
}
