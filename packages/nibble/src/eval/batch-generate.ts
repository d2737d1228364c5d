/**
 * Continuous batching: many prompts are continued at once, one a cache slot; every run decodes one token of each sequence
 * that generates and fills its other rows with prompt tokens of those that begin. For evaluation and throughput; rows do
 * not depend on their neighbours, so the texts are those of one prompt at a time.
 */
import { ResourceError } from "../core/errors.js";
import type { ScoringRunner } from "./batch-score.js";

export interface GenerationRequest {
  prompt: number[];
  /** Most new tokens, >= 1. */
  limit: number;
  /** Chooses the next token. */
  choose(logits: Float32Array): number;
  /** True when `tokens` end here (the last of them is the end token or completes a stop text). */
  ends(tokens: number[]): boolean;
}

export interface BatchGenerateOptions {
  onDone?: (request: number, tokens: number[]) => void;
  signal?: AbortSignal;
}

interface Stream {
  index: number;
  request: GenerationRequest;
  slot: number;
  /** Tokens that are in the cache. */
  done: number;
  tokens: number[];
}

/** Index of the largest logit, the first of equals: greedy decoding. */
export function greedy(logits: Float32Array): number {
  let at = 0;
  for (let i = 1; i < logits.length; i++)
    if ((logits[i] as number) > (logits[at] as number)) at = i;
  return at;
}

/**
 * New tokens of every request. Uses all cache slots of the runner.
 * @throws ResourceError when one request alone exceeds the cache
 */
export async function generateBatch(
  runner: ScoringRunner,
  requests: GenerationRequest[],
  options: BatchGenerateOptions = {},
): Promise<number[][]> {
  const { maxRows, maxLogitRows } = runner.model;
  const streams = Math.min(runner.tables.sequences, maxLogitRows, maxRows);
  const free = Array.from({ length: streams }, (_, i) => streams - 1 - i);
  for (const slot of free) runner.tables.truncate(slot, 0);
  const out = new Array<number[]>(requests.length);
  const active: Stream[] = [];
  let next = 0;
  const admit = () => {
    while (free.length > 0 && next < requests.length) {
      const request = requests[next] as GenerationRequest;
      const slot = free[free.length - 1] as number;
      try {
        runner.tables.reserve(slot, request.prompt.length + request.limit);
        // What an empty sequence is told last is its prompt, which budgets of retention policies are shares of.
        runner.tables.reserve(slot, request.prompt.length);
      } catch (error) {
        if (error instanceof ResourceError && active.length > 0) return;
        throw error;
      }
      free.pop();
      active.push({ index: next, request, slot, done: 0, tokens: [] });
      next++;
    }
  };
  try {
    for (admit(); active.length > 0; admit()) {
      options.signal?.throwIfAborted();
      await advance(runner, active, maxRows);
      for (const stream of active.filter(finished)) {
        active.splice(active.indexOf(stream), 1);
        runner.tables.truncate(stream.slot, 0);
        free.push(stream.slot);
        out[stream.index] = stream.tokens;
        options.onDone?.(stream.index, stream.tokens);
      }
    }
  } finally {
    for (const { slot } of active) runner.tables.truncate(slot, 0);
  }
  return out;
}

function finished({ tokens, request }: Stream): boolean {
  return tokens.length > 0 && (tokens.length >= request.limit || request.ends(tokens));
}

/** One run over all sequences that are on their way. */
async function advance(runner: ScoringRunner, active: Stream[], maxRows: number): Promise<void> {
  const rows = { tokens: [] as number[], positions: [] as number[], sequences: [] as number[] };
  const wanted: { row: number; stream: Stream }[] = [];
  const generates = ({ done, request }: Stream) => done >= request.prompt.length;
  // Those that generate go first: nobody's next token waits for somebody's prompt.
  for (const stream of [...active.filter(generates), ...active.filter((s) => !generates(s))]) {
    const { request, slot, tokens } = stream;
    const left = generates(stream) ? 1 : request.prompt.length - stream.done;
    const count = Math.min(left, maxRows - rows.tokens.length);
    for (let i = 0; i < count; i++) {
      rows.tokens.push((request.prompt[stream.done] ?? tokens[tokens.length - 1]) as number);
      rows.positions.push(stream.done);
      rows.sequences.push(slot);
      stream.done++;
    }
    if (count > 0 && generates(stream)) wanted.push({ row: rows.tokens.length - 1, stream });
  }
  await runner.step(
    rows,
    wanted.map((w) => w.row),
  );
  for (const [i, { stream }] of wanted.entries())
    stream.tokens.push(stream.request.choose(runner.logits(i)));
}
