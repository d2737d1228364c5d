/**
 * Error of quantized keys and values by layer: a text runs with the exact f32 cache, what lies in its pages is quantized as
 * the cache codecs do (docs/engine.md, appendKv: per token and head, asymmetric), with and without the Hadamard rotation.
 */
import { UsageError } from "../core/errors.js";
import { KV_CODEC, LINE, PAGE_TOKENS } from "../kernels/ops.js";
import { keyFloatIndex } from "../kernels/page-layout.js";
import { applyHadamard, hadamardOrder } from "../linalg/hadamard.js";
import type { OpenedModel } from "../runtime/open.js";

export interface KvVariant {
  name: string;
  bits: 4 | 8;
  hadamard: boolean;
}

export const KV_VARIANTS: readonly KvVariant[] = [
  { name: "int4", bits: 4, hadamard: false },
  { name: "int4 rotated", bits: 4, hadamard: true },
  { name: "int8", bits: 8, hadamard: false },
];

export interface KvErrorRow {
  layer: number;
  /** Relative RMS error of keys and values for each variant, in the order of KV_VARIANTS. */
  keys: number[];
  values: number[];
}

/** Rounds each group of `size` values to `bits`, asymmetric, minimum to maximum. Returns new values. */
export function roundGroups(x: Float64Array, size: number, bits: number): Float64Array {
  const out = new Float64Array(x.length);
  const levels = 2 ** bits - 1;
  for (let start = 0; start < x.length; start += size) {
    const group = x.subarray(start, start + size);
    const low = Math.min(...group);
    const scale = Math.max(Math.max(...group) - low, 1e-5) / levels;
    for (let i = 0; i < group.length; i++) {
      out[start + i] = low + scale * Math.round(((group[i] as number) - low) / scale);
    }
  }
  return out;
}

/** sqrt(sum (a - b)^2 / sum a^2). */
function relativeRms(a: Float64Array, b: Float64Array): number {
  let error = 0;
  let energy = 0;
  for (let i = 0; i < a.length; i++) {
    error += ((a[i] as number) - (b[i] as number)) ** 2;
    energy += (a[i] as number) ** 2;
  }
  return energy > 0 ? Math.sqrt(error / energy) : 0;
}

/** Error of vectors [count, headDim] under each variant. The rotation is orthogonal, so errors may be compared across it. */
export function variantErrors(x: Float64Array, headDim: number): number[] {
  const order = hadamardOrder(headDim);
  return KV_VARIANTS.map(({ bits, hadamard }) => {
    if (hadamard && !order) return Number.NaN;
    const turned = x.slice();
    if (hadamard && order) applyHadamard(turned, order, { outer: x.length / headDim });
    return relativeRms(turned, roundGroups(turned, headDim, bits));
  });
}

/** Keys (after RoPE) and values of all layers for a text of at most one run. @throws UsageError for a quantized cache */
export async function kvErrors(opened: OpenedModel, ids: number[]): Promise<KvErrorRow[]> {
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
    const keys = new Float64Array(tokens.length * kvHeads * headDim);
    const values = new Float64Array(keys.length);
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
      keys: variantErrors(keys, headDim),
      values: variantErrors(values, headDim),
    });
  }
  runner.tables.truncate(0, 0);
  return rows;
}
