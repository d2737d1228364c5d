/**
 * How much each layer minds being quantized. Two measures: the relative error of each linear's output on a text (from the
 * Gram matrix of its inputs, one pass), and the KL divergence of the whole model when one layer alone is rounded (through
 * the real runtime, one run a layer). Rounding is RTN: cheap, without choices, and the order of layers is what is asked for.
 */
import { ModelError } from "../core/errors.js";
import type { OnProgress } from "../core/progress.js";
import { decode } from "../encodings/quant-tensor.js";
import type { Backend } from "../kernels/contract.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import { roundToNearest, rtn } from "../methods/rtn.js";
import type { LazyTensor, Model, Parameter } from "../model/model.js";
import { type LinearRole, SITE_OF } from "../model/roles.js";
import { BlockRunner, statsKey } from "../observers/block-runner.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { type MeasureOptions, openOptions } from "./measure.js";
import { evaluatePerplexity } from "./perplexity.js";
import type { Sensitivity } from "./sensitivity.js";

export interface RoundingOptions {
  bits: number;
  groupSize: number | "channel";
}

/** Widths at which modules are measured, for the allocation of bits. */
export const WIDTHS: readonly number[] = [2, 3, 4, 5, 6, 8];

export interface ModuleError {
  path: string;
  layer: number;
  role: LinearRole;
  weights: number;
  error: Record<number, number>;
}

export interface SensitivityResult {
  bits: number;
  groupSize: number | "channel";
  tokens: number;
  /** Relative squared output error of each linear by bits. */
  modules: ModuleError[];
  /** KL(original || model with this layer rounded), mean nats a token; absent when only errors were asked for. */
  kl?: { layer: number; kl: number; deltaNll: number }[];
  /** Loss of each module by bits, for allocateBits: the layer's KL, shared out by the modules' output errors. */
  sensitivities?: Sensitivity[];
}

/** tr(D H D^T) / tr(W H W^T) with D = W - W'; weights [n, k], H [k, k] with its upper triangle filled. */
export function relativeOutputError(
  weight: Float32Array,
  rounded: Float32Array,
  n: number,
  k: number,
  hessian: Float64Array,
): number {
  const energy = (row: Float64Array) => {
    let sum = 0;
    for (let i = 0; i < k; i++) {
      const x = row[i] as number;
      if (x === 0) continue;
      let inner = 0.5 * (hessian[i * k + i] as number) * x;
      for (let j = i + 1, at = i * k + i + 1; j < k; j++, at++) {
        inner += (hessian[at] as number) * (row[j] as number);
      }
      sum += 2 * x * inner;
    }
    return sum;
  };
  let error = 0;
  let total = 0;
  const row = new Float64Array(k);
  for (let at = 0; at < n * k; at += k) {
    for (let j = 0; j < k; j++) row[j] = weight[at + j] as number;
    total += energy(row);
    for (let j = 0; j < k; j++) row[j] = (weight[at + j] as number) - (rounded[at + j] as number);
    error += energy(row);
  }
  return total > 0 ? error / total : 0;
}

/** Rows of a matrix that errors are measured on: a ratio needs no more, and rounding treats each row by itself. */
const SAMPLED_ROWS = 24;

/** At most SAMPLED_ROWS rows of a weight [n, k], evenly spread. */
function sampleRows(
  weight: Float32Array,
  n: number,
  k: number,
): { rows: Float32Array; count: number } {
  const count = Math.min(n, SAMPLED_ROWS);
  const rows = new Float32Array(count * k);
  for (let r = 0; r < count; r++) {
    const from = Math.floor((r * n) / count) * k;
    rows.set(weight.subarray(from, from + k), r * k);
  }
  return { rows, count };
}

function grid({ bits, groupSize }: RoundingOptions) {
  return rtn.options.parse({ bits, groupSize, sym: false });
}

/** A copy of a model in which the linears of one layer are rounded; the original is not changed. */
export function withRoundedLayer(model: Model, layer: number, options: RoundingOptions): Model {
  const parameters = new Map<string, Parameter>(model.parameters);
  for (const [path, parameter] of model.parameters) {
    const { weight, spec } = parameter;
    if (spec.layer !== layer || spec.kind !== "linear") continue;
    if ("quant" in weight) throw quantized(model);
    const [n = 0, k = 0] = spec.shape;
    parameters.set(path, {
      ...parameter,
      weight: { quant: async () => roundToNearest(await weight.read(), n, k, grid(options)) },
    });
  }
  return { ...model, parameters, close: async () => {} };
}

function quantized(model: Model): ModelError {
  return new ModelError(`${model.source.id} is already quantized`, {
    hint: "measure the sensitivity of the original model",
  });
}

