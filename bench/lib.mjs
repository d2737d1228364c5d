// What the benches of this folder share: statistics, tables, facts about the run.
import { cpus, loadavg } from "node:os";

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Calls every task once a round, in turn, and collects what they return (a rate). A round before the first one warms up.
 * @param tasks { name: async () => number }
 * @returns { name: number[] }
 */
export async function interleave(tasks, rounds) {
  const rates = Object.fromEntries(Object.keys(tasks).map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const [name, task] of Object.entries(tasks)) {
      const rate = await task();
      if (round >= 0) rates[name].push(rate);
    }
  }
  return rates;
}

/** Median of the ratios of rounds, and ratio of the best rounds. */
export function ratio(a, b) {
  return { median: median(a.map((x, i) => x / b[i])), best: Math.max(...a) / Math.max(...b) };
}

/** Rows (the first is the title) as a Markdown table whose columns are aligned. */
export function markdown(rows) {
  const cells = rows.map((row) => row.map(String));
  const widths = cells[0].map((_, i) => Math.max(3, ...cells.map((row) => row[i].length)));
  const line = (row) => `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`;
  const rule = `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`;
  return [line(cells[0]), rule, ...cells.slice(1).map(line)].join("\n");
}

/** One line that says where the numbers come from. */
export function facts() {
  return `${cpus()[0].model}, ${cpus().length} processors, load ${loadavg()[0].toFixed(2)}, Node ${process.version}`;
}

export const percent = (share) => (share === null ? "?" : `${(100 * share).toFixed(0)} %`);
export const times = (value) => `${value.toFixed(2)}x`;
