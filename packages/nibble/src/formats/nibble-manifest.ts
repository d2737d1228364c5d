/**
 * nibble.json, the description of an artifact: a pure function of inputs, recipe and backend (no times, no folders), so
 * equal runs give equal bytes. Measured things are in report.json. Layout: docs/artifact.md.
 */
import { z } from "zod";
import { FormatError } from "../core/errors.js";
import { tensorDescriptionSchema } from "../encodings/description.js";
import { completeKv } from "../kv/recipe.js";
import type { KvRecipe } from "../model/model.js";

export const ARTIFACT_VERSION = 1;

const quantizerSchema = z.strictObject({
  format: z.enum(["e4m3", "e5m2"]).optional(),
  bits: z.int().min(2).max(8),
  granularity: z.union([z.literal("token"), z.int().positive()]),
  symmetric: z.boolean(),
  clip: z.number().gt(0).max(1),
});
const siteSchema = z.enum(["attn_in", "attn_out", "mlp_in", "mlp_out"]);
const layersSchema = z.literal("all");
const size = z.int().positive();
const transformSchema = z.discriminatedUnion("op", [
  z.strictObject({ op: z.literal("hadamard"), site: siteSchema, layers: layersSchema, size }),
  z.strictObject({
    op: z.literal("headMix"),
    site: siteSchema,
    layers: layersSchema,
    order: size,
    matrix: z.string().optional(),
  }),
  z.strictObject({
    op: z.literal("edge"),
    site: z.enum(["embed_out", "head_in"]),
    size,
    signs: z.string(),
    gain: z.string().optional(),
    dense: z.string().optional(),
  }),
]);
const kvPlane = z.looseObject({ codec: z.string() });
/** Codecs, policies and their options are checked against the tables of the cache. */
const kvSchema = z
  .strictObject({
    k: kvPlane,
    v: kvPlane,
    sinks: z.int().min(0).optional(),
    retention: z.looseObject({ type: z.string() }).optional(),
    page: z.int().positive().optional(),
    prefill: z.enum(["exact", "chunked", "stepwise"]).optional(),
    seed: z.int().min(0).optional(),
    calibration: z.string().optional(),
  })
  .superRefine((value, context) => {
    try {
      completeKv(value as KvRecipe);
    } catch (error) {
      context.addIssue({ code: "custom", message: error instanceof Error ? error.message : "" });
    }
  });
const manifestSchema = z.strictObject({
  formatVersion: z.literal(ARTIFACT_VERSION),
  version: z.string(),
  backend: z.string(),
  source: z.strictObject({ id: z.string(), sha256: z.string() }),
  recipe: z.unknown(),
  seed: z.int(),
  config: z.record(z.string(), z.unknown()),
  tied: z.boolean(),
  transforms: z.array(transformSchema),
  activations: z.partialRecord(siteSchema, quantizerSchema),
  activationOverrides: z.record(
    z.string(),
    z.partialRecord(siteSchema, quantizerSchema.nullable()),
  ),
  kv: kvSchema.nullable(),
  linears: z.record(z.string(), tensorDescriptionSchema),
  files: z.record(z.string(), z.string()),
});
export type Manifest = z.infer<typeof manifestSchema>;

/** @throws FormatError for an unknown version or a field that is not what it must be */
export function parseManifest(text: string): Manifest {
  const place = "nibble.json";
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(`is not JSON: ${(cause as Error).message}`, { place, cause });
  }
  const version = (json as { formatVersion?: unknown } | null)?.formatVersion;
  if (version !== ARTIFACT_VERSION) {
    throw new FormatError(
      `format version ${JSON.stringify(version)} is not known, expected ${ARTIFACT_VERSION}`,
      {
        place,
        hint: "The artifact was written by another version of nibble; update nibble or compress again.",
      },
    );
  }
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FormatError(`${issue?.path.join(".")}: ${issue?.message}`, {
      place,
      hint: "The file is damaged; compress the model again.",
    });
  }
  return parsed.data;
}
