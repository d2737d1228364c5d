/** `nibble bench`: prompt and decode speed of a model beside what the machine can do. */
import { Option } from "commander";
import { defaultThreads, formatBytes } from "../../core/memory.js";
import type { Ceilings } from "../../kernels/ceilings.js";
import type { BenchCase, CaseResult } from "../../runtime/bench-cases.js";
import {
  activationsOption,
  type BackendChoice,
  backendOption,
  defined,
  integer,
  integers,
  kvOption,
  parseKv,
} from "../options.js";
import { table } from "../output.js";
import { defineVerb } from "../verb.js";

interface Options {
  backend: BackendChoice;
  threads?: number[];
  prefill: number[];
  decode: number;
  depth: number[];
  batch: number[];
  rows: number[];
  rounds: number;
  kv?: string;
  kvCalibration?: string;
  activations?: "f32" | "i8";
  grow?: boolean;
}

/** How cost grows: what `--grow` measures where nothing else is said. */
const GROW = {
  prefill: [128, 256, 512, 1024, 2048, 4096, 8192],
  depth: [0, 128, 512, 1024, 2048, 4096, 8192],
  batch: [1, 2, 4, 8, 16],
  rows: [1, 2, 3, 4, 6, 8, 11],
} as const;

export const bench = defineVerb<Options>({
  name: "bench",
  summary: "measure prompt and decode speed as a share of what the machine can do",
  examples: [
    "nibble bench small",
    "nibble bench small --threads 1,2 --depth 0,512 --kv quarot-kv4",
    "nibble bench small --prefill 0 --batch 1,4,16         (several sequences side by side)",
    "nibble bench small --prefill 0 --rows 1,4,8           (checking drafts, as speculative decoding does)",
    "nibble bench small --grow --threads 1,2               (how cost grows with length, depth and batch)",
    "nibble bench small --backend wasm --json",
  ],
  define(command) {
    command
      .argument("<model>", "model to measure")
      .option("--prefill <n,...>", "tokens of the prompt; 0: none", integers("--prefill", 0), [512])
      .option("--decode <n>", "tokens decoded one by one; 0: none", integer("--decode", 0), 64)
      .option("--depth <n,...>", "tokens in the cache before decoding", integers("--depth", 0), [0])
      .option(
        "--batch <n,...>",
        "sequences decoded side by side",
        integers("--batch", 1, 1024),
        [1],
      )
      .option("--rows <n,...>", "rows of a sequence in one run", integers("--rows", 1, 64), [1])
      .addOption(
        new Option("--threads <n,...>", "threads (default: all processors)")
          .env("NIBBLE_THREADS")
          .argParser(integers("--threads", 1, 256)),
      )
      .option("--grow", "prompts and depths up to 8192, batches up to 16, rows up to 11")
      .option("--rounds <n>", "measured rounds after one to warm up", integer("--rounds", 1), 5);
    kvOption(command);
    activationsOption(command);
    backendOption(command);
  },
  async run({ output, onProgress, signal }, [model = ""], options) {
    const { loadModel } = await import("../../runtime/load-model.js");
    const { openModel } = await import("../../runtime/open.js");
    const { benchCases, contextOf } = await import("../../runtime/bench-cases.js");
    const { flatResult } = await import("../../runtime/bench.js");
    const { measureCeilings } = await import("../../kernels/ceilings.js");
    const kv = await parseKv(options.kv, options.kvCalibration);
    const { rounds } = options;
    const threadCounts = options.threads ?? [defaultThreads()];
    const groups = caseGroups(options);
    const loaded = await loadModel(model, { signal });
    const runs = [];
    let facts = null;
    let done = 0;
    const total =
      threadCounts.length * groups.reduce((sum, group) => sum + group.length, 0) * (rounds + 1);
    try {
      for (const threads of threadCounts) {
        for (const cases of groups) {
          const opened = await openModel(loaded, {
            backend: options.backend,
            threads,
            maxContext: Math.max(...cases.map(contextOf)),
            sequences: Math.max(...cases.map((item) => (item.kind === "decode" ? item.batch : 1))),
            log: (line) => output.log(line),
            signal,
            ...defined({ kv, activations: options.activations }),
          });
          try {
            const { engine } = opened.compiled;
            const result = await benchCases(opened, cases, {
              rounds,
              signal,
              ceilings: () => measureCeilings(engine),
              onStep: () => onProgress({ type: "step", stage: "measuring", item: ++done, total }),
            });
            const flat = flatResult(opened, result, rounds);
            facts ??= flat;
            runs.push({ threads: flat.threads, ...result });
          } finally {
            await opened.close();
          }
        }
      }
    } finally {
      await loaded.close();
    }
    const inputs = defined({ activations: options.activations });
    return {
      result: { ...facts, ...inputs, runs },
      text: facts === null ? "" : report(facts, runs),
    };
  },
});

