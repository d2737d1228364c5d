import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { failedRow, type RunJob, type SweepRow } from "./sweep.js";
import { parseSweep, type SweepJob, type SweepPlan } from "./sweep-plan.js";
import { runSweepOnQueue } from "./sweep-queue.js";

const hasRedis = spawnSync("redis-server", ["--version"]).status === 0;
if (!hasRedis)
  console.warn("sweep-queue: redis-server is not installed, the queue itself is not tested");

let server: ChildProcess | undefined;
let url = "";
let port = 0;
let folder = "";
const wait = (ms: number) => new Promise((done) => setTimeout(done, ms));
async function startServer(): Promise<void> {
  server = spawn("redis-server", [
    "--port",
    String(port),
    "--bind",
    "127.0.0.1",
    "--save",
    "",
    "--appendonly",
    "no",
  ]);
  for (let i = 0; i < 100; i++) {
    if (
      spawnSync("redis-cli", ["-p", String(port), "ping"])
        .stdout.toString()
        .includes("PONG")
    )
      return;
    await wait(50);
  }
  throw new Error("redis-server did not start");
}
async function stopServer(): Promise<void> {
  const ended = new Promise((done) => server?.once("exit", done));
  server?.kill("SIGKILL");
  await ended;
}
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-queue-"));
  if (!hasRedis) return;
  port = await new Promise<number>((done) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port: free } = probe.address() as { port: number };
      probe.close(() => done(free));
    });
  });
  url = `redis://127.0.0.1:${port}`;
  await startServer();
});
afterAll(async () => {
  if (server) await stopServer();
  await rm(folder, { recursive: true });
});

const spec = parseSweep("version: 1\nmodels: [m]\nrecipes: [r]\neval: { ppl: t }", "s");
/** A plan of its own for each test: other ids, another queue. */
function planOf(test: string, count = 5): SweepPlan {
  const jobs = Array.from(
    { length: count },
    (_, i): SweepJob => ({ id: `${test}-${i}`, model: "m", name: `${i}`, recipe: null }),
  );
  return { spec, jobs, text: null };
}
const rowOf = (job: SweepJob): SweepRow => ({
  ...failedRow(job, new Error()),
  error: null,
  quality: { bitsPerWeight: 4, bytes: 1, perplexity: Number(job.name) + 1, tasks: {} },
});
const fast = { lockMs: 800, pollMs: 50 };
const machine = (name: string) => ({ output: join(folder, name), cache: join(folder, name) });
const complete = (rows: SweepRow[], plan: SweepPlan) =>
  expect(rows.map((r) => [r.id, r.quality?.perplexity])).toEqual(
    plan.jobs.map((j) => [j.id, Number(j.name) + 1]),
  );

describe.runIf(hasRedis)("runSweepOnQueue", () => {
  it("two machines share the jobs: each runs once, both get all results", async () => {
    const plan = planOf("share", 8);
    const ran: string[] = [];
    const run: RunJob = async (job) => {
      ran.push(job.id);
      await wait(30);
      return rowOf(job);
    };
    const both = await Promise.all(
      ["share-a", "share-b"].map((m) => runSweepOnQueue(plan, machine(m), url, { ...fast, run })),
    );
    for (const rows of both) complete(rows, plan);
    expect(ran.sort()).toEqual(plan.jobs.map((j) => j.id).sort());
    // A third one that comes late computes nothing.
    const late = await runSweepOnQueue(plan, machine("share-c"), url, {
      ...fast,
      run: () => Promise.reject(new Error("not run")),
    });
    complete(late, plan);
  });

  it("the job of a worker that dies goes to another", async () => {
    const plan = planOf("crash", 3);
    const code = `
      import { Worker } from "bullmq";
      import { Redis } from "ioredis";
      const [url, name] = process.argv.slice(1);
      new Worker(name, async () => { console.log("taken"); await new Promise(() => {}); },
        { connection: new Redis(url, { maxRetriesPerRequest: null }), lockDuration: 800 });`;
    const { fingerprint } = await import("./resume.js");
    const name = `nibble-sweep-${fingerprint({ jobs: plan.jobs.map((j) => j.id).sort() }).slice(0, 32)}`;
    const victim = spawn(process.execPath, ["--input-type=module", "-e", code, url, name]);
    const taken = new Promise((done) => victim.stdout.once("data", done));
    // The other machine may take jobs only once the victim holds one.
    const run: RunJob = async (job) => {
      await taken;
      victim.kill("SIGKILL");
      return rowOf(job);
    };
    await wait(400);
    complete(await runSweepOnQueue(plan, machine("crash"), url, { ...fast, run }), plan);
  });

  it("a job that fails is a row with the reason, and is tried again by the next sweep", async () => {
    const plan = planOf("fail", 2);
    const failing: RunJob = async (job) => {
      if (job.name === "1") throw new Error("broke");
      return rowOf(job);
    };
    const rows = await runSweepOnQueue(plan, machine("fail"), url, { ...fast, run: failing });
    expect(rows.map((r) => r.error)).toEqual([null, "broke"]);
    complete(
      await runSweepOnQueue(plan, machine("fail"), url, {
        ...fast,
        run: async (job) => rowOf(job),
      }),
      plan,
    );
  });

  it("lost connections lose nothing", async () => {
    const plan = planOf("lost", 6);
    const ran: string[] = [];
    const run: RunJob = async (job) => {
      ran.push(job.id);
      if (ran.length === 2)
        execFileSync("redis-cli", ["-p", String(port), "client", "kill", "type", "normal"]);
      await wait(40);
      return rowOf(job);
    };
    complete(await runSweepOnQueue(plan, machine("lost"), url, { ...fast, run }), plan);
  });

  it("a server that restarts empty is filled again; what is known is not run again", async () => {
    const plan = planOf("restart", 4);
    const ran: string[] = [];
    const run: RunJob = async (job) => {
      ran.push(job.id);
      if (ran.length === 2) {
        await stopServer();
        await startServer();
      }
      return rowOf(job);
    };
    complete(await runSweepOnQueue(plan, machine("restart"), url, { ...fast, run }), plan);
    expect(new Set(ran).size).toBe(4);
    expect(ran.length).toBe(4);
  });
});

describe("runSweepOnQueue without a server", () => {
  it("refuses an address that is none of Redis", async () => {
    await expect(runSweepOnQueue(planOf("x"), machine("x"), "http://localhost")).rejects.toThrow(
      /expected redis:/,
    );
  });
});
