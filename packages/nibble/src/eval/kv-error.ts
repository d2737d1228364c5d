/**
 * Error of quantized keys and values by layer: a text runs with the exact f32 cache, what lies in its pages is coded and
 * decoded by the codecs of the cache presets, group by group as they seal it (rows that a codec would still keep exact
 * are left out). Codecs that need calibration, statistics of attention or keys before RoPE have no line.
 */
import { RecipeError, UsageError } from "../core/errors.js";
import { KV_CODEC, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import { keyFloatIndex } from "../kernels/page-layout.js";
import { kvCodecs } from "../kv/codecs/index.js";
import type { PlaneCodec, PlaneName } from "../kv/contract.js";
import { KV_PRESET_NAMES, kvPreset } from "../kv/presets.js";
import { resolveKv } from "../kv/recipe.js";
import { applyHadamard, hadamardOrder } from "../linalg/hadamard.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe } from "../model/model.js";
import type { OpenedModel } from "../runtime/open.js";

export interface KvVariant {
  name: string;
  recipe: KvRecipe;
}

export interface KvErrorRow {
  layer: number;
  /** Relative RMS error of keys and values by variant; absent where a codec cannot be measured so. */
  keys: Record<string, number>;
  values: Record<string, number>;
}

/** The presets whose codecs lose something (what retention drops is no error of a codec), and the 4-bit cache without the rotation that the presets give it. */
export function kvVariants(config: ModelConfig): KvVariant[] {
  const contrast = { codec: "int4-token" } as const;
  const variants: KvVariant[] = [
    ...KV_PRESET_NAMES.filter((name) => name !== "fp32").map((name) => ({
      name,
      recipe: kvPreset(name),
    })),
    { name: "4 bits, not rotated", recipe: { k: contrast, v: contrast } },
  ];
  return variants.flatMap(({ name, recipe }) => {
    if (recipe.retention) return [];
    try {
      return [{ name, recipe: resolveKv(recipe, config) }];
    } catch {
      return []; // not for this model's head size
    }
  });
}

/** Vectors [count, headDim] of one layer and head through a codec, or null when it cannot be measured so. */
function codedError(
  given: KvPlane,
  plane: PlaneName,
  vectors: Float32Array,
  { headDim, layer, kvHead }: { headDim: number; layer: number; kvHead: number },
): { error: number; energy: number } | null {
  const { codec: id, hadamard, ...options } = given;
  const definition = kvCodecs.get(id);
  const info = { plane, headDim, layer, kvHead, seed: 0, calibration: null };
  let codec: PlaneCodec;
  try {
    codec = definition.create(definition.options.parse(options), info);
  } catch (error) {
    if (error instanceof RecipeError) return null; // needs calibration
    throw error;
  }
  const { group, keyFrame, stats } = codec.caps;
  if ((stats && stats.kind !== "none") || (plane === "k" && keyFrame === "pre")) return null;
  const rows = vectors.slice();
  const order = hadamardOrder(headDim);
  if (hadamard && order) applyHadamard(rows, order, { outer: rows.length / headDim });
  const size = group * headDim;
  const bytes = new Uint8Array(codec.groupBytes);
  const decoded = new Float32Array(size);
  let error = 0;
  let energy = 0;
  for (let start = 0; start + size <= rows.length; start += size) {
    const exact = rows.subarray(start, start + size);
    const seal = { firstSlot: start / headDim, length: rows.length / headDim, attention: null };
    const variable = codec.encode(exact, group, bytes, seal);
    codec.decode(bytes, variable, group, decoded);
    for (let i = 0; i < size; i++) {
      error += ((decoded[i] as number) - (exact[i] as number)) ** 2;
      energy += (exact[i] as number) ** 2;
    }
  }
  return { error, energy };
}

/**
 * Error of one layer's keys or values [tokens, kvHeads, headDim] under each variant: sqrt(sum |x' - x|^2 / sum |x|^2).
 * The rotation is orthogonal, so errors may be compared across it.
 */
export function variantErrors(
  x: Float32Array,
  plane: PlaneName,
  variants: readonly KvVariant[],
  { headDim, kvHeads, layer }: { headDim: number; kvHeads: number; layer: number },
): Record<string, number> {
  const tokens = x.length / (kvHeads * headDim);
  const heads = Array.from({ length: kvHeads }, (_, h) => {
    const own = new Float32Array(tokens * headDim);
    for (let t = 0; t < tokens; t++) {
      const from = (t * kvHeads + h) * headDim;
      own.set(x.subarray(from, from + headDim), t * headDim);
    }
    return own;
  });
  const out: Record<string, number> = {};
  for (const { name, recipe } of variants) {
    const parts = heads.map((own, kvHead) =>
      codedError(recipe[plane], plane, own, { headDim, layer, kvHead }),
    );
    let error = 0;
    let energy = 0;
    for (const part of parts) {
      error += part?.error ?? Number.NaN;
      energy += part?.energy ?? Number.NaN;
    }
    if (energy > 0) out[name] = Math.sqrt(error / energy);
  }
  return out;
}

/** Keys (after RoPE) and values of all layers for a text of at most one run. @throws UsageError for a quantized cache */
export async function kvErrors(
  opened: OpenedModel,
  ids: number[],
  variants: readonly KvVariant[],
): Promise<KvErrorRow[]> {
  const { runner, compiled } = opened;
  const { cache, cacheTable, arena } = compiled;
  if (compiled.layers || cache.keyCodec !== KV_CODEC.f32 || cache.valueCodec !== KV_CODEC.f32) {
    throw new UsageError("cache errors are measured against the exact cache", {
      hint: "open the model with kv fp32",
    });
  }
  const tokens = ids.slice(0, compiled.maxRows);
  await runner.prefill(0, tokens, 0, { logits: false });
  const { headDim, kvHeads, layers, maxPages } = cache;
  const rows: KvErrorRow[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const keys = new Float32Array(tokens.length * kvHeads * headDim);
    const values = new Float32Array(keys.length);
    for (let p = 0; p < tokens.length; p++) {
      const page = cacheTable[layer * maxPages + Math.floor(p / PAGE_TOKENS)] as number;
      const slot = p % PAGE_TOKENS;
      for (let h = 0; h < kvHeads; h++) {
        const at = cache.poolAt + page * cache.pageLines + h * cache.headLines;
        const lines = (cache.keyLines * LINE) / 4;
        const k = arena.f32(at, lines);
        const v = arena.f32(at + cache.keyLines, lines);
        for (let d = 0; d < headDim; d++) {
          const to = (p * kvHeads + h) * headDim + d;
          keys[to] = k[keyFloatIndex(headDim, slot, d)] as number;
          values[to] = v[slot * headDim + d] as number;
        }
      }
    }
    rows.push({
      layer,
      keys: variantErrors(keys, "k", variants, { headDim, kvHeads, layer }),
      values: variantErrors(values, "v", variants, { headDim, kvHeads, layer }),
    });
  }
  runner.tables.truncate(0, 0);
  return rows;
}
