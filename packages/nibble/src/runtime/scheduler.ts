/**
 * Several sequences in one run: whoever wants rows computed hands them in, and each run of the model takes rows of all
 * that wait, decoding steps first, prompts in chunks in what room is left (iteration-level scheduling: Orca, OSDI 2022).
 * A row depends on its own sequence only, so everyone gets the bits that it would get alone.
 */
import type { Runner } from "./runner.js";

export interface FeedRequest {
  slot: number;
  /** Tokens of the sequence from position `from` on. Room must have been reserved. */
  tokens: readonly number[];
  from: number;
  /** For how many of the last tokens logits are wanted. */
  logits: number;
  /** The tokens are a draft: they run together, and `runner.keep` ends it. */
  draft?: boolean;
  signal?: AbortSignal | undefined;
}

interface Job {
  readonly request: FeedRequest;
  /** Tokens that were run. */
  done: number;
  readonly logits: Float32Array[];
  resolve(logits: Float32Array[]): void;
  reject(error: unknown): void;
}

/** What one run takes of a job. */
interface Share {
  job: Job;
  count: number;
  /** Rows among them that get logits. */
  logits: number;
}

export class Scheduler {
  readonly #runner: Runner;
  #waiting: Job[] = [];
  #active = 0;
  #running = false;
  #timer: ReturnType<typeof setTimeout> | null = null;
  /** Runs of the model so far, and rows in them. */
  runs = 0;
  rows = 0;

  constructor(runner: Runner) {
    this.#runner = runner;
  }

  /** Says that a generation begins: runs wait until all that are under way have handed in their rows. */
  enter(): void {
    this.#active++;
  }
  leave(): void {
    this.#active--;
    this.#wake();
  }

  /** Computes rows. @returns a copy of the logits [vocabSize] of each of the last `logits` tokens */
  feed(request: FeedRequest): Promise<Float32Array[]> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ request, done: 0, logits: [], resolve, reject });
      this.#wake();
    });
  }

  /** Starts a run when everyone is here; a consumer that lets its generation rest holds the others up for no more than a turn of the event loop. */
  #wake(): void {
    if (this.#running || this.#waiting.length === 0) return;
    if (this.#waiting.length >= this.#active) {
      if (this.#timer !== null) clearTimeout(this.#timer);
      this.#timer = null;
      void this.#run();
    } else this.#timer ??= setTimeout(() => void this.#run(), 0);
  }

  async #run(): Promise<void> {
    this.#timer = null;
    if (this.#running) return;
    this.#running = true;
    const shares = this.#compose();
    try {
      if (shares.length > 0) await this.#step(shares);
    } catch (error) {
      this.#waiting = this.#waiting.filter((job) => !shares.some((share) => share.job === job));
      for (const { job } of shares) job.reject(error);
    }
    this.#running = false;
    this.#wake();
  }

  /** Rows of the next run. */
  #compose(): Share[] {
    this.#waiting = this.#waiting.filter((job) => {
      if (!job.request.signal?.aborted) return true;
      job.reject(job.request.signal.reason);
      return false;
    });
    const { maxRows, maxLogitRows } = this.#runner.model;
    const prompt = this.#waiting.find((job) => this.#runsAlone(job));
    if (prompt) return [{ job: prompt, count: prompt.request.tokens.length, logits: 1 }];
    const shares: Share[] = [];
    let rows = maxRows;
    let logits = maxLogitRows;
    const rest = (job: Job) => job.request.tokens.length - job.done;
    // Short ones first, in order of arrival among equals (sort is stable).
    for (const job of [...this.#waiting].sort((a, b) => rest(a) - rest(b))) {
      const plain = Math.max(0, rest(job) - job.request.logits + job.logits.length);
      const wanted = rest(job) - plain;
      const count = Math.min(rest(job), rows, plain + logits);
      if (count === 0 || (job.request.draft && count < rest(job))) continue;
      const share = { job, count, logits: Math.max(0, Math.min(wanted, count - plain)) };
      shares.push(share);
      rows -= count;
      logits -= share.logits;
    }
    return shares;
  }

  /** A prompt whose rows see each other in another way than rows fed one by one. */
  #runsAlone({ request }: Job): boolean {
    return this.#runner.prefillsAlone && request.tokens.length > 1 && request.logits === 1;
  }

  async #step(shares: Share[]): Promise<void> {
    const tokens: number[] = [];
    const positions: number[] = [];
    const sequences: number[] = [];
    const logitRows: number[] = [];
    const drafts = new Set<number>();
    for (const { job, count, logits } of shares) {
      const { request, done } = job;
      if (request.draft) drafts.add(request.slot);
      for (let i = 0; i < count; i++) {
        if (i >= count - logits) logitRows.push(tokens.length);
        tokens.push(request.tokens[done + i] as number);
        positions.push(request.from + done + i);
        sequences.push(request.slot);
      }
    }
    const [alone] = shares;
    if (alone && this.#runsAlone(alone.job)) {
      const { slot, from, tokens: prompt, signal } = alone.job.request;
      await this.#runner.prefill(slot, prompt, from, { logits: true, signal });
    } else await this.#runner.step({ tokens, positions, sequences, drafts }, logitRows);
    this.runs++;
    this.rows += tokens.length;
    let row = 0;
    for (const { job, count, logits } of shares) {
      for (let i = 0; i < logits; i++) job.logits.push(this.#runner.logits(row++).slice());
      job.done += count;
      if (job.done < job.request.tokens.length) continue;
      this.#waiting.splice(this.#waiting.indexOf(job), 1);
      job.resolve(job.logits);
    }
  }
}
