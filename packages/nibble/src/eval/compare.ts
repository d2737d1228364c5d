/**
 * Paired comparison of models with a baseline, from what was measured on the same targets and the same questions: KL
 * divergence, agreement, flips (Dutta et al., "Accuracy is Not All You Need", arXiv:2407.09141), differences of perplexity
 * and accuracy with bootstrap intervals, McNemar's test. Pure functions: measured values in, JSON out.
 */
import { UsageError } from "../core/errors.js";
import type { TargetRecord } from "./perplexity.js";
import {
  blockSums,
  bootstrap,
  type Estimate,
  type McNemar,
  mcNemar,
  mean,
  pairedProportion,
  quantiles,
} from "./statistics.js";
import type { TaskResult } from "./zero-shot.js";

/** Most targets that are drawn together by the bootstrap: neighbouring losses are not independent. */
export const BLOCK_TOKENS = 128;
/** Short texts are cut finer: an interval from a handful of blocks would be too narrow. */
const FEWEST_BLOCKS = 32;

export interface TextComparison {
  tokens: number;
  perplexity: { baseline: number; model: number };
  /** model - baseline. */
  deltaPerplexity: Estimate;
  /** model / baseline. */
  perplexityRatio: Estimate;
  /** KL(baseline || model), nats a token. */
  kl: { mean: Estimate; median: number; p99: number; max: number };
  /** Share of targets where both have the same first guess. */
  topAgreement: Estimate;
}

export interface TaskComparison {
  n: number;
  chance: number;
  baseline: number;
  model: number;
  /** Accuracy, model - baseline. */
  delta: Estimate;
  deltaNorm?: Estimate;
  mcNemar: McNemar;
  /** Share of questions that were right and are wrong now, or the other way round. */
  flips: number;
  /** Share of questions with another choice, right or wrong. */
  changed: number;
  /** The baseline's own interval includes guessing: a difference says little. */
  nearChance: boolean;
}

export interface Comparison {
  model: string;
  text?: TextComparison;
  tasks: Record<string, TaskComparison>;
}

/** Compares the losses of a model and its baseline on the same targets. */
export function compareText(record: TargetRecord, seed: number, stream: string): TextComparison {
  const { nll, referenceNll, kl, same } = record;
  const tokens = nll.length;
  if (tokens === 0 || referenceNll.length !== tokens || kl.length !== tokens) {
    throw new UsageError("a text comparison needs a reference measured on the same targets");
  }
  const block = Math.max(8, Math.min(BLOCK_TOKENS, Math.floor(tokens / FEWEST_BLOCKS)));
  const column = (values: ArrayLike<number>) => blockSums(values, block).sums;
  const { counts } = blockSums(nll, block);
  const mine = column(nll);
  const base = column(referenceNll);
  const draw = (
    name: string,
    columns: ArrayLike<number>[],
    statistic: (means: number[]) => number,
  ) => bootstrap([...columns, counts], statistic, { seed, stream: `${stream}/${name}` });
  const per = (sum: number | undefined, count: number | undefined) =>
    (sum as number) / (count as number);
  const [median, p99, max] = quantiles(kl, [0.5, 0.99, 1]) as [number, number, number];
  return {
    tokens,
    perplexity: { baseline: Math.exp(mean(referenceNll)), model: Math.exp(mean(nll)) },
    deltaPerplexity: draw(
      "ppl",
      [mine, base],
      ([a, b, n]) => Math.exp(per(a, n)) - Math.exp(per(b, n)),
    ),
    perplexityRatio: draw("ppl", [mine, base], ([a, b, n]) => Math.exp(per(a, n) - per(b, n))),
    kl: { mean: draw("kl", [column(kl)], ([k, n]) => per(k, n)), median, p99, max },
    topAgreement: draw("top", [column(same.map(Number))], ([s, n]) => per(s, n)),
  };
}

/** Compares the answers of a model and its baseline to the same questions. */
export function compareTask(baseline: TaskResult, model: TaskResult): TaskComparison {
  const n = baseline.n;
  if (model.n !== n) throw new UsageError(`${n} and ${model.n} questions cannot be compared`);
  const right = (result: TaskResult) => result.items.map((item) => item.correct);
  const rightNorm = (result: TaskResult) => result.items.map((item) => item.correctNorm);
  const before = right(baseline);
  const after = right(model);
  const changed = baseline.items.filter((item, i) => item.choice !== model.items[i]?.choice).length;
  const test = mcNemar(before, after);
  const norm = mcNemar(rightNorm(baseline), rightNorm(model));
  return {
    n,
    chance: baseline.chance,
    baseline: baseline.accuracy,
    model: model.accuracy,
    delta: pairedProportion(test.lost, test.gained, n),
    ...(baseline.accuracyNorm === undefined
      ? {}
      : { deltaNorm: pairedProportion(norm.lost, norm.gained, n) }),
    mcNemar: test,
    flips: (test.lost + test.gained) / n,
    changed: changed / n,
    nearChance: isNearChance(baseline.accuracy, baseline.stderr, baseline.chance),
  };
}

/** Whether an accuracy is within two standard errors of guessing. */
export function isNearChance(accuracy: number, stderr: number, chance: number): boolean {
  return chance > 0 && accuracy - 2 * stderr <= chance;
}

/** What an interval of a difference allows to say; positive differences are gains when `higherIsBetter`. */
export function verdict(
  delta: Estimate,
  higherIsBetter: boolean,
): "better" | "worse" | "no difference shown" {
  if (delta.low > 0) return higherIsBetter ? "better" : "worse";
  if (delta.high < 0) return higherIsBetter ? "worse" : "better";
  return "no difference shown";
}

/** A model that was measured. */
export interface ModelFacts {
  /** Label in tables and pictures. */
  name: string;
  source: string;
  /** Bytes of its weight files. */
  fileBytes: number;
  parameters: number;
  /** 8 * fileBytes / parameters. */
  bitsPerWeight: number;
  /** Of layer weights and their inputs, "W8A8-INT"; null where the layers are not quantized by nibble. */
  format: string | null;
  /** Weights as they lie in memory when it runs. */
  weightBytes: number;
  kv: string;
  backend: string;
}

/** Speed and memory: times differ from run to run, so they are kept apart from everything that does not. */
export interface ModelSpeed {
  name: string;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
  peakBytes: number;
  threads: number;
}

/** The JSON of `nibble compare`: a function of models, data, seed, backend and version. */
export interface CompareResult {
  version: string;
  seed: number;
  /** Shell form of the command that makes it again. */
  command: string;
  text?: {
    file: string;
    sha256: string;
    ctx: number;
    windows: number;
    tokens: number;
    stride?: number;
  };
  tasks: { id: string; n: number; fewShot: number }[];
  /** The first is the baseline. */
  models: (ModelFacts & {
    perplexity?: number;
    nll?: number;
    nllStderr?: number;
    tasks: Record<
      string,
      {
        accuracy: number;
        stderr: number;
        accuracyNorm?: number;
        stderrNorm?: number;
        n: number;
        chance: number;
      }
    >;
  })[];
  comparisons: Comparison[];
}
