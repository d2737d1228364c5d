/**
 * Perplexity and divergence from a reference, by the protocol of the GPTQ and QuaRot papers: the text is tokenized once,
 * cut in non-overlapping windows of `ctx` tokens (tail dropped), each window predicted from its own start; the result is
 * exp of the mean negative log-likelihood over all targets. With a quantized cache every position reads what decoding
 * would read (`prefill: stepwise`): all codecs here seal token by token, so one pass computes exactly that.
 */
import { UsageError } from "../core/errors.js";
import type { OpenedModel } from "../runtime/open.js";

export interface PerplexityOptions {
  ctx?: number;
  /** Use the first n windows; default all. */
  windows?: number;
  /** Also measure KL(reference || model) and top-1 agreement over the same targets. */
  reference?: OpenedModel;
  onWindow?: (done: number, total: number, perplexity: number) => void;
  onWarning?: (line: string) => void;
  signal?: AbortSignal;
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
  kl?: number;
  topAgreement?: number;
  tokensPerSecond: number;
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

export async function evaluatePerplexity(
  opened: OpenedModel,
  ids: number[],
  options: PerplexityOptions = {},
): Promise<PerplexityResult> {
  let ctx = options.ctx ?? 2048;
  if (!(Number.isInteger(ctx) && ctx >= 2)) throw new UsageError(`ctx is ${ctx}, expected an integer >= 2`);
  if (ctx > opened.compiled.maxContext) {
    throw new UsageError(`ctx ${ctx} exceeds the ${opened.compiled.maxContext} tokens the model was opened for`, {
      hint: "lower --ctx",
    });
  }
  if (ids.length < 2) throw new UsageError("the text has fewer than two tokens");
  if (ids.length < ctx) {
    options.onWarning?.(`the text has ${ids.length} tokens, less than ctx ${ctx}: one shorter window is used`);
    ctx = ids.length;
  }
  const available = Math.floor(ids.length / ctx);
  const windows = Math.min(options.windows ?? available, available);
  if (!(windows >= 1)) throw new UsageError(`windows is ${options.windows}, expected an integer >= 1`);
  if (options.windows !== undefined && options.windows > available) {
    options.onWarning?.(`the text has only ${available} windows of ${ctx} tokens`);
  }

  const { reference } = options;
  let nll = 0;
  let nllSquares = 0;
  let kl = 0;
  let agreed = 0;
  let tokens = 0;
  const started = performance.now();
  for (let w = 0; w < windows; w++) {
    const window = ids.slice(w * ctx, (w + 1) * ctx);
    const runners = reference ? [opened.runner, reference.runner] : [opened.runner];
    for (const runner of runners) {
      runner.tables.truncate(0, 0);
      runner.tables.reserve(0, ctx);
    }
    const chunkRows = Math.min(...runners.map((r) => r.model.maxRows));
    const slice = Math.min(...runners.map((r) => r.model.maxLogitRows));
    for (let start = 0; start < ctx; start += chunkRows) {
      options.signal?.throwIfAborted();
      const end = Math.min(start + chunkRows, ctx);
      const chunk = window.slice(start, end);
      const rows = {
        tokens: chunk,
        positions: chunk.map((_, i) => start + i),
        sequences: new Int32Array(chunk.length),
      };
      for (const runner of runners) await runner.step(rows, []);
      // The last token of the window predicts nothing.
      const predicting = Math.min(end, ctx - 1) - start;
      for (let first = 0; first < predicting; first += slice) {
        const count = Math.min(slice, predicting - first);
        const targets = window.slice(start + first + 1, start + first + 1 + count);
        const stats = await opened.runner.score(first, targets);
        for (const row of stats) {
          const loss = row.logSumExp - row.target;
          nll += loss;
          nllSquares += loss * loss;
        }
        if (reference) {
          await reference.runner.score(first, targets);
          const rowsOfReference = await opened.runner.divergence(count, (i) => reference.runner.logits(i));
          for (const row of rowsOfReference) {
            kl += row.kl;
            if (row.same) agreed++;
          }
        }
        tokens += count;
      }
    }
    options.onWindow?.(w + 1, windows, Math.exp(nll / tokens));
  }
  const mean = nll / tokens;
  const variance = tokens > 1 ? Math.max(0, (nllSquares - tokens * mean * mean) / (tokens - 1)) : 0;
  return {
    perplexity: Math.exp(mean),
    nll: mean,
    nllStderr: Math.sqrt(variance / tokens),
    tokens,
    windows,
    ctx,
    ...(reference ? { kl: kl / tokens, topAgreement: agreed / tokens } : {}),
    tokensPerSecond: (windows * ctx) / ((performance.now() - started) / 1000),
  };
}
