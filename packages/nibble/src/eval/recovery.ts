/**
 * Recovery report in the manner of "Give Me BF16 or Give Me Death?" (Kurtic et al., arXiv:2411.02355): accuracy of each
 * quantized model in percent of the original's, per task and averaged, beside latency, throughput and cost. Sentences are
 * written only where an interval excludes the contrary; tasks on which the original itself guesses do not count.
 */
import { barChart } from "./charts/bars.js";
import type { CompareResult } from "./compare.js";
import { figure, htmlTable } from "./report-html.js";
import { markdownTable } from "./report-markdown.js";
import type { ScenarioSpeed } from "./scenarios.js";
import type { Estimate } from "./statistics.js";

export interface TaskRecovery extends Estimate {
  task: string;
  nearChance: boolean;
}

export interface ModelRecovery {
  model: string;
  format: string | null;
  tasks: TaskRecovery[];
  /** Mean over the tasks that are not near chance, percent; null when there is none. */
  average: Estimate | null;
  /** Perplexity of the original in percent of the model's. */
  perplexity: Estimate | null;
}

export interface CostRow extends ScenarioSpeed {
  /** Price of a million generated tokens, one stream and batch; null without a price. */
  costPerMillionLatency: number | null;
  costPerMillionThroughput: number | null;
}

export interface RecoveryReport {
  baseline: string;
  models: ModelRecovery[];
  scenarios: CostRow[];
  costPerHour: number | null;
  conclusions: string[];
}

const percent = (e: Estimate): Estimate => ({
  value: 100 * e.value,
  low: 100 * e.low,
  high: 100 * e.high,
});

/** Recovery of an accuracy from the paired difference: (baseline + delta) / baseline. */
function recoveryOf(baseline: number, delta: Estimate): Estimate {
  const share = (d: number) => (baseline + d) / baseline;
  return percent({ value: share(delta.value), low: share(delta.low), high: share(delta.high) });
}

/**
 * Mean of independent estimates. Tasks have different questions, so half-widths add as squares.
 */
function average(parts: Estimate[]): Estimate | null {
  if (parts.length === 0) return null;
  const n = parts.length;
  const value = parts.reduce((sum, p) => sum + p.value, 0) / n;
  const spread = (side: (p: Estimate) => number) =>
    Math.sqrt(parts.reduce((sum, p) => sum + side(p) ** 2, 0)) / n;
  return {
    value,
    low: value - spread((p) => p.value - p.low),
    high: value + spread((p) => p.high - p.value),
  };
}

/** @param costPerHour price of the machine that was measured, any currency */
export function recoveryReport(
  result: CompareResult,
  scenarios: ScenarioSpeed[],
  costPerHour?: number,
): RecoveryReport {
  const baseline = result.models[0]?.name ?? "";
  const models = result.comparisons.map(({ model, tasks, text }): ModelRecovery => {
    const rows = Object.entries(tasks)
      .filter(([, t]) => t.baseline > 0)
      .map(([task, t]) => ({ task, nearChance: t.nearChance, ...recoveryOf(t.baseline, t.delta) }));
    const ratio = text?.perplexityRatio;
    return {
      model,
      format: result.models.find(({ name }) => name === model)?.format ?? null,
      tasks: rows,
      average: average(rows.filter((r) => !r.nearChance)),
      perplexity: ratio
        ? percent({ value: 1 / ratio.value, low: 1 / ratio.high, high: 1 / ratio.low })
        : null,
    };
  });
  const perMillion = (seconds: number, tokens: number) =>
    costPerHour === undefined ? null : ((costPerHour / 3600) * seconds * 1e6) / tokens;
  const rows = scenarios.map((s) => ({
    ...s,
    costPerMillionLatency: perMillion(s.totalMs / 1000, s.generated),
    costPerMillionThroughput: perMillion(1 / s.answersPerSecond, s.generated),
  }));
  return {
    baseline,
    models,
    scenarios: rows,
    costPerHour: costPerHour ?? null,
    conclusions: [
      ...models.flatMap((m) => conclusionsOf(m, baseline)),
      ...leftOut(models[0]?.tasks ?? [], baseline),
    ],
  };
}

/** Loss that the paper calls small: less than one percent of the original. */
const SMALL = 1;

function conclusionsOf(
  { model, average: mean, tasks, perplexity }: ModelRecovery,
  baseline: string,
): string[] {
  const out: string[] = [];
  const between = (e: Estimate) => `${e.low.toFixed(1)} to ${e.high.toFixed(1)} %`;
  if (mean) {
    const counted = tasks.filter((t) => !t.nearChance).length;
    const over = `over ${counted} task${counted === 1 ? "" : "s"}`;
    if (mean.high < 100)
      out.push(`${model} recovers ${between(mean)} of ${baseline}'s accuracy ${over}: a loss.`);
    else if (mean.low >= 100 - SMALL)
      out.push(
        `${model} recovers at least ${mean.low.toFixed(1)} % of ${baseline}'s accuracy ${over}: any loss is below ${SMALL} %.`,
      );
    else
      out.push(
        `${model}: a recovery of ${between(mean)} ${over} leaves open whether accuracy is lost; more questions would tell.`,
      );
  }
  if (perplexity && perplexity.high < 100) {
    out.push(
      `${model}: perplexity recovers ${between(perplexity)}, a loss that the text shows clearly.`,
    );
  }
  return out;
}

