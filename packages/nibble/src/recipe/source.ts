/**
 * A recipe before it is understood: its tree, and where each part of it was written (file:line:column, a command-line
 * flag, a preset), so that every later message can say so.
 */
import { isMap, isScalar, LineCounter, type Node, parseDocument, parse as parseYaml } from "yaml";
import { nearestName, RecipeError, UsageError } from "../core/errors.js";
import { methods } from "../methods/index.js";
import { optionKeys } from "./schema.js";

export type Path = readonly (string | number)[];

export interface RecipeSource {
  /** Plain data: maps, lists, scalars. */
  tree: unknown;
  /** Where the value at `path` was written; `key` asks for the key instead of the value. */
  place(path: Path, key?: boolean): string;
}

/** No recipe that a person wrote comes near this. */
const MAX_CHARS = 1 << 20;

/**
 * Parses YAML or JSON text.
 * @param name file name shown in messages
 * @throws RecipeError code "recipe-syntax" with name:line:column
 */
export function parseRecipeText(text: string, name: string): RecipeSource {
  if (text.length > MAX_CHARS) {
    throw new RecipeError(`larger than ${MAX_CHARS} characters`, { place: name }, "recipe-syntax");
  }
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number) => {
    const { line, col } = lines.linePos(offset);
    return `${name}:${line}:${col}`;
  };
  const [problem] = [...document.errors, ...document.warnings];
  if (problem) {
    throw new RecipeError(problem.message, { place: at(problem.pos[0]) }, "recipe-syntax");
  }
  let tree: unknown;
  try {
    tree = document.toJS({ maxAliasCount: 100 });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new RecipeError(message, { place: name, cause: error }, "recipe-syntax");
  }
  return {
    tree,
    place(path, key = false) {
      for (let depth = path.length; depth > 0; depth--) {
        const node = locate(document.contents, path.slice(0, depth), key && depth === path.length);
        if (node?.range) return at(node.range[0]);
      }
      return document.contents?.range ? at(document.contents.range[0]) : name;
    },
  };
}

/** The node at a path, or the node of its last key. */
function locate(root: unknown, path: Path, key: boolean): Node | undefined {
  let node: unknown = root;
  for (const [i, part] of path.entries()) {
    if (isMap(node)) {
      const pair = node.items.find(
        (item) => isScalar(item.key) && String(item.key.value) === String(part),
      );
      if (!pair) return undefined;
      node = key && i === path.length - 1 ? pair.key : pair.value;
    } else if (typeof node === "object" && node !== null && "get" in node) {
      node = (node as { get(index: string | number, keepScalar: true): unknown }).get(part, true);
    } else return undefined;
  }
  return typeof node === "object" && node !== null && "range" in node ? (node as Node) : undefined;
}

/** A tree that was not read from a text: a preset, an object of the API. */
export function treeSource(tree: unknown, name: string): RecipeSource {
  return {
    tree: structuredClone(tree),
    place: (path) => (path.length > 0 ? `${name}: ${showPath(path)}` : name),
  };
}

/** `steps[1].gptq.bits` */
function showPath(path: Path): string {
  return path
    .map((part, i) => (typeof part === "number" ? `[${part}]` : i === 0 ? part : `.${part}`))
    .join("");
}

/**
 * The source with `--set key=value` and `--override pattern=value` applied in order. Overrides of the command line come
 * before those of the recipe.
 * @throws UsageError for a flag that is not key=value, or a key that no step or more than one step has
 */
export function withFlags(
  source: RecipeSource,
  flags: { set?: readonly string[] | undefined; override?: readonly string[] | undefined },
): RecipeSource {
  if (!flags.set?.length && !flags.override?.length) return source;
  const tree = structuredClone(source.tree);
  if (typeof tree !== "object" || tree === null) return source;
  const written: { path: Path; flag: string }[] = [];
  for (const text of flags.set ?? []) {
    const { key, value } = assignment("--set", text);
    const path = settingPath(tree as Record<string, unknown>, key, text);
    assign(tree, path, value);
    written.push({ path, flag: `--set ${text}` });
  }
  const fromFlags = (flags.override ?? []).map((text) => {
    const { key: match, value } = assignment("--override", text);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return { match, ...(isObject ? value : { bits: value }) };
  });
  const record = tree as Record<string, unknown>;
  const own = Array.isArray(record.overrides) ? record.overrides : [];
  if (fromFlags.length > 0) record.overrides = [...fromFlags, ...own];
  return {
    tree,
    place(path, key) {
      const set = written.findLast(({ path: prefix }) =>
        prefix.every((part, i) => part === path[i]),
      );
      if (set) return set.flag;
      if (path[0] !== "overrides" || typeof path[1] !== "number") return source.place(path, key);
      if (path[1] < fromFlags.length) return `--override ${flags.override?.[path[1]]}`;
      return source.place(["overrides", path[1] - fromFlags.length, ...path.slice(2)], key);
    },
  };
}

