/**
 * What rounding a part of the model alone costs its predictions: each layer, and each role (all q, all down, ...) in all
 * layers. Output errors cannot tell how much the model minds (an error of v and one of down are not alike), nor can the
 * losses of layers alone; with both as margins `shareOut` finds what single modules cost.
 */
import type { Model } from "../model/model.js";
import { LINEAR_ROLES, type LinearRole } from "../model/roles.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { type RoundingOptions, windowsOf, withRoundedLayer } from "./layer-error.js";
import { type MeasureOptions, openOptions } from "./measure.js";

/** What is rounded alone: all linears of some layers, or those of one role. */
interface Part {
  name: string;
  layers: readonly number[];
  role: LinearRole | null;
}

/** Sums over the targets of one window with one part rounded. */
export interface WindowLoss {
  window: number;
  part: string;
  kl: number;
  /** NLL with the part rounded minus NLL of the original. */
  deltaNll: number;
  targets: number;
}

export interface RoundingLossOptions extends MeasureOptions {
  /** What an interrupted run has measured. */
  known?: readonly WindowLoss[];
  onLoss?: (loss: WindowLoss) => Promise<void>;
}

/** Mean nats a token: KL(original || part rounded), and what its loss increases by. */
export interface RoundingLosses {
  layers: { layer: number; kl: number; deltaNll: number }[];
  roles: { role: LinearRole; kl: number; deltaNll: number }[];
}

/**
 * KL and loss of the whole model when one part alone is rounded. The model is compiled once; rounded weights (as floats) are
 * written over a layer's own and back. The original's predictions of one window are kept meanwhile.
 */
export async function roundingLosses(
  model: Model,
  ids: readonly number[],
  rounding: RoundingOptions,
  options: RoundingLossOptions,
): Promise<RoundingLosses> {
  const windows = windowsOf(ids);
  const maxContext = windows[0]?.length ?? 0;
  const layers = Array.from({ length: model.config.numHiddenLayers }, (_, layer) => layer);
  const present = new Set([...model.parameters.values()].map(({ spec }) => spec.role));
  const roles = LINEAR_ROLES.filter((role) => present.has(role));
  const parts: Part[] = [
    ...layers.map((layer) => ({ name: `layer ${layer}`, layers: [layer], role: null })),
    ...roles.map((role) => ({ name: role, layers, role })),
  ];
  const losses: WindowLoss[] = [...(options.known ?? [])];
  const isKnown = (w: number, part: Part) =>
    losses.some((loss) => loss.window === w && loss.part === part.name);
  const opened = await openModel(model, openOptions(options, { maxContext, sequences: 1 }));
  try {
    for (const [w, window] of windows.entries()) {
      if (parts.every((part) => isKnown(w, part))) continue;
      const original: Float32Array[] = [];
      const base = await scoreWindow(opened, window, (row) => void original.push(row.slice()));
      for (const [index, part] of parts.entries()) {
        options.signal?.throwIfAborted();
        options.onProgress?.({
          type: "step",
          stage: "sensitivity",
          item: w * parts.length + index,
          total: windows.length * parts.length,
          name: part.name,
        });
        if (isKnown(w, part)) continue;
        for (const layer of part.layers) {
          const rounded = withRoundedLayer(model, layer, rounding, part.role);
          await opened.compiled.replaceLayer(layer, rounded);
        }
        const { nll, kl } = await scoreWindow(opened, window, null, original);
        for (const layer of part.layers) await opened.compiled.replaceLayer(layer, model);
        const targets = window.length - 1;
        const loss = { window: w, part: part.name, kl, deltaNll: nll - base.nll, targets };
        losses.push(loss);
        await options.onLoss?.(loss);
      }
    }
  } finally {
    await opened.close();
  }
  const mean = (name: string) => {
    // Sums in the order of the windows, whatever an interruption did to the order of measuring.
    const own = losses.filter(({ part }) => part === name).sort((a, b) => a.window - b.window);
    const total = (pick: (loss: WindowLoss) => number) =>
      own.reduce((sum, loss) => sum + pick(loss), 0) / own.reduce((sum, l) => sum + l.targets, 0);
    return { kl: total((loss) => loss.kl), deltaNll: total((loss) => loss.deltaNll) };
  };
  return {
    layers: layers.map((layer) => ({ layer, ...mean(`layer ${layer}`) })),
    roles: roles.map((role) => ({ role, ...mean(role) })),
  };
}

/** Sums over the targets of a window; rows of logits are handed to `keep`, and compared with `original` where there is one. */
async function scoreWindow(
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
