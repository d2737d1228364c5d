/**
 * Writes the numbers of the instruction set (packages/nibble/src/kernels/ops.ts) for the two other executors:
 * packages/nibble/assembly/ops.ts (AssemblyScript) and packages/native/src/ops.h (C). Both files are committed.
 *
 *   node scripts/generate-ops.mjs           write
 *   node scripts/generate-ops.mjs --check   fail when a committed file is stale
 */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = new URL("../", import.meta.url);
const source = new URL("packages/nibble/src/kernels/ops.ts", root);

/** ops.ts imports nothing, so its transpiled text can be imported as it stands. */
async function loadTable() {
  const { outputText } = ts.transpileModule(readFileSync(source, "utf8"), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  return import(`data:text/javascript,${encodeURIComponent(outputText)}`);
}

/** camelCase -> UPPER_SNAKE_CASE: an underscore before each capital. */
function constant(name) {
  let text = "";
  for (const letter of name) {
    const upper = letter.toUpperCase();
    text += letter === upper && letter !== letter.toLowerCase() ? `_${upper}` : upper;
  }
  return text;
}

/** All constants in order, as blocks of [title, [name, value][]]. */
function blocks(ops) {
  const fields = (prefix, names, skip) =>
    names.map((name, i) => [`${prefix}_${constant(name)}`, i + skip]);
  const all = [
    [
      "Program",
      [
        ["PROGRAM_MAGIC", ops.PROGRAM_MAGIC],
        ["PROGRAM_VERSION", ops.PROGRAM_VERSION],
        ["PAGE_TOKENS", ops.PAGE_TOKENS],
        ["ATTENTION_CHUNK", ops.ATTENTION_CHUNK],
        ["CONTROL_BYTES", ops.CONTROL_BYTES],
        ["LINE", ops.LINE],
        ["OP_COUNT", ops.OP_NAMES.length],
      ],
    ],
  ];
  for (const [prefix, values] of [
    ["KIND", ops.WEIGHT_KIND],
    ["SCALAR", ops.SCALAR_TYPE],
    ["ZERO", ops.ZERO_KIND],
    ["EPILOGUE", ops.EPILOGUE],
    ["CODEC", ops.KV_CODEC],
  ]) {
    all.push([prefix, Object.entries(values).map(([k, v]) => [`${prefix}_${constant(k)}`, v])]);
  }
  all.push(["Header", [...fields("H", ops.HEADER, 0), ["HEADER_WORDS", ops.HEADER.length]]]);
  all.push([
    "Weight descriptor",
    [...fields("W", ops.WEIGHT, 0), ["WEIGHT_WORDS", ops.WEIGHT.length]],
  ]);
  all.push(["Cache descriptor", [...fields("C", ops.CACHE, 0), ["CACHE_WORDS", ops.CACHE.length]]]);
  for (const name of ops.OP_NAMES) {
    const prefix = constant(name);
    all.push([
      name,
      [
        [`OP_${prefix}`, ops.OPCODE[name]],
        [`${prefix}_WORDS`, ops.OPS[name].length + 2],
        // Offset inside the instruction: two words come before the operands.
        ...fields(prefix, ops.OPS[name], 2),
      ],
    ]);
  }
  return all;
}

const NOTICE =
  "Written by scripts/generate-ops.mjs from packages/nibble/src/kernels/ops.ts. Do not edit.";

function assemblyScript(all) {
  const lines = [`// ${NOTICE}`];
  for (const [title, entries] of all) {
    lines.push("", `// ${title}`);
    for (const [name, value] of entries) lines.push(`export const ${name}: i32 = ${value};`);
  }
  return `${lines.join("\n")}\n`;
}

function cHeader(all, ops) {
  const lines = [`/* ${NOTICE} */`, "#ifndef NIBBLE_OPS_H", "#define NIBBLE_OPS_H"];
  for (const [title, entries] of all) {
    lines.push("", `/* ${title} */`, "enum {");
    for (const [name, value] of entries) lines.push(`  ${name} = ${value},`);
    lines.push("};");
  }
  const names = ops.OP_NAMES.map((name) => `"${name}"`).join(", ");
  const sizes = ops.OP_NAMES.map((name) => ops.OPS[name].length + 2).join(", ");
  lines.push(
    "",
    "/* Both indexed by opcode; 0 is the end of the program. */",
    `#define NIBBLE_OP_NAMES {"end", ${names}}`,
    `#define NIBBLE_OP_WORDS {1, ${sizes}}`,
    "",
    "#endif",
  );
  return `${lines.join("\n")}\n`;
}

const ops = await loadTable();
const all = blocks(ops);
const seen = new Set();
for (const [, entries] of all) {
  for (const [name] of entries) {
    if (seen.has(name)) throw new Error(`two constants are called ${name}`);
    seen.add(name);
  }
}

const outputs = [
  [new URL("packages/nibble/assembly/ops.ts", root), assemblyScript(all)],
  [new URL("packages/native/src/ops.h", root), cHeader(all, ops)],
];
let stale = 0;
for (const [url, text] of outputs) {
  if (!process.argv.includes("--check")) {
    writeFileSync(url, text);
    continue;
  }
  let current = "";
  try {
    current = readFileSync(url, "utf8");
  } catch {
    // A missing file is a stale one.
  }
  if (current !== text) {
    stale = 1;
    console.error(`${fileURLToPath(url)} is stale: run node scripts/generate-ops.mjs`);
  }
}
process.exitCode = stale;
