/**
 * What `npm start` does: quantize the default model with QuaRot, measure what was gained and lost against the original and
 * against plain rounding, keep everything under NIBBLE_HOME so that the next start takes seconds. The texts it calibrates
 * and measures with ship with the package and share no sentence.
 */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeFileAtomic } from "../core/atomic-write.js";
import { fileFolder } from "../core/file-source.js";
import { nibbleHome } from "../core/home.js";
import { defaultThreads } from "../core/memory.js";
import type { OnProgress } from "../core/progress.js";
import { VERSION } from "../core/version.js";
import { encodeStream, evaluatePerplexity } from "../eval/perplexity.js";
import { saveArtifact, saveReport } from "../formats/nibble.js";
import { readManifest } from "../formats/nibble-read.js";
import type { BackendId } from "../kernels/contract.js";
import { selectBackend } from "../kernels/select.js";
import { kvPreset } from "../kv/presets.js";
import { benchModel } from "../runtime/bench.js";
import { loadModel } from "../runtime/load-model.js";
import { type OpenedModel, openModel } from "../runtime/open.js";
import { recipeFromObject } from "./load.js";
import { fingerprint } from "./resume.js";
import { compress } from "./run.js";
import type { RecipeInput } from "./schema.js";

export const DEFAULT_MODEL = "smollm2-135m";
const CALIBRATION = { samples: 16, seqlen: 512 };
const REPORT_CTX = 1024;
const REPORT_WINDOWS = 3;
const data = (name: string) => fileURLToPath(new URL(`../../data/${name}`, import.meta.url));

export interface MainJobRow {
  name: string;
  /** How the row was made, where that is not evident. */
  note: string;
  weightBytes: number;
  bitsPerWeight: number;
  perplexity: number;
  /** KL(original || row), nats a token; 0 for the original. */
  kl: number;
  topAgreement: number;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
}

export interface MainJobReport {
  model: string;
  backend: string;
  threads: number;
  tokens: number;
  ctx: number;
  rows: MainJobRow[];
  seconds: number;
}

