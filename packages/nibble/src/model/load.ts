/**
 * Facts and weights -> Model: every parameter of the architecture is looked up and its shape compared before anything is
 * read; values are read, checked and handed out one tensor at a time.
 */
import { FormatError, NumericError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import type { ModelConfig } from "./config.js";
import type {
  LazyTensor,
  Model,
  ModelSource,
  Parameter,
  SidecarFiles,
  WeightSource,
} from "./model.js";
import { parameterSpecs } from "./roles.js";

/**
 * @param id what the user named; given as text, the hash is that of the decoded tensors
 * @throws FormatError naming the first tensor that is missing or has another shape, with both shapes
 */
export function buildModel(
  config: ModelConfig,
  source: WeightSource,
  files: SidecarFiles,
  id: string | ModelSource,
): Model {
  const place = typeof id === "string" ? id : id.id;
  const parameters = new Map<string, Parameter>();
  for (const spec of parameterSpecs(config)) {
    if (spec.kind === "head" && config.tieWordEmbeddings) continue;
    const out = spec.shape[0] as number; // every spec has at least one dimension
    parameters.set(spec.path, {
      spec,
      weight: lazyTensor(source, `${spec.module}.weight`, spec.shape, place),
      bias: spec.bias ? lazyTensor(source, `${spec.module}.bias`, [out], place) : null,
    });
  }
  return {
    config,
    source: typeof id === "string" ? { id, sha256: () => hashTensors(source) } : id,
    files,
    parameters,
    transforms: [],
    activations: {},
    activationOverrides: new Map(),
    kv: null,
    close: () => source.close(),
  };
}

/**
 * Tensors of a source that a model of this architecture does not read (a second copy of a tied head and the rotary
 * buffers of old checkpoints are not counted).
 */
export function unusedTensors(config: ModelConfig, source: WeightSource): string[] {
  const known = new Set<string>(["lm_head.weight"]);
  for (const spec of parameterSpecs(config)) {
    known.add(`${spec.module}.weight`);
    if (spec.bias) known.add(`${spec.module}.bias`);
  }
  return [...source.names()].filter(
    (name) => !known.has(name) && !name.endsWith(".rotary_emb.inv_freq"),
  );
}

/** Tensors in memory as a source: tests, and models made on the spot. Reads are copies. */
export function memorySource(
  tensors: ReadonlyMap<string, { shape: readonly number[]; data: Float32Array }>,
): WeightSource {
  const find = (name: string) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new FormatError(`there is no tensor ${name}`, { place: "memory" });
    return tensor;
  };
  return {
    names: () => tensors.keys(),
    has: (name) => tensors.has(name),
    shape: (name) => find(name).shape,
    read: async (name) => find(name).data.slice(),
    async readRows(name, from, to) {
      const { shape, data } = find(name);
      const width = shape.slice(1).reduce((product, n) => product * n, 1);
      return data.slice(from * width, to * width);
    },
    async close() {},
  };
}

function lazyTensor(
  source: WeightSource,
  name: string,
  shape: readonly number[],
  place: string,
): LazyTensor {
  if (!source.has(name)) {
    throw new FormatError(`tensor ${name} of shape [${shape}] is missing`, {
      place,
      hint: "The file is incomplete, or its config names another architecture.",
    });
  }
  const found = source.shape(name);
  if (found.length !== shape.length || found.some((n, d) => n !== shape[d])) {
    throw new FormatError(`tensor ${name} has shape [${found}], expected [${shape}]`, {
      place,
      hint: "Weights and config.json do not belong together.",
    });
  }
  return {
    shape,
    async read() {
      const values = await source.read(name);
      checkFinite(values, name);
      return values;
    },
    ...(shape.length === 2 && {
      async readRows(from: number, to: number) {
        const values = await source.readRows(name, from, to);
        checkFinite(values, name, from * (shape[1] ?? 1));
        return values;
      },
    }),
  };
}

/**
 * @param offset index of the first value in its tensor
 * @throws NumericError naming the tensor and the first index that is NaN or infinite.
 */
export function checkFinite(values: Float32Array, name: string, offset = 0): void {
  // x * 0 is 0 for finite x and NaN otherwise, so a sum tells whether to look closer; four, so that they overlap.
  let [a, b, c, d] = [0, 0, 0, 0];
  let i = 0;
  for (; i + 4 <= values.length; i += 4) {
    a += (values[i] as number) * 0;
    b += (values[i + 1] as number) * 0;
    c += (values[i + 2] as number) * 0;
    d += (values[i + 3] as number) * 0;
  }
  for (; i < values.length; i++) a += (values[i] as number) * 0;
  if (a + b + c + d === 0) return;
  const index = values.findIndex((x) => !Number.isFinite(x));
  throw new NumericError(`value ${offset + index} is ${values[index]}`, {
    place: `tensor ${name}`,
    hint: "The checkpoint is broken (or was stored in a type too narrow for it); fetch it again.",
  });
}

/** SHA-256 over names, shapes and f32 values of all tensors in name order. */
async function hashTensors(source: WeightSource): Promise<string> {
  const hash = sha256();
  for (const name of [...source.names()].sort()) {
    hash.update(new TextEncoder().encode(`${name} [${source.shape(name)}]\n`));
    const values = await source.read(name);
    hash.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
  return hash.digest();
}
