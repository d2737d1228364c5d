/**
 * How much each layer minds being quantized. Two measures: the relative error of each linear's output on a text, and the
 * KL divergence of the whole model when one layer alone is rounded (one run a layer). Rounding is RTN: cheap, without
 * choices, and the order of layers is what is asked for.
 */
import { ModelError } from "../core/errors.js";
import type { OnProgress } from "../core/progress.js";
import { decode } from "../encodings/quant-tensor.js";
import type { Backend } from "../kernels/contract.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import { roundToNearest, rtn } from "../methods/rtn.js";
import type { Model, Parameter } from "../model/model.js";
import { type LinearRole, SITE_OF } from "../model/roles.js";
import { BlockRunner, type Probe } from "../observers/block-runner.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { type MeasureOptions, openOptions } from "./measure.js";
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
  model: string;
  bits: number;
  groupSize: number | "channel";
  tokens: number;
  /** Relative squared output error of each linear by bits. */
  modules: ModuleError[];
  /** KL(original || model with this layer rounded), mean nats a token; absent when only errors were asked for. */
  kl?: { layer: number; kl: number; deltaNll: number }[];
  /** KL(original || model with all linears of this role rounded). */
  roles?: { role: LinearRole; kl: number }[];
  /** Loss of each module by bits, for allocateBits (`shareOut`). */
  sensitivities?: Sensitivity[];
}

/** Tokens of a window: both measures run the text in windows of so many, each from its own start. */
export const WINDOW = 512;

/** Windows of equal length; a tail is dropped. */
export function windowsOf(ids: readonly number[]): number[][] {
  const length = Math.min(WINDOW, ids.length);
  const count = Math.floor(ids.length / length);
  return Array.from({ length: count }, (_, w) => ids.slice(w * length, (w + 1) * length));
}

function grid({ bits, groupSize }: RoundingOptions) {
  return rtn.options.parse({ bits, groupSize, sym: false });
}

/**
 * A copy of a model in which the linears of one layer (of one role only, if given) hold the values that rounding leaves of them, as floats; the
 * original is not changed.
 */
export function withRoundedLayer(
  model: Model,
  layer: number,
  options: RoundingOptions,
  role: LinearRole | null = null,
): Model {
  const parameters = new Map<string, Parameter>(model.parameters);
  for (const [path, parameter] of model.parameters) {
    const { weight, spec } = parameter;
    if (spec.layer !== layer || spec.kind !== "linear") continue;
    if (role !== null && spec.role !== role) continue;
    if ("quant" in weight) throw quantized(model);
    const [n = 0, k = 0] = spec.shape;
    parameters.set(path, {
      ...parameter,
      weight: {
        ...weight,
        read: async () => decode(roundToNearest(await weight.read(), n, k, grid(options))),
      },
    });
  }
  return { ...model, parameters, close: async () => {} };
}

function quantized(model: Model): ModelError {
  return new ModelError(`${model.source.id} is already quantized`, {
    hint: "measure the sensitivity of the original model",
  });
}

export interface OutputErrorOptions {
  backend: Backend;
  threads: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
  /** Layers that an interrupted run has measured. */
  known?: ReadonlyMap<number, ModuleError[]>;
  /** Told of every layer that is measured. */
  onLayer?: (layer: number, modules: ModuleError[]) => Promise<void>;
}

/** Relative squared output error |X (W - W')^T|^2 / |X W^T|^2 of every linear at several widths, over all tokens. */
export async function outputErrors(
  model: Model,
  ids: readonly number[],
  rounding: { widths: readonly number[]; groupSize: RoundingOptions["groupSize"] },
  run: OutputErrorOptions,
): Promise<ModuleError[]> {
  const { config } = model;
  const runner = await BlockRunner.create(model, {
    backend: run.backend,
    threads: run.threads,
    windows: windowsOf(ids).map((window) => Int32Array.from(window)),
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), config, { tokens, sequences, layers: 1 }),
    ...(run.signal ? { signal: run.signal } : {}),
  });
  const out: ModuleError[] = [];
  const layers = config.numHiddenLayers;
  try {
    for (let layer = 0; layer < layers; layer++) {
      run.onProgress?.({ type: "step", stage: "output errors", item: layer, total: layers });
      const known = run.known?.get(layer);
      const modules = known ?? (await layerErrors(runner, model, layer, rounding));
      if (!known) await run.onLayer?.(layer, modules);
      out.push(...modules);
      if (layer + 1 < layers) await runner.advance(layer);
    }
  } finally {
    await runner.dispose();
  }
  return out;
}

