// A model of any size with random integer weights, made in memory: for timing shapes whose checkpoints are not at hand.
import { nibbleModule } from "./source.mjs";

const { parameterSpecs } = await nibbleModule("model/roles");

function randomBytes(length, seed) {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = seed | 1;
  for (let i = 0; i < words.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    words[i] = state ^ (state >>> 15);
  }
  return new Uint8Array(words.buffer, 0, length);
}

/** One scale a row, symmetric codes around the middle. */
function randomWeight(n, k, bits, seed) {
  const scale = {
    type: "f32",
    shape: [n, 1],
    data: new Float32Array(n).fill(0.02 / 2 ** (bits - 1)),
  };
  const segment = randomBytes(n * Math.ceil(k / 64) * 8 * bits, seed);
  return {
    shape: [n, k],
    main: {
      kind: "gint",
      bits,
      groupSize: "channel",
      codes: { bits, rows: n, cols: k, segments: { [bits]: segment } },
      scale,
      zero: { kind: "const", value: 2 ** (bits - 1) },
    },
    pre: [],
    post: [],
  };
}

/** `layers` blocks of a LLaMA of these sizes; 8-bit activations, weights of `bits` bits, a vocabulary that costs nothing. */
export function syntheticLlama({
  hidden,
  intermediate,
  heads,
  kvHeads = heads,
  layers = 1,
  bits = 4,
}) {
  const config = {
    architecture: "llama",
    vocabSize: 64,
    hiddenSize: hidden,
    intermediateSize: intermediate,
    numHiddenLayers: layers,
    numAttentionHeads: heads,
    numKeyValueHeads: kvHeads,
    headDim: hidden / heads,
    rmsNormEps: 1e-5,
    maxPositionEmbeddings: 8192,
    tieWordEmbeddings: true,
    rope: { type: "default", theta: 10000, parameters: {} },
    bias: { q: false, k: false, v: false, o: false, mlp: false },
    qkNorm: false,
    slidingWindow: Array.from({ length: layers }, () => null),
    experts: null,
    bosTokenId: null,
    eosTokenIds: [],
    raw: {},
  };
  const parameters = new Map();
  for (const spec of parameterSpecs(config)) {
    if (spec.kind === "head") continue;
    const { path, shape } = spec;
    const [n, k = 1] = shape;
    const seed = parameters.size + 1;
    const weight =
      spec.kind === "norm"
        ? { shape, read: async () => new Float32Array(n).fill(1) }
        : spec.kind === "embedding"
          ? { shape, read: async () => new Float32Array(n * k).fill(0.1) }
          : { quant: async () => randomWeight(n, k, bits, seed) };
    parameters.set(path, { spec, weight, bias: null });
  }
  const quantizer = { bits: 8, granularity: "token", symmetric: true, clip: 1 };
  return {
    config,
    source: { id: "synthetic", sha256: async () => "0".repeat(64) },
    files: new Map(),
    parameters,
    transforms: [],
    activations: { attn_in: quantizer, o_in: quantizer, mlp_in: quantizer, down_in: quantizer },
    activationOverrides: new Map(),
    kv: null,
    async close() {},
  };
}
