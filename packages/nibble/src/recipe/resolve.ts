/** From a recipe as written to a recipe with every default filled in; unknown keys and values name their place. */
import type { z } from "zod";
import { nearestName, RecipeError } from "../core/errors.js";
import type { Method } from "../methods/contract.js";
import { methods } from "../methods/index.js";
import { compilePattern } from "./patterns.js";
import { checkOrder } from "./rules.js";
import {
  envelope,
  keysOf,
  optionKeys,
  type Recipe,
  type RecipeOverride,
  type RecipeStep,
} from "./schema.js";
import type { Path, RecipeSource } from "./source.js";

/** @throws RecipeError with the place of the first thing that is wrong. */
export function resolveRecipe(source: RecipeSource): Recipe {
  const whole = check(envelope, source.tree, source, []);
  const steps = whole.steps.map((step, index) => resolveStep(step, source, ["steps", index]));
  checkOrder(steps, (index) => source.place(["steps", index]));
  const overrides = whole.overrides.map(({ match, ...values }, index): RecipeOverride => {
    const place = source.place(["overrides", index]);
    compilePattern(match, place);
    checkOverride(values, steps, source, index);
    return { match, values, place };
  });
  const { file, samples, seqlen } = whole.calibration;
  return {
    version: 1,
    seed: whole.seed,
    calibration: { file: file ?? null, samples, seqlen },
    steps,
    overrides,
    budget: whole.budget
      ? {
          bitsPerWeight: whole.budget.bitsPerWeight,
          sensitivity: whole.budget.sensitivity ?? null,
          bits: whole.budget.bits ?? null,
        }
      : null,
    eval: whole.eval ?? null,
  };
}

function resolveStep(step: unknown, source: RecipeSource, path: Path): RecipeStep {
  const wrong = (message: string, hint: string) =>
    new RecipeError(message, { place: source.place(path), hint }, "recipe-step");
  const form = 'A step is a method id, or a map with one key: "- gptq: { bits: 4 }".';
  let id: string;
  let written: unknown = {};
  if (typeof step === "string") id = step;
  else if (typeof step === "object" && step !== null && !Array.isArray(step)) {
    const entries = Object.entries(step);
    const [entry] = entries;
    if (!entry || entries.length > 1) {
      throw wrong(
        `a step with ${entries.length} keys: ${entries.map(([key]) => key).join(", ")}`,
        form,
      );
    }
    // `- gptq:` without options reads as null.
    [id, written] = [entry[0], entry[1] ?? {}];
  } else throw wrong(`a step that is ${show(step)}`, form);

  if (!methods.has(id)) {
    const near = nearestName(id, methods.ids());
    throw new RecipeError(
      `unknown method "${id}"`,
      {
        place: source.place([...path, id], true),
        hint: near ? `Did you mean "${near}"?` : `Methods: ${methods.ids().join(", ")}.`,
      },
      "recipe-method",
    );
  }
  const method = methods.get(id);
  const options = check(method.options, written, source, [...path, id]);
  for (const pattern of patternsOf(method, options))
    compilePattern(pattern, source.place([...path, id]));
  return { method, options, written };
}

/** Patterns that a step's options hold. */
export function patternsOf(method: Method, options: unknown): string[] {
  if (method.kind !== "weights" && method.kind !== "embeddings") return [];
  const { targets, ignore } = method.targets(options);
  return [...targets, ...ignore];
}

/** Kinds of steps whose options an override may change. */
export function isOverridable(method: Method): boolean {
  return method.kind === "weights" || method.kind === "embeddings" || method.kind === "activations";
}

function checkOverride(
  values: Record<string, unknown>,
  steps: readonly RecipeStep[],
  source: RecipeSource,
  index: number,
): void {
  const keys = Object.keys(values);
  const at = (key?: string) => source.place(["overrides", index, ...(key ? [key] : [])], true);
  if (keys.length === 0) {
    throw new RecipeError("an override that changes nothing", {
      place: at(),
      hint: 'Give it an option: { match: "layers.0-3.*", bits: 8 }.',
    });
  }
  const reachable = steps.filter((step) => isOverridable(step.method));
  const known = new Set(reachable.flatMap((step) => [...optionKeys(step.method)]));
  for (const key of keys) {
    if (known.has(key)) continue;
    const near = nearestName(key, known);
    throw new RecipeError(
      `no step has an option "${key}"`,
      {
        place: at(key),
        hint: near
          ? `Did you mean "${near}"?`
          : `Options of this recipe's steps: ${[...known].join(", ") || "none"}.`,
      },
      "recipe-key",
    );
  }
}

