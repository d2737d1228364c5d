/**
 * A sweep shared through a real Redis. No verdict depends on how long something takes: tests wait for events, and what
 * must be equal is the set of results. Bounds are there for hangs only.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Queue } from "bullmq";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { failedRow, type RunJob, type SweepRow } from "../../src/recipe/sweep.js";
import { parseSweep, type SweepJob, type SweepPlan } from "../../src/recipe/sweep-plan.js";
import { queueName, runSweepOnQueue, workerSettings } from "../../src/recipe/sweep-queue.js";
import { RedisServer } from "./redis.js";

let server: RedisServer;
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-queue-"));
  server = await RedisServer.start();
});
afterAll(async () => {
  await server?.end();
  await rm(folder, { recursive: true, force: true });
});

const spec = parseSweep("version: 1\nmodels: [m]\nrecipes: [r]\neval: { ppl: t }", "s");
/** A plan of its own for each test: other ids, another queue. */
function planOf(test: string, count: number): SweepPlan {
  const jobs = Array.from(
    { length: count },
    (_, i): SweepJob => ({ id: `${test}-${i}`, model: "m", name: `${i}`, recipe: null }),
  );
  return { spec, jobs, text: null, tasks: [] };
}
const rowOf = (job: SweepJob): SweepRow => ({
  ...failedRow(job, new Error()),
  error: null,
  quality: { bitsPerWeight: 4, bytes: 1, perplexity: Number(job.name) + 1, tasks: {} },
});
/** Locks that no slowness of the test machine can let run out. */
const patient = { lockMs: 600_000, pollMs: 25 };
const machine = (name: string) => ({ output: join(folder, name), cache: join(folder, name) });
function expectComplete(rows: SweepRow[], plan: SweepPlan): void {
  expect(rows.map((r) => [r.id, r.quality?.perplexity, r.error])).toEqual(
    plan.jobs.map((j) => [j.id, Number(j.name) + 1, null]),
  );
}
function gate(): { opened: Promise<void>; open: () => void } {
  let open = () => {};
  const opened = new Promise<void>((done) => {
    open = done;
  });
  return { opened, open };
}

describe("machines that work", () => {
  it("share the jobs: each runs once, all get all results, a late one computes nothing", async () => {
    const plan = planOf("share", 8);
    const ran: string[] = [];
    const both = gate();
    const busy = new Set<string>();
    const run =
      (name: string): RunJob =>
      async (job) => {
        ran.push(job.id);
        // Nobody finishes its first job before the other has one.
        busy.add(name);
        if (busy.size === 2) both.open();
        await both.opened;
        return rowOf(job);
      };
    const results = await Promise.all(
      ["share-a", "share-b"].map((m) =>
        runSweepOnQueue(plan, machine(m), server.url, { ...patient, run: run(m) }),
      ),
    );
    for (const rows of results) expectComplete(rows, plan);
    expect(ran.sort()).toEqual(plan.jobs.map((j) => j.id).sort());
    const never: RunJob = () => Promise.reject(new Error("not run"));
    const late = { ...patient, run: never };
    expectComplete(await runSweepOnQueue(plan, machine("share-c"), server.url, late), plan);
  });

  it("a job that fails is a row with its reason, and is tried again by the next sweep", async () => {
    const plan = planOf("fail", 2);
    const failing: RunJob = async (job) => {
      if (job.name === "1") throw new Error("broke");
      return rowOf(job);
    };
    const rows = await runSweepOnQueue(plan, machine("fail"), server.url, {
      ...patient,
      run: failing,
    });
    expect(rows.map((r) => r.error)).toEqual([null, "broke"]);
    const run: RunJob = async (job) => rowOf(job);
    const again = await runSweepOnQueue(plan, machine("fail"), server.url, { ...patient, run });
    expectComplete(again, plan);
  });

  it("a job that is delivered twice counts once, and is not computed again where it is known", async () => {
    const plan = planOf("twice", 3);
    const ran: string[] = [];
    const queue = new Queue(queueName(plan), { connection: { url: server.url } });
    try {
      const run: RunJob = async (job) => {
        ran.push(job.id);
        if (ran.length === 2) {
          // The same work once more, under other ids, as a server that forgot what it gave out would send it.
          for (const { id } of plan.jobs) await queue.add("job", { id }, { lifo: true });
        }
        return rowOf(job);
      };
      const options = machine("twice");
      expectComplete(await runSweepOnQueue(plan, options, server.url, { ...patient, run }), plan);
      expect(ran.sort()).toEqual(plan.jobs.map((j) => j.id));
      expect((await readdir(options.cache)).sort()).toEqual(plan.jobs.map((j) => `${j.id}.json`));
    } finally {
      await queue.close();
    }
  });
});

