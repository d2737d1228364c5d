/**
 * How much the model minds one kind of linear being quantized: the KL divergence when all q, all down, ... are rounded.
 * Output errors cannot tell that (an error of v and one of down are not alike), and the KL of whole layers does not: with
 * the losses of layers and those of roles as margins, `shareOut` finds what single modules cost.
 */
import type { Model } from "../model/model.js";
import { LINEAR_ROLES, type LinearRole } from "../model/roles.js";
import { openModel } from "../runtime/open.js";
import { type RoundingOptions, scoreWindow, windowsOf, withRoundedLayer } from "./layer-error.js";
import { type MeasureOptions, openOptions } from "./measure.js";

/** KL of one window with all linears of one role rounded, summed over its targets. */
export interface RoleLoss {
  window: number;
  role: LinearRole;
  kl: number;
  targets: number;
}

export interface RoleSensitivityOptions extends MeasureOptions {
  /** What an interrupted run has measured. */
  known?: readonly RoleLoss[];
  onLoss?: (loss: RoleLoss) => Promise<void>;
}

/** KL(original || model with the linears of one role rounded), mean nats a token. */
export async function roleSensitivity(
  model: Model,
  ids: readonly number[],
  rounding: RoundingOptions,
  options: RoleSensitivityOptions,
): Promise<{ role: LinearRole; kl: number }[]> {
  const windows = windowsOf(ids);
  const layers = Array.from({ length: model.config.numHiddenLayers }, (_, layer) => layer);
  const present = new Set([...model.parameters.values()].map(({ spec }) => spec.role));
  const roles = LINEAR_ROLES.filter((role) => present.has(role));
  const losses: RoleLoss[] = [...(options.known ?? [])];
  const known = (w: number, role: LinearRole) =>
    losses.some((loss) => loss.window === w && loss.role === role);
  const maxContext = windows[0]?.length ?? 0;
  const opened = await openModel(model, openOptions(options, { maxContext, sequences: 1 }));
  try {
    for (const [w, window] of windows.entries()) {
      if (roles.every((role) => known(w, role))) continue;
      const original: Float32Array[] = [];
      await scoreWindow(opened, window, (row) => void original.push(row.slice()));
      for (const [index, role] of roles.entries()) {
        options.signal?.throwIfAborted();
        options.onProgress?.({
          type: "step",
          stage: "sensitivity of roles",
          item: w * roles.length + index,
          total: windows.length * roles.length,
          name: role,
        });
        if (known(w, role)) continue;
        for (const layer of layers) {
          await opened.compiled.replaceLayer(layer, withRoundedLayer(model, layer, rounding, role));
        }
        const { kl } = await scoreWindow(opened, window, null, original);
        for (const layer of layers) await opened.compiled.replaceLayer(layer, model);
        const loss = { window: w, role, kl, targets: window.length - 1 };
        losses.push(loss);
        await options.onLoss?.(loss);
      }
    }
  } finally {
    await opened.close();
  }
  return roles.map((role) => {
    const own = losses.filter((loss) => loss.role === role).sort((a, b) => a.window - b.window);
    const sum = (pick: (loss: RoleLoss) => number) => own.reduce((s, loss) => s + pick(loss), 0);
    return { role, kl: sum((loss) => loss.kl) / sum((loss) => loss.targets) };
  });
}
