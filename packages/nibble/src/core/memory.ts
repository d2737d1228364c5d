/** Sizes: how much memory the process used, and how byte counts are read and written. */
import { UsageError } from "./errors.js";

/** Largest resident set of this process so far in bytes, or 0 where the platform does not tell (browsers). */
export function peakRssBytes(): number {
  if (typeof process === "undefined" || typeof process.resourceUsage !== "function") return 0;
  return process.resourceUsage().maxRSS * 1024;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** "53.1 MiB": three significant digits, binary units. */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return "?";
  let value = Math.abs(bytes);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${bytes < 0 ? "-" : ""}${value.toFixed(digits)} ${UNITS[unit]}`;
}

/**
 * Bytes of "8GiB", "500 MB", "1.5g" or "4096". GB, MB, kB are powers of 1000; GiB and a bare G are powers of 1024.
 * @throws UsageError for anything else.
 */
export function parseBytes(text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*$/i.exec(text);
  if (!match) {
    throw new UsageError(`"${text}" is not a size`, { hint: "Write it like 8GiB, 500MB or 4096." });
  }
  const [, number = "", prefix = "", binary = "", b = ""] = match;
  const power = ["", "k", "m", "g", "t"].indexOf(prefix.toLowerCase());
  const base = binary === "" && b !== "" ? 1000 : 1024;
  return Math.round(Number(number) * base ** power);
}

/** "7 s", "3 min 20 s", "2 h 05 min". */
export function formatSeconds(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
}

/** "134.5 M" for counts of parameters, tokens, operations. */
export function formatCount(count: number): string {
  for (const [size, letter] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (count >= size) return `${(count / size).toFixed(count >= 100 * size ? 0 : 1)} ${letter}`;
  }
  return String(Math.round(count));
}

function pad(n: number): string {
  return String(n).padStart(2, "0");
}

/** Threads to use when nobody says: every processor this process may run on, at most 16. */
export function defaultThreads(): number {
  const count = globalThis.navigator?.hardwareConcurrency ?? processors();
  return Math.max(1, Math.min(16, count));
}

/** Node 20 has no navigator. */
function processors(): number {
  return typeof process === "undefined"
    ? 1
    : (process.getBuiltinModule?.("node:os").availableParallelism() ?? 1);
}

/**
 * Gives the memory of dropped tensors back at once, where the process lets its collector be called (the command line, and
 * `node --expose-gc`); elsewhere V8 does it in its own time. A few milliseconds.
 */
export async function dropGarbage(): Promise<void> {
  await null; // a promise that just settled still holds its value until the next turn
  (globalThis as { gc?: () => void }).gc?.();
}
