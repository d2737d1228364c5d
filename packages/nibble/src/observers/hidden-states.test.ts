import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { gaussian } from "../../test/support/solver.js";
import { hiddenInMemory, hiddenOnDisk } from "./hidden-states.js";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-hidden-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

it("gives back what was written, across its pieces, in memory and on disk", async () => {
  const [rows, width] = [1300, 3];
  const values = gaussian(rows * width, 5);
  for (const store of [
    hiddenInMemory(rows, width),
    hiddenOnDisk(join(folder, "new", ".out.tmp"), width),
  ]) {
    store.write(700, values.subarray(700 * width));
    store.write(0, values.subarray(0, 700 * width));
    store.write(511, values.subarray(511 * width, 514 * width));
    for (const [from, count] of [
      [0, rows],
      [510, 600],
      [1299, 1],
    ] as const) {
      const out = new Float32Array(count * width);
      store.read(from, out);
      expect(out).toEqual(values.slice(from * width, (from + count) * width));
    }
    store.close();
  }
  expect(await readdir(join(folder, "new"))).toEqual([]);
});

it("has no name while it is used, so a killed run leaves nothing", async () => {
  const store = hiddenOnDisk(join(folder, "used", "h"), 2);
  store.write(0, new Float32Array(2));
  expect(await readdir(join(folder, "used"))).toEqual([]);
  store.close();
});

it("says which place cannot be written", async () => {
  await writeFile(join(folder, "file"), "");
  expect(() => hiddenOnDisk(join(folder, "file", "h"), 2)).toThrow("spilled");
});
