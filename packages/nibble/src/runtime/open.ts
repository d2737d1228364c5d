/** Opens any `<model>` for running: resolves the name, loads it, compiles it. Node; the browser uses opened.ts. */
import { fileSource } from "../core/file-source.js";
import { resolveModel } from "../hub/resolve.js";
import type { Model } from "../model/model.js";
import { readKvCalibration } from "./kv-calibration.js";
import { loadResolved } from "./load-model.js";
import { type OpenedModel, type OpenOptions, openLoaded } from "./opened.js";
import { type PreparedStore, preparedWeights } from "./prepared.js";

export type { OpenedModel, OpenOptions } from "./opened.js";

/**
 * @param source name, path or an already loaded model (which the caller then closes)
 * @throws ModelError, FormatError, BackendError, ResourceError with what is wrong and what to do
 */
export async function openModel(
  source: string | Model,
  options: OpenOptions = {},
): Promise<OpenedModel> {
  if (typeof source !== "string") return openLoaded(source, await withCalibration(source, options));
  const { signal, log } = options;
  const path = await resolveModel(source, {
    ...(signal ? { signal } : {}),
    ...(log ? { onProgress: (event) => void (event.type === "log" && log(event.message)) } : {}),
  });
  const model = await loadResolved(path, source);
  let prepared: PreparedStore | null = null;
  try {
    if (model.source.artifact !== undefined && options.prepared === undefined) {
      prepared = await preparedWeights(path, model, {
        activations: options.activations ?? null,
        log: log ?? (() => {}),
      });
    }
    const opened = await openLoaded(model, {
      ...(await withCalibration(model, options)),
      ...(prepared && { prepared }),
    });
    return {
      ...opened,
      async close() {
        if (signal?.aborted) prepared?.withdraw();
        await prepared?.finish();
        await opened.close();
        await model.close();
      },
    };
  } catch (error) {
    prepared?.withdraw();
    await model.close();
    throw error;
  }
}

/** Reads the calibration file that the cache recipe names. */
async function withCalibration(model: Model, options: OpenOptions): Promise<OpenOptions> {
  const kv = options.kv ?? model.kv;
  if (options.kvCalibration || !kv || typeof kv === "string" || !kv.calibration) return options;
  const file = await fileSource(kv.calibration);
  try {
    return { ...options, kvCalibration: await readKvCalibration(file, model.config) };
  } finally {
    await file.close();
  }
}
