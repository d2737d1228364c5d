/**
 * The thread team under ThreadSanitizer (packages/native/stress), then native tests under AddressSanitizer and
 * UndefinedBehaviorSanitizer: builds the addon with both (minutes the first time) and runs the tests that drive it. Any
 * finding ends the process with a report. Further arguments go to vitest.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fail, native, root } from "./common.mjs";

const TESTS = [
  "native.test.ts",
  "native-large.test.ts",
  "native-hostile.test.ts",
  "map-file.test.ts",
];

const compiler = process.env.CC ?? "cc";
const found = spawnSync(compiler, ["-print-file-name=libasan.so"], { encoding: "utf8" });
const library = found.stdout?.trim() ?? "";
if (process.platform !== "linux" || !existsSync(library)) {
  fail(`the sanitizers need Linux and gcc with libasan (${compiler} has none)`, 2);
}
checkRaces();
const build = spawnSync(process.execPath, [join(native, "build.mjs"), "--sanitize"], {
  stdio: "inherit",
});
if (build.status !== 0) fail("the sanitized addon did not compile");

const vitest = join(root, "node_modules", "vitest", "vitest.mjs");
const extra = process.argv.slice(2);
const tests = TESTS.map((name) => join(root, "packages", "nibble", "src", "kernels", name));
const { status } = spawnSync(
  process.execPath,
  [vitest, "run", ...(extra.length > 0 ? extra : [...tests, "--testTimeout", "600000"])],
  {
    cwd: root,
    stdio: "inherit",
    env: {
      ...process.env,
      LD_PRELOAD: library,
      NIBBLE_NATIVE_BUILD: "sanitize",
      // Node itself frees little at its end, and V8 reserves more than the allocator's cap.
      ASAN_OPTIONS: "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
    },
  },
);
process.exit(status ?? 1);

function checkRaces() {
  const folder = mkdtempSync(join(tmpdir(), "nibble-team-"));
  try {
    const program = join(folder, "team");
    const sources = ["stress/team.c", "src/threads.c", "src/pace.c"].map((name) =>
      join(native, name),
    );
    const flags = ["-g", "-O1", "-std=gnu11", "-fsanitize=thread", "-pthread", "-o", program];
    const options = { stdio: "inherit" };
    if (spawnSync(compiler, [...flags, ...sources], options).status !== 0) {
      fail("the stress test of the thread team did not compile");
    }
    // The sanitizer wants a fixed address layout.
    if (spawnSync("setarch", ["-R", program], options).status !== 0) {
      fail("the thread team has a race or lost work");
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
