/**
 * From the command to the first token, and whether mapped weights decode as fast as packed ones.
 *
 *   node bench/start.mjs <artifact> [--rounds 9] [--threads 2] [--tokens 64] [--cold]
 *
 * Starts of `nibble run -p Hi -n 1 --json` that take turns: `packed` (NIBBLE_PREPARED=off), `first` (an empty NIBBLE_HOME: packs, and
 * keeps the weights after the answer), `prepared` (maps what `first` kept). --cold also starts packed and prepared with the files taken
 * out of the system's cache (GNU dd; Linux). Then decoding in one process, packed and prepared weights taking turns, at one thread and at
 * --threads. Prints medians and least values.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createSession, openModel } from "../packages/nibble/dist/index.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: "string", default: "9" },
    threads: { type: "string", default: "2" },
    tokens: { type: "string", default: "64" },
    cold: { type: "boolean", default: false },
  },
});
const [artifact] = positionals;
if (!artifact) {
  console.error(
    "usage: node bench/start.mjs <artifact> [--rounds 9] [--threads 2] [--tokens 64] [--cold]",
  );
  process.exit(2);
}
const [rounds, threads, tokens] = [values.rounds, values.threads, values.tokens].map(Number);
const bin = fileURLToPath(new URL("../packages/nibble/bin/nibble.js", import.meta.url));
const home = mkdtempSync(join(tmpdir(), "nibble-start-"));
const REPORT = `data:text/javascript,process.on("exit",()=>process.stderr.write("RSS "+process.resourceUsage().maxRSS))`;
const TIMES =
  "startSeconds loadSeconds backendSeconds weightsSeconds tokenizerSeconds prefillSeconds firstTokenSeconds".split(
    " ",
  );

/** Milliseconds of each part, then peak memory in MB. */
function start(environment) {
  const began = performance.now();
  const args = ["--import", REPORT, bin, "run", artifact, "-p", "Hi", "-n", "1", "--json"];
  const env = {
    ...process.env,
    NIBBLE_HOME: home,
    NIBBLE_THREADS: String(threads),
    ...environment,
  };
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { env, encoding: "utf8" });
  const whole = performance.now() - began;
  if (status !== 0) throw new Error(stderr);
  const { result } = JSON.parse(stdout);
  const rss = (Number(/RSS (\d+)/.exec(stderr)?.[1]) * 1024) / 1e6;
  return {
    prepared: result.preparedWeights,
    row: [...TIMES.map((name) => result[name] * 1000), whole, rss],
  };
}

/** Takes files out of the system's cache. */
function evict(folder) {
  for (const name of readdirSync(folder, { recursive: true })) {
    spawnSync("dd", [
      `of=${join(folder, name)}`,
      "oflag=nocache",
      "conv=notrunc,fdatasync",
      "count=0",
    ]);
  }
}

const KINDS = {
  packed: () => start({ NIBBLE_PREPARED: "off" }),
  first() {
    rmSync(join(home, "prepared"), { recursive: true, force: true });
    return start({});
  },
  prepared: () => start({}),
  ...(values.cold && {
    "packed, cold"() {
      evict(artifact);
      return KINDS.packed();
    },
    "prepared, cold"() {
      evict(artifact);
      evict(home);
      return KINDS.prepared();
    },
  }),
};
const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1];
const percent = (x) => `${(100 * x).toFixed(1)} %`;

try {
  const rows = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [kind, run] of Object.entries(KINDS)) {
      const { prepared, row } = run();
      if (prepared !== kind.startsWith("prepared"))
        throw new Error(`${kind}: prepared is ${prepared}`);
      rows[kind].push(row);
    }
  }
  console.log(
    `ms: ${TIMES.map((name) => name.replace("Seconds", "")).join(", ")}, whole process; peak MB`,
  );
  for (const [kind, list] of Object.entries(rows)) {
    const of = (pick) =>
      list[0].map((_, i) => pick(list.map((row) => row[i])).toFixed(0)).join(" ");
    console.log(`${kind}: median ${of(median)} | least ${of((all) => Math.min(...all))}`);
  }

  process.env.NIBBLE_HOME = home;
  for (const count of new Set([1, threads])) {
    const options = { backend: "native", threads: count, maxContext: 512 };
    const packed = await openModel(artifact, { ...options, prepared: null });
    const mapped = await openModel(artifact, options);
    if (!mapped.compiled.prepared) throw new Error("the second model is not prepared");
    const decode = async (opened) => {
      const session = createSession(opened);
      session.reset();
      for await (const _ of session.generate("Once upon a time", {
        maxTokens: tokens,
        temperature: 0,
      }));
      return session.summary.tokensPerSecond;
    };
    const pairs = [];
    for (let round = -1; round < 2 * rounds; round++) {
      const first = round % 2 ? packed : mapped;
      const one = await decode(first);
      const two = await decode(first === packed ? mapped : packed);
      if (round >= 0) pairs.push(first === packed ? [one, two] : [two, one]);
    }
    const [p, m] = [0, 1].map((i) => pairs.map((pair) => pair[i]));
    console.log(
      `decode, ${count} threads: packed ${median(p).toFixed(0)}, mapped ${median(m).toFixed(0)} tokens/s; mapped / packed ${percent(median(pairs.map(([a, b]) => b / a)))} (best ${percent(Math.max(...m) / Math.max(...p))})`,
    );
    await packed.close();
    await mapped.close();
  }
} finally {
  rmSync(home, { recursive: true, force: true });
}
