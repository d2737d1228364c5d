/**
 * How much modules mind being quantized: the relative error of each linear's output on a text, and how the losses of whole
 * layers and roles (rounding-loss.ts) are shared out among them. Rounding is RTN: cheap, without choices, and the order of
 * modules is what is asked for.
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
  roles?: { role: LinearRole; kl: number; deltaNll: number }[];
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
  losses: {
    layers: readonly { layer: number; kl: number }[];
    roles: readonly { role: LinearRole; kl: number }[];
  },
  bits: number,
): Sensitivity[] {
  const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
  const { layers: kl, roles } = losses;
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
