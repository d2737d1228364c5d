/**
 * Which step handles which module, with which options: targets and ignore lists of the steps, then the first override
 * that matches. A module has at most one weight or embedding step.
 */
import { RecipeError } from "../core/errors.js";
import type { Method, ModelMethod, SolverMethod } from "../methods/contract.js";
import type { ActivationQuantizer, Model } from "../model/model.js";
import { type ParameterSpec, SITE_OF, SITES, type Site } from "../model/roles.js";
import { compilePattern, compilePatterns, type Matcher } from "./patterns.js";
import { mergedOptions } from "./resolve.js";
import type { Recipe, RecipeOverride, RecipeStep } from "./schema.js";

export interface Assignment {
  spec: ParameterSpec;
  method: SolverMethod<unknown>;
  /** Index into recipe.steps. */
  step: number;
  /** Options of this module: those of the step with the budget's bits and the override merged in. */
  options: unknown;
  /** True when an override names the bits, so that a budget has no say. */
  bitsGiven: boolean;
}

/**
 * What each module gets, in the order of `specs`.
 * @param specs the parameters of the model as they are after the transforms
 * @throws RecipeError for a module reached by two steps, a pattern that matches nothing, an override that changes nothing
 */
export function assignModules(recipe: Recipe, specs: readonly ParameterSpec[]): Assignment[] {
  const overrideOf = overrideFinder(recipe, specs);
  const found = new Map<string, Assignment>();
  for (const [index, step] of recipe.steps.entries()) {
    const { method } = step;
    if (!isSolver(method)) continue;
    const { targets, ignore } = method.targets(step.options);
    const candidates = specs.filter((spec) => spec.kind !== "norm" && spec.kind !== "router");
    for (const pattern of [...targets, ...ignore]) {
      const matches = compilePattern(pattern);
      if (exists(matches, specs)) continue;
      throw new RecipeError(
        `step ${index + 1} (${method.id}): pattern "${pattern}" matches no module of this model`,
        { hint: "Modules are named embed, head, layers.<i>.<q|k|v|o|gate|up|down>." },
        "recipe-target",
      );
    }
    const wanted = compilePatterns(targets);
    const ignored = compilePatterns(ignore);
    for (const spec of candidates.filter((one) => wanted(one) && !ignored(one))) {
      const other = found.get(spec.path);
      if (other) {
        throw new RecipeError(
          `${spec.path} is quantized by step ${other.step + 1} (${other.method.id}) and step ${index + 1} (${method.id})`,
          { hint: "Divide the modules with targets and ignore." },
          "recipe-twice",
        );
      }
      const override = overrideOf(spec);
      const allocated = method.kind === "weights" ? recipe.budget?.bits?.[spec.path] : undefined;
      const values = {
        ...(allocated === undefined ? {} : { bits: allocated }),
        ...override?.values,
      };
      const place = override?.place ?? "budget";
      const options =
        Object.keys(values).length > 0 ? mergedOptions(step, values, place) : step.options;
      found.set(spec.path, {
        spec,
        method,
        step: index,
        options,
        bitsGiven: override !== undefined && "bits" in override.values,
      });
    }
  }
  const quantizesInputs = recipe.steps.some(({ method }) => method.kind === "activations");
  for (const override of recipe.overrides) {
    const matches = compilePattern(override.match, override.place);
    if (quantizesInputs || [...found.values()].some(({ spec }) => matches(spec))) continue;
    throw new RecipeError(
      `"${override.match}" matches only modules that no step changes`,
      { place: override.place, hint: "Add the module to the targets of a step." },
      "recipe-target",
    );
  }
  return specs.flatMap((spec) => found.get(spec.path) ?? []);
}

/**
 * Applies the activations step (if there is one) with its overrides: fills `activations` and `activationOverrides`.
 * Linears that share a site share its quantizer, so a site follows an override when all of its linears get the same one;
 * otherwise it keeps the step's own options and `log` says so.
 */
export async function applyActivations(
  model: Model,
  recipe: Recipe,
  apply: (method: ModelMethod<unknown>, options: unknown, model: Model) => Promise<void>,
  log: (message: string) => void,
): Promise<void> {
  const step = recipe.steps.find(({ method }) => method.kind === "activations");
  if (!step) return;
  const method = step.method as ModelMethod<unknown>;
  await apply(method, step.options, model);
  const specs = [...model.parameters.values()].map((parameter) => parameter.spec);
  const overrideOf = overrideFinder(recipe, specs);
  const variants = new Map<string, Model["activations"]>();
  for (let layer = 0; layer < model.config.numHiddenLayers; layer++) {
    const exceptions: Partial<Record<Site, ActivationQuantizer | null>> = {};
    for (const site of SITES) {
      const linears = specs.filter(
        (spec) => spec.layer === layer && spec.role !== null && SITE_OF[spec.role] === site,
      );
      const options = linears.map((spec) => {
        const override = overrideOf(spec);
        return override ? mergedOptions(step, override.values, override.place) : step.options;
      });
      const distinct = new Set(options.map((one) => JSON.stringify(one)));
      const [key = ""] = distinct;
      if (distinct.size > 1) {
        log(
          `layer ${layer}: ${linears.map((spec) => spec.role).join(", ")} share an input, so its quantizer ignores an override of some of them`,
        );
        continue;
      }
      if (linears.length === 0 || key === JSON.stringify(step.options)) continue;
      let variant = variants.get(key);
      if (!variant) {
        const scratch: Model = { ...model, activations: {} };
        await apply(method, options[0], scratch);
        variant = scratch.activations;
        variants.set(key, variant);
      }
      exceptions[site] = variant[site] ?? null;
    }
    if (Object.keys(exceptions).length > 0) model.activationOverrides.set(layer, exceptions);
  }
}

export function isSolver(method: Method): method is SolverMethod<unknown> {
  return method.kind === "weights" || method.kind === "embeddings";
}

/** Steps of the given kinds in order. */
export function stepsOf(recipe: Recipe, ...kinds: Method["kind"][]): RecipeStep[] {
  return recipe.steps.filter(({ method }) => kinds.includes(method.kind));
}

/** A tied head has no module of its own, but a recipe that names it is right for the model's untied sister. */
function exists(matches: Matcher, specs: readonly ParameterSpec[]): boolean {
  return specs.some(matches) || matches({ path: "head", module: "lm_head" });
}

/** The first override that matches a module. @throws RecipeError for an override that matches nothing. */
function overrideFinder(
  recipe: Recipe,
  specs: readonly ParameterSpec[],
): (spec: ParameterSpec) => RecipeOverride | undefined {
  const compiled = recipe.overrides.map((override) => ({
    override,
    matches: compilePattern(override.match, override.place),
  }));
  for (const { override, matches } of compiled) {
    if (exists(matches, specs)) continue;
    throw new RecipeError(
      `"${override.match}" matches no module of this model`,
      {
        place: override.place,
        hint: "Modules are named embed, head, layers.<i>.<q|k|v|o|gate|up|down>.",
      },
      "recipe-target",
    );
  }
  return (spec) => compiled.find(({ matches }) => matches(spec))?.override;
}
