/**
 * The command line. Parses, runs one verb, prints its result, and turns every failure into an exit code:
 * 0 ok, 1 failure, 2 usage or recipe, 3 model or data, 4 memory or disk, 5 a quality gate, 130 interrupted.
 */
import { Command, CommanderError } from "commander";
import { InterruptedError, nearestName, UsageError } from "../core/errors.js";
import type { LogLevel } from "../core/progress.js";
import { VERSION } from "../core/version.js";
import { VERBS } from "./commands/index.js";
import { toNibbleError, usageError } from "./errors.js";
import { type OutputFlags, outputOptions } from "./options.js";
import { type JsonMode, Output, type Streams } from "./output.js";
import type { Verb, VerbResult } from "./verb.js";

export interface CliOptions {
  streams?: Streams;
  environment?: Readonly<Record<string, string | undefined>>;
  /** Listen for Ctrl-C; default true. */
  signals?: boolean;
}

/** Runs one command line and gives its exit code. Nothing is thrown. */
export async function runCli(argv: readonly string[], options: CliOptions = {}): Promise<number> {
  const streams = options.streams ?? { stdout: process.stdout, stderr: process.stderr };
  const environment = options.environment ?? process.env;
  const args = argv.map((arg) => (arg === "--json=stream" ? "--json-stream" : arg));
  const json: JsonMode = args.includes("--json-stream")
    ? "stream"
    : args.some((arg) => arg === "--json" || arg.startsWith("--json="))
      ? "document"
      : "off";
  const interrupt = new AbortController();
  const listening = options.signals === false ? () => {} : listen(interrupt, streams);
  closeQuietly();

  let verb: Verb | undefined;
  let output = new Output(streams, { json, level: "info", environment });
  let exitCode = 0;
  const program = buildProgram(streams, async (chosen, positional, flags) => {
    verb = chosen;
    output = new Output(streams, { json, level: logLevel(flags, environment), environment });
    const interactive =
      json === "off" && !flags.yes && process.stdin.isTTY === true && streams.stdout.isTTY === true;
    const done: VerbResult = await chosen.run(
      { output, onProgress: output.onProgress, signal: interrupt.signal, interactive },
      positional,
      flags,
    );
    output.result(chosen.name, done.result, done.text);
    exitCode = done.exitCode ?? 0;
  });

  try {
    const near = unknownVerb(args);
    if (near) throw near;
    await program.parseAsync([...args], { from: "user" });
    return exitCode;
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return 0; // --help, --version
    const name = verb?.name ?? verbNameOf(args);
    let error =
      thrown instanceof CommanderError
        ? usageError(thrown, name, longFlags(program, name))
        : toNibbleError(thrown, interrupt.signal);
    if (error instanceof InterruptedError && verb?.resumable && !error.hint) {
      error = new InterruptedError(error.message, {
        hint: `Continue with the same command: nibble ${argv.map(quote).join(" ")}`,
        cause: error,
      });
    }
    output.failure(name, error);
    return error.exitCode;
  } finally {
    listening();
  }
}

type Run = (
  verb: Verb,
  args: string[],
  flags: OutputFlags & Record<string, unknown>,
) => Promise<void>;

function buildProgram(streams: Streams, run: Run): Command {
  const program = new Command("nibble");
  configure(program, streams)
    .description(
      "Makes language models small and runs them small: QuaRot, GPTQ and integer kernels.",
    )
    .version(VERSION, "-V, --version")
    .helpCommand("help [verb]", "help for a verb")
    .addHelpText(
      "after",
      `
<model> is a Hugging Face folder, a .gguf file, a nibble artifact, org/name[@revision] on the hub, or smollm2-135m.

Examples:
  nibble compress smollm2-135m --preset quarot-w4a8kv4 -o small
  nibble run small -p "The capital of France is"
  nibble eval small --ppl text.txt --reference smollm2-135m`,
    )
    .action(() => {
      streams.stdout.write(program.helpInformation());
    });
  const groups = new Map<string, Command>();
  for (const verb of VERBS) {
    const [first = "", second] = verb.name.split(" ");
    let parent = program;
    if (second !== undefined) {
      parent = groups.get(first) ?? configure(program.command(first), streams);
      groups.set(first, parent.description(`${first} ${second}: ${verb.summary}`));
    }
    const command = configure(parent.command(second ?? first), streams);
    command.description(verb.summary).allowExcessArguments(false);
    verb.define(command);
    outputOptions(command);
    command.addHelpText(
      "after",
      `\nExamples:\n${verb.examples.map((line) => `  ${line}`).join("\n")}`,
    );
    command.action(() => run(verb, command.args, command.opts()));
  }
  return program;
}

/** Errors are ours to print; help goes to stdout. */
function configure(command: Command, streams: Streams): Command {
  return command
    .exitOverride()
    .showSuggestionAfterError(false)
    .configureOutput({
      writeOut: (text) => streams.stdout.write(text),
      writeErr: () => {},
    });
}

/** A first word that is no verb. */
function unknownVerb(args: readonly string[]): UsageError | null {
  const [first] = args;
  if (first === undefined || first.startsWith("-")) return null;
  const names = [...new Set(VERBS.map((verb) => verb.name.split(" ")[0] ?? "")), "help"];
  if (names.includes(first)) return null;
  const near = nearestName(first, names);
  return new UsageError(`unknown verb "${first}"`, {
    hint: near ? `Did you mean "${near}"?` : `Verbs: ${names.join(", ")}.`,
  });
}

function verbNameOf(args: readonly string[]): string {
  const words = args.filter((arg) => !arg.startsWith("-"));
  const two = words.slice(0, 2).join(" ");
  return VERBS.find((verb) => verb.name === two || verb.name === words[0])?.name ?? "";
}

/** Long names of the options of a verb. */
function longFlags(program: Command, name: string): string[] {
  let command: Command | undefined = program;
  for (const part of name.split(" ").filter((word) => word !== "")) {
    command = command?.commands.find((child) => child.name() === part);
  }
  const own = (command ?? program).options.filter((option) => !option.hidden);
  return [...own.flatMap((option) => (option.long ? [option.long] : [])), "--help"];
}

function logLevel(
  flags: OutputFlags,
  environment: Readonly<Record<string, string | undefined>>,
): LogLevel {
  if (flags.verbose) return "debug";
  if (flags.quiet) return "warn";
  const set = environment.NIBBLE_LOG;
  if (set === undefined || set === "") return "info";
  const levels: LogLevel[] = ["debug", "info", "warn", "quiet"];
  const level = levels.find((one) => one === set);
  if (level) return level;
  throw new UsageError(`NIBBLE_LOG is "${set}", expected one of ${levels.join(", ")}`);
}

/** The first Ctrl-C asks the verb to stop and save, the second ends the process. Returns the undo. */
function listen(interrupt: AbortController, streams: Streams): () => void {
  const stop = () => {
    if (interrupt.signal.aborted) process.exit(130);
    interrupt.abort(new InterruptedError("interrupted"));
    streams.stderr.write("\nstopping … (Ctrl-C again to stop at once)\n");
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  return () => {
    process.off("SIGINT", stop);
    process.off("SIGTERM", stop);
  };
}

/** A reader that closes the pipe early (`| head`) is no error. */
function closeQuietly(): void {
  if (process.stdout.listenerCount("error") > 0) return;
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0);
    throw error;
  });
}

/** An argument as a shell would take it back. */
function quote(arg: string): string {
  return /^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg.replaceAll("'", "'\\''")}'`;
}
