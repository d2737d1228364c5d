/** Which steps may follow which. Each rule has a name that its message quotes. */
import { RecipeError } from "../core/errors.js";
import type { MethodKind } from "../methods/contract.js";
import type { RecipeStep } from "./schema.js";

interface Rule {
  name: string;
  why: string;
  /** Index of the first step that breaks the rule, or -1. */
  broken(kinds: readonly MethodKind[]): number;
}

const stored = (kind: MethodKind) => kind === "weights" || kind === "embeddings";

const RULES: readonly Rule[] = [
  {
    name: "transforms before weights",
    why: "a transform changes full-precision weights; after a weight or embedding step there are only codes",
    broken: (kinds) => {
      const first = kinds.findIndex(stored);
      return first < 0 ? -1 : kinds.findIndex((kind, i) => i > first && kind === "transform");
    },
  },
  {
    name: "scaling between transforms and weights",
    why: "inputs are rescaled on statistics of the transformed model, before weights become codes",
    broken: (kinds) => {
      const first = kinds.findIndex(stored);
      const late = kinds.findIndex((kind, i) => kind === "scaling" && first >= 0 && i > first);
      if (late >= 0) return late;
      const scaled = kinds.indexOf("scaling");
      return kinds.findIndex((kind, i) => kind === "transform" && scaled >= 0 && i > scaled);
    },
  },
  {
    name: "one activations step",
    why: "an input has one quantizer; use overrides for exceptions",
    broken: (kinds) => second(kinds, "activations"),
  },
  {
    name: "one kv step",
    why: "a model has one cache recipe",
    broken: (kinds) => second(kinds, "kv"),
  },
];

function second(kinds: readonly MethodKind[], wanted: MethodKind): number {
  const first = kinds.indexOf(wanted);
  return first < 0 ? -1 : kinds.indexOf(wanted, first + 1);
}

/** First step that scales input channels although an earlier one has mixed them, or -1. */
function scalesMixedChannels(steps: readonly RecipeStep[]): number {
  const rotated = steps.findIndex(
    ({ method, options }) => method.kind === "transform" && method.rotatesResidual?.(options),
  );
  if (rotated < 0) return -1;
  return steps.findIndex(
    ({ method }, i) => i > rotated && "scaler" in method && method.scaler?.originalBasis,
  );
}

/** @throws RecipeError code "recipe-order" naming the rule and the step. */
export function checkOrder(steps: readonly RecipeStep[], place: (index: number) => string): void {
  const kinds = steps.map((step) => step.method.kind);
  for (const rule of RULES) {
    const index = rule.broken(kinds);
    if (index < 0) continue;
    throw new RecipeError(
      `step ${index + 1} (${steps[index]?.method.id}) breaks the rule "${rule.name}"`,
      { place: place(index), hint: `${rule.why[0]?.toUpperCase()}${rule.why.slice(1)}.` },
      "recipe-order",
    );
  }
  const mixed = scalesMixedChannels(steps);
  if (mixed >= 0) {
    const id = steps[mixed]?.method.id;
    throw new RecipeError(
      `step ${mixed + 1} (${id}) breaks the rule "no channel scaling in a rotated model"`,
      {
        place: place(mixed),
        hint: "A rotated residual stream has no outlier channels: use gptq there, or leave R1 out.",
      },
      "recipe-order",
    );
  }
}
