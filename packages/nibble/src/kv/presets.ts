/**
 * Cache recipes by name, and the one place where a cache recipe is completed and checked against a model.
 * `quarot-kv4` is the real path of the QuaRot code, `quarot-kv4-paper` the path of the paper's accuracy tables
 * (arXiv:2404.00456): integer zero points, clip 0.95. `kivi2`, `kivi4`: arXiv:2402.02750 with its defaults.
 */
import { nearestName, RecipeError, UsageError } from "../core/errors.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe } from "../model/model.js";

function rotated(codec: KvPlane["codec"], clip: number, zero: "float" | "int"): KvRecipe {
  return { k: { codec, hadamard: true, clip, zero, qBits: 8 }, v: { codec, clip, zero } };
}

function kivi(bits: 2 | 4): KvRecipe {
  const plane = { codec: "kivi", bits, group: KIVI_GROUP, residual: KIVI_RESIDUAL } as const;
  return { k: { ...plane }, v: { ...plane } };
}

/** Group and residual of the paper; the kernels read groups of 32 only. */
const KIVI_GROUP = 32;
const KIVI_RESIDUAL = 128;

const PRESETS: Record<string, KvRecipe> = {
  fp32: { k: { codec: "fp32" }, v: { codec: "fp32" } },
  fp16: { k: { codec: "fp16" }, v: { codec: "fp16" } },
  "quarot-kv8": rotated("int8-token", 1, "float"),
  "quarot-kv4": rotated("int4-token", 1, "float"),
  "quarot-kv4-paper": rotated("int4-token", 0.95, "int"),
  kivi2: kivi(2),
  kivi4: kivi(4),
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
 * @throws RecipeError when the rotation needs a power-of-two head size that the model does not have, a page size or
 *   prefill mode is asked for that no kernel runs, or kivi planes do not fit each other or the head size
 */
export function resolveKv(recipe: KvRecipe, config: ModelConfig): KvRecipe {
  const { headDim } = config;
  if (
    recipe.k.hadamard &&
    (isInteger(recipe.k) || recipe.k.codec === "kivi") &&
    (headDim & (headDim - 1)) !== 0
  ) {
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
  checkKivi(recipe, headDim);
  return { k: plane(recipe.k, true), v: plane(recipe.v, false), page: PAGE, prefill: "stepwise" };
}

/** What the kivi kernels can run (docs/engine.md, "kivi"). */
function checkKivi({ k, v }: KvRecipe, headDim: number): void {
  const refuse = (message: string, hint: string, code: string) => {
    throw new RecipeError(message, { hint }, code);
  };
  if (k.codec !== "kivi" && v.codec !== "kivi") return;
  if (k.codec !== v.codec) {
    refuse(
      `keys are ${k.codec}, values ${v.codec}: kivi keys and values share their exact rows and go together`,
      "Use kivi for both planes or for none.",
      "kv-kivi-pair",
    );
  }
  const group = k.group ?? KIVI_GROUP;
  if (group !== KIVI_GROUP || (v.group ?? KIVI_GROUP) !== KIVI_GROUP || headDim % KIVI_GROUP > 0) {
    refuse(
      `kivi groups of ${group} with heads of ${headDim}: groups are ${KIVI_GROUP} wide and divide the head`,
      `Leave group out; a head size that ${KIVI_GROUP} does not divide needs another codec, such as quarot-kv4.`,
      "kv-kivi-group",
    );
  }
  const residual = k.residual ?? KIVI_RESIDUAL;
  if (residual !== (v.residual ?? KIVI_RESIDUAL) || residual % KIVI_GROUP > 0) {
    refuse(
      `kivi residual ${residual} (keys), ${v.residual ?? KIVI_RESIDUAL} (values): expected one multiple of ${KIVI_GROUP}`,
      `Leave residual out to get ${KIVI_RESIDUAL}.`,
      "kv-kivi-residual",
    );
  }
}

function plane(given: KvPlane, isKey: boolean): KvPlane {
  const { codec } = given;
  // The flag stays on exact planes, where it does nothing: it belongs to the model (R3) and outlives a change of codec.
  const rotation = isKey ? { hadamard: given.hadamard ?? false } : {};
  if (codec === "kivi") {
    const { bits = 4, group = KIVI_GROUP, residual = KIVI_RESIDUAL } = given;
    return { codec, ...rotation, bits, group, residual };
  }
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
