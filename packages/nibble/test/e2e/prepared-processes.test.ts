/** Prepared weights among real processes: several first loads at once, and writers that are killed at any of their writes. */
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "tsdown";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { addonPath } from "../../src/kernels/native.js";
import { recipeFromObject } from "../../src/recipe/load.js";
import { compress } from "../../src/recipe/run.js";
import { tinyFolder } from "../support/tiny-folder.js";

const root = fileURLToPath(new URL("../../../../", import.meta.url));
const source = fileURLToPath(new URL("../../src/runtime/open.ts", import.meta.url));

/**
 * Opens the artifact, closes it, prints whether it was prepared and one logit. With DIE=k it kills itself at the k-th piece that it
 * writes to a file, half of which is written by then.
 */
const CHILD = `
import { open } from "node:fs/promises";
import { openModel } from "./open.js";
const { ARTIFACT, DIE } = process.env;
const now = Date.now.bind(Date);
Date.now = () => now() + 60_000; // the artifact is settled
if (DIE) {
  const handle = await open(process.execPath, "r");
  const prototype = Object.getPrototypeOf(handle);
  await handle.close();
  const write = prototype.write;
  let pieces = 0;
  prototype.write = async function (bytes, from, length) {
    if (++pieces < Number(DIE)) return write.call(this, bytes, from, length);
    await write.call(this, bytes, from, length >> 1);
    process.kill(process.pid, "SIGKILL");
    await new Promise(() => {});
  };
}
const opened = await openModel(ARTIFACT, { backend: "native", threads: 1, maxContext: 32, maxRows: 8, maxLogitRows: 2 });
const { runner, compiled } = opened;
runner.tables.reserve(0, 1);
await runner.step({ tokens: [3], positions: [0], sequences: new Int32Array(1) }, [0]);
const logit = runner.logits(0)[5];
await opened.close();
console.log(JSON.stringify({ prepared: compiled.prepared, logit }));
`;

let folder: string;
let code: string;
let home: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-processes-"));
  await tinyFolder(join(folder, "model"));
  const recipe = recipeFromObject({ version: 1, steps: [{ rtn: { bits: 4, groupSize: 32 } }] });
  const output = join(folder, "artifact");
  await compress(join(folder, "model"), recipe, { output, backend: "reference", threads: 1 });
  // Inside of the checkout, where the addon and the dependencies are found.
  const cache = join(root, "node_modules", ".cache");
  await mkdir(cache, { recursive: true });
  code = await mkdtemp(join(cache, "nibble-processes-"));
  await build({
    config: false,
    entry: { open: source },
    outDir: code,
    format: "esm",
    platform: "node",
    fixedExtension: false,
    dts: false,
    clean: false,
    logLevel: "error",
    inputOptions: { checks: { pluginTimings: false } },
  });
  await writeFile(join(code, "package.json"), '{"type":"module"}');
  await writeFile(join(code, "child.js"), CHILD);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
  if (code) await rm(code, { recursive: true, force: true });
});
beforeEach(async () => {
  home = await mkdtemp(join(folder, "home-"));
});

interface Ending {
  signal: NodeJS.Signals | null;
  answer: { prepared: boolean; logit: number } | null;
  errors: string;
}

function child(die = ""): Promise<Ending> {
  const env = {
    ...process.env,
    NIBBLE_HOME: home,
    NIBBLE_PREPARED: "",
    ARTIFACT: join(folder, "artifact"),
    DIE: die,
  };
  const started = spawn(process.execPath, [join(code, "child.js")], { env });
  let text = "";
  let errors = "";
  started.stdout.on("data", (data) => {
    text += data;
  });
  started.stderr.on("data", (data) => {
    errors += data;
  });
  return new Promise((resolve, reject) => {
    started.on("error", reject);
    started.on("close", (_, signal) => {
      resolve({ signal, answer: text ? JSON.parse(text) : null, errors });
    });
  });
}
const kept = async () => readdir(join(home, "prepared")).catch(() => []);

describe.runIf(addonPath() !== null)("prepared weights among processes", () => {
  it("first loads at once all run, and leave one whole file", async () => {
    const all = await Promise.all([child(), child(), child()]);
    expect(all.map(({ errors }) => errors)).toEqual(["", "", ""]);
    expect(await kept()).toHaveLength(1);
    const later = await child();
    expect(later.answer?.prepared).toBe(true);
    for (const { answer } of all) expect(answer?.logit).toBe(later.answer?.logit);
  });

  it("a writer killed at any piece leaves nothing under the final name", async () => {
    let kills = 0;
    for (;;) {
      const killed = await child(String(kills + 1));
      if (killed.signal === null) break; // it writes fewer pieces than that
      expect(killed.signal).toBe("SIGKILL");
      kills++;
      const left = await kept();
      expect(left).toHaveLength(kills);
      for (const name of left) expect(name).toMatch(/^\.[0-9a-f]{16}-[0-9a-f]{32}\.panels\.tmp-/);
    }
    expect(kills).toBeGreaterThanOrEqual(2); // the header, the panels
    const after = await child();
    expect(after).toMatchObject({ errors: "", answer: { prepared: true } });
  });
});
