/**
 * Globs over role paths, as in `targets`, `ignore`, `match` and `--override`: `*` is any text (dots included), `{a,b}`
 * alternatives, `0-3` a range of whole numbers between dots. A pattern is tried on the role path (`layers.0.q`) and on the
 * HF module name (`model.layers.0.self_attn.q_proj`), and must match it whole.
 */
import { RecipeError } from "../core/errors.js";
import type { ParameterSpec } from "../model/roles.js";

export type Matcher = (module: Pick<ParameterSpec, "path" | "module">) => boolean;

/** More alternatives than any model has layers or experts. */
const MAX_RANGE = 4096;

/** @throws RecipeError code "pattern" for unbalanced braces, an empty pattern or a range that runs backwards. */
export function compilePattern(pattern: string, place?: string): Matcher {
  const details = place === undefined ? {} : { place };
  const bad = (why: string) =>
    new RecipeError(
      `pattern "${pattern}" ${why}`,
      { ...details, hint: 'Patterns look like "layers.0-3.{down,o}", "layers.*.gate" or "head".' },
      "pattern",
    );
  if (pattern.trim() === "") throw bad("is empty");

  let source = "";
  let depth = 0;
  for (const token of pattern.match(/\d+-\d+|[\s\S]/g) ?? []) {
    if (token.length > 1) {
      const [from = 0, to = 0] = token.split("-").map(Number);
      if (from > to) throw bad(`has a range that runs backwards: ${token}`);
      if (to - from > MAX_RANGE)
        throw bad(`has a range of more than ${MAX_RANGE} numbers: ${token}`);
      source += `(?:${Array.from({ length: to - from + 1 }, (_, i) => from + i).join("|")})`;
    } else if (token === "*") source += source.endsWith(".*") ? "" : ".*";
    else if (token === "{") {
      depth++;
      source += "(?:";
    } else if (token === "}") {
      if (--depth < 0) throw bad('has a "}" without its "{"');
      source += ")";
    } else if (token === "," && depth > 0) source += "|";
    else source += token.replace(/[\\^$.|?+()[\]]/g, "\\$&");
  }
  if (depth !== 0) throw bad('has a "{" without its "}"');
  const expression = new RegExp(`^(?:${source})$`);
  return ({ path, module }) => expression.test(path) || expression.test(module);
}

/** True for modules that one of the patterns matches. */
export function compilePatterns(patterns: readonly string[], place?: string): Matcher {
  const matchers = patterns.map((pattern) => compilePattern(pattern, place));
  return (module) => matchers.some((matches) => matches(module));
}
