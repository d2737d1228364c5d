/**
 * The jobs of a sweep on several machines through BullMQ on Redis (optional packages bullmq and ioredis). Every machine runs the same command:
 * it adds the jobs (ids are content hashes, so a job is there once whoever adds it), works on them, and waits for all
 * results. The queue's name is the hash of all job ids: machines whose files differ never meet. A worker that dies loses
 * its lock and the job is given to another; one that is stopped hands its job back; a result counts once, by its id.
 *
 * Dead workers are noticed by a check that all workers of a queue share through one key in Redis: it runs once in
 * `stalledInterval`, whoever comes first, so every worker must use the same settings (they come from workerSettings).
 */
import { UsageError } from "../core/errors.js";
import { fingerprint } from "./resume.js";
import {
  failedRow,
  keepResult,
  knownResult,
  type RunJob,
  runJob,
  type SweepOptions,
  type SweepRow,
} from "./sweep.js";
import type { SweepJob, SweepPlan } from "./sweep-plan.js";

export interface QueueSettings {
  /** A worker that does not answer for so long has died. Solvers may keep the event loop busy for seconds. */
  lockMs?: number;
  /** How often everybody looks for results and for jobs of dead workers. */
  pollMs?: number;
  run?: RunJob;
}

/** Deaths of workers after which a job is taken for the cause. */
const MAX_DEATHS = 5;
/** How long the end of a job, or of the connection, is waited for when the sweep stops. */
const CLOSE_MS = 5000;
const DEFAULT_LOCK_MS = 120_000;
/** Results stay in Redis so long for machines that come late. */
const KEEP_SECONDS = 14 * 24 * 3600;

/** Name of the queue of a plan. */
export function queueName(plan: SweepPlan): string {
  const jobs = [...new Set(plan.jobs.map((job) => job.id))].sort();
  return `nibble-sweep-${fingerprint({ jobs }).slice(0, 32)}`;
}

/** What every worker of a queue must agree on. A dead worker's job is free after lockMs and at most two checks. */
export function workerSettings({ lockMs = DEFAULT_LOCK_MS, pollMs = 2000 }: QueueSettings = {}) {
  return {
    concurrency: 1,
    lockDuration: lockMs,
    stalledInterval: Math.max(pollMs, lockMs / 4),
    maxStalledCount: MAX_DEATHS,
  };
}

