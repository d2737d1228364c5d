/**
 * Perplexity and divergence from a reference, by the protocol of the GPTQ and QuaRot papers: the text is tokenized once,
 * cut in non-overlapping windows of `ctx` tokens (tail dropped), each window predicted from its own start; the result is
 * exp of the mean negative log-likelihood over all targets. With a quantized cache every position reads what decoding
 * would read (`prefill: stepwise`): all codecs here seal token by token, so one pass computes exactly that.
 *
 * `stride` gives the sliding-window form instead (every target but the first ones has at least ctx - stride tokens in
 * front of it), `evaluateTexts` scores each of many texts from its own start.
 */
import { UsageError } from "../core/errors.js";
import type { OpenedModel } from "../runtime/opened.js";

export interface PerplexityOptions {
  ctx?: number;
  /** Use the first n windows; default all. */
  windows?: number;
  /** Tokens between the starts of two windows, 1..ctx; only targets that no window scored before count. Default ctx. */
  stride?: number;
  /** Also measure KL(reference || model) and top-1 agreement over the same targets. */
  reference?: OpenedModel;
  /** Filled with what was measured at every target, in order. */
  record?: TargetRecord;
  onWindow?: (done: number, total: number, perplexity: number) => void;
  onWarning?: (line: string) => void;
  signal?: AbortSignal;
}

/** Measurements of single targets, in order; the last three stay empty without a reference. */
export interface TargetRecord {
  /** Negative log-likelihood of the target, nats. */
  nll: number[];
  referenceNll: number[];
  /** KL(reference || model), nats. */
  kl: number[];
  /** Whether both models have the same first guess. */
  same: boolean[];
}

export function emptyRecord(): TargetRecord {
  return { nll: [], referenceNll: [], kl: [], same: [] };
}

export interface PerplexityResult {
  perplexity: number;
  /** Mean over all targets, nats. */
  nll: number;
  /** Standard error of `nll` over the targets. */
  nllStderr: number;
  /** Predicted tokens. */
  tokens: number;
  windows: number;
  ctx: number;
  stride?: number;
  /** Total loss in bits per UTF-8 byte of the predicted text: comparable between tokenizers. */
  bitsPerByte?: number;
  kl?: number;
  topAgreement?: number;
  tokensPerSecond: number;
}

/** Tokens run from position 0; targets from index `from` on (>= 1) are scored. */
interface Window {
  ids: number[];
  from: number;
}

/** Token ids of an evaluation or calibration text: one stream, special tokens only if the tokenizer adds them. */
export function encodeStream(opened: OpenedModel, text: string): number[] {
  if (!opened.tokenizer) {
    throw new UsageError("this model has no tokenizer, so a text cannot be scored", {
      hint: "evaluate a folder that holds tokenizer.json",
    });
  }
  return opened.tokenizer.encode(text, { special: true });
}

function checkedContext(
  opened: OpenedModel,
  options: PerplexityOptions,
): { ctx: number; stride: number } {
  const ctx = options.ctx ?? 2048;
  if (!(Number.isInteger(ctx) && ctx >= 2))
    throw new UsageError(`ctx is ${ctx}, expected an integer >= 2`);
  if (ctx > opened.compiled.maxContext) {
    throw new UsageError(
      `ctx ${ctx} exceeds the ${opened.compiled.maxContext} tokens the model was opened for`,
      { hint: "lower --ctx" },
    );
  }
  const stride = options.stride ?? ctx;
  if (!(Number.isInteger(stride) && stride >= 1 && stride <= ctx)) {
    throw new UsageError(`stride is ${stride}, expected an integer from 1 to ctx (${ctx})`);
  }
  if (
    options.windows !== undefined &&
    !(Number.isInteger(options.windows) && options.windows >= 1)
  ) {
    throw new UsageError(`windows is ${options.windows}, expected an integer >= 1`);
  }
  return { ctx, stride };
}

/** Windows of ctx tokens every `stride` tokens. Without overlap the tail is dropped; with it the last window is short. */
function slidingWindows(ids: number[], ctx: number, stride: number): Window[] {
  const windows: Window[] = [];
  let scored = 0;
  for (let start = 0; start + (stride === ctx ? ctx : 2) <= ids.length; start += stride) {
    const end = Math.min(start + ctx, ids.length);
    if (end > scored)
      windows.push({ ids: ids.slice(start, end), from: Math.max(1, scored - start) });
    scored = Math.max(scored, end);
  }
  return windows;
}

export async function evaluatePerplexity(
  opened: OpenedModel,
  ids: number[],
  options: PerplexityOptions = {},
): Promise<PerplexityResult> {
  let { ctx, stride } = checkedContext(opened, options);
  if (ids.length < 2) throw new UsageError("the text has fewer than two tokens");
  if (ids.length < ctx) {
    options.onWarning?.(
      `the text has ${ids.length} tokens, less than ctx ${ctx}: one shorter window is used`,
    );
    ctx = ids.length;
    stride = ctx;
  }
  const available = slidingWindows(ids, ctx, stride);
  if (options.windows !== undefined && options.windows > available.length) {
    options.onWarning?.(`the text has only ${available.length} windows of ${ctx} tokens`);
  }
  const windows = available.slice(0, options.windows);
  return {
    ...(await scoreWindows(opened, windows, options)),
    ctx,
    ...(stride === ctx ? {} : { stride }),
  };
}

