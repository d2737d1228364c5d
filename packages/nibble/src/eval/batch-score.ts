/**
 * Log-likelihoods of continuations, batched. The alternatives of a question share their longest common prefix: it runs
 * once, each alternative is then run behind it in the same cache slot. Many questions are on their way at once, one a
 * slot, and every run is filled up to the engine's row limit with whatever is next of each. A row of the engine does not
 * depend on the other rows of its run, so the scores are those of one question at a time, bit for bit.
 */
import { ResourceError, UsageError } from "../core/errors.js";
import type { LogitStats, Rows } from "../runtime/runner.js";

/** What scoring needs of a Runner. */
export interface ScoringRunner {
  readonly model: {
    readonly maxRows: number;
    readonly maxLogitRows: number;
    readonly maxContext: number;
  };
  readonly tables: {
    readonly sequences: number;
    reserve(slot: number, length: number): void;
    truncate(slot: number, length: number): void;
  };
  step(rows: Rows, logitRows: ArrayLike<number>): Promise<void>;
  score(rows: ArrayLike<number>, targets: ArrayLike<number>): Promise<LogitStats[]>;
  logits(i: number): Float32Array;
}

/** Tokens of which ids[from..] are scored, given all before them. 1 <= from < ids.length. */
export interface Alternative {
  ids: number[];
  from: number;
}

export interface Likelihood {
  /** Sum over the scored tokens, nats (<= 0). */
  logLikelihood: number;
  /** Whether every scored token is the model's first guess. */
  greedy: boolean;
  tokens: number;
}

export interface BatchScoreOptions {
  /** Called once for each group, in order of completion. */
  onGroup?: (group: number, scores: Likelihood[]) => void;
  signal?: AbortSignal;
}

export interface BatchScore {
  groups: Likelihood[][];
  /** Rows that went through the blocks. */
  rows: number;
  /** Rows that went through the head. */
  logitRows: number;
  /** Rows that a scoring without shared prefixes would run. */
  rowsUnshared: number;
  seconds: number;
}

/** A row whose logits are wanted, and by which alternatives. */
interface Wanted {
  row: number;
  group: Group;
  takers: { alternative: number; target: number }[];
}

/** Length of the longest common prefix of all alternatives; each keeps at least one row of its own unless it has none. */
export function sharedPrefix(alternatives: Alternative[]): number {
  const first = alternatives[0]?.ids ?? [];
  let shared = Math.min(...alternatives.map((a) => a.ids.length - 1));
  for (const { ids } of alternatives) {
    let same = 0;
    while (same < shared && ids[same] === first[same]) same++;
    shared = same;
  }
  return shared;
}

/** Progress of one question. Alternative 0 runs from the beginning, the others from the end of the shared prefix. */
class Group {
  readonly scores: Likelihood[];
  readonly shared: number;
  #alternative = 0;
  #position = 0;

  constructor(
    readonly index: number,
    readonly alternatives: Alternative[],
    readonly slot: number,
  ) {
    this.shared = sharedPrefix(alternatives);
    this.scores = alternatives.map(({ ids, from }) => ({
      logLikelihood: 0,
      greedy: true,
      tokens: ids.length - from,
    }));
  }

  get done(): boolean {
    return this.#alternative >= this.alternatives.length;
  }

