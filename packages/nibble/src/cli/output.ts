/**
 * What goes where: results on stdout, everything else on stderr. On a terminal one live line, otherwise one plain line per
 * item; with --json stdout holds exactly one document, with --json=stream one JSON object per event and the document last.
 */
import type { NibbleError } from "../core/errors.js";
import {
  jsonRenderer,
  type LogLevel,
  lineRenderer,
  type OnProgress,
  type ProgressRenderer,
  ttyRenderer,
} from "../core/progress.js";
import { VERSION } from "../core/version.js";

/** The streams of a process; tests pass their own. */
export interface Streams {
  stdout: { write(text: string): unknown; isTTY?: boolean | undefined };
  stderr: {
    write(text: string): unknown;
    isTTY?: boolean | undefined;
    columns?: number | undefined;
  };
}

export type JsonMode = "off" | "document" | "stream";

export interface OutputOptions {
  json: JsonMode;
  level: LogLevel;
  environment: Readonly<Record<string, string | undefined>>;
}

export class Output {
  readonly onProgress: OnProgress;
  readonly json: JsonMode;
  readonly #streams: Streams;
  readonly #renderer: ProgressRenderer;
  readonly #colour: boolean;
  readonly #verbose: boolean;

  constructor(streams: Streams, { json, level, environment }: OutputOptions) {
    this.#streams = streams;
    this.json = json;
    this.#verbose = level === "debug";
    const { stderr, stdout } = streams;
    const live = stderr.isTTY === true && !environment.CI && environment.TERM !== "dumb";
    this.#colour = live && !environment.NO_COLOR;
    this.#renderer =
      json === "stream"
        ? jsonRenderer(stdout)
        : live
          ? ttyRenderer(stderr, level)
          : lineRenderer(stderr, level);
    this.onProgress = this.#renderer.handle;
  }

  /** True when a person reads stdout as it comes: text may be streamed there. */
  get streamsText(): boolean {
    return this.json === "off";
  }

  log(message: string): void {
    this.onProgress({ type: "log", level: "info", message });
  }
  warn(message: string): void {
    this.onProgress({ type: "log", level: "warn", message });
  }

  /** Part of the result as it appears (generated text); nothing with --json. */
  stream(text: string): void {
    if (!this.streamsText) return;
    this.#renderer.close();
    this.#streams.stdout.write(text);
  }

  /** The result of a verb: the document, or its text. */
  result(verb: string, result: unknown, text: string): void {
    this.#renderer.close();
    if (this.json !== "off") {
      this.#document({ ok: true, verb, version: VERSION, result });
    } else if (text !== "") {
      this.#streams.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
    }
  }

  /** An error: a document on stdout with --json, otherwise message and next step on stderr. */
  failure(verb: string, error: NibbleError): void {
    this.#renderer.close();
    if (this.json !== "off") {
      const { code, message, hint } = error;
      this.#document({
        ok: false,
        verb,
        version: VERSION,
        error: { code, message, hint: hint ?? null },
      });
      return;
    }
    const { stderr } = this.#streams;
    stderr.write(`${this.#paint("31", "error:")} ${error.message}\n`);
    if (error.hint) stderr.write(`${this.#paint("36", "hint:")} ${error.hint}\n`);
    if (this.#verbose)
      stderr.write(`${(error.cause as Error | undefined)?.stack ?? error.stack}\n`);
  }

  #document(value: unknown): void {
    // Infinity and NaN have no JSON; a measurement that is not finite is null.
    this.#streams.stdout.write(`${JSON.stringify(value, jsonValue)}\n`);
  }

  #paint(code: string, text: string): string {
    return this.#colour ? `\x1b[${code}m${text}\x1b[0m` : text;
  }
}

function jsonValue(_key: string, value: unknown): unknown {
  if (typeof value === "bigint")
    return value <= Number.MAX_SAFE_INTEGER ? Number(value) : String(value);
  return value;
}

const NUMBER = /^[-+]?[\d.,]+(e[-+]?\d+)?%?( (B|[KMGT]iB))?$/;

/** Rows as aligned columns; columns that hold numbers only (below their title) stand to the right. */
export function table(rows: readonly (readonly (string | number)[])[], indent = ""): string {
  const cells = rows.map((row) => row.map(String));
  const columns = Math.max(0, ...cells.map((row) => row.length));
  const column = (i: number) => cells.map((row) => row[i] ?? "");
  const widths = Array.from({ length: columns }, (_, i) =>
    Math.max(...column(i).map((cell) => cell.length)),
  );
  const numeric = widths.map((_, i) => {
    const body = column(i)
      .slice(1)
      .filter((cell) => cell !== "");
    return body.length > 0 && body.every((cell) => NUMBER.test(cell));
  });
  return cells
    .map((row) =>
      row
        .map((cell, i) =>
          numeric[i] ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0),
        )
        .join("  "),
    )
    .map((line) => `${indent}${line}`.trimEnd())
    .join("\n");
}
