/**
 * Writes what the registries know: FEATURES.md (what there is) and docs/methods.md (every option of every method).
 * `--check` writes nothing and fails when a file is out of date. Reads the built package.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { fail, nibble, root } from "./common.mjs";

const built = (path) => import(pathToFileURL(join(nibble, "dist", path)).href);
const { methods } = await built("methods/index.js");
const { presets } = await built("recipe/presets.js");
const { formats } = await built("formats/index.js");
const { tasks } = await built("eval/tasks/index.js");
const { KV_PRESET_NAMES, kvPreset } = await built("kv/presets.js");
const { kvCodecs } = await built("kv/codecs/index.js");
const { retentions } = await built("kv/retention/index.js");
const { recipeJsonSchema } = await built("recipe/schema.js");

const NOTE = "<!-- Written by `npm run docs` from the registries. Do not edit. -->";
const yes = (value) => (value ? "yes" : "");
const cell = (text) => String(text).replaceAll("|", "\\|").replaceAll("\n", " ");

function markdownTable(head, rows) {
  const line = (cells) => `| ${cells.map(cell).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

function paper(reference) {
  const id = /arXiv:(\d{4}\.\d{4,5})/.exec(reference)?.[1];
  return id ? reference.replace(`arXiv:${id}`, `[${id}](https://arxiv.org/abs/${id})`) : reference;
}

function plane({ codec, hadamard, clip, zero, qBits, bits, base }) {
  return [
    codec,
    base && `over ${base.codec}`,
    (bits ?? base?.bits) && `${bits ?? base.bits} bits`,
    hadamard && "rotated",
    clip !== undefined && `clip ${clip}`,
    zero && `${zero} zero`,
    qBits && `${qBits}-bit query`,
  ]
    .filter(Boolean)
    .join(", ");
}

/** Exact first tokens, and which tokens stay. */
function kept({ sinks, retention }) {
  const { type = "all", ...options } = retention ?? {};
  const words = Object.entries(options).map(([name, value]) => `${name} ${value}`);
  return [sinks && `${sinks} exact first`, [type, ...words].join(" ")].filter(Boolean).join(", ");
}

function features() {
  const kinds = {
    transform: "Transforms",
    scaling: "Scaling of inputs",
    weights: "Weights",
    embeddings: "Embedding and head",
    activations: "Activations",
    kv: "Cache",
  };
  const present = new Set([...methods].map(({ kind }) => kind));
  const unnamed = [...present].find((kind) => !kinds[kind]);
  if (unnamed) fail(`docs.mjs has no title for methods of kind "${unnamed}"`);
  const sections = Object.entries(kinds).map(([kind, title]) => {
    const rows = [...methods].filter((method) => method.kind === kind);
    return `### ${title}\n\n${markdownTable(
      ["method", "", "paper"],
      rows.map(({ id, summary, paper: reference }) => [`\`${id}\``, summary, paper(reference)]),
    )}`;
  });
  return `${NOTE}

# Features

What this version has. \`nibble list\` prints the same; options are in [docs/methods.md](docs/methods.md).

## Methods

${sections.join("\n\n")}

## Presets

${markdownTable(
  ["preset", "", "steps"],
  presets().map(({ id, summary, recipe }) => [
    `\`${id}\``,
    summary,
    recipe.steps.map((step) => (typeof step === "string" ? step : Object.keys(step)[0])).join(", "),
  ]),
)}

## KV cache

${markdownTable(
  ["preset", "keys", "values", "tokens"],
  KV_PRESET_NAMES.map((id) => {
    const recipe = kvPreset(id);
    return [`\`${id}\``, plane(recipe.k), plane(recipe.v), kept(recipe)];
  }),
)}

Any codec goes with any policy ([docs/kv-cache.md](docs/kv-cache.md)).

${markdownTable(
  ["codec", "", "paper"],
  [...kvCodecs].map(({ id, summary, paper: reference }) => [
    `\`${id}\``,
    summary,
    paper(reference),
  ]),
)}

${markdownTable(
  ["retention", "", "paper"],
  [...retentions].map(({ id, summary, paper: reference }) => [
    `\`${id}\``,
    summary,
    paper(reference),
  ]),
)}

## Formats

${markdownTable(
  ["format", "reads", "writes", "", "files"],
  [...formats].map(({ id, reads, writes, title, files }) => [
    `\`${id}\``,
    yes(reads),
    yes(writes),
    title,
    files,
  ]),
)}

## Tasks

${markdownTable(
  ["task", "", "measure", "paper"],
  [...tasks].map(({ id, title, metric, paper: reference }) => [
    `\`${id}\``,
    title,
    metric,
    paper(reference),
  ]),
)}
`;
}

/** "4", "`mse`", "one of …": a property of a JSON schema in a few words. */
function describeType(schema) {
  if (schema.const !== undefined) return `\`${schema.const}\``;
  if (schema.enum) return schema.enum.map((value) => `\`${value}\``).join(", ");
  const branches = schema.anyOf ?? schema.oneOf;
  if (branches) return [...new Set(branches.map(describeType))].join(" or ");
  if (schema.type === "array") return `list of ${describeType(schema.items ?? {})}`;
  if (schema.type === "integer" || schema.type === "number") {
    const low = schema.minimum ?? schema.exclusiveMinimum;
    const high = schema.maximum ?? schema.exclusiveMaximum;
    const bounded = (bound) => bound !== undefined && Math.abs(bound) < Number.MAX_SAFE_INTEGER;
    const range = [bounded(low) ? low : "", bounded(high) ? high : ""];
    const what = schema.type === "integer" ? "whole number" : "number";
    return range.some((bound) => bound !== "") ? `${what} ${range.join("..")}` : what;
  }
  if (schema.type === "object") {
    return `{ ${Object.entries(schema.properties ?? {})
      .map(([key, value]) => `${key}: ${describeType(value)}`)
      .join(", ")} }`;
  }
  return schema.type ?? "any";
}

/** Schema of the options of a method, out of that of a whole recipe. */
function optionSchema(id) {
  const steps = recipeJsonSchema().properties.steps.items.anyOf;
  return steps.find(({ properties }) => properties?.[id])?.properties[id] ?? {};
}

function methodPages() {
  const pages = [...methods].map((method) => {
    const { id, title, summary, paper: reference, kind } = method;
    const schema = optionSchema(id);
    const properties = Object.entries(schema.properties ?? {});
    const defaults = method.options.safeParse({}).data ?? {};
    const options =
      properties.length > 0
        ? markdownTable(
            ["option", "values", "default"],
            properties.map(([key, value]) => [
              `\`${key}\``,
              describeType(value),
              defaults[key] === undefined ? "" : `\`${JSON.stringify(defaults[key])}\``,
            ]),
          )
        : `Takes ${describeType(schema)}.`;
    return `## ${id}

**${title}**, a step of kind \`${kind}\`. ${summary} Source: ${paper(reference)}.

${options}`;
  });
  return `${NOTE}

# Methods and their options

A step of a recipe is one of these names with its options ([recipe.md](recipe.md)).

${pages.join("\n\n")}
`;
}

const check = process.argv.includes("--check");
const pages = { "FEATURES.md": features(), "docs/methods.md": methodPages() };
const stale = [];
for (const [file, text] of Object.entries(pages)) {
  const path = join(root, file);
  if (existsSync(path) && readFileSync(path, "utf8") === text) continue;
  stale.push(file);
  if (!check) writeFileSync(path, text);
}
if (check && stale.length > 0) fail(`out of date: ${stale.join(", ")}; run npm run docs`);
console.log(stale.length > 0 ? `written: ${stale.join(", ")}` : "docs: ok");
