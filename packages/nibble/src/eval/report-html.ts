/** The comparison as one HTML file: tables, pictures as inline SVG, the command that makes it again. No script, no network. */
import { barChart } from "./charts/bars.js";
import { paretoChart } from "./charts/pareto.js";
import { CHART_STYLE, escapeXml } from "./charts/svg.js";
import type { CompareResult, ModelSpeed } from "./compare.js";
import { conclusions, modelRows, READING, taskRows, textRows } from "./report-markdown.js";

const PAGE_STYLE = `
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;background:#fff;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:.9rem;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;border-bottom:1px solid #e3e6ea;text-align:left;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f3f5f7;padding:.8rem;overflow-x:auto;border-radius:6px}
figure{margin:1.5rem 0}figcaption{font-size:.8rem;color:#5b6570}svg{max-width:100%;height:auto}
@media (prefers-color-scheme:dark){body{background:#14171b;color:#e8eaed}th,td{border-color:#2c3238}pre{background:#1e2329}figcaption{color:#9aa4af}}
${CHART_STYLE}`;

/** Rows as an HTML table; cells that begin like a number are set to the right. */
export function htmlTable(rows: string[][]): string {
  const [head = [], ...body] = rows;
  const cell = (c: string) =>
    `<td${/^[+-]?[\d.]/.test(c) ? ' class="n"' : ""}>${escapeXml(c)}</td>`;
  return `<table><thead><tr>${head.map((c) => `<th>${escapeXml(c)}</th>`).join("")}</tr></thead><tbody>${body
    .map((row) => `<tr>${row.map(cell).join("")}</tr>`)
    .join("")}</tbody></table>`;
}

/** A picture with the command that makes it again. */
export function figure(svg: string, command: string): string {
  return `<figure>${svg}<figcaption>Made by <code>${escapeXml(command)}</code></figcaption></figure>`;
}

/** A whole page. */
export function htmlPage(title: string, body: string): string {
  return `<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\
<title>${escapeXml(title)}</title><style>${PAGE_STYLE}</style></head><body>${body}</body></html>\n`;
}

/** Pictures of a comparison: [name, svg]. */
export function compareCharts(result: CompareResult, speeds: ModelSpeed[]): [string, string][] {
  const charts: [string, string][] = [];
  const speedOf = (name: string) => speeds.find((s) => s.name === name)?.decodeTokensPerSecond;
  const measured = result.models.filter((m) => m.perplexity !== undefined);
  if (measured.length > 1) {
    const base = measured[0]?.perplexity ?? 0;
    // The interval that counts is that of the paired difference: all models saw the same text.
    const ratio = (name: string) =>
      result.comparisons.find((c) => c.model === name)?.text?.perplexityRatio;
    charts.push([
      "pareto",
      paretoChart({
        title: "Size against quality",
        subtitle:
          "Lower left is better. The staircase joins the models that no other beats in both size and perplexity; bars: 95 % interval of the difference from the baseline on this text.",
        xLabel: "bits per weight, whole file",
        yLabel: "perplexity",
        speedLabel: "decode tokens/s",
        points: measured.map((m, i) => {
          const speed = speedOf(m.name);
          const y = m.perplexity as number;
          const between = ratio(m.name);
          return {
            name: m.name,
            x: m.bitsPerWeight,
            y,
            ...(between ? { low: base * between.low, high: base * between.high } : {}),
            ...(speed === undefined ? {} : { speed }),
            ...(i === 0 ? { baseline: true } : {}),
          };
        }),
      }),
    ]);
  }
  const texts = result.comparisons.filter((c) => c.text);
  if (texts.length > 0) {
    charts.push([
      "kl",
      barChart({
        title: "Divergence from the baseline",
        subtitle:
          "Mean KL(baseline || model) over all predicted tokens; 0 would be the same model. Whiskers: 95 % interval.",
        xLabel: "KL divergence (nats a token)",
        series: ["KL"],
        groups: texts.map(({ model, text }) => ({
          name: model,
          bars: [{ ...(text?.kl.mean ?? { value: 0, low: 0, high: 0 }) }],
        })),
        format: (v) => (v === 0 ? "0" : v.toPrecision(2)),
      }),
    ]);
  }
  if (result.tasks.length > 0) {
    charts.push([
      "tasks",
      barChart({
        title: "Accuracy against the baseline",
        subtitle:
          "Difference in percentage points, paired on the same questions. An interval that includes 0 shows no difference.",
        xLabel: "Δ accuracy (percentage points)",
        series: result.comparisons.map((c) => c.model),
        reference: { value: 0, label: "baseline" },
        groups: result.tasks.map(({ id, n }) => ({
          name: id,
          note: result.comparisons[0]?.tasks[id]?.nearChance ? `n = ${n}, near chance` : `n = ${n}`,
          bars: result.comparisons.map(({ tasks }) => {
            const d = tasks[id]?.delta;
            return d ? { value: 100 * d.value, low: 100 * d.low, high: 100 * d.high } : null;
          }),
        })),
        format: (v) => v.toFixed(1),
      }),
    ]);
  }
  return charts;
}

/** The self-contained report. `more` are further pictures with the command of each. */
export function compareHtml(
  result: CompareResult,
  speeds: ModelSpeed[],
  more: { svg: string; command: string }[] = [],
): string {
  const title = result.models.map((m) => m.name).join(" · ");
  const list = (lines: readonly string[]) =>
    `<ul>${lines.map((l) => `<li>${escapeXml(l)}</li>`).join("")}</ul>`;
  const found = conclusions(result);
  const body = [
    `<h1>${escapeXml(title)}</h1>`,
    `<p>Baseline: <b>${escapeXml(result.models[0]?.name ?? "")}</b>. nibble ${escapeXml(result.version)}, backend ${escapeXml(result.models[0]?.backend ?? "")}, seed ${result.seed}.</p>`,
    htmlTable(modelRows(result, speeds)),
    found.length > 0 ? `<h2>What can be said</h2>${list(found)}` : "",
    ...compareCharts(result, speeds).map(([, svg]) => figure(svg, result.command)),
    ...more.map(({ svg, command }) => figure(svg, command)),
    result.text
      ? `<h2>Text</h2><p>${escapeXml(result.text.file)} (sha256 <code>${result.text.sha256.slice(0, 12)}…</code>): ${result.text.tokens} predicted tokens in ${result.text.windows} windows of ${result.text.ctx}.</p>${htmlTable(textRows(result))}`
      : "",
    result.tasks.length > 0 ? `<h2>Tasks</h2>${htmlTable(taskRows(result))}` : "",
    `<h2>How to read this</h2>${list(READING)}`,
    `<h2>Again</h2><pre>${escapeXml(result.command)}</pre>`,
  ].join("\n");
  return htmlPage(title, body);
}