/** Cases that one opened model serves: one sequence with a long cache, or many with short ones. */
function caseGroups(options: Options): BenchCase[][] {
  const { decode: steps, grow } = options;
  const given = <T extends keyof typeof GROW>(name: T) =>
    grow && options[name].length === 1 ? GROW[name] : options[name];
  const prompts = given("prefill")
    .filter((tokens) => tokens > 0)
    .map((tokens): BenchCase => ({ kind: "prefill", tokens }));
  const decoding = (
    depths: readonly number[],
    batches: readonly number[],
    rows: readonly number[],
  ) =>
    steps === 0
      ? []
      : depths.flatMap((depth) =>
          batches.flatMap((batch) =>
            rows.map((r): BenchCase => ({ kind: "decode", steps, depth, batch, rows: r })),
          ),
        );
  const decodes = grow
    ? [
        ...decoding(given("depth"), [1], [1]),
        ...decoding([0], given("batch").slice(1), [1]),
        ...decoding([0], [1], given("rows").slice(1)),
      ]
    : decoding(options.depth, options.batch, options.rows);
  const single = (item: BenchCase) => item.kind === "prefill" || item.batch === 1;
  const all = [...prompts, ...decodes];
  const groups = [all.filter(single), all.filter((item) => !single(item))];
  return groups.filter((group) => group.length > 0);
}

interface Facts {
  backend: string;
  variant: string;
  weightBytes: number;
  peakBytes: number;
}
interface Run {
  threads: number;
  cases: readonly CaseResult[];
  ceilings: Ceilings;
}

function nameOf(item: BenchCase): string {
  if (item.kind === "prefill") return `prefill ${item.tokens}`;
  const { steps, depth, batch, rows } = item;
  return [
    `decode ${steps} @${depth}`,
    ...(batch > 1 ? [`${batch} sequences`] : []),
    ...(rows > 1 ? [`${rows} rows`] : []),
  ].join(", ");
}

function report(facts: Facts, runs: readonly Run[]): string {
  const rate = (value: number | null, digits = 0) => (value === null ? "?" : value.toFixed(digits));
  const percent = (share: number | null) => (share === null ? "?" : `${(100 * share).toFixed(0)}%`);
  const rows = runs.flatMap(({ threads, cases }) =>
    cases.map((result) => [
      nameOf(result.case),
      threads,
      result.tokensPerSecond.toFixed(1),
      result.tokensPerSecondBest.toFixed(1),
      result.tokensPerSecondMin.toFixed(1),
      (result.seconds * 1000).toFixed(2),
      (result.bytesPerToken / 1e6).toFixed(2),
      result.gbPerSecond.toFixed(1),
      result.gops.toFixed(1),
      percent(result.shareOfRoofline),
    ]),
  );
  const tops = new Map(runs.map(({ threads, ceilings }) => [threads, ceilings]));
  return [
    `${facts.backend} ${facts.variant}, weights ${formatBytes(facts.weightBytes)}, peak memory ${formatBytes(facts.peakBytes)}`,
    "",
    table([
      ["case", "T", "tokens/s", "best", "slowest", "ms", "MB/token", "GB/s", "GOPS", "of roofline"],
      ...rows,
    ]),
    "",
    table([
      ["ceilings of this run", "T", "int8 GOPS", "f32 GFLOPS", "read GB/s"],
      ...[...tops].map(([threads, c]) => [
        "",
        threads,
        rate(c.int8Gops),
        rate(c.f32Gflops),
        rate(c.readGBs, 1),
      ]),
    ]),
    "",
    "tokens/s: median of the rounds; ms: one prompt or one run; GB/s, GOPS and roofline: best round (docs/performance.md)",
  ].join("\n");
}
