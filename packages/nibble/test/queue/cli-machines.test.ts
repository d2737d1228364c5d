/**
 * `nibble sweep --queue` as users run it: processes that share a Redis, one of them killed. Whenever that happens, what
 * is left must find the rows of a sweep in one process.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { tinyFolder } from "../support/tiny-folder.js";
import { RedisServer } from "./redis.js";

const SWEEP = `version: 1
models: [tiny]
recipes:
  - { preset: rtn-w4a16-g128, name: rtn, set: { steps.rtn.groupSize: [32, 64], steps.rtn.bits: [3, 4, 8] } }
eval: { ppl: text.txt, ctx: 64, windows: 4 }
`;
const bin = fileURLToPath(new URL("../../bin/nibble.js", import.meta.url));

let server: RedisServer;
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-machines-"));
  await tinyFolder(join(folder, "tiny"));
  await writeFile(join(folder, "text.txt"), "hello world, it is 12 o'clock. ".repeat(40));
  await writeFile(join(folder, "sweep.yaml"), SWEEP);
  server = await RedisServer.start();
});
afterAll(async () => {
  await server?.end();
  await rm(folder, { recursive: true, force: true });
});

/** A machine: a process with a home of its own. */
function machine(name: string, ...flags: string[]) {
  const output = join(folder, name);
  const child = spawn(
    process.execPath,
    [
      ...[bin, "sweep", join(folder, "sweep.yaml"), "-o", output],
      ...["--backend", "wasm", "--threads", "1", ...flags],
    ],
    {
      env: { ...process.env, NIBBLE_HOME: join(folder, `${name}-home`) },
      stdio: ["ignore", "ignore", "pipe"],
    },
  );
  let stderr = "";
  const begun = new Promise<void>((done) => {
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
      if (stderr.includes("sweep ")) done();
    });
    child.once("exit", () => done());
  });
  const ended = once(child, "exit") as Promise<[number | null, NodeJS.Signals | null]>;
  return {
    child,
    begun,
    ended,
    /** Rows of its report. */
    async rows(): Promise<unknown[]> {
      const [code] = await ended;
      expect(code, stderr).toBe(0);
      return JSON.parse(await readFile(join(output, "sweep.json"), "utf8")).rows;
    },
  };
}

it("a machine that is killed costs nothing but time", async () => {
  const alone = await machine("alone").rows();
  expect(alone).toHaveLength(7);
  const queue = ["--queue", server.url, "--queue-lock", "3"];
  const victim = machine("victim", ...queue);
  const survivor = machine("survivor", ...queue);
  await victim.begun;
  victim.child.kill("SIGKILL");
  await victim.ended;
  expect(await survivor.rows()).toEqual(alone);
  expect(await machine("late", ...queue).rows()).toEqual(alone);
});
