/** Prompt and decode speed of an opened model, in one flat result (`nibble bench`, the table of `npm start`, pages). */
import type { Ceilings } from "../kernels/ceilings.js";
import { type BenchCase, benchCases, type CasesOptions, type CasesResult } from "./bench-cases.js";
import type { OpenedModel } from "./opened.js";

export interface BenchOptions extends CasesOptions {
  /** Prompt tokens of a prefill round; 0: none. */
  prefill?: number;
  /** Runs of a decode round; 0: none. */
  decode?: number;
  /** Tokens already in the cache when decoding starts. */
  depth?: number;
  /** Sequences decoded side by side. */
  batch?: number;
  /** Rows of each sequence in a run; more than 1 is how speculative decoding checks drafts. */
  rows?: number;
}

/** Speeds are medians of the rounds; `…Best` and `…Min` are the best and the slowest round. */
export interface BenchResult {
  prefillTokensPerSecond: number;
  prefillTokensPerSecondBest: number;
  prefillTokensPerSecondMin: number;
  decodeTokensPerSecond: number;
  decodeTokensPerSecondBest: number;
  decodeTokensPerSecondMin: number;
  prefill: number;
  decode: number;
  depth: number;
  batch: number;
  rows: number;
  rounds: number;
  threads: number;
  backend: string;
  variant: string;
  /** Peak resident memory of the process before ceilings were measured. */
  peakBytes: number;
  /** Placed weights, embedding and head included. */
  weightBytes: number;
  /** Weights and cache that one decoded token reads; what one prompt token computes (multiply and add counted apart). */
  bytesPerToken: number;
  opsPerToken: number;
  /** Of the best round. */
  decodeGBs: number;
  prefillGops: number;
  /** What the machine can do; null where unknown or not asked for. */
  ceilings: Ceilings;
  /** Time that the ceilings allow over the time of the best round. */
  prefillShareOfRoofline: number | null;
  decodeShareOfRoofline: number | null;
}

/** Cases of a flat result, in the order that `flatResult` expects. */
export function flatCases(options: BenchOptions): BenchCase[] {
  const { prefill = 512, decode = 64, depth = 0, batch = 1, rows = 1 } = options;
  return [
    ...(prefill > 0 ? [{ kind: "prefill", tokens: prefill } as const] : []),
    ...(decode > 0 ? [{ kind: "decode", steps: decode, depth, batch, rows } as const] : []),
  ];
}

/** The flat form of a result; its first prompt and its first decoding are what it states. */
export function flatResult(
  opened: OpenedModel,
  { cases, ceilings, peakBytes }: CasesResult,
  rounds: number,
): BenchResult {
  const { engine, weightBytes } = opened.compiled;
  const p = cases.find((result) => result.case.kind === "prefill");
  const d = cases.find((result) => result.case.kind === "decode");
  const decode = d?.case.kind === "decode" ? d.case : null;
  return {
    prefillTokensPerSecond: p?.tokensPerSecond ?? 0,
    prefillTokensPerSecondBest: p?.tokensPerSecondBest ?? 0,
    prefillTokensPerSecondMin: p?.tokensPerSecondMin ?? 0,
    decodeTokensPerSecond: d?.tokensPerSecond ?? 0,
    decodeTokensPerSecondBest: d?.tokensPerSecondBest ?? 0,
    decodeTokensPerSecondMin: d?.tokensPerSecondMin ?? 0,
    prefill: p?.case.kind === "prefill" ? p.case.tokens : 0,
    decode: decode?.steps ?? 0,
    depth: decode?.depth ?? 0,
    batch: decode?.batch ?? 1,
    rows: decode?.rows ?? 1,
    rounds,
    threads: engine.threads,
    backend: engine.backend,
    variant: engine.variant,
    peakBytes,
    weightBytes,
    bytesPerToken: d?.bytesPerToken ?? 0,
    opsPerToken: p?.opsPerToken ?? 0,
    decodeGBs: d?.gbPerSecond ?? 0,
    prefillGops: p?.gops ?? 0,
    ceilings,
    prefillShareOfRoofline: p?.shareOfRoofline ?? null,
    decodeShareOfRoofline: d?.shareOfRoofline ?? null,
  };
}

/** @throws UsageError for a case that the model was not opened for */
export async function benchModel(
  opened: OpenedModel,
  options: BenchOptions = {},
): Promise<BenchResult> {
  const result = await benchCases(opened, flatCases(options), options);
  return flatResult(opened, result, options.rounds ?? 5);
}
