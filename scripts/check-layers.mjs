/**
 * The dependency direction of packages/nibble/src, read from its imports: a folder imports only from layers below its
 * own; folders of one layer do not import each other, except through the contracts listed here; no import cycles among
 * modules (imports of types only may be mutual inside one folder). Tests may import anything.
 */
import { readFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { nibble, walk } from "./common.mjs";

/** Upper imports lower. */
const LAYERS = [
  ["cli", "server"],
  ["recipe"],
  ["eval"],
  ["runtime"],
  ["methods", "kv", "formats", "train", "hub"],
  // Observers run blocks of the model, never the other way round.
  ["observers"],
  ["model"],
  ["kernels", "graph"],
  ["encodings", "linalg"],
  ["core"],
];
/** Files without behaviour of their own (interfaces, instruction set, tables) that siblings of their layer may import. */
const CONTRACTS = [
  "kernels/contract.ts",
  "kernels/ops.ts",
  "kernels/program.ts",
  "model/model.ts",
  "model/roles.ts",
  "model/config.ts",
  "kv/presets.ts",
  "kv/recipe.ts",
  "encodings/types.ts",
];

const source = join(nibble, "src");
const rank = new Map(LAYERS.flatMap((names, i) => names.map((name) => [name, LAYERS.length - i])));
const files = walk(source)
  .filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"))
  .map((file) => relative(source, file).split(sep).join("/"));
const known = new Set(files);
const errors = [];
const edges = new Map();

const IMPORT =
  /^\s*(?:import|export)\s+(type\s+)?([^'";]*?\sfrom\s+)?["'](\.[^"']+)["']|\bimport\(\s*["'](\.[^"']+)["']\s*\)/gm;

for (const file of files) {
  const text = readFileSync(join(source, file), "utf8");
  const folder = file.includes("/") ? file.slice(0, file.indexOf("/")) : null;
  if (folder !== null && !rank.has(folder)) errors.push(`${file}: folder "${folder}" has no layer`);
  const values = [];
  for (const match of text.matchAll(IMPORT)) {
    const target = join(dirname(file), match[3] ?? match[4])
      .split(sep)
      .join("/")
      .replace(/\.js$/, ".ts");
    if (!known.has(target)) continue;
    const typeOnly = match[1] !== undefined || onlyTypes(match[2]);
    // A lazy import() runs later: it may close a circle without harm.
    if (!typeOnly && match[4] === undefined) values.push(target);
    if (folder === null) continue;
    if (!target.includes("/")) {
      errors.push(`${file} imports ${target}: the entry points only re-export`);
      continue;
    }
    const other = target.slice(0, target.indexOf("/"));
    if (other === folder) continue;
    const [own, below] = [rank.get(folder) ?? 0, rank.get(other) ?? 0];
    if (below > own) errors.push(`${file} imports ${target}: ${other} lies above ${folder}`);
    else if (below === own && !CONTRACTS.includes(target)) {
      errors.push(`${file} imports ${target}: ${folder} and ${other} lie side by side`);
    }
  }
  edges.set(file, values);
}

for (const cycle of cycles()) errors.push(`import cycle: ${cycle.join(" -> ")}`);
for (const contract of CONTRACTS) {
  if (!known.has(contract)) errors.push(`check-layers.mjs names ${contract}, which does not exist`);
}
if (errors.length > 0) {
  console.error(errors.join("\n"));
  console.error(`layers: ${errors.length} errors`);
  process.exit(1);
}
console.log(`layers: ok (${files.length} files)`);

/** `{ type A, type B }` imports nothing at run time. */
function onlyTypes(clause) {
  const braces = clause && /^\{([^}]*)\}\s+from\s+$/s.exec(`${clause.trim()} `);
  if (!braces) return false;
  const names = braces[1].split(",").map((name) => name.trim());
  return names.every((name) => name === "" || name.startsWith("type "));
}

/** One cycle per back edge of a depth-first walk. */
function cycles() {
  const state = new Map();
  const found = [];
  const visit = (file, path) => {
    state.set(file, "open");
    for (const next of edges.get(file) ?? []) {
      if (state.get(next) === "open") found.push([...path.slice(path.indexOf(next)), next]);
      else if (!state.has(next)) visit(next, [...path, next]);
    }
    state.set(file, "done");
  };
  for (const file of files) if (!state.has(file)) visit(file, [file]);
  return found;
}
