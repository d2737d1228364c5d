/**
 * One stream of events for everything that takes a while, and three ways to show it: a live line on a terminal,
 * a line per item in logs, one JSON object per event for programs. Library code only emits; the CLI chooses.
 */
import { formatBytes, formatSeconds, peakRssBytes } from "./memory.js";

/** Item `item` of `total` of a stage is done (or, with item 0, the stage has begun). */
export interface StepEvent {
  type: "step";
  /** What is going on, an English present participle: "quantizing", "evaluating", "loading". */
  stage: string;
  item: number;
  total: number;
  /** What the item is called: "layer 3", "window 7", a file name. */
  name?: string | undefined;
  /** Loss of this item, if the stage has one (relative output error, mean NLL …). */
  loss?: number | undefined;
  /** Bytes handled so far, for stages that move data. */
  bytes?: number | undefined;
  /** Set by whoever knows better than a straight line through the items so far. */
  etaSeconds?: number | undefined;
}

/** Something the user should know: a step down in backends, a file skipped, a warning. */
export interface LogEvent {
  type: "log";
  level: "debug" | "info" | "warn";
  message: string;
}

export type ProgressEvent = StepEvent | LogEvent;
export type OnProgress = (event: ProgressEvent) => void;

/** Draws events somewhere. `close` leaves the output in a state in which results can follow. */
export interface ProgressRenderer {
  handle: OnProgress;
  close(): void;
}

/** Where a renderer writes; process.stderr fits. */
export interface TextSink {
  write(text: string): unknown;
  columns?: number | undefined;
}

export type LogLevel = LogEvent["level"] | "quiet";
const RANK: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, quiet: 3 };

/** Remaining seconds of a stage from the pace so far: a straight line through its items. */
export class Pace {
  private stage = "";
  private first = 0;
  private begun = 0;

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Seconds left after this event, or undefined before there is a pace. */
  eta(event: StepEvent): number | undefined {
    if (event.stage !== this.stage || event.item < this.first) {
      this.stage = event.stage;
      this.first = event.item;
      this.begun = this.now();
    }
    if (event.etaSeconds !== undefined) return event.etaSeconds;
    const done = event.item - this.first;
    if (done <= 0 || event.total <= event.item) return undefined;
    return ((this.now() - this.begun) / 1000 / done) * (event.total - event.item);
  }
}

/** "quantizing 3/30 layer 2 · loss 1.2e-3 · 410 MiB · 2 min 05 s left" */
export function describe(event: StepEvent, eta: number | undefined): string {
  const parts = [`${event.stage}${event.total > 0 ? ` ${event.item}/${event.total}` : ""}`];
  if (event.name !== undefined) parts[0] += ` ${event.name}`;
  if (event.loss !== undefined) parts.push(`loss ${formatLoss(event.loss)}`);
  if (event.bytes !== undefined) parts.push(formatBytes(event.bytes));
  const memory = peakRssBytes();
  if (memory > 0) parts.push(`peak ${formatBytes(memory)}`);
  if (eta !== undefined && eta >= 1) parts.push(`${formatSeconds(eta)} left`);
  return parts.join(" · ");
}

/** One live line that is overwritten; log events scroll above it. For terminals. */
export function ttyRenderer(sink: TextSink, level: LogLevel = "info"): ProgressRenderer {
  const pace = new Pace();
  let shown = false;
  let drawnAt = 0;
  const clear = () => {
    if (shown) sink.write("\r\x1b[2K");
    shown = false;
  };
  return {
    handle(event) {
      if (event.type === "log") {
        if (RANK[event.level] < RANK[level]) return;
        clear();
        sink.write(`${prefix(event)}${event.message}\n`);
        return;
      }
      if (RANK[level] > RANK.info) return;
      const eta = pace.eta(event);
      // A fast stage may emit thousands of items: redrawing 20 times a second is enough.
      const now = performance.now();
      if (now - drawnAt < 50 && event.item < event.total) return;
      drawnAt = now;
      clear();
      sink.write(describe(event, eta).slice(0, Math.max(20, (sink.columns ?? 80) - 1)));
      shown = true;
    },
    close: clear,
  };
}

/** One line per item, no control characters. For CI logs and pipes. */
export function lineRenderer(sink: TextSink, level: LogLevel = "info"): ProgressRenderer {
  const pace = new Pace();
  let stage = "";
  let writtenAt = 0;
  return {
    handle(event) {
      if (event.type === "log") {
        if (RANK[event.level] >= RANK[level]) sink.write(`${prefix(event)}${event.message}\n`);
        return;
      }
      if (RANK[level] > RANK.info) return;
      const eta = pace.eta(event);
      // Stages of a few hundred items (layers, windows) get every line; finer ones at most one a second.
      const now = performance.now();
      const edge = event.stage !== stage || event.item === event.total;
      if (!edge && event.total > 500 && now - writtenAt < 1000) return;
      stage = event.stage;
      writtenAt = now;
      sink.write(`${describe(event, eta)}\n`);
    },
    close() {},
  };
}

/** One JSON object per line and event (`--json=stream`). */
export function jsonRenderer(sink: TextSink): ProgressRenderer {
  const pace = new Pace();
  return {
    handle(event) {
      if (event.type === "log") {
        sink.write(`${JSON.stringify(event)}\n`);
        return;
      }
      const etaSeconds = pace.eta(event);
      sink.write(`${JSON.stringify({ ...event, etaSeconds, peakBytes: peakRssBytes() })}\n`);
    },
    close() {},
  };
}

function prefix(event: LogEvent): string {
  return event.level === "warn" ? "warning: " : "";
}

function formatLoss(loss: number): string {
  const size = Math.abs(loss);
  return size !== 0 && (size < 0.01 || size >= 1e4) ? loss.toExponential(2) : loss.toPrecision(4);
}
