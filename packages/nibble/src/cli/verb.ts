/** What a verb is: its arguments and help as commander knows them, and a function from these to a result. */
import type { Command } from "commander";
import type { OnProgress } from "../core/progress.js";
import type { Output } from "./output.js";

/** What a verb gets besides its arguments. */
export interface VerbContext {
  output: Output;
  onProgress: OnProgress;
  /** Aborts at Ctrl-C. */
  signal: AbortSignal;
  /** True when questions may be asked: a terminal on both ends, no --json, no --yes. */
  interactive: boolean;
}

export interface VerbResult {
  /** `result` of the JSON document. */
  result: unknown;
  /** The same for a person. */
  text: string;
  /** Other than 0 for outcomes that are no errors of nibble (doctor finds a problem). */
  exitCode?: number;
}

// Options arrive as commander parsed them; each verb says in its own type what its `define` declares.
export interface Verb<Options = Record<string, unknown>> {
  /** One or two words: "compress", "recipe schema". */
  name: string;
  summary: string;
  /** Declares arguments and options. */
  define(command: Command): void;
  /** Whole command lines. */
  examples: readonly string[];
  run(context: VerbContext, args: readonly string[], options: Options): Promise<VerbResult>;
  /** A run that was interrupted continues when the same command is given again. */
  resumable?: boolean;
}

/** Ties the type of a verb's options to its definition, and forgets it for the list of verbs. */
export function defineVerb<Options>(verb: Verb<Options>): Verb {
  return verb as unknown as Verb;
}
