import { describe, expect, it } from "vitest";
import type { CompareResult, TaskComparison } from "./compare.js";
import { recoveryHtml, recoveryMarkdown, recoveryReport } from "./recovery.js";
import { compareCharts, compareHtml } from "./report-html.js";
import { compareMarkdown } from "./report-markdown.js";

const task = (
  baseline: number,
  value: number,
  half: number,
  nearChance = false,
): TaskComparison => ({
  n: 500,
  chance: 0.25,
  baseline,
  model: baseline + value,
  delta: { value, low: value - half, high: value + half },
  mcNemar: { lost: 10, gained: 4, pValue: 0.18, method: "exact" },
  flips: 0.028,
  changed: 0.05,
  nearChance,
});
const facts = (name: string, bits: number) => ({
  name,
  source: name,
  fileBytes: bits * 1e6,
  parameters: 8e6,
  bitsPerWeight: bits,
  format: bits < 16 ? "W4A16-INT" : null,
  weightBytes: bits * 1e6,
  kv: "fp32",
  backend: "native avx2",
  perplexity: 20 - bits / 10,
  nll: 3,
  nllStderr: 0.01,
  tasks: {},
});
const ratio = { value: 1.1, low: 1.08, high: 1.12 };
const result: CompareResult = {
  version: "1",
  seed: 0,
  command: "nibble compare base <small> --ppl t.txt",
  text: { file: "t.txt", sha256: "ab".repeat(32), ctx: 512, windows: 4, tokens: 2044 },
  tasks: [
    { id: "arc_easy", n: 500, fewShot: 0 },
    { id: "winogrande", n: 500, fewShot: 0 },
  ],
  models: [facts("base", 16), facts("<small>", 4.5)],
  comparisons: [
    {
      model: "<small>",
      text: {
        tokens: 2044,
        perplexity: { baseline: 20, model: 22 },
        deltaPerplexity: { value: 2, low: 1.6, high: 2.4 },
        perplexityRatio: ratio,
        kl: { mean: { value: 0.1, low: 0.09, high: 0.11 }, median: 0.05, p99: 0.9, max: 3 },
        topAgreement: { value: 0.9, low: 0.88, high: 0.92 },
      },
      tasks: { arc_easy: task(0.5, -0.05, 0.02), winogrande: task(0.5, -0.2, 0.05, true) },
    },
  ],
};

describe("recoveryReport", () => {
  it("is 100 % for the baseline itself", () => {
    const same: CompareResult = {
      ...result,
      comparisons: [{ model: "b", tasks: { arc_easy: task(0.5, 0, 0) } }],
    };
    const [model] = recoveryReport(same, []).models;
    expect(model?.average).toEqual({ value: 100, low: 100, high: 100 });
    expect(recoveryReport(same, []).conclusions[0]).toMatch(/any loss is below 1 %/);
  });
  it("leaves tasks near chance out and says so", () => {
    const report = recoveryReport(result, []);
    expect(report.models[0]?.average?.value).toBeCloseTo(90, 10);
    expect(report.models[0]?.average?.low).toBeCloseTo(86, 10);
    expect(report.models[0]?.perplexity?.value).toBeCloseTo(100 / 1.1, 10);
    expect(report.conclusions).toEqual([
      "<small> recovers 86.0 to 94.0 % of base's accuracy over 1 task: a loss.",
      "<small>: perplexity recovers 89.3 to 92.6 %, a loss that the text shows clearly.",
      "Left out of the averages: winogrande, where base itself is near chance.",
    ]);
  });
  it("claims nothing when the interval is wide", () => {
    const wide: CompareResult = {
      ...result,
      comparisons: [{ model: "w", tasks: { arc_easy: task(0.5, -0.01, 0.05) } }],
    };
    expect(recoveryReport(wide, []).conclusions).toEqual([expect.stringMatching(/leaves open/)]);
  });
  it("turns times into cost: 0.36 an hour, 1 s for 100 tokens = 1 a million", () => {
    const speed = {
      model: "base",
      scenario: "chat",
      prompt: 64,
      generated: 100,
      firstTokenMs: 10,
      betweenTokensMs: 9.9,
      totalMs: 1000,
      streams: 8,
      answersPerSecond: 4,
      tokensPerSecond: 656,
    };
    const [row] = recoveryReport(result, [speed], 0.36).scenarios;
    expect(row?.costPerMillionLatency).toBeCloseTo(1, 10);
    expect(row?.costPerMillionThroughput).toBeCloseTo(0.25, 10);
    expect(recoveryReport(result, [speed]).scenarios[0]?.costPerMillionLatency).toBeNull();
    expect(recoveryMarkdown(recoveryReport(result, []))).toContain("| <small> | W4A16-INT | 90.0");
    expect(recoveryMarkdown(recoveryReport(result, [speed], 0.36))).toContain(
      "Cost at 0.36 an hour",
    );
  });
});

describe("reports", () => {
  it("HTML holds everything and escapes names", () => {
    const html = compareHtml(result, []) + recoveryHtml(recoveryReport(result, []), result.command);
    expect(html).toContain("&lt;small&gt;");
    expect(html).not.toMatch(/<small>|<script|src=|NaN|undefined/);
    expect(html.match(/<figure>/g)).toHaveLength(4);
    expect(compareCharts(result, []).map(([name]) => name)).toEqual(["pareto", "kl", "tasks"]);
    expect(compareHtml(result, [])).toBe(compareHtml(result, []));
  });
  it("Markdown says what the intervals allow, and the command", () => {
    const text = compareMarkdown(result, []);
    expect(text).toContain("perplexity is worse than base's by +8.00 % to +12.00 %");
    expect(text).toContain("arc_easy is worse: -5.0 [-7.0, -3.0] points (p = 0.180)");
    expect(text).toContain("winogrande: say nothing, base itself is near chance");
    expect(text).toContain("nibble compare base <small> --ppl t.txt");
    expect(text).not.toMatch(/NaN|undefined/);
  });
});
