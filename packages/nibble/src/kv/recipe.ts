/**
 * What a cache recipe may say, read from the tables of codecs and policies: completed, checked against a model, and sent to
 * the tier that runs it. The flat tier is the packed kernels of the engine; the managed tier runs every combination.
 */
import { z } from "zod";
import { nearestName, RecipeError } from "../core/errors.js";
import type { ModelConfig } from "../model/config.js";
import type { KvPlane, KvRecipe, PrefillMode } from "../model/model.js";
import { kvCodecs } from "./codecs/index.js";
import type { KvCodecDefinition, PlaneCodec, PlaneName } from "./contract.js";
import { retentions } from "./retention/index.js";

/** A recipe with every default filled in. */
export interface ResolvedKv {
  k: KvPlane;
  v: KvPlane;
  sinks: number;
  retention: { type: string; [option: string]: unknown };
  page: number;
  prefill: PrefillMode;
  seed: number;
}

/** Tokens of a page; the layout of the kernels fixes it for the flat tier. */
const PAGE = 32;

/** Policies whose weights must be trained, which this version does not read. */
const TRAINED = ["dmc", "less"];

const shared = {
  sinks: z.int().min(0).max(4096).optional(),
  retention: z.looseObject({ type: z.string() }).optional(),
  page: z.int().min(1).max(4096).optional(),
  prefill: z.enum(["exact", "chunked", "stepwise"]).optional(),
  calibration: z.string().optional(),
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .optional(),
};
const codec = z.enum(kvCodecs.ids() as [string, ...string[]]);
const plane = z.looseObject({ codec });

/** A description of both planes, or one codec for both: options that begin with k or v and a capital belong to that plane. */
export const kvDescriptions = [
  z.strictObject({ k: plane, v: plane, ...shared }),
  z.looseObject({ codec, ...shared }),
] as const;

/** The recipe that a description stands for. */
export function kvFromDescription(value: z.output<(typeof kvDescriptions)[number]>): KvRecipe {
  // Optional keys of the schema admit undefined; the type of a recipe does not. JSON has neither.
  const plain = JSON.parse(JSON.stringify(value)) as Record<string, unknown>;
  return ("k" in plain ? plain : expand(plain)) as unknown as KvRecipe;
}

function expand(entry: Record<string, unknown>): Record<string, unknown> {
  const recipe: Record<string, unknown> = {};
  const planes: Record<PlaneName, Record<string, unknown>> = { k: {}, v: {} };
  for (const [name, value] of Object.entries(entry)) {
    const own = /^([kv])([A-Z].*)$/.exec(name);
    if (name in shared) recipe[name] = value;
    else if (own) {
      const rest = own[2] as string;
      planes[own[1] as PlaneName][rest[0]?.toLowerCase() + rest.slice(1)] = value;
    } else {
      planes.k[name] = value;
      planes.v[name] = value;
    }
  }
  return { ...planes, ...recipe };
}

/** Options of an entry with defaults. @throws RecipeError naming the option */
function parse<T>(schema: z.ZodType<T, unknown>, options: unknown, place: string): T {
  const parsed = schema.safeParse(options);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const path = [place, ...(issue?.path ?? [])].join(".");
  throw new RecipeError(issue ? wanted(issue) : "not valid", { place: path }, "kv-option");
}

/** What an issue asks for; a choice of values names them all. */
function wanted(issue: z.core.$ZodIssue): string {
  const values = (one: z.core.$ZodIssue): unknown[] | null => {
    if (one.code === "invalid_value") return one.values;
    if (one.code !== "invalid_union") return null;
    const all = one.errors.flat().map(values);
    return all.includes(null) ? null : all.flat();
  };
  const choices = values(issue);
  return choices?.length ? `expected one of ${choices.join(", ")}` : issue.message;
}

function definitionOf({ codec }: KvPlane, name: PlaneName): KvCodecDefinition {
  const near = nearestName(codec, kvCodecs.ids());
  if (!kvCodecs.has(codec)) {
    throw new RecipeError(
      `unknown cache codec "${codec}"`,
      {
        place: `kv.${name}`,
        hint: near ? `Did you mean "${near}"?` : `Known: ${kvCodecs.ids().join(", ")}.`,
      },
      "kv-codec",
    );
  }
  const definition = kvCodecs.get(codec);
  if (!definition.planes.includes(name)) {
    throw new RecipeError(
      `codec "${codec}" stores ${definition.planes.join(" and ")} planes only`,
      { place: `kv.${name}` },
      "kv-plane",
    );
  }
  return definition;
}

function completePlane(given: KvPlane, name: PlaneName): KvPlane {
  const { codec, ...options } = given;
  const complete = parse(definitionOf(given, name).options, options, `kv.${name}`) as object;
  return { codec, ...complete };
}

