/**
 * `calibrate-kv`: runs calibration text through a model block by block and writes what the codecs of a cache learn from its
 * keys, values and queries (docs/kv-calibration.md). The codec says what it learns; nothing here knows which one it is.
 */
import { createHash } from "node:crypto";
import { UsageError } from "../core/errors.js";
import { defaultThreads } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { VERSION } from "../core/version.js";
import { saveSafetensors } from "../formats/safetensors-save.js";
import type { TensorToWrite } from "../formats/safetensors-write.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { planCache } from "../kv/cache.js";
import { kvCodecs } from "../kv/codecs/index.js";
import type { CalibrationTensor, KvCodecDefinition, PlaneName } from "../kv/contract.js";
import { kvPreset } from "../kv/presets.js";
import type { Model } from "../model/model.js";
import { BlockRunner } from "../observers/block-runner.js";
import { type CalibrationSamples, KvSampler } from "../observers/kv-samples.js";
import { KV_CALIBRATION_FORMAT, shapeMetadata } from "../runtime/kv-calibration.js";
import { calibrationWindows } from "./calibration-windows.js";

/** What stands in for the gradients of the papers; goes into every artifact. */
const SENSITIVITY =
  "attention only, no gradients: values by the summed squared attention probability of sampled queries, keys by the same times the mean squared query of the channel pair, both times the squared half range";

/** A codec id and its options, as in a cache recipe. */
export type PlaneEntry = { codec: string } & Record<string, unknown>;

export interface CalibrateKvOptions {
  /** Cache the artifact is for. */
  kv: { k: PlaneEntry; v: PlaneEntry };
  output: string;
  /** Text file; null: the model writes its own. */
  file: string | null;
  samples: number;
  seqlen: number;
  seed: number;
  /** Bytes of the keys and values of a layer that are kept; default 256 MiB. */
  maxBytes?: number;
  backend?: "auto" | BackendId;
  threads?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

export interface CalibrateKvResult {
  model: string;
  kv: { k: PlaneEntry; v: PlaneEntry };
  layers: number;
  tensors: number;
  /** Calibration tokens, and how many of them were kept of each layer. */
  tokens: number;
  sampledTokens: number;
  bytes: number;
  sha256: string;
  backend: string;
  seconds: number;
}

interface Learner {
  plane: PlaneName;
  learn(samples: CalibrationSamples): CalibrationTensor[];
}

/**
 * Writes the artifact atomically. Deterministic in model, options and backend.
 * @throws UsageError when the cache learns nothing from calibration or the windows do not fit the model
 */
export async function calibrateKv(
  model: Model,
  options: CalibrateKvOptions,
): Promise<CalibrateKvResult> {
  const started = performance.now();
  const { kv, samples, seqlen, seed, signal } = options;
  const { config } = model;
  const onProgress = options.onProgress ?? (() => {});
  const learners = learnersOf(kv);
  if (seqlen > config.maxPositionEmbeddings) {
    throw new UsageError(
      `windows of ${seqlen} tokens, but the model was trained on ${config.maxPositionEmbeddings}`,
      { hint: `Use --seqlen ${config.maxPositionEmbeddings} or less.` },
    );
  }
  const threads = options.threads ?? defaultThreads();
  const log = (message: string) => onProgress({ type: "log", level: "info", message });
  const backend = await selectBackend(options.backend ?? "auto", log);
  const windows = await calibrationWindows(
    model,
    { file: options.file, samples, seqlen, seed },
    {
      threads,
      onProgress,
      ...(options.backend ? { backend: options.backend } : {}),
      ...(signal ? { signal } : {}),
    },
  );
  const runner = await BlockRunner.create(model, {
    backend,
    threads,
    windows,
    cache: (tokens, sequences) =>
      planCache(kvPreset("fp32"), config, { tokens, sequences, layers: 1 }),
    ...(signal ? { signal } : {}),
  });
  const tensors: TensorToWrite[] = [];
  let sampledTokens = 0;
  try {
    const sampler = new KvSampler(config, {
      windows: windows.length,
      seqlen,
      seed,
      ...(options.maxBytes === undefined ? {} : { maxBytes: options.maxBytes }),
    });
    const total = config.numHiddenLayers;
    onProgress({ type: "step", stage: "calibrating", item: 0, total });
    for (let layer = 0; layer < total; layer++) {
      signal?.throwIfAborted();
      const collected = await sampler.collect(runner, layer);
      sampledTokens = collected.rows;
      for (const { learn } of learners) {
        for (const { name, shape, data } of learn(collected)) {
          tensors.push({
            name: `layers.${layer}.${name}`,
            dtype: "F32",
            shape,
            data: () => new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
          });
        }
      }
      const name = `layer ${layer}`;
      onProgress({ type: "step", stage: "calibrating", item: layer + 1, total, name });
    }
  } finally {
    await runner.dispose();
  }
  const text = createHash("sha256");
  for (const window of windows) text.update(new Uint8Array(window.buffer));
  const saved = await saveSafetensors(options.output, tensors, {
    ...KV_CALIBRATION_FORMAT,
    ...shapeMetadata(config),
    model: model.source.id,
    modelSha256: await model.source.sha256(),
    kv: JSON.stringify(kv),
    text: options.file === null ? "written by the model" : "file",
    tokensSha256: text.digest("hex"),
    samples: String(samples),
    seqlen: String(seqlen),
    seed: String(seed),
    sensitivity: SENSITIVITY,
    backend: backend.id,
    nibble: VERSION,
  });
  return {
    model: model.source.id,
    kv,
    layers: config.numHiddenLayers,
    tensors: tensors.length,
    tokens: windows.length * seqlen,
    sampledTokens,
    ...saved,
    backend: backend.id,
    seconds: (performance.now() - started) / 1000,
  };
}

function learnersOf(kv: CalibrateKvOptions["kv"]): Learner[] {
  const learners: Learner[] = [];
  for (const plane of ["k", "v"] as const) {
    const { codec, ...entry } = kv[plane];
    const definition: KvCodecDefinition = kvCodecs.get(codec);
    const { calibrate } = definition;
    if (!calibrate) continue;
    const parsed = definition.options.parse(entry);
    learners.push({ plane, learn: (samples) => calibrate(parsed, plane, samples) });
  }
  if (learners.length === 0) {
    const able = [...kvCodecs].filter((c) => c.calibrate).map((c) => c.id);
    throw new UsageError(
      `a cache of ${kv.k.codec} keys and ${kv.v.codec} values learns nothing from calibration`,
      { hint: `Codecs that do: ${able.join(", ")}.` },
    );
  }
  return learners;
}
