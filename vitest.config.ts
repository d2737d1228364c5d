import { defineConfig } from "vitest/config";

/**
 * Tiers, one project each: `unit` (no model files, no browser; `npm test`), `model` (SmolLM2-135M), `browser` (a system
 * Chromium), `queue` (a system redis-server) and `acceptance` (SmolLM2-135M, long measurements; not in CI). `npx vitest run some/file.test.ts` picks the right project by itself.
 */
const root = "packages/nibble";
export default defineConfig({
  test: {
    pool: "forks",
    maxWorkers: 2,
    // Artifacts that tests make are not worth keeping; runtime/prepared.test.ts sets its own.
    env: { NIBBLE_PREPARED: "off" },
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: [`${root}/src/**/*.test.ts`, `${root}/test/**/*.test.ts`],
          exclude: ["model", "browser", "queue", "acceptance"].map(
            (tier) => `${root}/test/${tier}/**`,
          ),
          testTimeout: 30_000,
          hookTimeout: 30_000,
        },
      },
      {
        extends: true,
        test: {
          name: "model",
          include: [`${root}/test/model/**/*.test.ts`],
          testTimeout: 15 * 60_000,
          hookTimeout: 10 * 60_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          name: "acceptance",
          include: [`${root}/test/acceptance/**/*.test.ts`],
          testTimeout: 60 * 60_000,
          hookTimeout: 10 * 60_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          name: "browser",
          include: [`${root}/test/browser/**/*.test.ts`],
          testTimeout: 3 * 60_000,
          hookTimeout: 3 * 60_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: {
          name: "queue",
          include: [`${root}/test/queue/**/*.test.ts`],
          // For hangs only: no verdict depends on it.
          testTimeout: 4 * 60_000,
          hookTimeout: 60_000,
          fileParallelism: false,
        },
      },
    ],
  },
});