/** Fills in defaults. @throws RecipeError for codecs, policies and options that do not exist */
export function completeKv(recipe: KvRecipe): ResolvedKv {
  const { type, ...options } = recipe.retention ?? { type: "all" };
  if (TRAINED.includes(type)) {
    throw new RecipeError(
      `retention "${type}" needs trained weights, which this version cannot read`,
      { place: "kv.retention", hint: `Known policies: ${retentions.ids().join(", ")}.` },
      "kv-trained",
    );
  }
  if (!retentions.has(type)) {
    const near = nearestName(type, retentions.ids());
    const hint = near ? `Did you mean "${near}"?` : `Known: ${retentions.ids().join(", ")}.`;
    throw new RecipeError(
      `unknown retention "${type}"`,
      { place: "kv.retention", hint },
      "kv-retention",
    );
  }
  const policy = parse(retentions.get(type).options, options, "kv.retention") as object;
  const k = completePlane(recipe.k, "k");
  const v = completePlane(recipe.v, "v");
  const complete = {
    k,
    v,
    sinks: recipe.sinks ?? 0,
    retention: { type, ...policy },
    page: recipe.page ?? PAGE,
    seed: recipe.seed ?? 0,
  };
  const flat = fitsKernels(complete) && (recipe.prefill ?? "stepwise") === "stepwise";
  return { ...complete, prefill: recipe.prefill ?? (flat ? "stepwise" : "exact") };
}

function fitsKernels({ k, v, sinks, retention, page }: Omit<ResolvedKv, "prefill">): boolean {
  const kernels = ({ codec, ...options }: KvPlane) =>
    kvCodecs.get(codec).kernels?.(options) ?? null;
  const fits = kernels(k) !== null && kernels(k) === kernels(v);
  return fits && sinks === 0 && retention.type === "all" && page === PAGE;
}

/** Whether the packed kernels run this recipe; the managed tier runs the others. */
export function isFlat(kv: ResolvedKv): boolean {
  return fitsKernels(kv) && kv.prefill === "stepwise";
}

/**
 * Fills in every default and checks the recipe against the model. What a recipe need not say is left out of the result.
 * @throws RecipeError naming the rule (docs/kv-cache.md, "What goes with what")
 */
export function resolveKv(recipe: KvRecipe, config: ModelConfig): KvRecipe {
  const complete = completeKv(recipe);
  checkKv(complete, config);
  const { k, v, sinks, retention, page, prefill, seed } = complete;
  return {
    k: exactFlag(recipe.k, k),
    v: withoutKeyOptions(v),
    page,
    prefill,
    ...(sinks > 0 ? { sinks } : {}),
    ...(retention.type !== "all" ? { retention } : {}),
    ...(seed !== 0 ? { seed } : {}),
    ...(recipe.calibration === undefined ? {} : { calibration: recipe.calibration }),
  };
}

/** Exact keys keep the flag of R3 whether it was written or not: it belongs to the model and outlives a change of codec. */
function exactFlag(given: KvPlane, complete: KvPlane): KvPlane {
  const exact = complete.codec === "fp32" || complete.codec === "fp16";
  return exact ? { ...complete, hadamard: given.hadamard ?? false } : complete;
}

/** Options that a codec of both planes has for keys only. */
function withoutKeyOptions({ hadamard, qBits: _, ...rest }: KvPlane): KvPlane {
  return hadamard ? { ...rest, hadamard } : rest;
}

function checkKv(kv: ResolvedKv, config: ModelConfig): void {
  const { headDim } = config;
  const exact = kvCodecs.get(kv.k.codec).bitsPerElement(kv.k, headDim) ?? 0;
  if (kv.k.hadamard === true && exact < 16 && (headDim & (headDim - 1)) !== 0) {
    throw new RecipeError(
      `the Hadamard rotation of keys needs a head size that is a power of two; this model has ${headDim}`,
      { hint: "Set hadamard: false in the k plane of the kv recipe." },
      "kv-hadamard",
    );
  }
  const keys = tryCodec(kv, "k", config);
  tryCodec(kv, "v", config);
  if (keys?.caps.headTransform && keys.caps.keyFrame === "pre") {
    throw new RecipeError(
      "keys stored before RoPE cannot be rotated by a Hadamard: the two do not commute",
      { place: "kv.k" },
      "kv-frame",
    );
  }
  const { type, ...options } = kv.retention;
  const policy = retentions.get(type).create(options, {
    ...{ layer: 0, kvHead: 0, kvHeads: 1, headDim, seed: kv.seed },
  });
  if (policy.preAppend && keys?.caps.keyFrame === "pre") {
    throw new RecipeError(
      `retention "${type}" merges tokens, but "${kv.k.codec}" codes keys before RoPE with ranges of single tokens`,
      { hint: "Use a key codec that stores keys after RoPE." },
      "kv-merge",
    );
  }
}

/** The codec of the first head, made to see whether its options fit; null where calibration is needed first. */
export function tryCodec(
  kv: ResolvedKv,
  name: PlaneName,
  { headDim }: ModelConfig,
): PlaneCodec | null {
  const { codec, ...options } = kv[name];
  const info = { plane: name, headDim, layer: 0, kvHead: 0, seed: kv.seed, calibration: null };
  try {
    return kvCodecs.get(codec).create(options, info);
  } catch (error) {
    if (error instanceof RecipeError && error.code === "kv-calibration") return null;
    throw error;
  }
}
