/**
 * Speed of an opened model: prompt and decode tokens per second over several rounds, interleaved so that a machine whose
 * speed drifts disturbs both alike. Medians are the result; the best round is reported beside them. What the machine
 * could do is measured in the same rounds (a cold matrix-vector product for memory, a large matrix product for
 * arithmetic), so a share of it means the same on any machine.
 */
import { UsageError } from "../core/errors.js";
import { peakRssBytes } from "../core/memory.js";
import { Philox } from "../core/rng.js";
import { cacheBytes } from "../kv/cache.js";
import type { OpenedModel } from "./opened.js";

export interface BenchOptions {
  /** Prompt tokens of a prefill round. */
  prefill?: number;
  /** Tokens decoded one by one in a decode round. */
  decode?: number;
  /** Tokens already in the cache when decoding starts. */
  depth?: number;
  /** Sequences decoded side by side. */
  batch?: number;
  rounds?: number;
  /** A round that is not counted first; default true. */
  warmup?: boolean;
  /** Measures what the machine reads per second, in GB/s, with as many threads; null when unknown. */
  readBandwidth?: (() => Promise<number>) | null;
  onRound?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface BenchResult {
  prefillTokensPerSecond: number;
  prefillTokensPerSecondBest: number;
  prefillTokensPerSecondMin: number;
  decodeTokensPerSecond: number;
  decodeTokensPerSecondBest: number;
  decodeTokensPerSecondMin: number;
  prefill: number;
  decode: number;
  depth: number;
  batch: number;
  rounds: number;
  threads: number;
  backend: string;
  variant: string;
  /** Peak resident memory of the process. */
  peakBytes: number;
  /** Placed weights, embedding and head included. */
  weightBytes: number;
  /** Weights and cache that one decoded token (of one sequence) reads. */
  bytesPerToken: number;
  /** Median of the measured ceiling, GB/s, and the share that decoding reaches. */
  readBandwidthGBs: number | null;
  decodeShareOfBandwidth: number | null;
}

export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

export async function benchModel(
  opened: OpenedModel,
  options: BenchOptions = {},
): Promise<BenchResult> {
  const prefill = options.prefill ?? 512;
  const decode = options.decode ?? 64;
  const depth = options.depth ?? 0;
  const batch = options.batch ?? 1;
  const rounds = options.rounds ?? 5;
  const { runner, compiled, kv } = opened;
  const need = Math.max(prefill, depth + decode + 1);
  if (need > compiled.maxContext) {
    throw new UsageError(
      `${need} tokens are needed, the model was opened for ${compiled.maxContext}`,
    );
  }
  if (batch > runner.tables.sequences) {
    throw new UsageError(
      `batch ${batch} needs as many sequences, the model was opened for ${runner.tables.sequences}`,
    );
  }
  const rng = new Philox(0, "bench");
  const vocab = compiled.config.vocabSize;
  const tokens = Int32Array.from({ length: need }, () => Math.floor(rng.uniform() * vocab));
  const slots = Array.from({ length: batch }, (_, i) => i);

  const prefillRound = async () => {
    runner.tables.truncate(0, 0);
    const started = performance.now();
    await runner.prefill(0, tokens.subarray(0, prefill), 0, {
      logits: true,
      signal: options.signal,
    });
    return prefill / ((performance.now() - started) / 1000);
  };
  const decodeRound = async () => {
    for (const slot of slots) {
      runner.tables.truncate(slot, 0);
      if (depth > 0) await runner.prefill(slot, tokens.subarray(0, depth), 0, { logits: false });
      runner.tables.reserve(slot, depth + decode);
    }
    const started = performance.now();
    for (let i = 0; i < decode; i++) {
      options.signal?.throwIfAborted();
      const position = depth + i;
      await runner.step(
        {
          tokens: slots.map((s) => tokens[(position + s) % need] as number),
          positions: new Int32Array(batch).fill(position),
          sequences: slots,
        },
        slots,
      );
    }
    return (decode * batch) / ((performance.now() - started) / 1000);
  };

  const speeds = { prefill: [] as number[], decode: [] as number[], bandwidth: [] as number[] };
  for (let round = options.warmup === false ? 0 : -1; round < rounds; round++) {
    const p = prefill > 0 ? await prefillRound() : 0;
    const d = decode > 0 ? await decodeRound() : 0;
    const bandwidth = options.readBandwidth ? await options.readBandwidth() : 0;
    if (round < 0) continue; // the first round warms code and caches
    speeds.prefill.push(p);
    speeds.decode.push(d);
    speeds.bandwidth.push(bandwidth);
    options.onRound?.(round + 1, rounds);
  }
  const cachePerToken = cacheBytes(kv, compiled.config, depth + decode / 2);
  const bytesPerToken = compiled.bytesPerToken + cachePerToken;
  const readBandwidthGBs = options.readBandwidth ? median(speeds.bandwidth) : null;
  const decodeTokensPerSecond = median(speeds.decode);
  return {
    prefillTokensPerSecond: median(speeds.prefill),
    prefillTokensPerSecondBest: Math.max(...speeds.prefill),
    prefillTokensPerSecondMin: Math.min(...speeds.prefill),
    decodeTokensPerSecond,
    decodeTokensPerSecondBest: Math.max(...speeds.decode),
    decodeTokensPerSecondMin: Math.min(...speeds.decode),
    prefill,
    decode,
    depth,
    batch,
    rounds,
    threads: compiled.engine.threads,
    backend: compiled.engine.backend,
    variant: compiled.engine.variant,
    peakBytes: peakRssBytes(),
    weightBytes: compiled.weightBytes,
    bytesPerToken,
    readBandwidthGBs,
    decodeShareOfBandwidth:
      readBandwidthGBs === null || batch > 1
        ? null
        : (decodeTokensPerSecond * bytesPerToken) / (readBandwidthGBs * 1e9),
  };
}
