/**
 * What `nibble sensitivity` does: output errors and losses of rounding on one text. Every layer that is measured is kept in a
 * file named by the hash of everything that decides it, so a run that was interrupted goes on where it was.
 */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../core/atomic-write.js";
import { nibbleHome } from "../core/home.js";
import { defaultThreads } from "../core/memory.js";
import { sha256 } from "../core/sha256.js";
import { VERSION } from "../core/version.js";
import { selectBackend } from "../kernels/select.js";
import type { Model } from "../model/model.js";
import {
  type ModuleError,
  outputErrors,
  type RoundingOptions,
  type SensitivityResult,
  shareOut,
  WIDTHS,
  windowsOf,
} from "./layer-error.js";
import type { MeasureOptions } from "./measure.js";
import { roundingLosses, type WindowLoss } from "./rounding-loss.js";

export interface SensitivityOptions extends RoundingOptions, MeasureOptions {
  /** Also the KL of the whole model, one run a layer and one a role. */
  kl: boolean;
}

interface State {
  modules: Record<number, ModuleError[]>;
  losses: WindowLoss[];
}

async function readState(file: string): Promise<State> {
  const empty: State = { modules: {}, losses: [] };
  const text = await readFile(file, "utf8").catch(() => null);
  if (text === null) return empty;
  try {
    return { ...empty, ...(JSON.parse(text) as State) };
  } catch {
    return empty; // cut off or damaged: measured again
  }
}

/** Errors of all modules and, if asked for, the KL of all layers. @throws InterruptedError, keeping what was measured */
export async function measureSensitivity(
  model: Model,
  ids: readonly number[],
  options: SensitivityOptions,
): Promise<SensitivityResult> {
  const { bits, groupSize, onProgress, signal } = options;
  const log = (message: string) => onProgress?.({ type: "log", level: "info", message });
  const backend = await selectBackend(options.backend ?? "auto", log);
  const widths = [...new Set([...WIDTHS, bits])].sort((a, b) => a - b);
  const tokens = windowsOf(ids).flat();
  const decides = {
    model: await model.source.sha256(),
    tokens,
    bits,
    groupSize,
    widths,
    backend: backend.id,
    version: VERSION,
  };
  const hash = sha256();
  hash.update(new TextEncoder().encode(JSON.stringify(decides)));
  const file = join(nibbleHome(), "sensitivity", `${hash.digest().slice(0, 32)}.json`);
  const state = await readState(file);
  const save = () => writeFileAtomic(file, `${JSON.stringify(state)}\n`);

  const run = { ...(onProgress ? { onProgress } : {}), ...(signal ? { signal } : {}) };
  const modules = await outputErrors(
    model,
    tokens,
    { widths, groupSize },
    {
      ...run,
      backend,
      threads: options.threads ?? defaultThreads(),
      known: new Map(Object.entries(state.modules).map(([layer, list]) => [Number(layer), list])),
      onLayer: (layer, list) => {
        state.modules[layer] = list;
        return save();
      },
    },
  );
  const losses = options.kl
    ? await roundingLosses(
        model,
        tokens,
        { bits, groupSize },
        {
          ...options,
          known: [...state.losses],
          onLoss: (loss) => {
            state.losses.push(loss);
            return save();
          },
        },
      )
    : undefined;
  await rm(file, { force: true });
  return {
    model: model.source.id,
    bits,
    groupSize,
    tokens: tokens.length,
    modules,
    ...(losses && {
      kl: losses.layers,
      roles: losses.roles,
      sensitivities: shareOut(modules, losses, bits),
    }),
  };
}
