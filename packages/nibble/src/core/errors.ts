/**
 * Every failure a user can cause is a NibbleError: a stable `code`, what is wrong and where (message),
 * and what to do next (hint). Exit codes: design, section 5.
 */
export interface ErrorDetails {
  /** Next step for the user, one sentence. */
  hint?: string;
  /** File, tensor, recipe line: where the offending value stands. */
  place?: string;
  cause?: unknown;
}

export class NibbleError extends Error {
  readonly code: string;
  readonly exitCode: number;
  readonly hint: string | undefined;
  readonly place: string | undefined;

  constructor(code: string, message: string, details: ErrorDetails = {}, exitCode = 1) {
    super(details.place ? `${details.place}: ${message}` : message, { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.exitCode = exitCode;
    this.hint = details.hint;
    this.place = details.place;
  }
}

/** Wrong flag, value or combination on the command line or in an API call. */
export class UsageError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "usage") {
    super(code, message, details, 2);
  }
}

/** A recipe that does not parse, or whose steps may not be combined. */
export class RecipeError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "recipe") {
    super(code, message, details, 2);
  }
}

/** A file that is truncated, hostile or not what it claims to be. */
export class FormatError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "format") {
    super(code, message, details, 3);
  }
}

/** A model, data file or feature that is missing or not supported. */
export class ModelError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "model") {
    super(code, message, details, 3);
  }
}

/** Not enough memory or disk. */
export class ResourceError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "resource") {
    super(code, message, details, 4);
  }
}

/** A number that cannot be: NaN weights, a Hessian without a factor, an impossible shape. */
export class NumericError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "numeric") {
    super(code, message, details, 1);
  }
}

/** A quality gate of the recipe failed; the artifact is kept. */
export class GateError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}) {
    super("gate", message, details, 5);
  }
}

/** Interrupted by the user; state is saved. */
export class InterruptedError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}) {
    super("interrupted", message, details, 130);
  }
}

/** A backend or kernel that cannot run here. */
export class BackendError extends NibbleError {
  constructor(message: string, details: ErrorDetails = {}, code = "backend") {
    super(code, message, details, 1);
  }
}

/** The known name nearest to a misspelt one (Levenshtein distance at most a third of its length), or undefined. */
export function nearestName(name: string, known: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of known) {
    const d = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (d < bestDistance) {
      bestDistance = d;
      best = candidate;
    }
  }
  return best;
}

/** Levenshtein distance of two short strings. */
function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitute = (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min((previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, substitute));
    }
    previous = row;
  }
  return previous[b.length] ?? 0;
}
