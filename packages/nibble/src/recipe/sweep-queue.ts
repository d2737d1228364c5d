/**
 * The jobs of a sweep on several machines through BullMQ on Redis (optional packages bullmq and ioredis). Every machine runs the same command:
 * it adds the jobs (ids are content hashes, so a job is there once whoever adds it), works on them, and waits for all
 * results. The queue's name is the hash of all job ids: machines whose files differ never meet. A worker that dies loses
 * its lock and the job is given to another; a result counts once, by its id.
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
/** Results stay in Redis so long for machines that come late. */
const KEEP_SECONDS = 14 * 24 * 3600;

/** @throws UsageError when bullmq is not installed or the URL is none of Redis */
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
  const { Queue, Worker } = await import("bullmq").catch(missingPackage);
  const { Redis } = await import("ioredis").catch(missingPackage);
  const { lockMs = 120_000, pollMs = 2000, run = runJob } = settings;
  const log = (message: string) => options.onProgress?.({ type: "log", level: "warn", message });
  const byId = new Map(plan.jobs.map((job) => [job.id, job]));
  const name = `nibble-sweep-${fingerprint({ jobs: [...byId.keys()].sort() }).slice(0, 32)}`;
  const rows = new Map<string, SweepRow>();
  for (const job of plan.jobs) {
    const known = await knownResult(job, options);
    if (known) rows.set(job.id, known);
  }
  const missing = () => plan.jobs.filter((job) => !rows.has(job.id));
  if (missing().length === 0) return plan.jobs.map((job) => rows.get(job.id) as SweepRow);

  // null: wait through a lost connection instead of failing.
  const connection = new Redis(url, { maxRetriesPerRequest: null });
  const queue = new Queue<{ id: string }, SweepRow>(name, { connection });
  let reported = "";
  const onError = (error: Error) => {
    if (error.message !== reported) log(`queue: ${error.message}`);
    reported = error.message;
  };
  connection.on("error", onError);
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
  const worker = new Worker<{ id: string }, SweepRow>(name, (job) => work(job.data.id), {
    connection,
    concurrency: 1,
    lockDuration: lockMs,
    stalledInterval: Math.max(pollMs, lockMs / 4),
    maxStalledCount: MAX_DEATHS,
  });
  worker.on("error", onError);
  try {
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
          const row = { ...(found.returnvalue as SweepRow), model: job.model, name: job.name };
          rows.set(job.id, row);
          if (row.quality) await keepResult(row, options);
        } else if (await found.isFailed())
          rows.set(job.id, failedRow(job, new Error(found.failedReason)));
      }
      options.onProgress?.({
        type: "step",
        stage: "sweep",
        item: rows.size,
        total: plan.jobs.length,
      });
      if (missing().length === 0) break;
      await new Promise((done) => setTimeout(done, pollMs));
    }
    return plan.jobs.map((job) => rows.get(job.id) as SweepRow);
  } finally {
    await worker.close(options.signal?.aborted === true).catch(() => {});
    await queue.close().catch(() => {});
    connection.disconnect();
  }
}
