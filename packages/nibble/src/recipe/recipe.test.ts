import { beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { NibbleError } from "../core/errors.js";
import { defineMethod, type Method, NO_NEEDS } from "../methods/contract.js";
import { methods } from "../methods/index.js";
import type { ModelConfig } from "../model/config.js";
import type { Model, Parameter } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { applyActivations, assignModules } from "./assign.js";
import { recipeToJson } from "./load.js";
import { resolveRecipe } from "./resolve.js";
import { recipeJsonSchema } from "./schema.js";
import { parseRecipeText, withFlags } from "./source.js";

/** Stand-ins for the three kinds that this folder only knows by what they declare. */
const round = defineMethod({
  id: "test-round",
  kind: "weights",
  title: "Rounding",
  paper: "none",
  summary: "For tests.",
  options: z.strictObject({
    bits: z.int().min(1).max(8).default(4),
    groupSize: z.union([z.literal("channel"), z.int().positive()]).default("channel"),
    targets: z.array(z.string()).default(["layers.*"]),
    ignore: z.array(z.string()).default([]),
  }),
  needs: () => NO_NEEDS,
  produces: ({ bits, groupSize }) => ({ encoding: "gint", bits, groupSize, zero: "const" }),
  estimate: () => ({ peakBytes: 0, flops: 0 }),
  targets: ({ targets, ignore }) => ({ targets, ignore }),
  async solve() {
    throw new Error("never called here");
  },
});
const turn = defineMethod({
  id: "test-turn",
  kind: "transform",
  title: "Rotation",
  paper: "none",
  summary: "For tests.",
  options: z.strictObject({ mode: z.enum(["hadamard", "random"]).default("hadamard") }),
  async apply() {},
});

const added: Method[] = [round, turn];
beforeAll(() => {
  for (const method of added) methods.add(method);
});
const text = (body: string) => `version: 1\nsteps:\n${body}`;
const read = (body: string, flags = {}) =>
  resolveRecipe(withFlags(parseRecipeText(text(body), "r.yaml"), flags));

function failure(run: () => unknown): NibbleError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(NibbleError);
    return error as NibbleError;
  }
  throw new Error("nothing was thrown");
}

const config = {
  architecture: "llama",
  vocabSize: 32,
  hiddenSize: 16,
  intermediateSize: 32,
  numHiddenLayers: 6,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 4,
  tieWordEmbeddings: false,
  bias: { q: false, k: false, v: false, o: false, mlp: false },
  qkNorm: false,
  experts: null,
} as unknown as ModelConfig;
const specs = parameterSpecs(config);

