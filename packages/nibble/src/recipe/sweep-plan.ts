/**
 * A sweep: models x recipes (each with lists of option values that multiply) from one YAML, measured alike. The plan is a
 * list of jobs, each with the hash of everything that decides its result: a job whose result is known is not run again.
 */
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { RecipeError } from "../core/errors.js";
import { readTextFile } from "../core/text-file.js";
import { VERSION } from "../core/version.js";
import { readTasks, type TaskData } from "../eval/measure.js";
import type { FetchDataset } from "../eval/tasks/source.js";
import { loadModel } from "../runtime/load-model.js";
import { loadRecipe, recipeToJson } from "./load.js";
import { fingerprint } from "./resume.js";
import type { Recipe } from "./schema.js";
import { parseRecipeText } from "./source.js";

const scalar = z.union([z.string(), z.number(), z.boolean()]);
const recipe = z
  .strictObject({
    name: z.string().min(1).optional(),
    preset: z.string().optional(),
    recipe: z.string().optional(),
    set: z.record(z.string(), z.union([scalar, z.array(scalar).min(1)])).default({}),
  })
  .refine(
    (r) => (r.preset === undefined) !== (r.recipe === undefined),
    "needs either preset or recipe",
  );

export const sweepSchema = z.strictObject({
  version: z.literal(1),
  models: z.array(z.string()).min(1),
  recipes: z
    .array(z.union([z.string().transform((preset) => ({ preset, set: {} })), recipe]))
    .min(1),
  calibration: z
    .strictObject({
      file: z.string(),
      samples: z.int().min(1).optional(),
      seqlen: z.int().min(2).optional(),
    })
    .optional(),
  seed: z.int().min(0).default(0),
  eval: z
    .strictObject({
      ppl: z.string().optional(),
      ctx: z.int().min(2).default(512),
      windows: z.int().min(1).optional(),
      tasks: z.array(z.string()).default([]),
      taskDir: z.string().optional(),
      limit: z.int().min(1).optional(),
    })
    .refine((e) => e.ppl !== undefined || e.tasks.length > 0, "needs ppl or tasks"),
  /** Keep the artifacts; otherwise they are removed once measured. */
  keep: z.boolean().default(false),
});
export type SweepSpec = z.output<typeof sweepSchema>;

export interface SweepJob {
  /** Hash of model, recipe, data, settings and version. */
  id: string;
  model: string;
  /** Name of the recipe with its values, or "original". */
  name: string;
  /** null: the model as it is. */
  recipe: Recipe | null;
}

export interface SweepPlan {
  spec: SweepSpec;
  jobs: SweepJob[];
  text: { content: string; file: string } | null;
  /** Questions of the tasks, read and checked. */
  tasks: TaskData[];
}

/** All combinations of the lists of a map: {a: [1, 2], b: 3} -> {a: 1, b: 3}, {a: 2, b: 3}. */
export function combinations<T>(options: Record<string, T | T[]>): Record<string, T>[] {
  return Object.entries(options).reduce<Record<string, T>[]>(
    (list, [key, value]) =>
      list.flatMap((one) =>
        (Array.isArray(value) ? value : [value]).map((v) => ({ ...one, [key]: v })),
      ),
    [{}],
  );
}

/** @throws RecipeError with the place in the file of what is wrong */
export function parseSweep(text: string, file: string): SweepSpec {
  const source = parseRecipeText(text, file);
  const parsed = sweepSchema.safeParse(source.tree);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const path = (issue?.path ?? []).filter((p): p is string | number => typeof p !== "symbol");
  throw new RecipeError(
    `${path.length > 0 ? `${path.join(".")}: ` : ""}${issue?.message ?? "not a sweep"}`,
    {
      place: source.place(path),
      hint: "A sweep has version, models, recipes and eval; see docs/sweep.md.",
    },
  );
}

/**
 * Expands a sweep file. Paths in it are relative to it. Models are opened for their hashes, texts and questions read;
 * nothing is run.
 * @param fetchDataset how data sets come from the hub; without it tasks come from the task folder alone
 */