/** Being near chance is the original's, so one sentence serves all models. */
function leftOut(tasks: TaskRecovery[], baseline: string): string[] {
  const near = tasks.filter((t) => t.nearChance).map((t) => t.task);
  if (near.length === 0) return [];
  return [`Left out of the averages: ${near.join(", ")}, where ${baseline} itself is near chance.`];
}

function recoveryRows(report: RecoveryReport): string[][] {
  const tasks = report.models[0]?.tasks ?? [];
  const show = (e: Estimate | null | undefined) =>
    e ? `${e.value.toFixed(1)} [${e.low.toFixed(1)}, ${e.high.toFixed(1)}]` : "";
  return [
    [
      "model",
      "format",
      "average",
      ...tasks.map((t) => `${t.task}${t.nearChance ? " (near chance)" : ""}`),
      "perplexity",
    ],
    ...report.models.map((m) => [
      m.model,
      m.format ?? "",
      show(m.average),
      ...m.tasks.map(show),
      show(m.perplexity),
    ]),
  ];
}

function scenarioRows(report: RecoveryReport): string[][] {
  const cost = report.costPerHour !== null;
  const head = [
    "scenario",
    "model",
    "first token ms",
    "between tokens ms",
    "answer ms",
    "answers/s (batch)",
    "tokens/s (batch)",
  ];
  if (cost) head.push("cost / M tokens, one stream", "cost / M tokens, batch");
  return [
    head,
    ...report.scenarios.map((s) => [
      `${s.scenario} (${s.prompt} + ${s.generated})`,
      s.model,
      s.firstTokenMs.toFixed(0),
      s.betweenTokensMs.toFixed(1),
      s.totalMs.toFixed(0),
      s.answersPerSecond.toFixed(2),
      s.tokensPerSecond.toFixed(0),
      ...(cost
        ? [s.costPerMillionLatency?.toFixed(3) ?? "", s.costPerMillionThroughput?.toFixed(3) ?? ""]
        : []),
    ]),
  ];
}

export function recoveryMarkdown(report: RecoveryReport): string {
  const parts = [
    "## Recovery",
    `Accuracy in percent of ${report.baseline}'s, 95 % intervals; perplexity: the original's in percent of the model's.`,
    markdownTable(recoveryRows(report)),
    report.conclusions.map((line) => `- ${line}`).join("\n"),
  ];
  if (report.scenarios.length > 0) {
    parts.push("### Latency and throughput", markdownTable(scenarioRows(report)));
    if (report.costPerHour !== null)
      parts.push(`Cost at ${report.costPerHour} an hour, per million generated tokens.`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** The chart of the report: recovery by task and model. */
export function recoveryChart(report: RecoveryReport): string {
  const tasks = report.models[0]?.tasks ?? [];
  return barChart({
    title: "Accuracy recovery",
    subtitle: `Accuracy in percent of ${report.baseline}'s on the same questions. Whiskers: 95 % intervals; one that reaches 100 leaves open whether anything is lost.`,
    xLabel: "recovery (%)",
    series: report.models.map((m) => m.model),
    zero: false,
    reference: { value: 100, label: report.baseline },
    groups: [
      ...(report.models.some((m) => m.average)
        ? [{ name: "average", bars: report.models.map((m) => m.average) }]
        : []),
      ...tasks.map((t, i) => ({
        name: t.task,
        ...(t.nearChance ? { note: "near chance" } : {}),
        bars: report.models.map((m) => m.tasks[i] ?? null),
      })),
    ],
    format: (v) => v.toFixed(1),
  });
}

export function recoveryHtml(report: RecoveryReport, command: string): string {
  const list = `<ul>${report.conclusions.map((l) => `<li>${l.replaceAll("&", "&amp;").replaceAll("<", "&lt;")}</li>`).join("")}</ul>`;
  const chart =
    (report.models[0]?.tasks.length ?? 0) > 0 ? figure(recoveryChart(report), command) : "";
  const speed =
    report.scenarios.length > 0
      ? `<h2>Latency and throughput</h2>${htmlTable(scenarioRows(report))}`
      : "";
  const cost =
    report.costPerHour === null
      ? ""
      : `<p>Cost at ${report.costPerHour} an hour, per million generated tokens.</p>`;
  return `<h2>Recovery</h2>${list}${htmlTable(recoveryRows(report))}${chart}${speed}${cost}`;
}