/** Splits `key=value`; the value is a YAML scalar, `[list]` or `{map}`. */
function assignment(flag: string, text: string): { key: string; value: unknown } {
  const equals = text.indexOf("=");
  const key = text.slice(0, Math.max(0, equals)).trim();
  if (equals < 0 || key === "") {
    const example = flag === "--set" ? "bits=3" : "layers.0-3.*=8";
    throw new UsageError(
      `${flag} ${text}: expected ${flag === "--set" ? "key" : "pattern"}=value`,
      {
        hint: `Write it like ${flag} '${example}'.`,
      },
    );
  }
  try {
    return { key, value: parseYaml(text.slice(equals + 1)) as unknown };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new UsageError(`${flag} ${text}: ${message}`, { cause: error });
  }
}

const TOP = ["version", "seed", "calibration", "steps", "overrides", "eval"];

/** Where `--set` writes: `steps.gptq.bits`, `steps.1.bits`, `calibration.samples`, or an option that one step has. */
function settingPath(tree: Record<string, unknown>, key: string, text: string): Path {
  const parts = key.split(".");
  const steps = Array.isArray(tree.steps) ? tree.steps.map(stepId) : [];
  const wrong = (why: string, hint: string) => new UsageError(`--set ${text}: ${why}`, { hint });
  if (parts[0] === "steps") {
    const [, name = "", ...rest] = parts;
    const index = /^\d+$/.test(name) ? Number(name) : steps.indexOf(name);
    const id = steps[index];
    if (id === undefined) {
      const near = nearestName(name, steps);
      throw wrong(
        `the recipe has no step "${name}"`,
        near ? `Did you mean steps.${near}?` : `Its steps are: ${steps.join(", ") || "none"}.`,
      );
    }
    if (steps.lastIndexOf(name) !== index && !/^\d+$/.test(name)) {
      throw wrong(`the recipe has several "${name}" steps`, "Name one by its number: steps.0.…");
    }
    return ["steps", index, id, ...rest];
  }
  if (parts[0] !== undefined && TOP.includes(parts[0])) return parts;
  const owners = steps
    .map((id, index) => ({ id, index }))
    .filter(({ id }) => methods.has(id) && optionKeys(methods.get(id)).has(parts[0] ?? ""));
  const [owner] = owners;
  if (owner && owners.length === 1) return ["steps", owner.index, owner.id, ...parts];
  if (owner) {
    throw wrong(
      `${owners.length} steps have an option "${parts[0]}"`,
      `Name the step: ${owners.map(({ id }) => `--set steps.${id}.${text}`).join(" or ")}.`,
    );
  }
  const known = steps
    .filter((id) => methods.has(id))
    .flatMap((id) => [...optionKeys(methods.get(id))]);
  const near = nearestName(parts[0] ?? "", [...known, ...TOP]);
  throw wrong(
    `no step has an option "${parts[0]}"`,
    near ? `Did you mean "${near}"?` : `Options are: ${[...new Set(known)].join(", ") || "none"}.`,
  );
}

/** Id of a step as written: a bare string, or the one key of a map. */
export function stepId(step: unknown): string {
  if (typeof step === "string") return step;
  if (typeof step === "object" && step !== null) return Object.keys(step)[0] ?? "";
  return "";
}

/** Sets tree[path] = value, making maps on the way; a bare-string step becomes a map first. */
function assign(tree: unknown, path: Path, value: unknown): void {
  let node = tree as Record<string | number, unknown>;
  for (const [i, part] of path.entries()) {
    if (part === "__proto__") return;
    if (i === path.length - 1) {
      node[part] = value;
      return;
    }
    const next = node[part];
    const fresh = typeof next !== "object" || next === null;
    const child = (fresh ? {} : next) as Record<string | number, unknown>;
    if (fresh) node[part] = child;
    node = child;
  }
}