/** Relative output error of every linear at several widths, one pass over the text. */
export async function outputErrors(
  model: Model,
  ids: number[],
  rounding: { widths: readonly number[]; groupSize: RoundingOptions["groupSize"] },
  run: { backend: Backend; threads: number; onProgress?: OnProgress; signal?: AbortSignal },
): Promise<ModuleError[]> {
  const { config } = model;
  const runner = await BlockRunner.create(model, {
    backend: run.backend,
    threads: run.threads,
    windows: [Int32Array.from(ids)],
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), config, { tokens, sequences, layers: 1 }),
    ...(run.signal ? { signal: run.signal } : {}),
  });
  const out: ModuleError[] = [];
  const layers = config.numHiddenLayers;
  try {
    for (let layer = 0; layer < layers; layer++) {
      run.onProgress?.({ type: "step", stage: "output errors", item: layer, total: layers });
      const stats = await runner.observe(layer, { hessian: true, absStats: false });
      for (const { spec, weight } of model.parameters.values()) {
        const { role, path } = spec;
        if (spec.layer !== layer || role === null) continue;
        if ("quant" in weight) throw quantized(model);
        const hessian = stats.get(statsKey(SITE_OF[role], spec.expert))?.hessian;
        if (!hessian) continue;
        const [n = 0, k = 0] = spec.shape;
        const { rows, count } = sampleRows(await weight.read(), n, k);
        const error: Record<number, number> = {};
        for (const bits of rounding.widths) {
          const rounded = roundToNearest(rows.slice(), count, k, grid({ ...rounding, bits }));
          error[bits] = relativeOutputError(rows, decode(rounded), count, k, hessian);
        }
        out.push({ path, layer, role, weights: n * k, error });
      }
      if (layer + 1 < layers) await runner.advance(layer);
    }
  } finally {
    await runner.dispose();
  }
  return out;
}

/**
 * Losses of single modules at every width, in nats: the KL that a layer costs at `bits` is shared out among its modules in
 * proportion to their output errors, and scaled by the error at the other widths.
 */
export function shareOut(
  modules: readonly ModuleError[],
  kl: readonly { layer: number; kl: number }[],
  bits: number,
): Sensitivity[] {
  return modules.map(({ path, layer, weights, error }) => {
    const total = modules
      .filter((m) => m.layer === layer)
      .reduce((sum, m) => sum + (m.error[bits] ?? 0), 0);
    const cost = kl.find((row) => row.layer === layer)?.kl ?? 0;
    const loss = Object.fromEntries(
      Object.entries(error).map(([width, e]) => [width, total > 0 ? (cost * e) / total : 0]),
    );
    return { path, weights, loss };
  });
}

/** A copy of a model that reads (and transforms) every tensor once and hands out copies from memory. */
function inMemory(model: Model): Model {
  const held = new Map<LazyTensor, Promise<Float32Array>>();
  const keep = (tensor: LazyTensor): LazyTensor => ({
    shape: tensor.shape,
    async read() {
      const data = held.get(tensor) ?? tensor.read();
      held.set(tensor, data);
      return (await data).slice();
    },
  });
  const parameters = new Map<string, Parameter>();
  for (const [path, parameter] of model.parameters) {
    const { weight } = parameter;
    parameters.set(path, "quant" in weight ? parameter : { ...parameter, weight: keep(weight) });
  }
  return { ...model, parameters, close: async () => {} };
}

/** KL and loss of the whole model when one layer alone is rounded. Holds the model in f32 three times. */
export async function layerSensitivity(
  source: Model,
  ids: number[],
  rounding: RoundingOptions,
  options: MeasureOptions,
): Promise<NonNullable<SensitivityResult["kl"]>> {
  const model = inMemory(source);
  const shape = { maxContext: ids.length, sequences: 1 };
  const reference: OpenedModel = await openModel(model, openOptions(options, shape));
  const out: NonNullable<SensitivityResult["kl"]> = [];
  try {
    const base = await evaluatePerplexity(reference, ids, { ctx: ids.length });
    const layers = model.config.numHiddenLayers;
    for (let layer = 0; layer < layers; layer++) {
      options.signal?.throwIfAborted();
      options.onProgress?.({
        type: "step",
        stage: "sensitivity",
        item: layer,
        total: layers,
        name: `layer ${layer}`,
      });
      const opened = await openModel(
        withRoundedLayer(model, layer, rounding),
        openOptions(options, shape),
      );
      try {
        const measured = await evaluatePerplexity(opened, ids, { ctx: ids.length, reference });
        out.push({ layer, kl: measured.kl ?? 0, deltaNll: measured.nll - base.nll });
      } finally {
        await opened.close();
      }
    }
  } finally {
    await reference.close();
  }
  return out;
}
