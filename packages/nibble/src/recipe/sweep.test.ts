import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { tinyFolder } from "../../test/support/tiny-folder.js";
import { ModelError } from "../core/errors.js";
import {
  failedRow,
  knownResult,
  type RunJob,
  runSweep,
  type SweepRow,
  sweepReport,
} from "./sweep.js";
import {
  combinations,
  parseSweep,
  planSweep,
  type SweepJob,
  type SweepPlan,
  shortFlags,
} from "./sweep-plan.js";

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-sweep-"));
});
afterEach(() => rm(folder, { recursive: true }));

const YAML = `version: 1
models: [m]
recipes:
  - rtn-w4a16-g128
  - { preset: gptq-w4a16-g128, set: { bits: [3, 4], groupSize: [64, 128] } }
eval: { ppl: t.txt }
`;
const jobs: SweepJob[] = ["original", "a", "b", "c"].map((name, i) => ({
  id: `id${i}`,
  model: "m",
  name,
  recipe: null,
}));
const plan: SweepPlan = {
  spec: parseSweep(YAML, "s.yaml"),
  jobs,
  text: { content: "x", file: "t.txt" },
  tasks: [],
};
const row = (job: SweepJob): SweepRow => ({
  id: job.id,
  model: job.model,
  name: job.name,
  quality: {
    bitsPerWeight: job.name === "original" ? 16 : 4,
    bytes: 10,
    perplexity: 20 + job.name.length,
    ...(job.name === "original" ? {} : { perplexityRatio: { value: 1.1, low: 1.05, high: 1.16 } }),
    tasks: {},
  },
  tokensPerSecond: 100 * Math.random(),
  seconds: Math.random(),
  error: null,
});

describe("parseSweep", () => {
  it("reads presets, files and lists of values", () => {
    const spec = parseSweep(YAML, "s.yaml");
    expect(spec.recipes).toHaveLength(2);
    expect(spec.eval).toMatchObject({ ctx: 512, tasks: [] });
    expect(combinations<string | number>({ bits: [3, 4], g: 64, s: ["a", "b"] })).toEqual([
      { bits: 3, g: 64, s: "a" },
      { bits: 3, g: 64, s: "b" },
      { bits: 4, g: 64, s: "a" },
      { bits: 4, g: 64, s: "b" },
    ]);
  });
  it("names variants by the last words of their options, while these tell them apart", () => {
    expect(shortFlags({ "steps.rtn.bits": 3, groupSize: 64 })).toEqual(["bits=3", "groupSize=64"]);
    expect(shortFlags({ "steps.rtn.bits": 3, "steps.embeddings.bits": 8 })).toEqual([
      "steps.rtn.bits=3",
      "steps.embeddings.bits=8",
    ]);
  });
  it.each([
    ["version: 2\nmodels: [m]\nrecipes: [x]\neval: { ppl: t }", /s\.yaml:1:/],
    ["version: 1\nmodels: []\nrecipes: [x]\neval: { ppl: t }", /s\.yaml:2:/],
    ["version: 1\nmodels: [m]\nrecipes: [x]\neval: {}", /needs ppl or tasks/],
    ["version: 1\nmodels: [m]\nrecipes: [{ set: {} }]\neval: { ppl: t }", /s\.yaml:3:/],
    ["version: 1\nmodels: [m]\nrecipes: [x]\nevil: 1\neval: { ppl: t }", /s\.yaml/],
    ["version: 1\nmodels: [m", /s\.yaml:/],
  ])("names the place of what is wrong in %j", (text, message) => {
    expect(() => parseSweep(text, "s.yaml")).toThrow(message);
  });
});

