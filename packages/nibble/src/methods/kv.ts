/**
 * The cache recipe as a step: a preset name, or codecs for keys and values, and a retention policy. The cache it describes
 * travels in the artifact and is used unless `--kv` says otherwise. The optional Hadamard rotation of keys is QuaRot's R3
 * (arXiv:2404.00456), which belongs to the cache and to nothing else.
 */
import { z } from "zod";
import { KV_PRESET_NAMES, kvPreset } from "../kv/presets.js";
import { kvDescriptions, kvFromDescription, resolveKv } from "../kv/recipe.js";
import type { KvRecipe } from "../model/model.js";
import { defineMethod } from "./contract.js";

/** What `kv:` in a recipe and `--kv` take: a preset name, or the description as an object. */
export const kvOptions = z
  .union([z.enum(KV_PRESET_NAMES as [string, ...string[]]), ...kvDescriptions])
  .transform(
    (value): KvRecipe => (typeof value === "string" ? kvPreset(value) : kvFromDescription(value)),
  );

export const kv = defineMethod<KvRecipe>({
  id: "kv",
  kind: "kv",
  title: "KV cache",
  paper: "arXiv:2404.00456",
  summary: "How keys and values are stored (nibble list kv) and which tokens stay.",
  options: kvOptions,
  async apply(model, options) {
    const rotatedBefore = model.kv?.k.hadamard === true;
    const resolved = resolveKv(options, model.config);
    // A transform that asked for R3 earlier keeps it, whatever codec the cache has, if it knows rotations at all.
    if (rotatedBefore && "hadamard" in resolved.k) resolved.k.hadamard = true;
    model.kv = resolveKv(resolved, model.config);
  },
});
