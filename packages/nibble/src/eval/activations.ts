/**
 * Activations of a layer before and after QuaRot's rotation (arXiv:2404.00456): the same text through the original model
 * and through the rotated one, read where the quantizer of the site would stand.
 */
import { ModelError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import type { Backend } from "../kernels/contract.js";
import { planCache } from "../kv/cache.js";
import { kvPreset } from "../kv/presets.js";
import type { ModelMethod } from "../methods/contract.js";
import { methods } from "../methods/index.js";
import type { Model } from "../model/model.js";
import { SITES, type Site } from "../model/roles.js";
import { BlockRunner } from "../observers/block-runner.js";
import { loadModel } from "../runtime/load-model.js";
import { mean } from "./statistics.js";

export interface SiteActivations {
  site: Site;
  rows: number;
  width: number;
  /** [rows, width], row-major. */
  values: Float32Array;
}

export interface OutlierFacts {
  /** Largest |x|. */
  max: number;
  /** Mean over tokens of max |x| / rms of the token: how far one scale must stretch. */
  peakToRms: number;
  /** Relative squared error of rounding each row symmetrically with one scale: what the outliers cost. */
  error: number;
}

/** How uneven the tokens of a site are, and what rounding them to 4 bits costs. */
export function outlierFacts(site: SiteActivations): OutlierFacts {
  return rowFacts(site, 4);
}

/** The same of the rows of any matrix. */
export function rowFacts(
  { values, rows, width }: { values: Float32Array; rows: number; width: number },
  bits: number,
): OutlierFacts {
  const peaks: number[] = [];
  let max = 0;
  let error = 0;
  let energy = 0;
  for (let r = 0; r < rows; r++) {
    const row = values.subarray(r * width, (r + 1) * width);
    let top = 0;
    let squares = 0;
    for (const v of row) {
      top = Math.max(top, Math.abs(v));
      squares += v * v;
    }
    const scale = top / (2 ** (bits - 1) - 1) || 1;
    for (const v of row) error += (v - scale * Math.round(v / scale)) ** 2;
    energy += squares;
    max = Math.max(max, top);
    if (squares > 0) peaks.push(top / Math.sqrt(squares / width));
  }
  return { max, peakToRms: mean(peaks), error: energy > 0 ? error / energy : 0 };
}

export interface ActivationOptions {
  backend: Backend;
  threads: number;
  /** Tokens of the text. */
  ids: number[];
  signal?: AbortSignal;
}

/** Inputs of every site of some layers of a model as it is now. */
export async function captureLayers(
  model: Model,
  layers: readonly number[],
  options: ActivationOptions,
): Promise<Map<number, SiteActivations[]>> {
  const runner = await BlockRunner.create(model, {
    backend: options.backend,
    threads: options.threads,
    windows: [Int32Array.from(options.ids)],
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), model.config, { tokens, sequences, layers: 1 }),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const out = new Map<number, SiteActivations[]>();
  try {
    const last = Math.max(...layers);
    for (let layer = 0; layer <= last; layer++) {
      if (layers.includes(layer)) {
        const captured = await runner.capture(layer);
        out.set(
          layer,
          SITES.flatMap((site) => {
            const found = captured.get(site);
            return found ? [{ site, ...found }] : [];
          }),
        );
      }
      if (layer < last) await runner.advance(layer);
    }
  } finally {
    await runner.dispose();
  }
  return out;
}

/** Applies QuaRot with its defaults to a freshly loaded model. @throws ModelError when it is quantized already */
export async function rotateModel(model: Model, seed: number): Promise<void> {
  if ([...model.parameters.values()].some((p) => "quant" in p.weight)) {
    throw new ModelError(`${model.source.id} is quantized: it cannot be rotated any more`, {
      hint: "draw this picture from the original model",
    });
  }
  const quarot = methods.get("quarot") as ModelMethod<unknown>;
  await quarot.apply(model, quarot.options.parse({}), {
    rng: new Philox(seed, "quarot"),
    log: () => {},
  });
}

export interface BeforeAfter {
  layer: number;
  before: SiteActivations[];
  after: SiteActivations[];
}

/** The same layers of a model before and after rotation. */
export async function beforeAndAfter(
  name: string,
  layers: readonly number[],
  seed: number,
  options: ActivationOptions,
): Promise<BeforeAfter[]> {
  const run = async (rotate: boolean) => {
    const model = await loadModel(name, options.signal ? { signal: options.signal } : {});
    try {
      if (rotate) await rotateModel(model, seed);
      return await captureLayers(model, layers, options);
    } finally {
      await model.close();
    }
  };
  const before = await run(false);
  const after = await run(true);
  return layers.map((layer) => ({
    layer,
    before: before.get(layer) ?? [],
    after: after.get(layer) ?? [],
  }));
}
