/** Everything that can be thrown -> one NibbleError with code, message, next step and exit code. */
import type { CommanderError } from "commander";
import {
  InterruptedError,
  ModelError,
  NibbleError,
  nearestName,
  ResourceError,
  UsageError,
} from "../core/errors.js";

/** Errors of the parser, in nibble's words. `flags` are the long names that the verb knows. */
export function usageError(
  error: CommanderError,
  verb: string,
  flags: readonly string[],
): UsageError {
  const message = error.message.replace(/^error: /, "").split("\n")[0] ?? error.message;
  const hint = (text: string) => ({ hint: text, cause: error });
  const unknown = /unknown option '([^']+)'/.exec(message)?.[1];
  if (unknown !== undefined) {
    const near = nearestName(unknown.split("=")[0] ?? unknown, flags);
    return new UsageError(
      `unknown option ${unknown}`,
      hint(near ? `Did you mean ${near}?` : `See: nibble ${verb} --help`),
    );
  }
  return new UsageError(message, hint(`See: nibble ${verb} --help`.replace("  ", " ")));
}

/** Wraps what is no NibbleError: system errors by their code, the rest as an error inside nibble. */
export function toNibbleError(error: unknown, signal: AbortSignal): NibbleError {
  if (error instanceof NibbleError) return error;
  if (signal.aborted && (error === signal.reason || (error as Error)?.name === "AbortError")) {
    return new InterruptedError("interrupted");
  }
  const cause = error instanceof Error ? error : new Error(String(error));
  const { code, path } = cause as NodeJS.ErrnoException;
  const place = path === undefined ? {} : { place: path };
  switch (code) {
    case "ENOENT":
      return new ModelError(
        "no such file",
        { ...place, hint: "Check the path.", cause },
        "not-found",
      );
    case "EACCES":
    case "EPERM":
      return new ModelError("may not be read or written", { ...place, cause }, "permission");
    case "EISDIR":
      return new ModelError("is a folder, a file was expected", { ...place, cause }, "not-a-file");
    case "ENOTDIR":
      return new ModelError(
        "is a file, a folder was expected",
        { ...place, cause },
        "not-a-folder",
      );
    case "ENOSPC":
    case "EDQUOT":
      return new ResourceError("the disk is full", {
        ...place,
        hint: "Free some space, or choose another place.",
        cause,
      });
  }
  if (
    /array buffer allocation failed|invalid (typed )?array (buffer )?length|out of memory/i.test(
      cause.message,
    )
  ) {
    return new ResourceError("not enough memory", {
      hint: "Close other programs, lower --max-context or --ctx, or use a smaller model.",
      cause,
    });
  }
  return new NibbleError("internal", cause.message, {
    hint: "This is an error in nibble. Run again with -v and report what it prints.",
    cause,
  });
}
