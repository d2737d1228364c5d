import { mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fileSource } from "../core/file-source.js";
import { Philox } from "../core/rng.js";
import { PANEL_GRAIN } from "./contract.js";
import { loadAddon, makeNativeBackend, mapFile } from "./native.js";
import { LINE } from "./ops.js";

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

describe.runIf(hasAddon)("a file as a part of the arena", () => {
  const GRAIN = PANEL_GRAIN;
  const lineOf = (bytes: number) => bytes / LINE;
  const make = (grains = 40) =>
    makeNativeBackend(null).createEngine({ arenaBytes: grains * GRAIN, threads: 2 });

  /** 35 grains: two pieces, the second a short one. */
  async function panels(name: string) {
    const bytes = 35 * GRAIN;
    const source = await make();
    const part = new Uint8Array(source.memory, GRAIN, bytes);
    const rng = new Philox(2, name);
    for (let i = 0; i < bytes; i += 97) part[i] = rng.below(256);
    const sums = source.panelSums?.(lineOf(GRAIN), bytes) as Uint8Array;
    const path = join(folder, name);
    await writeFile(path, Buffer.concat([Buffer.alloc(2 * GRAIN, 7), part]));
    const copy = part.slice();
    await source.dispose();
    const place = {
      path,
      fileBytes: 37 * GRAIN,
      offset: 2 * GRAIN,
      line: lineOf(GRAIN),
      bytes,
      sums,
    };
    return { place, data: Buffer.from(copy) };
  }

  it("holds the bytes of the file and keeps what is written to itself", async () => {
    const { place, data } = await panels("panels");
    expect(place.sums).toHaveLength(16);
    const [one, two] = [await make(), await make()];
    expect(one.mapPanels?.(place)).toBe(true);
    expect(two.mapPanels?.(place)).toBe(true);
    const view = new Uint8Array(one.memory, GRAIN, place.bytes);
    expect(data.equals(view)).toBe(true);
    view.fill(9);
    expect(data.equals(new Uint8Array(two.memory, GRAIN, place.bytes))).toBe(true);
    expect(() => two.mapPanels?.(place)).toThrow(/mapPanels/); // once
    // What lies around it is untouched, and a disposed engine reads zeros.
    expect(new Uint8Array(one.memory, 36 * GRAIN, 4 * GRAIN).every((x) => x === 0)).toBe(true);
    await one.dispose();
    await two.dispose();
    expect(view.every((x) => x === 0)).toBe(true);
  });

  it("other bytes than those that were summed leave zeros, and another file may follow", async () => {
    const { place, data } = await panels("summed");
    const engine = await make();
    for (const at of [0, 7, 8, 15]) {
      const sums = place.sums.slice();
      sums[at] = (sums[at] ?? 0) ^ 1;
      expect(engine.mapPanels?.({ ...place, sums })).toBe(false);
      expect(new Uint8Array(engine.memory, GRAIN, place.bytes).every((x) => x === 0)).toBe(true);
    }
    expect(engine.mapPanels?.(place)).toBe(true);
    expect(data.equals(new Uint8Array(engine.memory, GRAIN, place.bytes))).toBe(true);
    await engine.dispose();
    expect(() => engine.mapPanels?.(place)).toThrow(/disposed/);
  });

  it("every bit of a piece decides its sum", async () => {
    const engine = await make();
    const part = new Uint8Array(engine.memory, GRAIN, GRAIN);
    const sum = () => Buffer.from(engine.panelSums?.(lineOf(GRAIN), GRAIN) ?? []).toString("hex");
    const seen = new Set([sum()]);
    const rng = new Philox(3, "bits");
    for (let i = 0; i < 300; i++) {
      const [at, bit] = [rng.below(GRAIN), 1 << rng.below(8)];
      const other = rng.below(GRAIN);
      part[at] = (part[at] ?? 0) ^ bit;
      if (i % 2) part[other] = (part[other] ?? 0) ^ 128; // two changes do not cancel out
      seen.add(sum());
    }
    expect(seen.size).toBe(301);
    await engine.dispose();
  });

  it("refuses places outside of the arena or the file, and files that are not what was said", async () => {
    const { place } = await panels("refused");
    const engine = await make();
    const bad = [
      { line: 0 },
      { line: -lineOf(GRAIN) },
      { line: lineOf(GRAIN) + 1 },
      { line: lineOf(6 * GRAIN) },
      { line: 2 ** 52 },
      { line: Number.NaN },
      { bytes: 0 },
      { bytes: place.bytes - LINE },
      { bytes: 36 * GRAIN },
      { bytes: -GRAIN },
      { bytes: 1e18 },
      { offset: 3 * GRAIN },
      { offset: GRAIN / 2 },
      { offset: -GRAIN },
      { sums: place.sums.subarray(1) },
      { sums: new Uint8Array(24) },
      { fileBytes: 36 * GRAIN },
      { fileBytes: 38 * GRAIN },
      { path: join(folder, "missing") },
      { path: folder },
      { path: `${place.path}\0` },
    ];
    for (const change of bad) {
      expect(() => engine.mapPanels?.({ ...place, ...change }), JSON.stringify(change)).toThrow();
    }
    expect(() => engine.panelSums?.(0, GRAIN)).toThrow(/panelSums/);
    expect(() => engine.panelSums?.(lineOf(GRAIN), 41 * GRAIN)).toThrow(/panelSums/);
    expect(engine.mapPanels?.(place)).toBe(true);
    await engine.dispose();
  });
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