/** @throws UsageError when bullmq is not installed, the URL is none of Redis, or no server answers there */
export async function runSweepOnQueue(
  plan: SweepPlan,
  options: SweepOptions,
  url: string,
  settings: QueueSettings = {},
): Promise<SweepRow[]> {
  if (!/^rediss?:\/\//.test(url)) {
    throw new UsageError(`--queue ${url}: expected redis://host:port`, {
      hint: "Example: redis://127.0.0.1:6379.",
    });
  }
  const missingPackage = (cause: unknown): never => {
    throw new UsageError("the queue needs the packages bullmq and ioredis", {
      hint: "npm install bullmq ioredis",
      cause,
    });
  };
  const { Queue, Worker, WaitingError } = await import("bullmq").catch(missingPackage);
  const { Redis } = await import("ioredis").catch(missingPackage);
  const { pollMs = 2000, run = runJob } = settings;
  const log = (message: string) => options.onProgress?.({ type: "log", level: "warn", message });
  const byId = new Map(plan.jobs.map((job) => [job.id, job]));
  const name = queueName(plan);
  const rows = new Map<string, SweepRow>();
  for (const job of plan.jobs) {
    const known = await knownResult(job, options);
    if (known) rows.set(job.id, known);
  }
  const missing = () => plan.jobs.filter((job) => !rows.has(job.id));
  if (missing().length === 0) return plan.jobs.map((job) => rows.get(job.id) as SweepRow);

  // null: wait through a lost connection instead of failing.
  const connection = new Redis(url, { maxRetriesPerRequest: null, lazyConnect: true });
  let reported = "";
  const onError = (error: Error) => {
    if (error.message !== reported) log(`queue: ${error.message}`);
    reported = error.message;
  };
  const duplicates: InstanceType<typeof Redis>[] = [];
  const duplicate = connection.duplicate.bind(connection);
  connection.duplicate = (override) => {
    const made = duplicate(override);
    duplicates.push(made);
    return made;
  };
  let refused = "no answer";
  const onRefused = (error: Error) => {
    refused = error.message || (error as NodeJS.ErrnoException).code || refused;
  };
  connection.on("error", onRefused);
  // A connection that is lost later is waited for; an address where nothing is must not be.
  await connection.connect().catch((cause) => {
    connection.disconnect();
    throw new UsageError(`--queue ${url}: no Redis server can be reached (${refused})`, {
      hint: "Start one with redis-server, or check host and port.",
      cause,
    });
  });
  connection.off("error", onRefused);
  connection.on("error", onError);
  const queue = new Queue<{ id: string }, SweepRow>(name, { connection });
  queue.on("error", onError);
  const add = (jobs: SweepJob[]) =>
    queue.addBulk(
      jobs.map((job) => ({
        name: "job",
        data: { id: job.id },
        opts: {
          jobId: job.id,
          removeOnComplete: { age: KEEP_SECONDS },
          removeOnFail: { age: KEEP_SECONDS },
        },
      })),
    );
  const work = async (id: string): Promise<SweepRow> => {
    const job = byId.get(id);
    if (!job) throw new Error(`job ${id} is not of this sweep`);
    const known = await knownResult(job, options);
    if (known) return known;
    try {
      const row = await run(job, plan, options);
      await keepResult(row, options);
      return row;
    } catch (error) {
      options.signal?.throwIfAborted();
      return failedRow(job, error);
    }
  };
  const worker = new Worker<{ id: string }, SweepRow>(
    name,
    async (job, token) => {
      try {
        options.signal?.throwIfAborted();
        return await work(job.data.id);
      } catch (error) {
        if (!options.signal?.aborted) throw error;
        // This machine was stopped, which is no fault of the job: another one takes it at once.
        await job.moveToWait(token);
        throw new WaitingError();
      }
    },
    { connection, ...workerSettings(settings) },
  );
  worker.on("error", onError);
  const share = async (): Promise<SweepRow[]> => {
    // What failed in an earlier sweep is tried again.
    for (const job of missing()) {
      const old = await queue.getJob(job.id);
      if (old && ((await old.isFailed()) || (old.returnvalue as SweepRow | null)?.error)) {
        await old.remove().catch(() => {});
      }
    }
    await add(missing());
    for (;;) {
      for (const job of missing()) {
        options.signal?.throwIfAborted();
        const found = await queue.getJob(job.id);
        // Gone with the server's memory: added again.
        if (!found) await add([job]);
        else if (await found.isCompleted()) {
          // It may have ended after it was fetched: the result is in what is fetched now.
          const result = (await queue.getJob(job.id))?.returnvalue as SweepRow | null | undefined;
          if (!result) continue;
          const row = { ...result, model: job.model, name: job.name };
          rows.set(job.id, row);
          if (row.quality) await keepResult(row, options);
        } else if (await found.isFailed()) {
          const reason = (await queue.getJob(job.id))?.failedReason;
          if (reason) rows.set(job.id, failedRow(job, new Error(reason)));
        }
      }
      options.onProgress?.({
        type: "step",
        stage: "sweep",
        item: rows.size,
        total: plan.jobs.length,
      });
      if (missing().length === 0) break;
      await wait(pollMs, options.signal);
    }
    return plan.jobs.map((job) => rows.get(job.id) as SweepRow);
  };
  try {
    return await unlessAborted(share(), options.signal);
  } finally {
    // Closing waits for the job at hand (an interrupted one is handed back), but not for a server that is gone.
    const closing = worker
      .close()
      .then(() => queue.close())
      .catch(() => {});
    const late = new AbortController();
    await Promise.race([closing, wait(CLOSE_MS, late.signal)]);
    late.abort();
    // The worker's own connection too, which would look for a lost server for ever.
    for (const one of [connection, ...duplicates]) one.disconnect();
  }
}

/** Rejects as soon as the signal aborts: commands to a server that is gone wait for ever. */
async function unlessAborted<T>(work: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return work;
  signal.throwIfAborted();
  let end = () => {};
  const aborted = new Promise<never>((_, reject) => {
    end = () => reject(signal.reason as Error);
    signal.addEventListener("abort", end);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", end);
  }
}

/** Resolves after `ms`, or as soon as the signal aborts. */
function wait(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done) => {
    if (signal?.aborted) return done();
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
