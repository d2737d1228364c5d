/**
 * Finds the real model and texts for the tests of this folder: NIBBLE_MODEL_DIR, then ../shared beside the repository, then
 * nibble's own model folder. Without them tests are skipped with a message that says how to get them; in CI they fail.
 */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { modelFolders } from "../../src/hub/cache.js";
import { ALIASES } from "../../src/hub/resolve.js";

const repository = resolve(dirname(fileURLToPath(import.meta.url)), "../../../..");
const shared = resolve(repository, "../shared");
const file = ALIASES["smollm2-135m"]?.file ?? "";

/** First existing path, or null. */
function first(candidates: readonly string[]): string | null {
  return candidates.find((path) => existsSync(path)) ?? null;
}

/** The SmolLM2-135M-Instruct file, or null. */
export const smollm2 = first([
  ...(process.env.NIBBLE_MODEL_DIR ? [join(process.env.NIBBLE_MODEL_DIR, file)] : []),
  join(shared, "models", file),
  ...modelFolders().map((folder) => join(folder, file)),
]);

/** A file of the shared data or golden folder, e.g. "data/wikitext2-test.txt", or null. */
export function sharedFile(path: string): string | null {
  return first([join(shared, path)]);
}

/**
 * Options for `describe` or `it`: runs when everything is there. What is missing is said once; in CI it is an error.
 * @param needs names and paths (null = missing)
 */
export function requires(needs: Readonly<Record<string, string | null>>): { skip: boolean } {
  const missing = Object.keys(needs).filter((name) => needs[name] === null);
  if (missing.length === 0) return { skip: false };
  const message =
    `model tests need ${missing.join(" and ")}: run "nibble pull smollm2-135m", or set NIBBLE_MODEL_DIR ` +
    `to the folder of ${file}; texts and golden values are looked for in ../shared`;
  if (process.env.CI) throw new Error(message);
  console.warn(`skipped: ${message}`);
  return { skip: true };
}
