/** Calibration tokens: windows of the user's text, or text that the model writes. */
import { ModelError } from "../core/errors.js";
import type { OnProgress } from "../core/progress.js";
import { readTextFile } from "../core/text-file.js";
import type { BackendId } from "../kernels/contract.js";
import type { Model } from "../model/model.js";
import { Tokenizer } from "../model/tokenizer.js";
import { sampleWindows } from "../observers/calibration.js";
import { generateCalibration } from "./self-calibration.js";

export interface CalibrationSource {
  /** Text file; null: the model writes. */
  file: string | null;
  samples: number;
  seqlen: number;
  seed: number;
}

export interface CalibrationWindowOptions {
  threads: number;
  onProgress: OnProgress;
  backend?: "auto" | BackendId;
  signal?: AbortSignal;
}

/** @throws ModelError without a tokenizer, UsageError for a text that is too short, ModelError for a missing file */
export async function calibrationWindows(
  model: Model,
  { file, samples, seqlen, seed }: CalibrationSource,
  { threads, onProgress, backend, signal }: CalibrationWindowOptions,
): Promise<Int32Array[]> {
  if (file === null) {
    onProgress({
      type: "log",
      level: "info",
      message: "no calibration file: the model writes its own calibration text",
    });
    return generateCalibration(model, {
      samples,
      seqlen,
      seed,
      threads,
      onProgress,
      ...(backend ? { backend } : {}),
      ...(signal ? { signal } : {}),
    });
  }
  const text = await readTextFile(file);
  if (!model.files.has("tokenizer.json")) {
    throw new ModelError("the model has no tokenizer, so a calibration text cannot be read", {
      hint: "put tokenizer.json beside the weights, or choose a method that needs no data (rtn)",
    });
  }
  const ids = Tokenizer.fromFiles(model.files).encode(text, { special: true });
  return sampleWindows(ids, samples, seqlen, seed);
}
