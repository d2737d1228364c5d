/** Options that several verbs share, and parsers of values whose errors name the nearest right one. */
import { type Command, Option } from "commander";
import { nearestName, UsageError } from "../core/errors.js";

export const BACKENDS = ["auto", "native", "wasm", "reference"] as const;
export type BackendChoice = (typeof BACKENDS)[number];

/** Parser of a whole number within bounds. */
export function integer(flag: string, min: number, max = Number.MAX_SAFE_INTEGER) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isInteger(value) || value < min || value > max) {
      const range = max === Number.MAX_SAFE_INTEGER ? `>= ${min}` : `from ${min} to ${max}`;
      throw new UsageError(`${flag} ${text}: expected a whole number ${range}`);
    }
    return value;
  };
}

/** Parser of whole numbers separated by commas. */
export function integers(flag: string, min: number, max = Number.MAX_SAFE_INTEGER) {
  const one = integer(flag, min, max);
  return (text: string): number[] => text.split(",").map((word) => one(word.trim()));
}

/** Parser of a number within bounds. */
export function number(flag: string, min: number, max = Number.POSITIVE_INFINITY) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < min || value > max) {
      throw new UsageError(
        `${flag} ${text}: expected a number ${max === Number.POSITIVE_INFINITY ? `>= ${min}` : `from ${min} to ${max}`}`,
      );
    }
    return value;
  };
}

/** Parser of one of a few words. */
export function oneOf<T extends string>(flag: string, choices: readonly T[]) {
  return (text: string): T => {
    const found = choices.find((choice) => choice === text);
    if (found !== undefined) return found;
    const near = nearestName(text, choices);
    throw new UsageError(`${flag} ${text}: expected one of ${choices.join(", ")}`, {
      ...(near ? { hint: `Did you mean "${near}"?` } : {}),
    });
  };
}

/** Collects a repeatable option. */
export function repeated(value: string, before: readonly string[] = []): string[] {
  return [...before, value];
}

/** Comma-separated words, without empty ones. */
export function commaList(flag: string) {
  return (text: string): string[] => {
    const words = text.split(",").map((word) => word.trim());
    if (words.some((word) => word === "")) {
      throw new UsageError(`${flag} ${text}: expected names separated by commas`);
    }
    return words;
  };
}

export interface OutputFlags {
  json?: boolean;
  jsonStream?: boolean;
  quiet?: boolean;
  verbose?: boolean;
  yes?: boolean;
}

/** Options of every verb. */
export function outputOptions(command: Command): void {
  command
    .option("--json", "one JSON document on stdout (--json=stream: progress events too)")
    .addOption(new Option("--json-stream").hideHelp())
    .option("-q, --quiet", "no progress, only the result")
    .option("-v, --verbose", "more detail, stack traces")
    .addOption(new Option("-y, --yes", "never ask").hideHelp());
}

export interface EngineFlags {
  backend: BackendChoice;
  threads?: number;
}

/** Environment: NIBBLE_BACKEND. */
export function backendOption(command: Command): void {
  command.addOption(
    new Option("--backend <name>", `kernels: ${BACKENDS.join(", ")}`)
      .env("NIBBLE_BACKEND")
      .default("auto")
      .argParser(oneOf("--backend", BACKENDS)),
  );
}

/** Where and how programs run. Environment: NIBBLE_BACKEND, NIBBLE_THREADS. */
export function engineOptions(command: Command): void {
  backendOption(command);
  command.addOption(
    new Option("--threads <n>", "threads (default: all processors)")
      .env("NIBBLE_THREADS")
      .argParser(integer("--threads", 1, 256)),
  );
}

export interface RecipeOptions {
  recipe?: string;
  preset?: string;
  set?: string[];
  override?: string[];
  calibration?: string;
  samples?: number;
  seqlen?: number;
  seed?: number;
  targetBpw?: number;
  sensitivity?: string;
}

/** What is to be done to a model. */
export function recipeOptions(command: Command): void {
  command
    .option("--recipe <file>", "recipe in YAML or JSON (docs/recipe.md)")
    .option("--preset <name>", "a recipe by name (nibble list presets)")
    .option("--set <key=value>", "change an option of the recipe; repeatable", repeated)
    .option(
      "--override <pattern=value>",
      "other bits or options for some modules; repeatable, first match wins",
      repeated,
    )
    .option("--calibration <file>", "calibration text (default: the model writes its own)")
    .option("--samples <n>", "calibration windows", integer("--samples", 1, 65536))
    .option("--seqlen <n>", "tokens of a calibration window", integer("--seqlen", 2, 1 << 20))
    .option("--seed <n>", "seed of everything random", integer("--seed", 0, 2 ** 32 - 1))
    .option(
      "--target-bpw <n>",
      "stored bits per weight of the linears; bits are allocated module by module",
      number("--target-bpw", 0.1, 32),
    )
    .option("--sensitivity <file>", "allocate by this JSON of `nibble sensitivity`");
}

/** The cache of the run. The value is a preset name or a JSON object. */
export function kvOption(command: Command): void {
  command
    .option("--kv <preset>", "KV cache: preset name or JSON (nibble list kv)")
    .option("--kv-calibration <file>", "what --kv learned from text (nibble calibrate-kv)");
}

/** Inputs of linears of a weight-only model while it runs. */
export function activationsOption(command: Command): void {
  command.addOption(
    new Option(
      "--activations <type>",
      "inputs of a weight-only model's linears: f32, or i8 (faster, an approximation)",
    ).argParser(oneOf("--activations", ["f32", "i8"] as const)),
  );
}

/** Parses what --kv, or another flag for a cache, was given. @throws UsageError, RecipeError that name the flag */
export async function parseKv(text: string | undefined, calibration?: string, flag = "--kv") {
  if (text === undefined) {
    if (calibration === undefined) return undefined;
    throw new UsageError("--kv-calibration is for --kv, which is missing", {
      hint: "Name the cache that the file was made for: --kv kvquant-nuq3-1.",
    });
  }
  const recipe = await parseKvText(text, flag);
  return recipe && calibration !== undefined ? { ...recipe, calibration } : recipe;
}

async function parseKvText(text: string, flag: string) {
  const { kvPreset } = await import("../kv/presets.js");
  if (!text.trim().startsWith("{")) return kvPreset(text);
  const { kvFromFlag } = await import("../recipe/load.js");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new UsageError(`${flag} is no JSON: ${(cause as Error).message}`, {
      hint: `Quote it as a whole: ${flag} '{"codec":"int4-token"}'; or name a preset (nibble list kv).`,
      cause,
    });
  }
  return kvFromFlag(value, flag) as ReturnType<typeof kvPreset>;
}

/** `{ key: value }` without undefined values, for options objects with exact optional properties. */
export function defined<T extends object>(
  values: T,
): { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>;
} {
  return Object.fromEntries(
    Object.entries(values).filter(([, value]) => value !== undefined),
  ) as ReturnType<typeof defined<T>>;
}
