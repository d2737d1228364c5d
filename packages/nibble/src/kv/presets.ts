/**
 * Cache recipes by name, and the one place where a cache recipe is completed and checked against a model.
 * `quarot-kv4` is the real path of the QuaRot code, `quarot-kv4-paper` the path of the paper's accuracy tables
 * (arXiv:2404.00456): integer zero points, clip 0.95.
 */
import { nearestName, RecipeError, UsageError } from "../core/errors.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe } from "../model/model.js";

function rotated(codec: KvPlane["codec"], clip: number, zero: "float" | "int"): KvRecipe {
  return { k: { codec, hadamard: true, clip, zero, qBits: 8 }, v: { codec, clip, zero } };
}

const PRESETS: Record<string, KvRecipe> = {
  fp32: { k: { codec: "fp32" }, v: { codec: "fp32" } },
  fp16: { k: { codec: "fp16" }, v: { codec: "fp16" } },
  "quarot-kv8": rotated("int8-token", 1, "float"),
  "quarot-kv4": rotated("int4-token", 1, "float"),
  "quarot-kv4-paper": rotated("int4-token", 0.95, "int"),
};

export const KV_PRESET_NAMES: readonly string[] = Object.keys(PRESETS);

/** @throws UsageError code "unknown-kv" with the nearest name. */
export function kvPreset(name: string): KvRecipe {
  const preset = Object.hasOwn(PRESETS, name) ? PRESETS[name] : undefined;
  if (preset) return structuredClone(preset);
  const near = nearestName(name, KV_PRESET_NAMES);
  throw new UsageError(
    `unknown KV cache preset "${name}"`,
    { hint: near ? `Did you mean "${near}"?` : `Known presets: ${KV_PRESET_NAMES.join(", ")}.` },
    "unknown-kv",
  );
}

/** Tokens of a page; the layout of the kernels fixes it. */
const PAGE = 32;

/**
 * Fills in every default and checks the recipe against the model.
 * @throws RecipeError when the rotation needs a power-of-two head size that the model does not have, or a page size or
 *   prefill mode is asked for that no kernel runs
 */
export function resolveKv(recipe: KvRecipe, config: ModelConfig): KvRecipe {
  const { headDim } = config;
  if (recipe.k.hadamard && isInteger(recipe.k) && (headDim & (headDim - 1)) !== 0) {
    throw new RecipeError(
      `the Hadamard rotation of keys needs a head size that is a power of two; this model has ${headDim}`,
      { hint: "Set hadamard: false in the k plane of the kv recipe." },
      "kv-hadamard",
    );
  }
  if (recipe.page !== undefined && recipe.page !== PAGE) {
    throw new RecipeError(`kv page is ${recipe.page}, expected ${PAGE}`, {}, "kv-page");
  }
  if (recipe.prefill !== undefined && recipe.prefill !== "stepwise") {
    throw new RecipeError(
      `kv prefill "${recipe.prefill}" is not available: every position is read back from the cache ("stepwise")`,
      { hint: 'Leave prefill out or write "stepwise".' },
      "kv-prefill",
    );
  }
  return { k: plane(recipe.k, true), v: plane(recipe.v, false), page: PAGE, prefill: "stepwise" };
}

function plane(given: KvPlane, isKey: boolean): KvPlane {
  const { codec } = given;
  // The flag stays on exact planes, where it does nothing: it belongs to the model (R3) and outlives a change of codec.
  const rotation = isKey ? { hadamard: given.hadamard ?? false } : {};
  if (!isInteger(given)) return { codec, ...rotation };
  return {
    codec,
    ...rotation,
    clip: given.clip ?? 1,
    zero: given.zero ?? "float",
    ...(isKey ? { qBits: given.qBits ?? 8 } : {}),
  };
}

function isInteger({ codec }: KvPlane): boolean {
  return codec === "int8-token" || codec === "int4-token";
}
