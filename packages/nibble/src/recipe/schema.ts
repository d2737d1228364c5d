/**
 * What a recipe is: an ordered list of registered methods with their options, and what belongs to a whole run. The types
 * here are the resolved form (every default filled in); `recipeJsonSchema()` describes what a user writes.
 */
import { z } from "zod";
import type { Method } from "../methods/contract.js";
import { methods } from "../methods/index.js";

export interface RecipeStep {
  readonly method: Method;
  /** Parsed by `method.options`. */
  readonly options: unknown;
  /** As written, before defaults: what an override is merged into. */
  readonly written: unknown;
}

/** First match wins; `values` are merged into the options of the steps that reach the module. */
export interface RecipeOverride {
  readonly match: string;
  readonly values: Readonly<Record<string, unknown>>;
  /** Where it was written, for messages. */
  readonly place: string;
}

export interface Calibration {
  /** Text file; null: text that the model writes itself. */
  file: string | null;
  samples: number;
  seqlen: number;
}

export interface EvalRecipe {
  ppl?: string | undefined;
  ctx: number;
  windows?: number | undefined;
  reference: boolean;
  gates: { pplRatio?: number | undefined; kl?: number | undefined };
}

/** Mixed precision: widths of single modules such that all linears together take no more than `bitsPerWeight`. */
export interface Budget {
  /** Stored bits per weight of the linears, scales and zeros included. */
  bitsPerWeight: number;
  /** JSON of `nibble sensitivity`; null: measured when the recipe runs. */
  sensitivity: string | null;
  /** Role path -> bits; null until it has been allocated. */
  bits: Readonly<Record<string, number>> | null;
}

export interface Recipe {
  readonly version: 1;
  readonly seed: number;
  readonly calibration: Calibration;
  readonly steps: readonly RecipeStep[];
  readonly overrides: readonly RecipeOverride[];
  readonly budget: Budget | null;
  readonly eval: EvalRecipe | null;
}

/** Papers calibrate on 128 windows of 2048 tokens; presets say less. */
const calibration = z.strictObject({
  file: z.string().min(1).optional(),
  samples: z.int().min(1).max(65536).default(128),
  seqlen: z
    .int()
    .min(2)
    .max(1 << 20)
    .default(2048),
});

const evaluation = z.strictObject({
  ppl: z.string().min(1).optional(),
  ctx: z.int().min(2).default(2048),
  windows: z.int().min(1).optional(),
  reference: z.boolean().default(false),
  gates: z
    .strictObject({
      pplRatio: z.number().positive().optional(),
      kl: z.number().positive().optional(),
    })
    .prefault({}),
});

/** Everything but the steps' options and the overrides' values, which depend on the registered methods. */
export const envelope = z.strictObject({
  version: z.literal(1),
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .default(0),
  calibration: calibration.prefault({}),
  steps: z.array(z.unknown()),
  overrides: z.array(z.looseObject({ match: z.string().min(1) })).default([]),
  budget: z
    .strictObject({
      bitsPerWeight: z.number().gt(0).max(32),
      sensitivity: z.string().min(1).optional(),
      bits: z.record(z.string(), z.int().min(1).max(16)).optional(),
    })
    .optional(),
  eval: evaluation.optional(),
});

/** A recipe as the API takes it: the same tree that a recipe file holds. */
export type RecipeInput = z.input<typeof envelope>;

/** JSON schema of what `--recipe` accepts, built from the registered methods. */
export function recipeJsonSchema(): Record<string, unknown> {
  const steps = [...methods].flatMap((method) => [
    z.literal(method.id).describe(`${method.title} with its defaults`),
    z.strictObject({ [method.id]: method.options }).describe(method.summary),
  ]);
  const whole = envelope.extend({ steps: z.array(z.union(steps)) });
  return {
    title: "nibble recipe",
    ...z.toJSONSchema(whole, { io: "input", unrepresentable: "any" }),
  };
}

/** Names of the keys that a method's options may have, whatever the form of the schema. */
export function optionKeys(method: Method): Set<string> {
  return keysOf(method.options);
}

/** Keys of an object schema, of all branches of a union, of the input of a transform. */
export function keysOf(schema: z.ZodType): Set<string> {
  const keys = new Set<string>();
  const collect = (node: unknown): void => {
    if (typeof node !== "object" || node === null) return;
    const { properties, anyOf, oneOf, allOf } = node as Record<string, unknown>;
    if (typeof properties === "object" && properties !== null) {
      for (const key of Object.keys(properties)) keys.add(key);
    }
    for (const list of [anyOf, oneOf, allOf]) if (Array.isArray(list)) list.forEach(collect);
  };
  collect(z.toJSONSchema(schema, { io: "input", unrepresentable: "any" }));
  return keys;
}
