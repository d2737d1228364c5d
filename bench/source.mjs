// The package's sources for benches: every module, internal ones too, transpiled file by file into a folder at the depth
// of dist, so that kernels and data are found as usual. (dist holds only what its own entry points need.)
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import ts from "typescript";

const nibble = fileURLToPath(new URL("../packages/nibble/", import.meta.url));
const source = join(nibble, "src");
const target = join(nibble, ".dist-bench");

function* walk(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* walk(path);
    else yield path;
  }
}

for (const file of walk(source)) {
  if (/\.test\.ts$/.test(file)) continue;
  const output = join(target, relative(source, file).replace(/\.ts$/, ".js"));
  const { mtimeMs } = statSync(file);
  if ((statSync(output, { throwIfNoEntry: false })?.mtimeMs ?? 0) > mtimeMs) continue;
  mkdirSync(dirname(output), { recursive: true });
  if (!file.endsWith(".ts")) {
    copyFileSync(file, output);
    continue;
  }
  const { outputText } = ts.transpileModule(readFileSync(file, "utf8"), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  writeFileSync(output, outputText);
}

/** A module of packages/nibble/src, named without its extension: "kernels/ops". */
export const nibbleModule = (name) => import(pathToFileURL(join(target, `${name}.js`)).href);