/** Options of a step with values merged in; keys that the step does not have are left out. */
export function mergedOptions(
  step: RecipeStep,
  values: Readonly<Record<string, unknown>>,
  place: string,
): unknown {
  const known = optionKeys(step.method);
  const relevant = Object.fromEntries(Object.entries(values).filter(([key]) => known.has(key)));
  if (Object.keys(relevant).length === 0) return step.options;
  const base = typeof step.written === "object" && step.written !== null ? step.written : {};
  return check(
    step.method.options,
    { ...base, ...relevant },
    { tree: null, place: () => place },
    [],
  );
}

/** Parses with zod; the first issue becomes a RecipeError with place and nearest name. */
function check<T>(schema: z.ZodType<T>, value: unknown, source: RecipeSource, base: Path): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = deepest(parsed.error.issues);
  const inner = issue.path.filter((part) => typeof part !== "symbol");
  const path = [...base, ...inner];
  const where =
    inner.length > 0 ? inner.join(".") : base.length > 0 ? String(base[base.length - 1]) : "recipe";
  if (issue.code === "unrecognized_keys") {
    const [key = ""] = issue.keys;
    const near = nearestName(key, knownKeys(schema, inner));
    throw new RecipeError(
      `unknown key "${key}"`,
      {
        place: source.place([...path, key], true),
        hint: near
          ? `Did you mean "${near}"?`
          : `Known keys: ${knownKeys(schema, inner).join(", ")}.`,
      },
      "recipe-key",
    );
  }
  const got = show(valueAt(value, inner));
  if (issue.code === "invalid_value") {
    const choices = issue.values.map(String);
    const near = nearestName(String(valueAt(value, inner)), choices);
    throw new RecipeError(
      `${where} is ${got}, expected ${choices.length > 1 ? "one of " : ""}${choices.join(", ")}`,
      { place: source.place(path), ...(near ? { hint: `Did you mean "${near}"?` } : {}) },
      "recipe-value",
    );
  }
  throw new RecipeError(
    `${where} is ${got}: ${issue.message}`,
    { place: source.place(path) },
    "recipe-value",
  );
}

/** In a union every branch complains; the one that got furthest into the value knows best. */
function deepest(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue {
  const [issue] = issues;
  if (!issue) throw new Error("a failed parse has an issue");
  if (issue.code !== "invalid_union") return issue;
  const branches = issue.errors.map((branch) => deepest(branch));
  const rank = (one: z.core.$ZodIssue) =>
    one.path.length * 4 +
    (one.code === "unrecognized_keys" ? 2 : one.code === "invalid_value" ? 1 : 0);
  const best = branches.sort((a, b) => rank(b) - rank(a))[0];
  if (!best) return issue;
  if (rank(best) <= 1) {
    // No branch fits at all: say what each of them wants.
    const wants = new Set(
      branches.flatMap((one) => (one.code === "invalid_value" ? one.values : [one.message])),
    );
    const values = branches.flatMap((one) => (one.code === "invalid_value" ? one.values : []));
    if (values.length === wants.size)
      return { ...best, path: issue.path, code: "invalid_value", values } as typeof best;
    return {
      ...best,
      path: issue.path,
      code: "custom",
      message: [...wants].join("; or "),
    } as typeof best;
  }
  return { ...best, path: [...issue.path, ...best.path] } as typeof best;
}

function valueAt(value: unknown, path: Path): unknown {
  let node = value;
  for (const part of path) {
    if (typeof node !== "object" || node === null) return undefined;
    node = (node as Record<string | number, unknown>)[part];
  }
  return node;
}

/** Keys that the object schema at a path knows. */
function knownKeys(schema: z.ZodType, path: Path): string[] {
  let node = schema;
  for (const part of path) {
    const shape = objectShape(node);
    const next = typeof part === "string" ? shape?.[part] : undefined;
    if (!next) return [...keysOf(node)];
    node = next;
  }
  return [...keysOf(node)];
}

/** Properties of the object schema inside default, prefault, optional and transform wrappers. */
function objectShape(schema: z.ZodType): Record<string, z.ZodType> | undefined {
  let node: unknown = schema;
  while (typeof node === "object" && node !== null) {
    const { def, shape } = node as {
      def?: { innerType?: unknown; in?: unknown };
      shape?: Record<string, z.ZodType>;
    };
    if (shape) return shape;
    node = def?.innerType ?? def?.in;
  }
  return undefined;
}

function show(value: unknown): string {
  if (value === undefined) return "missing";
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
