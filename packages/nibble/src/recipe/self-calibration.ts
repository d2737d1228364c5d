/**
 * Calibration text when the user gives none: the model writes it (data-free calibration of LLM-QAT, arXiv 2305.17888).
 * Each window starts at a random token; its first tokens are taken greedily, the rest is sampled from the model's own
 * distribution, so that frequent contexts are frequent in the statistics too. All windows are written side by side.
 */
import type { OnProgress } from "../core/progress.js";
import { Philox } from "../core/rng.js";
import type { BackendId } from "../kernels/contract.js";
import type { Model } from "../model/model.js";
import { openModel } from "../runtime/open.js";
import { Sampler } from "../runtime/sampler.js";

/** Tokens after the start that are chosen greedily (LLM-QAT, section 3.1: 3 to 5). */
const GREEDY_TOKENS = 4;
/** Windows written at once: weights are read once for all of them. */
const BATCH = 32;

export interface SelfCalibrationOptions {
  samples: number;
  seqlen: number;
  seed: number;
  backend?: "auto" | BackendId;
  threads?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

/** Deterministic in (model, options) for one backend. */
export async function generateCalibration(
  model: Model,
  options: SelfCalibrationOptions,
): Promise<Int32Array[]> {
  const { samples, seqlen, seed } = options;
  const batch = Math.min(BATCH, samples);
  const opened = await openModel(model, {
    maxContext: seqlen,
    sequences: batch,
    maxRows: Math.max(batch, 32),
    kv: "fp32",
    ...(options.backend ? { backend: options.backend } : {}),
    ...(options.threads ? { threads: options.threads } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const windows: Int32Array[] = [];
  try {
    const { runner } = opened;
    const stops = new Set(model.config.eosTokenIds);
    const starts = new Philox(seed, "self-calibration");
    for (let first = 0; first < samples; first += batch) {
      const count = Math.min(batch, samples - first);
      const group = Array.from({ length: count }, () => new Int32Array(seqlen));
      const samplers = group.map(
        (_, i) => new Sampler({ temperature: 1, seed: seed * 65_537 + first + i }),
      );
      for (let slot = 0; slot < count; slot++) {
        runner.tables.truncate(slot, 0);
        runner.tables.reserve(slot, seqlen);
        (group[slot] as Int32Array)[0] = Math.floor(starts.uniform() * model.config.vocabSize);
      }
      for (let position = 0; position + 1 < seqlen; position++) {
        options.signal?.throwIfAborted();
        const rows = Array.from({ length: count }, (_, i) => i);
        await runner.step(
          {
            tokens: group.map((w) => w[position] as number),
            positions: new Int32Array(count).fill(position),
            sequences: rows,
          },
          rows,
        );
        for (const slot of rows) {
          const logits = runner.logits(slot).slice();
          // An end token would make the rest of the window a document of its own; keep writing instead.
          for (const stop of stops) logits[stop] = Number.NEGATIVE_INFINITY;
          const sampler = position < GREEDY_TOKENS ? new Sampler() : (samplers[slot] as Sampler);
          (group[slot] as Int32Array)[position + 1] = sampler.next(logits, []);
        }
        if ((position + 2) % 32 === 0 || position + 2 === seqlen) {
          options.onProgress?.({
            type: "step",
            stage: "writing calibration text",
            item: first * seqlen + count * (position + 2),
            total: samples * seqlen,
          });
        }
      }
      windows.push(...group);
    }
  } finally {
    await opened.close();
  }
  return windows;
}
