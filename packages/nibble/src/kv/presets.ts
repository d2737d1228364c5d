/**
 * Cache recipes by name.
 * `quarot-kv4` is the real path of the QuaRot code, `quarot-kv4-paper` the path of the paper's accuracy tables
 * (arXiv:2404.00456): integer zero points, clip 0.95. `kivi2`, `kivi4`: arXiv:2402.02750 with its defaults. `qaq` looks at 33
 * queries before a token is coded; the 5 of arXiv:2403.04643, the default of the codec, lose far more (docs/kv-calibration.md).
 */
import { nearestName, RecipeError, UsageError } from "../core/errors.js";
import type { KvPlane, KvRecipe } from "../model/model.js";

function rotated(codec: KvPlane["codec"], clip: number, zero: "float" | "int"): KvRecipe {
  return { k: { codec, hadamard: true, clip, zero, qBits: 8 }, v: { codec, clip, zero } };
}

const kivi = (bits: number): KvPlane => ({ codec: "kivi", bits, group: 32, residual: 128 });
const both = (plane: KvPlane): Pick<KvRecipe, "k" | "v"> => ({ k: plane, v: plane });

const PRESETS: Record<string, KvRecipe> = {
  fp32: { k: { codec: "fp32" }, v: { codec: "fp32" } },
  fp16: { k: { codec: "fp16" }, v: { codec: "fp16" } },
  "quarot-kv8": rotated("int8-token", 1, "float"),
  "quarot-kv4": rotated("int4-token", 1, "float"),
  "quarot-kv4-paper": rotated("int4-token", 0.95, "int"),
  kivi2: both(kivi(2)),
  kivi4: both(kivi(4)),
  "kvquant-nuq3-1": { ...both({ codec: "kvquant", bits: 3, sparsity: 0.99 }), sinks: 1 },
  "gear-kivi2": both({ codec: "gear", base: { codec: "kivi", bits: 2, group: 32 }, rank: 4 }),
  qaq: both({ codec: "qaq", window: 33 }),
  streaming: {
    ...both({ codec: "fp16" }),
    retention: { type: "window", sinks: 4, recent: 1020 },
  },
  "h2o-20": { ...both({ codec: "fp16" }), retention: { type: "h2o", heavy: 0.1, recent: 0.1 } },
  "keyformer-50": { ...both({ codec: "fp16" }), retention: { type: "keyformer", budget: 0.5 } },
};

/** Caches whose policies are trained with the model. */
const TRAINED = ["less-5", "dmc"];

export const KV_PRESET_NAMES: readonly string[] = Object.keys(PRESETS);

/** @throws UsageError code "unknown-kv" with the nearest name; RecipeError for presets that need trained weights */
export function kvPreset(name: string): KvRecipe {
  const preset = Object.hasOwn(PRESETS, name) ? PRESETS[name] : undefined;
  if (preset) return structuredClone(preset);
  if (TRAINED.includes(name)) {
    throw new RecipeError(
      `KV cache preset "${name}" needs trained weights, which this version cannot read`,
      { hint: `Known presets: ${KV_PRESET_NAMES.join(", ")}.` },
      "kv-trained",
    );
  }
  const near = nearestName(name, KV_PRESET_NAMES);
  throw new UsageError(
    `unknown KV cache preset "${name}"`,
    { hint: near ? `Did you mean "${near}"?` : `Known presets: ${KV_PRESET_NAMES.join(", ")}.` },
    "unknown-kv",
  );
}
