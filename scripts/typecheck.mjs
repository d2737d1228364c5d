/**
 * Type check of packages/nibble in two passes: everything without `noUncheckedIndexedAccess`, then everything with it,
 * leaving out the folders whose hot loops index typed arrays within bounds they computed themselves.
 */
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const nibble = join(root, "packages", "nibble");
const HOT = ["kernels", "encodings", "linalg", "kv/codecs"].map(
  (folder) => join(nibble, "src", folder) + sep,
);

/** Diagnostics of one tsconfig file. */
function check(file) {
  const host = {
    ...ts.sys,
    onUnRecoverableConfigFileDiagnostic(diagnostic) {
      throw new Error(ts.flattenDiagnosticMessageText(diagnostic.messageText, "\n"));
    },
  };
  const parsed = ts.getParsedCommandLineOfConfigFile(join(nibble, file), {}, host);
  const program = ts.createProgram(parsed.fileNames, parsed.options);
  return [...parsed.errors, ...ts.getPreEmitDiagnostics(program)];
}

const key = (d) => `${d.file?.fileName}:${d.start}:${d.code}`;
const found = new Map(check("tsconfig.json").map((d) => [key(d), d]));
for (const diagnostic of check("tsconfig.strict.json")) {
  const file = diagnostic.file ? join(diagnostic.file.fileName) : "";
  if (!HOT.some((folder) => file.startsWith(folder))) found.set(key(diagnostic), diagnostic);
}
const list = [...found.values()];
if (list.length > 0) {
  console.error(
    ts.formatDiagnostics(list, {
      getCanonicalFileName: (f) => f,
      getCurrentDirectory: () => root,
      getNewLine: () => "\n",
    }),
  );
  const files = new Set(list.map((d) => (d.file ? relative(root, d.file.fileName) : "tsconfig")));
  console.error(`types: ${list.length} errors in ${files.size} files`);
  process.exit(1);
}
console.log("types: ok");