describe("machines that stop", () => {
  it("by Ctrl-C hand their job back at once, and it is no failure", async () => {
    const plan = planOf("stop", 3);
    const stop = new AbortController();
    const holding: RunJob = (_job, _plan, { signal }) =>
      new Promise((_, reject) => {
        signal?.addEventListener("abort", () => reject(signal.reason as Error));
        stop.abort(new Error("stopped"));
      });
    await expect(
      runSweepOnQueue(plan, { ...machine("stop-a"), signal: stop.signal }, server.url, {
        ...patient,
        run: holding,
      }),
    ).rejects.toThrow("stopped");
    // The lock of the first machine would hold for ten minutes: longer than this test may run.
    const run: RunJob = async (job) => rowOf(job);
    const rows = await runSweepOnQueue(plan, machine("stop-b"), server.url, { ...patient, run });
    expectComplete(rows, plan);
  });

  it("by dying lose their job to another", async () => {
    const plan = planOf("crash", 3);
    const settings = { lockMs: 1000, pollMs: 25 };
    const code = `
      import { Queue, Worker } from "bullmq";
      const [url, name, settings, ids] = process.argv.slice(1);
      const connection = { url };
      const queue = new Queue(name, { connection });
      for (const id of JSON.parse(ids)) await queue.add("job", { id }, { jobId: id });
      new Worker(name, () => { console.log("taken"); return new Promise(() => {}); },
        { connection, ...JSON.parse(settings) });`;
    const victim = spawn(
      process.execPath,
      [
        "--input-type=module",
        "-e",
        code,
        server.url,
        queueName(plan),
        JSON.stringify(workerSettings(settings)),
        JSON.stringify(plan.jobs.map((job) => job.id)),
      ],
      { cwd: fileURLToPath(new URL("..", import.meta.url)), stdio: ["ignore", "pipe", "inherit"] },
    );
    await once(victim.stdout, "data");
    const dead = once(victim, "exit");
    victim.kill("SIGKILL");
    await dead;
    const run: RunJob = async (job) => rowOf(job);
    const rows = await runSweepOnQueue(plan, machine("crash"), server.url, { ...settings, run });
    expectComplete(rows, plan);
  });
});

describe("a server that", () => {
  it("drops all connections loses nothing", async () => {
    const plan = planOf("lost", 6);
    let count = 0;
    const run: RunJob = async (job) => {
      if (++count % 2 === 0) {
        await server.command((client) => client.call("CLIENT", "KILL", "TYPE", "normal"));
      }
      return rowOf(job);
    };
    // A job whose delivery was cut off in the middle has a lock without a worker.
    const settings = { lockMs: 2000, pollMs: 25, run };
    expectComplete(await runSweepOnQueue(plan, machine("lost"), server.url, settings), plan);
  });

  it("restarts with nothing is filled again; what is known is not run again", async () => {
    const plan = planOf("restart", 4);
    const ran: string[] = [];
    const run: RunJob = async (job) => {
      ran.push(job.id);
      if (ran.length === 2) {
        await server.end();
        await server.begin();
      }
      return rowOf(job);
    };
    const settings = { ...patient, run };
    expectComplete(await runSweepOnQueue(plan, machine("restart"), server.url, settings), plan);
    expect(ran.sort()).toEqual(plan.jobs.map((j) => j.id));
  });

  it("goes away for good does not keep a machine that is stopped", async () => {
    const lonely = await RedisServer.start();
    const plan = planOf("gone", 2);
    const stop = new AbortController();
    const run: RunJob = async (_job, _plan, { signal }) => {
      await lonely.end();
      stop.abort(new Error("stopped"));
      signal?.throwIfAborted();
      throw new Error("not reached");
    };
    const options = { ...machine("gone"), signal: stop.signal };
    await expect(runSweepOnQueue(plan, options, lonely.url, { ...patient, run })).rejects.toThrow(
      "stopped",
    );
    // Nothing was there to begin with: said at once.
    await expect(
      runSweepOnQueue(plan, machine("gone-2"), lonely.url, { ...patient, run }),
    ).rejects.toThrow(/no Redis server can be reached/);
  });

  it("is none of Redis by its address is refused", async () => {
    await expect(
      runSweepOnQueue(planOf("x", 1), machine("x"), "http://localhost", patient),
    ).rejects.toThrow(/expected redis:/);
  });
});