/**
 * Perplexity over many texts (lines of a jsonl file), each predicted from its own start in windows of ctx tokens.
 * Texts of fewer than two tokens have nothing to predict and are left out with a warning.
 */
export async function evaluateTexts(
  opened: OpenedModel,
  texts: number[][],
  options: PerplexityOptions = {},
): Promise<PerplexityResult> {
  const { ctx, stride } = checkedContext(opened, options);
  const windows: Window[] = [];
  let empty = 0;
  for (const ids of texts) {
    if (ids.length < 2) empty++;
    // Unlike one long stream, a short text or the tail of one is no negligible part: it counts.
    else if (ids.length <= ctx) windows.push({ ids, from: 1 });
    else windows.push(...slidingWindows(ids, ctx, Math.min(stride, ctx - 1)));
  }
  if (empty > 0)
    options.onWarning?.(`${empty} of ${texts.length} texts have fewer than two tokens`);
  if (windows.length === 0) throw new UsageError("the texts hold nothing to predict");
  const result = await scoreWindows(opened, windows.slice(0, options.windows), options);
  return { ...result, ctx, ...(stride === ctx ? {} : { stride }) };
}

/** UTF-8 bytes of the scored tokens of the windows, or undefined without a tokenizer. */
function scoredBytes(opened: OpenedModel, windows: Window[]): number | undefined {
  const { tokenizer } = opened;
  if (!tokenizer) return undefined;
  const encoder = new TextEncoder();
  let bytes = 0;
  for (const { ids, from } of windows)
    bytes += encoder.encode(tokenizer.decode(ids.slice(from))).length;
  return bytes;
}

async function scoreWindows(
  opened: OpenedModel,
  windows: Window[],
  options: PerplexityOptions,
): Promise<Omit<PerplexityResult, "ctx" | "stride">> {
  const { reference, record } = options;
  let nll = 0;
  let nllSquares = 0;
  let kl = 0;
  let agreed = 0;
  let tokens = 0;
  let run = 0;
  const runners = reference ? [opened.runner, reference.runner] : [opened.runner];
  const chunkRows = Math.min(...runners.map((r) => r.model.maxRows));
  const slice = Math.min(...runners.map((r) => r.model.maxLogitRows));
  const started = performance.now();
  for (const [w, { ids: window, from }] of windows.entries()) {
    const length = window.length;
    for (const runner of runners) {
      runner.tables.truncate(0, 0);
      runner.tables.reserve(0, length);
    }
    for (let start = 0; start < length; start += chunkRows) {
      options.signal?.throwIfAborted();
      const end = Math.min(start + chunkRows, length);
      const chunk = window.slice(start, end);
      const rows = {
        tokens: chunk,
        positions: chunk.map((_, i) => start + i),
        sequences: new Int32Array(chunk.length),
      };
      for (const runner of runners) await runner.step(rows, []);
      // The last token of the window predicts nothing.
      const predicting = Math.min(end, length - 1) - start;
      for (let first = Math.max(0, from - 1 - start); first < predicting; first += slice) {
        const count = Math.min(slice, predicting - first);
        const targets = window.slice(start + first + 1, start + first + 1 + count);
        const stats = await opened.runner.score(first, targets);
        for (const row of stats) {
          const loss = row.logSumExp - row.target;
          nll += loss;
          nllSquares += loss * loss;
          record?.nll.push(loss);
        }
        if (reference) {
          const statsOfReference = await reference.runner.score(first, targets);
          const divergences = await opened.runner.divergence(count, (i) =>
            reference.runner.logits(i),
          );
          for (const row of divergences) {
            kl += row.kl;
            if (row.same) agreed++;
            record?.kl.push(row.kl);
            record?.same.push(row.same);
          }
          for (const row of statsOfReference) record?.referenceNll.push(row.logSumExp - row.target);
        }
        tokens += count;
      }
    }
    run += length;
    options.onWindow?.(w + 1, windows.length, Math.exp(nll / tokens));
  }
  const seconds = (performance.now() - started) / 1000;
  const mean = nll / tokens;
  const variance = tokens > 1 ? Math.max(0, (nllSquares - tokens * mean * mean) / (tokens - 1)) : 0;
  const bytes = scoredBytes(opened, windows);
  return {
    perplexity: Math.exp(mean),
    nll: mean,
    nllStderr: Math.sqrt(variance / tokens),
    tokens,
    windows: windows.length,
    ...(bytes ? { bitsPerByte: nll / Math.LN2 / bytes } : {}),
    ...(reference ? { kl: kl / tokens, topAgreement: agreed / tokens } : {}),
    tokensPerSecond: run / seconds,
  };
}