describe("planSweep", () => {
  const item = (answer: number) =>
    `${JSON.stringify({ question: "q", choices: ["a", "b"], answer })}\n`;
  const plans = async (at: string) =>
    (await planSweep(join(at, "s.yaml"), "reference")).jobs.map(({ id }) => id);

  it("names jobs by what decides them: questions count, where they lie does not", async () => {
    const [here, there] = [join(folder, "here"), join(folder, "there")];
    await tinyFolder(join(here, "m"));
    await mkdir(join(here, "tasks"));
    await writeFile(join(here, "tasks", "piqa.jsonl"), item(0) + item(1));
    const yaml = (taskDir: string, limit = 2) =>
      `version: 1\nmodels: [m]\nrecipes: [rtn-w4a16-g128]\neval: { tasks: [piqa], taskDir: ${taskDir}, limit: ${limit} }`;
    await writeFile(join(here, "s.yaml"), yaml("tasks"));
    const first = await plans(here);
    expect(new Set(first).size).toBe(2);

    await cp(here, there, { recursive: true });
    await cp(join(here, "tasks"), join(there, "other"), { recursive: true });
    await writeFile(join(there, "s.yaml"), yaml("other"));
    expect(await plans(there)).toEqual(first);
    await writeFile(join(there, "s.yaml"), yaml("other", 1));
    expect(await plans(there)).not.toEqual(first);
    await writeFile(join(here, "tasks", "piqa.jsonl"), item(1) + item(1));
    expect(await plans(here)).not.toEqual(first);

    // Before anything runs: a bad line, a file that is not there.
    await writeFile(join(here, "tasks", "piqa.jsonl"), `${item(1)}{"question": "q"}\n`);
    await expect(plans(here)).rejects.toThrow(/piqa\.jsonl:2/);
    await rm(join(here, "tasks", "piqa.jsonl"));
    await expect(plans(here)).rejects.toMatchObject({ code: "task-missing" });
  });
});

describe("runSweep", () => {
  it("runs each job once, whatever is killed in between", async () => {
    const ran: string[] = [];
    const stop = new AbortController();
    const run: RunJob = async (job) => {
      ran.push(job.name);
      if (job.name === "b" && !stop.signal.aborted) {
        stop.abort(new Error("killed"));
        throw new Error("killed");
      }
      return row(job);
    };
    await expect(
      runSweep(plan, { output: folder, cache: folder, signal: stop.signal }, run),
    ).rejects.toThrow("killed");
    const rows = await runSweep(plan, { output: folder, cache: folder }, run);
    expect(ran).toEqual(["original", "a", "b", "b", "c"]);
    expect(rows.map((r) => r.name)).toEqual(["original", "a", "b", "c"]);
    const again = await runSweep(plan, { output: folder, cache: folder }, () =>
      Promise.reject(new Error("not run")),
    );
    expect(sweepReport(plan, again, "c").json).toBe(sweepReport(plan, rows, "c").json);
    expect((await readdir(folder)).filter((f) => !f.endsWith(".json"))).toEqual([]);
  });

  it("goes on after a job that fails, does not keep the failure, and says why", async () => {
    let fail = true;
    const run: RunJob = async (job) => {
      if (job.name === "a" && fail) throw new ModelError("no weights", { place: "m" });
      return row(job);
    };
    const rows = await runSweep(plan, { output: folder, cache: folder }, run);
    expect(rows[1]).toMatchObject({ name: "a", quality: null, error: "model: m: no weights" });
    expect(rows.filter((r) => r.quality)).toHaveLength(3);
    fail = false;
    expect((await runSweep(plan, { output: folder, cache: folder }, run))[1]?.error).toBeNull();
  });

  it("a damaged result is no result", async () => {
    await writeFile(join(folder, "id1.json"), '{"id": "id1"');
    expect(await knownResult(jobs[1] as SweepJob, { output: folder, cache: folder })).toBeNull();
  });
});

describe("sweepReport", () => {
  it("has a table, a front and a picture; its JSON holds no times", () => {
    const rows = [
      ...jobs.map(row),
      failedRow({ id: "x", model: "m", name: "bad", recipe: null }, new Error("broke")),
    ];
    const report = sweepReport(plan, rows, "nibble sweep s.yaml");
    expect(report.front).toEqual({ m: ["a"] });
    expect(report.json).not.toMatch(/seconds|tokensPerSecond/);
    expect(report.markdown).toContain("| bad |");
    expect(report.markdown).toContain("| 110.0 [105.0, 116.0] |");
    expect(report.html).toContain("<svg");
    expect(report.html).not.toMatch(/NaN|undefined/);
  });
});
