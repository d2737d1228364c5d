/**
 * Runs one tier of tests: `unit` (default; no model files, no browser), `model` (SmolLM2-135M), `browser` (Chromium),
 * `queue` (redis-server), `acceptance` (SmolLM2-135M, long measurements).
 * Further arguments go to vitest. Ends with a count and the tiers that did not run. A tier whose means are missing is
 * skipped with a message, or fails when CI is set. Exit codes: 0 passed or skipped, 1 failed, 2 usage.
 */
import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fail, root } from "./common.mjs";

const TIERS = {
  unit: { command: "npm test", means: () => ({}) },
  model: { command: "npm run test:model", means: modelFolder },
  browser: { command: "npm run test:browser", means: chromium },
  queue: { command: "npm run test:queue", means: redisServer },
  acceptance: { command: "npm run test:acceptance", means: modelFolder },
};

const [first, ...others] = process.argv.slice(2);
const named = first !== undefined && !first.startsWith("-") && TIERS[first] !== undefined;
const tier = named ? first : "unit";
if (first !== undefined && !named && !first.startsWith("-") && !existsSync(join(root, first))) {
  fail(`unknown tier "${first}": one of ${Object.keys(TIERS).join(", ")}, or a test file`, 2);
}
const extra = named ? others : process.argv.slice(2);

const means = TIERS[tier].means();
if (means.missing) {
  console.log(`${tier} tests not run: ${means.missing}`);
  process.exit(process.env.CI ? 1 : 0);
}

const scratch = mkdtempSync(join(tmpdir(), "nibble-test-"));
const report = join(scratch, "report.json");
const vitest = join(root, "node_modules", "vitest", "vitest.mjs");
const run = spawnSync(
  process.execPath,
  [
    vitest,
    "run",
    "--project",
    tier,
    "--passWithNoTests",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${report}`,
    ...extra,
  ],
  { cwd: root, stdio: "inherit", env: { ...process.env, ...means.env } },
);
const counts = existsSync(report) ? JSON.parse(readFileSync(report, "utf8")) : {};
rmSync(scratch, { recursive: true, force: true });

const passed = counts.numPassedTests ?? 0;
// A file that does not even load counts as one failure, so that "0 failed" is never printed over a broken run.
const broken = (counts.testResults ?? []).filter(
  (file) =>
    file.status === "failed" && file.assertionResults.every((one) => one.status !== "failed"),
).length;
const failed =
  (counts.numFailedTests ?? 0) + broken + (run.status !== 0 && !counts.testResults ? 1 : 0);
console.log(`${tier}: ${passed} passed, ${failed} failed`);
if (process.env.NIBBLE_TEST_COUNTS) {
  appendFileSync(process.env.NIBBLE_TEST_COUNTS, `${passed} ${failed}\n`);
}
const rest = Object.keys(TIERS).filter((name) => name !== tier);
console.log(`not run: ${rest.map((name) => `${name} (${TIERS[name].command})`).join(", ")}`);
process.exit(run.status === 0 && failed === 0 ? 0 : 1);

/** Where the real model is: NIBBLE_MODEL_DIR, else ../shared/models beside the checkout, else the cache of downloads. */
function modelFolder() {
  const home = process.env.NIBBLE_HOME ?? join(process.env.HOME ?? "", ".cache", "nibble");
  const places = [
    process.env.NIBBLE_MODEL_DIR,
    join(root, "..", "shared", "models"),
    join(home, "models"),
  ].filter((place) => place !== undefined && existsSync(place));
  const found = places.find((place) =>
    readdirSync(place).some((name) => /smollm2-135m/i.test(name)),
  );
  if (found) return { env: { NIBBLE_MODEL_DIR: found } };
  return { missing: "no SmolLM2-135M found; set NIBBLE_MODEL_DIR to the folder that holds it" };
}

/** First of some programs on the path, or of the path that a variable names. */
function program(variable, names) {
  const folders = (process.env.PATH ?? "").split(delimiter);
  return [
    process.env[variable],
    ...names.flatMap((name) => folders.map((folder) => join(folder, name))),
  ].find((path) => path && existsSync(path));
}

/** A system Chromium: NIBBLE_CHROMIUM, else the first known name on the path. */
function chromium() {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const found = program("NIBBLE_CHROMIUM", names);
  if (found) return { env: { NIBBLE_CHROMIUM: found } };
  return { missing: "no Chromium on the path; install one or set NIBBLE_CHROMIUM" };
}

/** A redis-server: NIBBLE_REDIS_SERVER, else the one on the path. */
function redisServer() {
  const found = program("NIBBLE_REDIS_SERVER", ["redis-server"]);
  if (found) return { env: { NIBBLE_REDIS_SERVER: found } };
  return { missing: "no redis-server on the path; install it or set NIBBLE_REDIS_SERVER" };
}