  /** Appends at most `room` rows of the current alternative. One call a run: alternatives share positions. */
  take(
    room: number,
    rows: { tokens: number[]; positions: number[]; sequences: number[] },
    wanted: Wanted[],
  ): void {
    const current = this.alternatives[this.#alternative] as Alternative;
    // The last token predicts nothing.
    const end = Math.min(current.ids.length - 1, this.#position + room);
    for (; this.#position < end; this.#position++) {
      const position = this.#position;
      const takers: Wanted["takers"] = [];
      for (const [a, { ids, from }] of this.alternatives.entries()) {
        const reads =
          a === this.#alternative || (this.#alternative === 0 && position < this.shared);
        if (reads && position >= from - 1 && position < ids.length - 1) {
          takers.push({ alternative: a, target: ids[position + 1] as number });
        }
      }
      if (takers.length > 0) wanted.push({ row: rows.tokens.length, group: this, takers });
      rows.tokens.push(current.ids[position] as number);
      rows.positions.push(position);
      rows.sequences.push(this.slot);
    }
    while (
      !this.done &&
      this.#position >= (this.alternatives[this.#alternative] as Alternative).ids.length - 1
    ) {
      this.#alternative++;
      this.#position = this.shared;
    }
  }
}

function checkGroup(alternatives: Alternative[], index: number, maxContext: number): void {
  if (alternatives.length === 0) throw new UsageError(`question ${index} has nothing to score`);
  for (const { ids, from } of alternatives) {
    if (!(from >= 1 && from < ids.length)) {
      throw new UsageError(
        `question ${index}: tokens ${from}.. of ${ids.length} cannot be scored`,
        {
          hint: "a context and a continuation of at least one token each are needed",
        },
      );
    }
    if (ids.length - 1 > maxContext) {
      throw new UsageError(
        `question ${index} has ${ids.length} tokens, the model was opened for ${maxContext}`,
        {
          hint: "raise --max-context, or let the caller cut the context from the left",
        },
      );
    }
  }
}

/**
 * Scores groups of alternatives. Uses every cache slot of the runner and leaves them empty.
 * @throws UsageError for a group that cannot be scored, ResourceError when one group alone exceeds the cache
 */
export async function scoreGroups(
  runner: ScoringRunner,
  groups: Alternative[][],
  options: BatchScoreOptions = {},
): Promise<BatchScore> {
  const { maxRows, maxLogitRows, maxContext } = runner.model;
  for (const [i, group] of groups.entries()) checkGroup(group, i, maxContext);
  const free = Array.from(
    { length: runner.tables.sequences },
    (_, i) => runner.tables.sequences - 1 - i,
  );
  for (const slot of free) runner.tables.truncate(slot, 0);
  const results = new Array<Likelihood[]>(groups.length);
  const total: BatchScore = { groups: results, rows: 0, logitRows: 0, rowsUnshared: 0, seconds: 0 };
  const active: Group[] = [];
  let next = 0;
  const started = performance.now();

  const admit = () => {
    while (free.length > 0 && next < groups.length) {
      const alternatives = groups[next] as Alternative[];
      const slot = free[free.length - 1] as number;
      try {
        runner.tables.reserve(slot, Math.max(...alternatives.map((a) => a.ids.length - 1)));
      } catch (error) {
        // A full pool is no fault while others will give their pages back.
        if (error instanceof ResourceError && active.length > 0) return;
        throw error;
      }
      free.pop();
      active.push(new Group(next, alternatives, slot));
      total.rowsUnshared += alternatives.reduce((sum, a) => sum + a.ids.length - 1, 0);
      next++;
    }
  };

  try {
    for (admit(); active.length > 0; admit()) {
      options.signal?.throwIfAborted();
      const rows = { tokens: [] as number[], positions: [] as number[], sequences: [] as number[] };
      const wanted: Wanted[] = [];
      for (const group of active) {
        if (rows.tokens.length >= maxRows) break;
        group.take(maxRows - rows.tokens.length, rows, wanted);
      }
      await runner.step(rows, []);
      for (let first = 0; first < wanted.length; first += maxLogitRows) {
        const slice = wanted.slice(first, first + maxLogitRows);
        const stats = await runner.score(
          slice.map((w) => w.row),
          slice.map((w) => (w.takers[0] as Wanted["takers"][number]).target),
        );
        for (const [i, { group, takers }] of slice.entries()) {
          const row = stats[i] as LogitStats;
          const logits = takers.length > 1 ? runner.logits(i) : null;
          for (const { alternative, target } of takers) {
            const score = group.scores[alternative] as Likelihood;
            score.logLikelihood +=
              (logits ? (logits[target] as number) : row.target) - row.logSumExp;
            score.greedy &&= row.argmax === target;
          }
        }
      }
      total.rows += rows.tokens.length;
      total.logitRows += wanted.length;
      for (const group of active.filter((g) => g.done)) {
        active.splice(active.indexOf(group), 1);
        runner.tables.truncate(group.slot, 0);
        free.push(group.slot);
        results[group.index] = group.scores;
        options.onGroup?.(group.index, group.scores);
      }
    }
  } finally {
    for (const group of active) runner.tables.truncate(group.slot, 0);
  }
  total.seconds = (performance.now() - started) / 1000;
  return total;
}