describe("recipe", () => {
  it("fills in every default and writes them out", () => {
    const recipe = read("  - test-turn\n  - test-round: { bits: 3 }\n  - kv: quarot-kv4\n");
    expect(recipe.calibration).toEqual({ file: null, samples: 128, seqlen: 2048 });
    const json = recipeToJson(recipe);
    expect(json.steps).toEqual([
      { "test-turn": { mode: "hadamard" } },
      { "test-round": { bits: 3, groupSize: "channel", targets: ["layers.*"], ignore: [] } },
      {
        kv: {
          k: { codec: "int4-token", hadamard: true, clip: 1, zero: "float", qBits: 8 },
          v: { codec: "int4-token", clip: 1, zero: "float" },
        },
      },
    ]);
    // What was written out reads as the same recipe.
    const again = resolveRecipe(parseRecipeText(JSON.stringify({ ...json, calibration: {} }), "x"));
    expect(recipeToJson(again).steps).toEqual(json.steps);
  });

  it("names file, line and column of an unknown key and the nearest known one", () => {
    const error = failure(() => read("  - test-round:\n      bitz: 3\n"));
    expect(error.message).toBe('r.yaml:4:7: unknown key "bitz"');
    expect(error.hint).toBe('Did you mean "bits"?');
    expect(error.exitCode).toBe(2);
  });

  it("names the place of wrong values, methods and top-level keys", () => {
    expect(failure(() => read("  - test-round: { bits: 12 }\n")).message).toMatch(
      /^r\.yaml:3:25: bits is 12: .*<=8/,
    );
    const mode = failure(() => read("  - test-turn: { mode: hadamrd }\n"));
    expect(mode.message).toContain(
      'r.yaml:3:24: mode is "hadamrd", expected one of hadamard, random',
    );
    expect(mode.hint).toBe('Did you mean "hadamard"?');
    const method = failure(() => read("  - test-rond\n"));
    expect(method.message).toBe('r.yaml:3:5: unknown method "test-rond"');
    expect(method.hint).toBe('Did you mean "test-round"?');
    const preset = failure(() => read("  - kv: quarot-kv\n"));
    expect(preset.message).toContain("r.yaml:3:9: kv is");
    const plane = failure(() => read("  - kv: { k: { codec: int4-tokn }, v: { codec: fp32 } }\n"));
    expect(plane.message).toContain('k.codec is "int4-tokn", expected one of fp32');
    const top = failure(() =>
      resolveRecipe(parseRecipeText("version: 1\nstep: []\nsteps: []", "r.yaml")),
    );
    expect(top.message).toBe('r.yaml:2:1: unknown key "step"');
    const gate = failure(() =>
      resolveRecipe(
        parseRecipeText("version: 1\nsteps: []\neval: { gates: { pplRation: 1 } }", "r.yaml"),
      ),
    );
    expect(gate.hint).toBe('Did you mean "pplRatio"?');
  });

  it("reports syntax errors with their place, and takes JSON", () => {
    expect(failure(() => parseRecipeText("version: 1\nsteps: [", "r.yaml")).message).toMatch(
      /^r\.yaml:2:/,
    );
    expect(failure(() => parseRecipeText("a: 1\na: 2", "r.yaml")).message).toMatch(/^r\.yaml:2:1/);
    const json = parseRecipeText('{"version": 1, "steps": ["test-turn"]}', "r.json");
    expect(resolveRecipe(json).steps).toHaveLength(1);
    expect(failure(() => resolveRecipe(parseRecipeText("", "r.yaml"))).code).toBe("recipe-value");
    expect(failure(() => resolveRecipe(parseRecipeText("[1, 2]", "r.yaml"))).code).toBe(
      "recipe-value",
    );
  });

  it("refuses an illegal order by the name of the rule", () => {
    const error = failure(() => read("  - test-round\n  - test-turn\n"));
    expect(error.code).toBe("recipe-order");
    expect(error.message).toBe(
      'r.yaml:4:5: step 2 (test-turn) breaks the rule "transforms before weights"',
    );
    expect(failure(() => read("  - kv: fp16\n  - kv: fp32\n")).message).toContain("one kv step");
    expect(
      read("  - kv: fp16\n  - activations\n  - test-turn\n  - test-round\n").steps,
    ).toHaveLength(4);
  });

  it("scales channels after transforms, before weights, and not in a rotated model", () => {
    const message = (body: string) => failure(() => read(body)).message;
    expect(message("  - rtn\n  - smoothquant\n")).toContain(
      "scaling between transforms and weights",
    );
    expect(message("  - smoothquant\n  - quarot\n")).toContain("scaling between transforms");
    expect(message("  - quarot\n  - awq\n")).toBe(
      'r.yaml:4:5: step 2 (awq) breaks the rule "no channel scaling in a rotated model"',
    );
    expect(message("  - quarot\n  - smoothquant\n  - rtn\n")).toContain("rotated model");
    expect(read("  - quarot: { rotations: [R2, R4] }\n  - awq\n").steps).toHaveLength(2);
    expect(read("  - smoothquant\n  - rtn: { bits: 8 }\n  - activations\n").steps).toHaveLength(3);
  });

  it("--set reaches a step by name, by number, or by an option that only one step has", () => {
    const body = "  - test-round\n  - activations\n";
    const options = (set: string[]) => read(body, { set }).steps.map((step) => step.options);
    expect(options(["groupSize=32"])[0]).toMatchObject({ groupSize: 32 });
    expect(options(["steps.test-round.bits=3"])[0]).toMatchObject({ bits: 3 });
    expect(options(["steps.1.bits=5"])[1]).toMatchObject({ bits: 5 });
    expect(options(["ignore=[layers.0.down]"])[0]).toMatchObject({ ignore: ["layers.0.down"] });
    expect(read(body, { set: ["calibration.samples=7"] }).calibration.samples).toBe(7);
    const both = failure(() => options(["bits=3"]));
    expect(both.hint).toBe(
      "Name the step: --set steps.test-round.bits=3 or --set steps.activations.bits=3.",
    );
    expect(failure(() => options(["groupsiz=32"])).hint).toBe('Did you mean "groupSize"?');
    expect(failure(() => options(["steps.test-round.bits=99"])).message).toMatch(
      /^--set steps\.test-round\.bits=99: bits is 99/,
    );
    expect(failure(() => options(["bits"])).message).toContain("expected key=value");
  });

  it("gives each module its options, the first matching override first", () => {
    const body =
      "  - test-round: { targets: ['layers.*'], ignore: ['layers.5.down'] }\noverrides:\n  - { match: 'layers.0-3.{down,o}', bits: 8 }\n";
    const list = assignModules(
      read(body, { override: ["layers.1.o=6", "*.q_proj={groupSize: 8}"] }),
      specs,
    );
    const bits = (path: string) => list.find(({ spec }) => spec.path === path)?.options;
    expect(list).toHaveLength(6 * 7 - 1);
    expect(bits("layers.0.down")).toMatchObject({ bits: 8 });
    expect(bits("layers.1.o")).toMatchObject({ bits: 6 });
    expect(bits("layers.4.down")).toMatchObject({ bits: 4 });
    expect(bits("layers.2.q")).toMatchObject({ bits: 4, groupSize: 8 });
    expect(bits("layers.5.down")).toBeUndefined();
  });

  it("refuses modules reached twice, patterns without a match and options nobody has", () => {
    const twice = "  - test-round\n  - test-round: { targets: ['layers.0.*'] }\n";
    expect(failure(() => assignModules(read(twice), specs)).message).toContain(
      "layers.0.q is quantized by step 1 (test-round) and step 2 (test-round)",
    );
    const none = read("  - test-round: { targets: ['layers.9.q'] }\n");
    expect(failure(() => assignModules(none, specs)).message).toContain("matches no module");
    const unused = read("  - test-round\n", { override: ["head=8"] });
    expect(failure(() => assignModules(unused, specs)).message).toContain("no step changes");
    expect(failure(() => read("  - test-round\n", { override: ["head={bitz: 8}"] })).message).toBe(
      '--override head={bitz: 8}: no step has an option "bitz"',
    );
    expect(failure(() => read("  - test-round\n", { override: ["{a=8"] })).code).toBe("pattern");
  });

  it("overrides the activation quantizer of a site when all its linears agree", async () => {
    const recipe = read("  - activations: { bits: 4 }\n", {
      override: ["layers.0-1.down=8", "layers.2.q=8", "layers.3.{q,k,v}=6"],
    });
    const model = {
      config,
      parameters: new Map(specs.map((spec) => [spec.path, { spec } as Parameter])),
      activations: {},
      activationOverrides: new Map(),
      transforms: [],
      kv: null,
    } as unknown as Model;
    const log: string[] = [];
    const run: Parameters<typeof applyActivations>[2] = (method, options, target) =>
      method.apply(target, options, { rng: undefined as never, log: () => {} });
    await applyActivations(model, recipe, run, (line) => log.push(line));
    expect(model.activations.mlp_out).toMatchObject({ bits: 4, symmetric: true });
    expect([...model.activationOverrides.keys()]).toEqual([0, 1, 3]);
    expect(model.activationOverrides.get(1)).toMatchObject({ mlp_out: { bits: 8 } });
    expect(model.activationOverrides.get(3)).toMatchObject({ attn_in: { bits: 6 } });
    expect(log).toHaveLength(1);
    expect(log[0]).toContain("layer 2: q, k, v share an input");
  });

  it("describes itself as a JSON schema with every method", () => {
    const schema = JSON.stringify(recipeJsonSchema());
    for (const id of methods.ids()) expect(schema).toContain(`"${id}"`);
    expect(schema).toContain("quarot-kv4");
  });
});
