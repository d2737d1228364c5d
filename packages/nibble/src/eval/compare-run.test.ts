/** Comparisons of tiny random models: finished parts are kept, whatever happens in between. */
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { tinyFolder } from "../../test/support/tiny-folder.js";
import type { ProgressEvent } from "../core/progress.js";
import { type CompareOptions, compareModels } from "./compare-run.js";

let folder = "";
const at = (name: string) => join(folder, name);
const TEXT = "hello world, here is a hat. ".repeat(12);
const items = (task: string) =>
  Array.from({ length: 3 }, (_, i) =>
    JSON.stringify({
      question: `${task} ${i}: what is it?`,
      choices: ["a hat", "a world", `${i} hells`],
      answer: i % 3,
    }),
  ).join("\n");

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-compare-"));
  vi.stubEnv("NIBBLE_HOME", at("home"));
  for (const [i, name] of ["a", "b", "c"].entries()) await tinyFolder(at(name), i + 1);
  for (const task of ["arc_easy", "piqa"]) await writeFile(at(`${task}.jsonl`), items(task));
  await writeFile(at("text.txt"), TEXT);
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true });
});

/** Runs a comparison; `measured` names what was computed, in order. */
async function run(cache: string, own: Partial<CompareOptions> = {}, stopAt = "") {
  const measured: string[] = [];
  const stop = new AbortController();
  const onProgress = (event: ProgressEvent) => {
    if (event.type !== "step" || event.item === 0) return;
    if (event.stage !== "evaluating" && !event.stage.startsWith("comparing ")) return;
    const what = `${event.stage} ${event.name?.split(" ")[0]}`;
    if (measured.at(-1) !== what) measured.push(what);
    if (what === stopAt) stop.abort(new Error("stopped"));
  };
  const outcome = compareModels(["a", "b", "c"].map(at), {
    command: "nibble compare a b c",
    text: { content: TEXT, file: "text.txt" },
    ctx: 16,
    windows: 2,
    tasks: ["arc_easy", "piqa"],
    taskDir: folder,
    backend: "reference",
    threads: 1,
    cache: at(cache),
    signal: stop.signal,
    onProgress,
    ...own,
  });
  return { outcome, measured };
}
const TASKS = ["evaluating arc_easy", "evaluating piqa"];
const ALL = [...TASKS, ...TASKS, "comparing b perplexity", ...TASKS, "comparing c perplexity"];

describe("compareModels", () => {
  it("goes on where it was stopped, with the same result, and computes nothing twice", async () => {
    const whole = await run("whole");
    const expected = JSON.stringify((await whole.outcome).result);
    expect(whole.measured).toEqual(ALL);

    const stopped = await run("parts", {}, "comparing b perplexity");
    await expect(stopped.outcome).rejects.toThrow("stopped");
    expect(stopped.measured).toEqual(ALL.slice(0, 5));
    const rest = await run("parts");
    expect(JSON.stringify((await rest.outcome).result)).toBe(expected);
    expect(rest.measured).toEqual(ALL.slice(4));

    const again = await run("parts");
    expect(JSON.stringify((await again.outcome).result)).toBe(expected);
    expect(again.measured).toEqual([]);
  });

  it("computes again what other inputs decide, and what was damaged", async () => {
    const first = await run("inputs");
    await first.outcome;
    const fewer = await run("inputs", { limit: 2 });
    expect((await fewer.outcome).result.tasks[0]?.n).toBe(2);
    expect(fewer.measured).toEqual([...TASKS, ...TASKS, ...TASKS]);
    const wider = await run("inputs", { ctx: 20 });
    expect((await wider.outcome).result.text?.ctx).toBe(20);
    expect(wider.measured).toEqual(["comparing b perplexity", "comparing c perplexity"]);
    const cached = await run("inputs", { kv: "quarot-kv4" });
    await cached.outcome;
    expect(cached.measured).toEqual(ALL);
    for (const file of await readdir(at("inputs"))) await writeFile(join(at("inputs"), file), "{");
    const damaged = await run("inputs");
    expect((await damaged.outcome).result).toEqual((await first.outcome).result);
    expect(damaged.measured).toEqual(ALL);
  });
});
