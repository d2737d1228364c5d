/**
 * Runs a sweep in this process, job by job: compress, measure through the real runtime, keep the result under its hash. A
 * sweep that was killed goes on where it stopped; a job that fails is reported and the others run. Results that are kept
 * hold no times in what is compared; speed stands apart.
 */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../core/atomic-write.js";
import { NibbleError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import type { OnProgress } from "../core/progress.js";
import { paretoChart, paretoFront } from "../eval/charts/pareto.js";
import { escapeXml } from "../eval/charts/svg.js";
import { compareText } from "../eval/compare.js";
import { measureTaskData, measureText, type TaskSummary } from "../eval/measure.js";
import { emptyRecord } from "../eval/perplexity.js";
import { figure, htmlPage, htmlTable } from "../eval/report-html.js";
import { interval, markdownTable } from "../eval/report-markdown.js";
import type { Estimate } from "../eval/statistics.js";
import type { BackendId } from "../kernels/contract.js";
import { inspectModel } from "../runtime/inspect.js";
import { compress } from "./run.js";
import type { SweepJob, SweepPlan } from "./sweep-plan.js";

export interface SweepQuality {
  bitsPerWeight: number;
  bytes: number;
  perplexity?: number;
  nllStderr?: number;
  /** Model / original on the same targets. */
  perplexityRatio?: Estimate;
  /** KL(original || model), nats a token. */
  kl?: number;
  topAgreement?: number;
  tasks: Record<string, Pick<TaskSummary, "accuracy" | "stderr" | "n"> & { accuracyNorm?: number }>;
}

export interface SweepRow {
  id: string;
  model: string;
  name: string;
  quality: SweepQuality | null;
  /** Prompt tokens a second while it was measured, and seconds of compressing: they differ from run to run. */
  tokensPerSecond: number | null;
  seconds: number | null;
  error: string | null;
}

export interface SweepOptions {
  /** Folder of artifacts that are being made (and kept, if the sweep says so). */
  output: string;
  /** Folder of known results; default NIBBLE_HOME/sweep. */
  cache?: string;
  backend?: "auto" | BackendId;
  threads?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

/** How a job is run; tests and queues bring their own. */
export type RunJob = (job: SweepJob, plan: SweepPlan, options: SweepOptions) => Promise<SweepRow>;

const cacheFolder = (options: SweepOptions) => options.cache ?? join(nibbleHome(), "sweep");

/** A known result, or null. A damaged file is no result. */
export async function knownResult(job: SweepJob, options: SweepOptions): Promise<SweepRow | null> {
  const text = await readFile(join(cacheFolder(options), `${job.id}.json`), "utf8").catch(
    () => null,
  );
  if (text === null) return null;
  try {
    const row = JSON.parse(text) as SweepRow;
    return row.id === job.id && row.quality ? { ...row, model: job.model, name: job.name } : null;
  } catch {
    return null;
  }
}

export async function keepResult(row: SweepRow, options: SweepOptions): Promise<void> {
  await writeFileAtomic(join(cacheFolder(options), `${row.id}.json`), `${JSON.stringify(row)}\n`);
}

/** Compresses and measures one job. @throws whatever compress and the measurements throw */
export const runJob: RunJob = async (job, plan, options) => {
  const { spec, text, tasks } = plan;
  const { output, cache: _cache, ...run } = options;
  const artifact = join(output, `${job.id.slice(0, 12)}`);
  let seconds = 0;
  if (job.recipe)
    ({ seconds } = await compress(job.model, job.recipe, { ...run, output: artifact }));
  const model = job.recipe ? artifact : job.model;
  const { ctx, windows } = spec.eval;
  const record = emptyRecord();
  const onText = text
    ? await measureText(model, text.content, {
        ...run,
        ctx,
        ...(windows === undefined ? {} : { windows }),
        ...(job.recipe ? { reference: job.model, record } : {}),
        ...(text.file.endsWith(".jsonl") ? { jsonLines: text.file } : {}),
      })
    : null;
  const onTasks =
    tasks.length > 0 ? await measureTaskData(model, tasks, { ...run, seed: spec.seed }) : {};
  const { bytes, bitsPerWeight } = await inspectModel(model);
  if (job.recipe && !spec.keep) await rm(artifact, { recursive: true, force: true });
  return {
    id: job.id,
    model: job.model,
    name: job.name,
    quality: {
      bitsPerWeight: bitsPerWeight.whole,
      bytes,
      ...(onText ? { perplexity: onText.perplexity, nllStderr: onText.nllStderr } : {}),
      ...(record.kl.length > 0
        ? { perplexityRatio: compareText(record, spec.seed, "sweep").perplexityRatio }
        : {}),
      ...(onText?.kl === undefined ? {} : { kl: onText.kl }),
      ...(onText?.topAgreement === undefined ? {} : { topAgreement: onText.topAgreement }),
      tasks: Object.fromEntries(
        Object.entries(onTasks).map(([id, { accuracy, stderr, n, accuracyNorm }]) => [
          id,
          { accuracy, stderr, n, ...(accuracyNorm === undefined ? {} : { accuracyNorm }) },
        ]),
      ),
    },
    tokensPerSecond: onText?.tokensPerSecond ?? null,
    seconds,
    error: null,
  };
};

/** A row that says why there is no result. Interruptions are not caught: the sweep ends. */
export function failedRow(job: SweepJob, error: unknown): SweepRow {
  const message =
    error instanceof NibbleError ? `${error.code}: ${error.message}` : (error as Error).message;
  return {
    id: job.id,
    model: job.model,
    name: job.name,
    quality: null,
    tokensPerSecond: null,
    seconds: null,
    error: message,
  };
}

/** All jobs of a plan, one after another. Known results are not computed again. */
export async function runSweep(
  plan: SweepPlan,
  options: SweepOptions,
  run: RunJob = runJob,
): Promise<SweepRow[]> {
  const rows: SweepRow[] = [];
  for (const [i, job] of plan.jobs.entries()) {
    options.signal?.throwIfAborted();
    options.onProgress?.({
      type: "step",
      stage: "sweep",
      item: i,
      total: plan.jobs.length,
      name: job.name,
    });
    const known = await knownResult(job, options);
    if (known) {
      rows.push(known);
      continue;
    }
    try {
      const row = await run(job, plan, options);
      await keepResult(row, options);
      rows.push(row);
    } catch (error) {
      options.signal?.throwIfAborted();
      rows.push(failedRow(job, error));
      options.onProgress?.({
        type: "log",
        level: "warn",
        message: `${job.name}: ${(error as Error).message}`,
      });
    }
  }
  return rows;
}

/** Last part of a model's name. */
const short = (model: string) => model.replace(/\/+$/, "").split("/").pop() ?? model;

function tableRows(rows: SweepRow[], tasks: readonly string[]): string[][] {
  const percent = (v: number | undefined) => (v === undefined ? "" : `${(100 * v).toFixed(1)} %`);
  // One model is named in the heading.
  const several = new Set(rows.map((row) => row.model)).size > 1;
  return [
    [
      ...(several ? ["model"] : []),
      "recipe",
      "bits/weight",
      "perplexity",
      "% of the original's",
      "KL",
      "same first guess",
      ...tasks,
      "",
    ],
    ...rows.map((row) => {
      const q = row.quality;
      return [
        ...(several ? [short(row.model)] : []),
        row.name,
        q?.bitsPerWeight.toFixed(3) ?? "",
        q?.perplexity?.toFixed(3) ?? "",
        q?.perplexityRatio ? interval(q.perplexityRatio, 1, 100).replace(/^\+/, "") : "",
        q?.kl?.toFixed(4) ?? "",
        percent(q?.topAgreement),
        ...tasks.map((id) => percent(q?.tasks[id]?.accuracy)),
        row.error ?? "",
      ];
    }),
  ];
}

export interface SweepReport {
  /** A function of the inputs only: same sweep, same bytes. */
  json: string;
  markdown: string;
  html: string;
  /** Names of the rows that no other beats in bits and perplexity, by model. */
  front: Record<string, string[]>;
}

/** Table and Pareto front. @param command shell form of what makes it again */
export function sweepReport(plan: SweepPlan, rows: SweepRow[], command: string): SweepReport {
  const { tasks } = plan.spec.eval;
  const models = [...new Set(rows.map((row) => row.model))];
  const front: Record<string, string[]> = {};
  const pictures: string[] = [];
  for (const model of models) {
    const points = rows.flatMap((row) => {
      const y = row.quality?.perplexity;
      if (row.model !== model || y === undefined || !row.quality) return [];
      const ratio = row.quality.perplexityRatio;
      return [
        {
          name: row.name,
          x: row.quality.bitsPerWeight,
          y,
          ...(ratio
            ? { low: (y * ratio.low) / ratio.value, high: (y * ratio.high) / ratio.value }
            : {}),
          ...(row.tokensPerSecond === null ? {} : { speed: row.tokensPerSecond }),
          ...(row.name === "original" ? { baseline: true } : {}),
        },
      ];
    });
    front[short(model)] = paretoFront(points).map((p) => p.name);
    if (points.length < 2) continue;
    pictures.push(
      paretoChart({
        title: `Size against quality: ${short(model)}`,
        subtitle:
          "Lower left is better. The staircase joins the recipes that no other beats in both size and perplexity; bars: 95 % interval of the difference from the original on this text.",
        xLabel: "bits per weight, whole file",
        yLabel: "perplexity",
        speedLabel: "prompt tokens/s",
        points,
      }),
    );
  }
  const table = tableRows(rows, tasks);
  const title = `Sweep: ${models.map(short).join(", ")}`;
  const stable = rows.map(({ seconds: _s, tokensPerSecond: _t, model, ...row }) => ({
    model: short(model),
    ...row,
  }));
  return {
    json: `${JSON.stringify({ command, seed: plan.spec.seed, front, rows: stable }, null, 1)}\n`,
    markdown: `# ${title}\n\n${markdownTable(table)}\n\n\`\`\`\n${command}\n\`\`\`\n`,
    html: htmlPage(
      title,
      `<h1>${escapeXml(title)}</h1>${pictures.map((svg) => figure(svg, command)).join("")}${htmlTable(table)}<h2>Again</h2><pre>${escapeXml(command)}</pre>`,
    ),
    front,
  };
}