export interface MainJobOptions {
  backend?: "auto" | BackendId;
  threads?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

export interface MainJobResult {
  report: MainJobReport;
  /** The W4A8KV4 artifact, to chat with. */
  artifact: string;
  /** True when nothing had to be done. */
  cached: boolean;
}

const grouped = { bits: 4, groupSize: 64, sym: false };
const embeddings = { embeddings: { bits: 8 } };
const activations = (bits: number) => ({
  activations: { bits, granularity: "token", sym: true, clip: bits === 4 ? 0.9 : 1 },
});
const run = { version: 1 as const, seed: 0, calibration: CALIBRATION };
const RECIPES = {
  quarot: {
    ...run,
    steps: [
      "quarot",
      { gptq: { ...grouped, clip: "none" } },
      embeddings,
      activations(8),
      { kv: "quarot-kv4" },
    ],
  },
  rtn: {
    ...run,
    steps: [
      { rtn: { ...grouped, clip: "none" } },
      embeddings,
      activations(4),
      { kv: "quarot-kv4-paper" },
    ],
  },
  rtnClip: {
    ...run,
    steps: [
      { rtn: { ...grouped, clip: "mse" } },
      embeddings,
      activations(4),
      { kv: "quarot-kv4-paper" },
    ],
  },
} satisfies Record<string, RecipeInput>;

/** @throws ModelError that names the ways to provide the default model; whatever compress and evaluate throw */
export async function runMainJob(options: MainJobOptions = {}): Promise<MainJobResult> {
  const started = performance.now();
  const onProgress = options.onProgress ?? (() => {});
  const threads = options.threads ?? defaultThreads();
  const common = {
    threads,
    ...(options.backend ? { backend: options.backend } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
  };
  const original = await loadModel(DEFAULT_MODEL, {
    onProgress,
    ...(options.signal ? { signal: options.signal } : {}),
  });
  try {
    const backend = await selectBackend(options.backend ?? "auto", (message) =>
      onProgress({ type: "log", level: "info", message }),
    );
    const { variant } = await backend.status();
    const text = await readFile(data("report-text.txt"), "utf8");
    const id = fingerprint({
      model: await original.source.sha256(),
      recipes: RECIPES,
      text: fingerprint({
        text,
        calibration: await readFile(data("calibration-text.txt"), "utf8"),
      }),
      backend: `${backend.id} ${variant}`,
      threads,
      version: VERSION,
    });
    const home = join(nibbleHome(), "start", id.slice(0, 32));
    const artifact = join(home, "quarot-w4a8kv4");
    const reportFile = join(home, "report.json");
    const known = await readFile(reportFile, "utf8").catch(() => null);
    if (known && existsSync(join(artifact, "nibble.json"))) {
      return { report: JSON.parse(known) as MainJobReport, artifact, cached: true };
    }

    const folders: Record<string, string> = { quarot: artifact };
    for (const [name, recipe] of Object.entries(RECIPES)) {
      const folder = folders[name] ?? join(home, name);
      folders[name] = folder;
      if (existsSync(join(folder, "nibble.json"))) continue;
      const fresh = await loadModel(DEFAULT_MODEL);
      try {
        await compress(
          fresh,
          recipeFromObject(recipe, { calibration: data("calibration-text.txt") }),
          {
            ...common,
            output: folder,
            onProgress,
          },
        );
      } finally {
        await fresh.close();
      }
    }
    // The same 4-bit weights with 4-bit activations and the paper's cache: only what happens at run time differs.
    const w4a4 = join(home, "quarot-w4a4kv4");
    if (!existsSync(join(w4a4, "nibble.json"))) await withFourBitActivations(artifact, w4a4);

    const open = (source: Parameters<typeof openModel>[0]) =>
      openModel(source, { ...common, maxContext: REPORT_CTX });
    const reference = await open(original);
    const rows: MainJobRow[] = [];
    let tokens = 0;
    try {
      const ids = encodeStream(reference, text);
      const measure = async (name: string, note: string, opened: OpenedModel) => {
        onProgress({ type: "step", stage: "measuring", item: rows.length, total: 5, name });
        const isOriginal = opened === reference;
        const quality = await evaluatePerplexity(opened, ids, {
          ctx: REPORT_CTX,
          windows: REPORT_WINDOWS,
          ...(isOriginal ? {} : { reference }),
          ...(options.signal ? { signal: options.signal } : {}),
        });
        tokens = quality.tokens;
        const speed = await benchModel(opened, { prefill: 256, decode: 32, rounds: 3 });
        rows.push({
          name,
          note,
          weightBytes: opened.compiled.weightBytes,
          bitsPerWeight: (opened.compiled.weightBytes * 8) / parameterCount(opened),
          perplexity: quality.perplexity,
          kl: quality.kl ?? 0,
          topAgreement: quality.topAgreement ?? 1,
          prefillTokensPerSecond: speed.prefillTokensPerSecond,
          decodeTokensPerSecond: speed.decodeTokensPerSecond,
        });
      };
      await measure("original", "32-bit floats", reference);
      for (const [name, note, folder] of [
        ["RTN W4A4KV4", "rounding, no rotation, no clipping", folders.rtn],
        ["RTN W4A4KV4", "rounding, no rotation, clip search", folders.rtnClip],
        ["QuaRot W4A4KV4", "the W4A8KV4 weights, 4-bit activations", w4a4],
        ["QuaRot W4A8KV4", "rotation and GPTQ", artifact],
      ] as const) {
        const opened = await open(folder as string);
        try {
          await measure(name, note, opened);
        } finally {
          await opened.close();
        }
      }
    } finally {
      await reference.close();
    }
    // Clipping may help or hurt an unrotated model; the fair baseline is the better of the two.
    const [clipOff, clipOn] = rows.splice(1, 2) as [MainJobRow, MainJobRow];
    rows.splice(1, 0, clipOn.perplexity < clipOff.perplexity ? clipOn : clipOff);
    const report: MainJobReport = {
      model: DEFAULT_MODEL,
      backend: `${backend.id} ${variant ?? ""}`.trim(),
      threads,
      tokens,
      ctx: REPORT_CTX,
      rows,
      seconds: (performance.now() - started) / 1000,
    };
    await writeFileAtomic(reportFile, `${JSON.stringify(report, null, 1)}\n`);
    return { report, artifact, cached: false };
  } finally {
    await original.close();
  }
}

/** Writes a copy of an artifact whose activations have 4 bits. */
async function withFourBitActivations(from: string, to: string): Promise<void> {
  const { version, backend, recipe, seed } = await readManifest(await fileFolder(from));
  const model = await loadModel(from);
  try {
    const quantizer = { bits: 4, granularity: "token", symmetric: true, clip: 0.9 } as const;
    model.activations = {
      attn_in: quantizer,
      attn_out: quantizer,
      mlp_in: quantizer,
      mlp_out: quantizer,
    };
    model.kv = kvPreset("quarot-kv4-paper");
    const saved = await saveArtifact(to, model, {
      version,
      backend,
      recipe: { base: recipe, activations: quantizer, kv: "quarot-kv4-paper" },
      seed,
    });
    await saveReport(to, { version: VERSION, ...saved });
  } finally {
    await model.close();
  }
}

/** Weights of the model, a tied head counted once. */
function parameterCount(opened: OpenedModel): number {
  let count = 0;
  for (const { spec } of opened.model.parameters.values())
    count += spec.shape.reduce((a, b) => a * b, 1);
  return count;
}
