/** The comparison as Markdown: tables with intervals, and sentences that say no more than the intervals do. */
import { formatBytes } from "../core/memory.js";
import { type CompareResult, type ModelSpeed, type TaskComparison, verdict } from "./compare.js";
import type { Estimate } from "./statistics.js";

const percent = (share: number, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** "+0.31 [0.12, 0.50]" */
export function interval(e: Estimate, digits: number, scale = 1, unit = ""): string {
  const f = (v: number) => (v * scale).toFixed(digits);
  const sign = e.value > 0 ? "+" : "";
  return `${sign}${f(e.value)}${unit} [${f(e.low)}, ${f(e.high)}]`;
}

/** Rows of a Markdown table; the first is the head. */
export function markdownTable(rows: string[][]): string {
  const [head = [], ...body] = rows;
  const line = (cells: string[]) => `| ${cells.map((c) => c.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...body.map(line)].join("\n");
}

/** p values as people read them. */
export function pText(p: number): string {
  return p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`;
}

export function modelRows(result: CompareResult, speeds: ModelSpeed[]): string[][] {
  const withText = result.models.some((m) => m.perplexity !== undefined);
  const head = ["model", "format", "size on disk", "bits/weight", "weights in memory", "cache"];
  if (withText) head.push("perplexity");
  if (speeds.length > 0) head.push("prefill tok/s", "decode tok/s", "peak memory");
  return [
    head,
    ...result.models.map((m) => {
      const speed = speeds.find((s) => s.name === m.name);
      return [
        m.name,
        m.format ?? "as in its file",
        formatBytes(m.fileBytes),
        m.bitsPerWeight.toFixed(2),
        formatBytes(m.weightBytes),
        m.kv,
        ...(withText
          ? [
              `${m.perplexity?.toFixed(3)} ± ${((m.perplexity ?? 0) * (m.nllStderr ?? 0)).toFixed(3)}`,
            ]
          : []),
        ...(speeds.length > 0
          ? [
              speed?.prefillTokensPerSecond.toFixed(0) ?? "",
              speed?.decodeTokensPerSecond.toFixed(1) ?? "",
              speed ? formatBytes(speed.peakBytes) : "",
            ]
          : []),
      ];
    }),
  ];
}

export function textRows(result: CompareResult): string[][] {
  const rows = result.comparisons.flatMap(({ model, text }) =>
    text
      ? [
          [
            model,
            interval(text.deltaPerplexity, 3),
            interval(text.perplexityRatio, 2, 100, " %").replace(/^\+/, ""),
            `${text.kl.mean.value.toFixed(4)} [${text.kl.mean.low.toFixed(4)}, ${text.kl.mean.high.toFixed(4)}]`,
            text.kl.median.toFixed(4),
            text.kl.p99.toFixed(3),
            percent(text.topAgreement.value),
          ],
        ]
      : [],
  );
  return [
    [
      "model",
      "Δ perplexity",
      "perplexity ratio",
      "KL mean",
      "KL median",
      "KL 99 %",
      "same first guess",
    ],
    ...rows,
  ];
}

export function taskRows(result: CompareResult): string[][] {
  const rows = result.comparisons.flatMap(({ model, tasks }) =>
    Object.entries(tasks).map(([id, t]) => [
      model,
      `${id}${t.nearChance ? " (near chance)" : ""}`,
      String(t.n),
      percent(t.baseline),
      percent(t.model),
      interval(t.delta, 1, 100),
      percent(t.flips),
      `${t.mcNemar.lost} lost, ${t.mcNemar.gained} gained, ${pText(t.mcNemar.pValue)}`,
    ]),
  );
  return [["model", "task", "n", "baseline", "model", "Δ points", "flips", "McNemar"], ...rows];
}

/** One sentence a model and measure: only what the intervals allow. */
export function conclusions(result: CompareResult): string[] {
  const base = result.models[0]?.name ?? "the baseline";
  const sentences = result.comparisons.flatMap(({ model, text, tasks }) => {
    const out: string[] = [];
    if (text) {
      const said = verdict(text.deltaPerplexity, false);
      const ratio = text.perplexityRatio;
      const change = (v: number) => `${v >= 1 ? "+" : ""}${(100 * (v - 1)).toFixed(2)} %`;
      out.push(
        said === "no difference shown"
          ? `${model}: no difference in perplexity from ${base} is shown (${change(ratio.low)} to ${change(ratio.high)}).`
          : `${model}: perplexity is ${said} than ${base}'s by ${change(ratio.low)} to ${change(ratio.high)}.`,
      );
    }
    const shown = Object.entries(tasks).filter(([, t]) => informative(t));
    for (const [id, t] of shown) {
      const said = verdict(t.delta, true);
      if (said !== "no difference shown") {
        out.push(
          `${model}: ${id} is ${said}: ${interval(t.delta, 1, 100)} points (${pText(t.mcNemar.pValue)}).`,
        );
      }
    }
    const quiet = shown
      .filter(([, t]) => verdict(t.delta, true) === "no difference shown")
      .map(([id]) => id);
    if (quiet.length > 0) out.push(`${model}: no difference is shown on ${quiet.join(", ")}.`);
    return out;
  });
  // Being near chance is the baseline's, so one sentence serves all models.
  const near = Object.entries(result.comparisons[0]?.tasks ?? {}).filter(([, t]) => t.nearChance);
  return near.length > 0
    ? [
        ...sentences,
        `${near.map(([id]) => id).join(", ")}: say nothing, ${base} itself is near chance there.`,
      ]
    : sentences;
}

function informative(t: TaskComparison): boolean {
  return !t.nearChance;
}

/** How to read the columns, for somebody who meets them first. */
export const READING: readonly string[] = [
  "Intervals are 95 %. On text: paired bootstrap, blocks of neighbouring tokens are drawn again and again for both models together. On tasks: from the questions that only one of the two answers rightly (Bonett and Price).",
  "KL is KL(baseline || model) in nats a token: how much of the baseline's prediction is lost. Same first guess: share of positions where both models would pick the same token.",
  "Flips: questions that were right and are wrong now, or the other way round. Equal accuracy with many flips is not the same model.",
  "McNemar tests whether more answers were lost than gained beyond chance.",
];

export function compareMarkdown(result: CompareResult, speeds: ModelSpeed[]): string {
  const parts = [
    `# ${result.models.map((m) => m.name).join(" · ")}`,
    `Baseline: **${result.models[0]?.name}**. nibble ${result.version}, backend ${result.models[0]?.backend}, seed ${result.seed}.`,
    markdownTable(modelRows(result, speeds)),
  ];
  const found = conclusions(result);
  if (found.length > 0)
    parts.push("## What can be said", found.map((line) => `- ${line}`).join("\n"));
  if (result.text) {
    const { file, tokens, windows, ctx, sha256 } = result.text;
    parts.push(
      "## Text",
      `${file} (sha256 ${sha256.slice(0, 12)}…): ${tokens} predicted tokens in ${windows} windows of ${ctx}.`,
      markdownTable(textRows(result)),
    );
  }
  if (result.tasks.length > 0) parts.push("## Tasks", markdownTable(taskRows(result)));
  parts.push("## How to read this", READING.map((line) => `- ${line}`).join("\n"));
  parts.push("## Again", `\`\`\`\n${result.command}\n\`\`\``);
  return `${parts.join("\n\n")}\n`;
}
