/**
 * The cache recipe as a step: a preset name, or codecs for keys and values. The cache it describes travels in the
 * artifact and is used unless `--kv` says otherwise. Codecs: one scale and zero per token and KV head, or KIVI
 * (arXiv:2402.02750). The optional Hadamard rotation of keys is QuaRot's R3 (arXiv:2404.00456), which belongs to the cache
 * and to nothing else.
 */
import { z } from "zod";
import { KV_PRESET_NAMES, kvPreset, resolveKv } from "../kv/presets.js";
import type { KvRecipe } from "../model/model.js";
import { defineMethod } from "./contract.js";

const bits = z.union([z.literal(2), z.literal(4)]);
const kiviSizes = {
  group: z.number().int().positive().optional(),
  residual: z.number().int().positive().optional(),
};
const valuePlane = {
  codec: z.enum(["fp32", "fp16", "int8-token", "int4-token", "kivi"]),
  bits: bits.optional(),
  ...kiviSizes,
  clip: z.number().gt(0).max(1).optional(),
  zero: z.enum(["float", "int"]).optional(),
};
const keyPlane = {
  ...valuePlane,
  hadamard: z.boolean().optional(),
  qBits: z.union([z.literal(8), z.literal(32)]).optional(),
};
const description = z.strictObject({
  k: z.strictObject(keyPlane),
  v: z.strictObject(valuePlane),
  page: z.literal(32).optional(),
  prefill: z.literal("stepwise").optional(),
});

/** One codec for both planes, written once. */
const kivi = z
  .strictObject({
    codec: z.literal("kivi"),
    kBits: bits.default(4),
    vBits: bits.default(4),
    ...kiviSizes,
    page: z.literal(32).optional(),
    prefill: z.literal("stepwise").optional(),
  })
  .transform(({ codec, kBits, vBits, group, residual, ...rest }) => ({
    k: { codec, bits: kBits, group, residual },
    v: { codec, bits: vBits, group, residual },
    ...rest,
  }));

/** What `kv:` in a recipe and `--kv` take: a preset name, or the description as an object. */
export const kvOptions = z
  .union([z.enum(KV_PRESET_NAMES as [string, ...string[]]), description, kivi])
  .transform(
    (value): KvRecipe => (typeof value === "string" ? kvPreset(value) : dropUndefined(value)),
  );

function dropUndefined(value: z.output<typeof description | typeof kivi>): KvRecipe {
  // Optional keys of the schema admit undefined; the type of a recipe does not. JSON has neither.
  return JSON.parse(JSON.stringify(value)) as KvRecipe;
}

export const kv = defineMethod<KvRecipe>({
  id: "kv",
  kind: "kv",
  title: "KV cache",
  paper: "arXiv:2404.00456",
  summary: "Stores keys and values with 2, 4, 8, 16 or 32 bits, keys optionally rotated (R3).",
  options: kvOptions,
  async apply(model, options) {
    const rotatedBefore = model.kv?.k.hadamard === true;
    const resolved = resolveKv(options, model.config);
    // A transform that asked for R3 earlier keeps it, whatever codec the cache has.
    if (rotatedBefore) resolved.k.hadamard = true;
    model.kv = resolveKv(resolved, model.config);
  },
});
