/** Bytes of a cache by its recipe, whichever tier holds it. */
import type { ModelConfig } from "../model/config.js";
import type { KvRecipe } from "../model/model.js";
import { cacheBitsPerElement, cacheBytes, cacheBytesRead } from "./cache.js";
import { kvCodecs } from "./codecs/index.js";
import type { PlaneName } from "./contract.js";
import { completeKv, isFlat, type ResolvedKv, tryCodec } from "./recipe.js";
import { retentions } from "./retention/index.js";

interface PlaneSize {
  /** Of a sealed element, parameters included; parts that vary with the data are not counted. */
  bits: number;
  /** Exact rows of a long sequence, on average. */
  tail: number;
}

function planeSize(kv: ResolvedKv, name: PlaneName, config: ModelConfig): PlaneSize {
  const { codec, ...options } = kv[name];
  const made = tryCodec(kv, name, config);
  const stated = kvCodecs.get(codec).bitsPerElement(options, config.headDim);
  const fixed = made ? (made.groupBytes * 8) / (made.caps.group * config.headDim) : 16;
  const { keep, when } = made?.caps.flush ?? { keep: 0, when: 1 };
  return { bits: stated ?? fixed, tail: (keep + when - 1) / 2 };
}

function managedBytes(kv: ResolvedKv, config: ModelConfig, tokens: number): number {
  const { type, ...options } = kv.retention;
  const { headDim, numHiddenLayers, numKeyValueHeads } = config;
  const policy = retentions.get(type).create(options, {
    ...{ layer: 0, kvHead: 0, kvHeads: 1, headDim, seed: kv.seed, sequence: 0 },
  });
  const live = Math.min(tokens, policy.capacity(tokens) ?? tokens);
  let bytes = 0;
  for (const name of ["k", "v"] as const) {
    const { bits, tail } = planeSize(kv, name, config);
    const exact = Math.min(live, kv.sinks + tail);
    bytes += exact * headDim * 4 + ((live - exact) * headDim * bits) / 8;
  }
  return bytes * numHiddenLayers * numKeyValueHeads;
}

/** Stored bits per element of sealed tokens (K and V averaged), parameters included. */
export function kvBitsPerElement(recipe: KvRecipe, config: ModelConfig): number {
  const kv = completeKv(recipe);
  if (isFlat(kv)) return cacheBitsPerElement(recipe, config.headDim);
  return (planeSize(kv, "k", config).bits + planeSize(kv, "v", config).bits) / 2;
}

/** Bytes of the cache of one sequence of `tokens` tokens, all layers. */
export function kvBytes(recipe: KvRecipe, config: ModelConfig, tokens: number): number {
  const kv = completeKv(recipe);
  return isFlat(kv) ? cacheBytes(recipe, config, tokens) : managedBytes(kv, config, tokens);
}

/** Bytes that one decoded token reads when `tokens` are in the cache. */
export function kvBytesRead(recipe: KvRecipe, config: ModelConfig, tokens: number): number {
  const kv = completeKv(recipe);
  return isFlat(kv) ? cacheBytesRead(recipe, config, tokens) : managedBytes(kv, config, tokens);
}
