/**
 * Recipes by name. Each keeps embedding and head in 8 bit with one scale a row, and calibrates on 32 windows of 512
 * tokens. `quarot-w4a4kv4` is the setting of the QuaRot paper (arXiv:2404.00456); the others are described by their name:
 * bits of weights, activations and cache, and the group size.
 */
import { nearestName, UsageError } from "../core/errors.js";
import { methods } from "../methods/index.js";
import type { RecipeInput } from "./schema.js";
import { stepId } from "./source.js";

export interface Preset {
  id: string;
  summary: string;
  recipe: RecipeInput;
}

const calibration = { samples: 32, seqlen: 512 };
const embeddings = { embeddings: { bits: 8 } };
const quarot = { quarot: { rotations: ["R1", "R2", "R3", "R4"] } };
const grouped = { bits: 4, groupSize: 128, sym: false };
const activations = (bits: number, clip: number) => ({
  activations: { bits, granularity: "token", sym: true, clip },
});

function preset(id: string, summary: string, steps: unknown[]): Preset {
  return { id, summary, recipe: { version: 1, seed: 0, calibration, steps } };
}

const TABLE: readonly Preset[] = [
  preset(
    "quarot-w4a4kv4",
    "The setting of the QuaRot paper: 4-bit weights, activations and cache.",
    [
      quarot,
      { gptq: { bits: 4, groupSize: "channel", sym: "narrow", clip: "mse" } },
      embeddings,
      activations(4, 0.9),
      { kv: "quarot-kv4-paper" },
    ],
  ),
  preset(
    "quarot-w4a8kv4",
    "4-bit weights in groups of 64, 8-bit activations, 4-bit cache; for small models.",
    [
      quarot,
      { gptq: { bits: 4, groupSize: 64, sym: false, clip: "none" } },
      embeddings,
      activations(8, 1),
      { kv: "quarot-kv4" },
    ],
  ),
  preset("quarot-w8a8kv8", "8 bits everywhere; needs no calibration text.", [
    quarot,
    { rtn: { bits: 8, groupSize: "channel", sym: "narrow" } },
    embeddings,
    activations(8, 1),
    { kv: "quarot-kv8" },
  ]),
  preset("rtn-w4a16-g128", "4-bit weights by rounding, groups of 128; no data.", [
    { rtn: grouped },
    embeddings,
  ]),
  preset("gptq-w4a16-g128", "4-bit weights by GPTQ, groups of 128.", [
    { gptq: grouped },
    embeddings,
  ]),
  preset("awq-w4a16-g128", "4-bit weights by AWQ, groups of 128.", [{ awq: grouped }, embeddings]),
  preset(
    "smoothquant-w8a8",
    "8-bit weights and activations without rotation, outliers evened out by SmoothQuant.",
    [
      "smoothquant",
      { rtn: { bits: 8, groupSize: "channel", sym: "narrow" } },
      embeddings,
      activations(8, 1),
    ],
  ),
  preset(
    "fp8-w8a8",
    "W8A8-FP: E4M3 weights with one scale a row, E4M3 activations with one a token; no data.",
    [{ float: { format: "e4m3" } }, embeddings, { activations: { format: "e4m3" } }],
  ),
  preset("none", "Nothing: the model as it is, as a nibble artifact.", []),
];

/** Presets whose methods this build has. */
export function presets(): Preset[] {
  return TABLE.filter(({ recipe }) => recipe.steps.every((step) => methods.has(stepId(step))));
}

/** @throws UsageError code "unknown-preset" with the nearest name. */
export function getPreset(id: string): Preset {
  const available = presets();
  const found = available.find((entry) => entry.id === id);
  if (found) return found;
  const names = available.map((entry) => entry.id);
  const near = nearestName(id, names);
  throw new UsageError(
    `unknown preset "${id}"`,
    { hint: near ? `Did you mean "${near}"?` : `Presets: ${names.join(", ")}.` },
    "unknown-preset",
  );
}