/** One layer: a run with the weights gives the energies, a run for each width the errors. */
async function layerErrors(
  runner: BlockRunner,
  model: Model,
  layer: number,
  { widths, groupSize }: { widths: readonly number[]; groupSize: RoundingOptions["groupSize"] },
): Promise<ModuleError[]> {
  const probes: Probe[] = [];
  const modules: ModuleError[] = [];
  for (const { spec, weight } of model.parameters.values()) {
    const { role, path, expert } = spec;
    if (spec.layer !== layer || role === null) continue;
    if ("quant" in weight) throw quantized(model);
    const [n = 0, k = 0] = spec.shape;
    probes.push({ site: SITE_OF[role], expert, n, k, values: await weight.read() });
    modules.push({ path, layer, role, weights: n * k, error: {} });
  }
  const energy = await runner.outputEnergy(layer, probes);
  for (const bits of widths) {
    const lost = await runner.outputEnergy(
      layer,
      probes.map(({ values, n, k, ...place }) => {
        const rounded = decode(roundToNearest(values.slice(), n, k, grid({ bits, groupSize })));
        for (let i = 0; i < rounded.length; i++) {
          rounded[i] = (values[i] as number) - (rounded[i] as number);
        }
        return { ...place, n, k, values: rounded };
      }),
    );
    for (const [i, { error }] of modules.entries()) {
      const whole = energy[i] as number;
      error[bits] = whole > 0 ? (lost[i] as number) / whole : 0;
    }
  }
  return modules.filter((_, i) => (energy[i] as number) > 0);
}

/** Rounds of fitting; the margins are met to some digits long before. */
const FITTING_ROUNDS = 100;

/**
 * Losses of single modules at every width, in nats. At `bits` they are fitted to two margins: the modules of a layer sum up
 * to the KL of that layer, those of a role to the KL of that role (brought to the same total), starting from the modules'
 * output errors (iterative proportional fitting). The output errors then scale each to the other widths.
 */
export function shareOut(
  modules: readonly ModuleError[],
  kl: readonly { layer: number; kl: number }[],
  roles: readonly { role: LinearRole; kl: number }[],
  bits: number,
): Sensitivity[] {
  const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
  const common = sum(kl.map((row) => row.kl)) / (sum(roles.map((row) => row.kl)) || 1);
  const cost = modules.map(({ error }) => error[bits] ?? 0);
  const margins = [
    ...roles.map((row) => ({ of: (m: ModuleError) => m.role === row.role, to: row.kl * common })),
    ...kl.map((row) => ({ of: (m: ModuleError) => m.layer === row.layer, to: row.kl })),
  ].map(({ of, to }) => ({
    to,
    members: [...modules.keys()].filter((i) => of(modules[i] as ModuleError)),
  }));
  for (let round = 0; round < FITTING_ROUNDS; round++) {
    for (const { to, members } of margins) {
      const total = sum(members.map((i) => cost[i] as number));
      if (total > 0) for (const i of members) cost[i] = ((cost[i] as number) * to) / total;
    }
  }
  return modules.map(({ path, weights, error }, i) => {
    const own = error[bits] ?? 0;
    const loss = Object.fromEntries(
      Object.entries(error).map(([width, e]) => [
        width,
        own > 0 ? ((cost[i] as number) * e) / own : 0,
      ]),
    );
    return { path, weights, loss };
  });
}

/** Sums over the targets of one window with one layer rounded. */
export interface WindowLoss {
  window: number;
  layer: number;
  kl: number;
  /** NLL with the layer rounded minus NLL of the original. */
  deltaNll: number;
  targets: number;
}