export async function planSweep(
  file: string,
  backend: string,
  fetchDataset?: FetchDataset,
): Promise<SweepPlan> {
  const spec = parseSweep(await readTextFile(file), file);
  const base = dirname(resolve(file));
  const near = (path: string) => resolve(base, path);
  const text =
    spec.eval.ppl === undefined
      ? null
      : { content: await readTextFile(near(spec.eval.ppl)), file: spec.eval.ppl };
  const { taskDir, limit } = spec.eval;
  const tasks = await readTasks(spec.eval.tasks, {
    ...(taskDir === undefined ? {} : { taskDir: near(taskDir) }),
    ...(limit === undefined ? {} : { limit }),
    ...(fetchDataset ? { fetchDataset } : {}),
  });
  const calibration = spec.calibration
    ? { ...spec.calibration, file: near(spec.calibration.file) }
    : undefined;
  const calibrationText = calibration ? await readTextFile(calibration.file) : null;
  const { keep: _keep, models, recipes, ...settings } = spec;
  const measured = {
    settings: withoutFolder(settings.eval),
    seed: spec.seed,
    text,
    questions: tasks.map(({ items }) => items),
    calibrationText,
    backend,
    version: VERSION,
  };

  const variants: { name: string; recipe: Recipe }[] = [];
  for (const entry of recipes) {
    const { set, ...which } = entry;
    const title =
      "name" in entry && entry.name
        ? entry.name
        : (which.preset ?? (which as { recipe?: string }).recipe ?? "");
    for (const values of combinations<string | number | boolean>(set)) {
      const flags = Object.entries(values).map(([key, value]) => `${key}=${value}`);
      const from =
        "recipe" in which && which.recipe !== undefined
          ? { recipe: near(which.recipe) }
          : { preset: which.preset as string };
      variants.push({
        name: [title, ...shortFlags(values)].join(" "),
        recipe: await loadRecipe({
          ...from,
          seed: spec.seed,
          ...(flags.length > 0 ? { set: flags } : {}),
          ...(calibration ? { calibration: calibration.file } : {}),
          ...(calibration?.samples === undefined ? {} : { samples: calibration.samples }),
          ...(calibration?.seqlen === undefined ? {} : { seqlen: calibration.seqlen }),
        }),
      });
    }
  }
  const jobs: SweepJob[] = [];
  for (const model of models) {
    const loaded = await loadModel((await isLocal(near(model))) ? near(model) : model);
    const hash = await loaded.source.sha256();
    await loaded.close();
    const name = (await isLocal(near(model))) ? near(model) : model;
    const add = (title: string, recipe: Recipe | null) => {
      const json = recipe ? recipeToJson(recipe) : null;
      const id = fingerprint({ model: hash, recipe: withoutPlaces(json), ...measured }).slice(
        0,
        32,
      );
      if (!jobs.some((job) => job.id === id)) jobs.push({ id, model: name, name: title, recipe });
    };
    add("original", null);
    for (const variant of variants) add(variant.name, variant.recipe);
  }
  return {
    spec,
    jobs,
    text,
    tasks,
  };
}

/** `bits=3` for `steps.rtn.bits: 3`; the whole path where two end alike. */
export function shortFlags(values: Record<string, unknown>): string[] {
  const last = (path: string) => path.split(".").pop() as string;
  const ends = Object.keys(values).map(last);
  return Object.entries(values).map(([path, value]) => {
    const alike = ends.filter((end) => end === last(path)).length > 1;
    return `${alike ? path : last(path)}=${value}`;
  });
}

/** Where questions lie does not decide a result; the questions are hashed by themselves. */
function withoutFolder({ taskDir: _folder, ...rest }: SweepSpec["eval"]): unknown {
  return rest;
}

/** Where the calibration text lies does not decide a result; what it says is hashed by itself. */
function withoutPlaces(json: Record<string, unknown> | null): unknown {
  if (!json) return null;
  const { calibration, ...rest } = json as { calibration?: Record<string, unknown> };
  const { file: _file, ...numbers } = calibration ?? {};
  return { ...rest, calibration: numbers };
}

async function isLocal(path: string): Promise<boolean> {
  const { stat } = await import("node:fs/promises");
  return stat(path).then(
    () => true,
    () => false,
  );
}
