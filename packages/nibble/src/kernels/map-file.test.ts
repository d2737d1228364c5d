import { mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { fileSource } from "../core/file-source.js";
import { Philox } from "../core/rng.js";
import { loadAddon, mapFile } from "./native.js";

const hasAddon = (() => {
  try {
    loadAddon();
    return true;
  } catch {
    return false;
  }
})();

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-map-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, bytes: number): Promise<{ path: string; data: Uint8Array }> {
  const rng = new Philox(1, name);
  const data = Uint8Array.from({ length: bytes }, () => rng.below(256));
  const path = join(folder, name);
  await writeFile(path, data);
  return { path, data };
}

it.runIf(hasAddon)("gives the bytes of the file, again after they were dropped", async () => {
  const { path, data } = await file("plain", 300_001);
  const mapped = mapFile(path, data.length);
  const whole = () => Buffer.from(data).equals(mapped?.bytes ?? new Uint8Array(0));
  expect(whole()).toBe(true);
  expect(mapped?.drop()).toBe(true);
  expect(whole()).toBe(true);

  const source = await fileSource(path, "plain", mapFile);
  expect(source.drop).toBeDefined();
  expect(await source.read(4095, 70_000)).toEqual(data.subarray(4095, 74_095));
  await expect(source.read(300_000, 2)).rejects.toThrow(/outside/);
  const view = await source.read(0, 9);
  await source.close();
  await expect(source.read(0, 1)).rejects.toThrow(/closed/);
  expect(view).toEqual(data.subarray(0, 9));
});

it.runIf(hasAddon)("writing to the memory does not reach the file", async () => {
  const { path, data } = await file("private", 5000);
  const mapped = mapFile(path, data.length);
  mapped?.bytes.fill(0);
  const plain = await fileSource(path);
  expect(await plain.read(0, 5000)).toEqual(data);
  await plain.close();
});

it.runIf(hasAddon)("says what cannot be mapped", async () => {
  const { path } = await file("size", 100);
  const { path: empty } = await file("empty", 0);
  await mkdir(join(folder, "folder"));
  const code = (at: string, bytes: number) => {
    try {
      return loadAddon().mapFile(at, bytes);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code;
    }
  };
  expect(code(empty, 0)).toBe("empty");
  expect(code(join(folder, "folder"), 4096)).toBe("file");
  expect(code(join(folder, "missing"), 1)).toBe("open");
  expect(code(`${path}\0`, 100)).toBe("usage");
  expect(code(path, 99)).toBe("changed");
  expect(code(path, 101)).toBe("changed");
  expect(code(path, Number.NaN)).toBe("usage");
  expect(() => loadAddon().dropPages(new ArrayBuffer(8))).toThrow(/not a buffer of mapFile/);
  // Then files are read.
  expect(mapFile(path, 99)).toBeNull();
  const source = await fileSource(empty, "empty", mapFile);
  expect(await source.read(0, 0)).toHaveLength(0);
  expect(source.drop).toBeUndefined();
  await source.close();
});

it.runIf(hasAddon && process.platform === "linux")(
  "a file that is cut short while it is mapped is an error, not the end of the process",
  async () => {
    const { path, data } = await file("shrinks", 200_000);
    const source = await fileSource(path, "shrinks", mapFile);
    const all = await source.read(0, 200_000);
    expect(all[0]).toBe(data[0]);
    await truncate(path, 8192);
    expect(all.subarray(0, 8192)).toEqual(data.subarray(0, 8192));
    expect(all[150_000]).toBe(0);
    expect(() => source.drop?.()).toThrow(/became shorter/);
    await source.close();
  },
);