export interface LayerSensitivityOptions extends MeasureOptions {
  /** What an interrupted run has measured. */
  known?: readonly WindowLoss[];
  onLoss?: (loss: WindowLoss) => Promise<void>;
}

/**
 * KL and loss of the whole model when one layer alone is rounded. The model is compiled once; the rounded weights of a
 * layer (as floats) are written over its own and back. The original's predictions of one window are kept meanwhile.
 */
export async function layerSensitivity(
  model: Model,
  ids: readonly number[],
  rounding: RoundingOptions,
  options: LayerSensitivityOptions,
): Promise<NonNullable<SensitivityResult["kl"]>> {
  const windows = windowsOf(ids);
  const maxContext = windows[0]?.length ?? 0;
  const layers = model.config.numHiddenLayers;
  const losses: WindowLoss[] = [...(options.known ?? [])];
  const isKnown = (w: number, layer: number) =>
    losses.some((loss) => loss.window === w && loss.layer === layer);
  const opened = await openModel(model, openOptions(options, { maxContext, sequences: 1 }));
  try {
    for (const [w, window] of windows.entries()) {
      if (Array.from({ length: layers }).every((_, layer) => isKnown(w, layer))) continue;
      const original: Float32Array[] = [];
      const base = await scoreWindow(opened, window, (row) => void original.push(row.slice()));
      for (let layer = 0; layer < layers; layer++) {
        options.signal?.throwIfAborted();
        options.onProgress?.({
          type: "step",
          stage: "sensitivity",
          item: w * layers + layer,
          total: windows.length * layers,
          name: `layer ${layer}`,
        });
        if (isKnown(w, layer)) continue;
        await opened.compiled.replaceLayer(layer, withRoundedLayer(model, layer, rounding));
        const { nll, kl } = await scoreWindow(opened, window, null, original);
        await opened.compiled.replaceLayer(layer, model);
        const targets = window.length - 1;
        const loss = { window: w, layer, kl, deltaNll: nll - base.nll, targets };
        losses.push(loss);
        await options.onLoss?.(loss);
      }
    }
  } finally {
    await opened.close();
  }
  return Array.from({ length: layers }, (_, layer) => {
    // Sums in the order of the windows, whatever an interruption did to the order of measuring.
    const own = losses.filter((loss) => loss.layer === layer).sort((a, b) => a.window - b.window);
    const total = (pick: (loss: WindowLoss) => number) =>
      own.reduce((sum, loss) => sum + pick(loss), 0) / own.reduce((sum, l) => sum + l.targets, 0);
    return { layer, kl: total((loss) => loss.kl), deltaNll: total((loss) => loss.deltaNll) };
  });
}

/** Sums over the targets of a window; rows of logits are handed to `keep`, and compared with `original` where there is one. */
export async function scoreWindow(
  { runner }: OpenedModel,
  window: readonly number[],
  keep: ((logits: Float32Array) => void) | null,
  original?: readonly Float32Array[],
): Promise<{ nll: number; kl: number }> {
  const { maxRows, maxLogitRows } = runner.model;
  let nll = 0;
  let kl = 0;
  runner.tables.truncate(0, 0);
  runner.tables.reserve(0, window.length);
  for (let start = 0; start < window.length; start += maxRows) {
    const tokens = window.slice(start, start + maxRows);
    const positions = tokens.map((_, i) => start + i);
    await runner.step({ tokens, positions, sequences: new Int32Array(tokens.length) }, []);
    // The last token of the window predicts nothing.
    const predicting = Math.min(tokens.length, window.length - 1 - start);
    for (let first = 0; first < predicting; first += maxLogitRows) {
      const count = Math.min(maxLogitRows, predicting - first);
      const from = start + first;
      for (const row of await runner.score(first, window.slice(from + 1, from + 1 + count))) {
        nll += row.logSumExp - row.target;
      }
      if (keep) for (let i = 0; i < count; i++) keep(runner.logits(i));
      if (!original) continue;
      for (const row of await runner.divergence(count, (i) => original[from + i] as Float32Array)) {
        kl += row.kl;
      }
    }
  }
  return { nll, kl };
}
