import {
  copyFile,
  cp,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  stat,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { tinyFolder } from "../../test/support/tiny-folder.js";
import { fileFolder } from "../core/file-source.js";
import { loadArtifact } from "../formats/nibble-read.js";
import { addonPath } from "../kernels/native.js";
import { recipeFromObject } from "../recipe/load.js";
import { compress } from "../recipe/run.js";
import { allLogits } from "./logits.js";
import { openModel } from "./open.js";
import { type OpenedModel, type OpenOptions, openLoaded } from "./opened.js";
import { preparedFacts, preparedLimit } from "./prepared.js";

const RECIPES = {
  w4a8: {
    steps: [
      { quarot: {} },
      { rtn: { bits: 4, groupSize: 32, sym: false } },
      { activations: { bits: 8 } },
    ],
  },
  w3: { steps: [{ rtn: { bits: 3, groupSize: 64 } }] },
};
const IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
const NATIVE = {
  backend: "native",
  threads: 2,
  maxContext: 64,
  maxRows: 32,
  maxLogitRows: 16,
} as const;

let folder: string;
let home: string;
const at = (name: string) => join(folder, name);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-prepared-"));
  for (const [seed, name] of [
    [1, "one"],
    [2, "two"],
  ] as const)
    await tinyFolder(at(name), seed);
  for (const [name, recipe] of Object.entries(RECIPES)) {
    for (const source of ["one", "two"]) {
      const output = at(`${source}-${name}`);
      await compress(at(source), recipeFromObject({ version: 1, ...recipe }), {
        output,
        backend: "reference",
        threads: 1,
      });
    }
  }
});
afterAll(() => rm(folder, { recursive: true, force: true }));

beforeEach(async () => {
  home = await mkdtemp(join(folder, "home-"));
  vi.stubEnv("NIBBLE_HOME", home);
  vi.stubEnv("NIBBLE_PREPARED", "");
  // Artifacts that changed a moment ago are not prepared.
  const real = Date.now.bind(Date);
  vi.spyOn(Date, "now").mockImplementation(() => real() + 60_000);
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

const bitsOf = async (opened: OpenedModel) =>
  new Uint32Array((await allLogits(opened.runner, IDS)).buffer);

/** Logits of one load, whether it was prepared, and what it logged. */
async function load(name: string, options: OpenOptions = {}) {
  const lines: string[] = [];
  const opened = await openModel(at(name), {
    ...NATIVE,
    log: (line) => lines.push(line),
    ...options,
  });
  try {
    return { bits: await bitsOf(opened), prepared: opened.compiled.prepared, lines };
  } finally {
    await opened.close();
    lines.sort();
  }
}
const kept = async () => (await readdir(join(home, "prepared")).catch(() => [])).sort();
const panels = async () => join(home, "prepared", (await kept())[0] as string);

describe.runIf(addonPath() !== null)("prepared weights", () => {
  it("reading, mapping, preparing and using what was prepared give the same bits", async () => {
    for (const name of Object.keys(RECIPES)) {
      const model = await loadArtifact(await fileFolder(at(`one-${name}`)));
      expect(model.dropPages).toBeUndefined();
      const read = await openLoaded(model, NATIVE);
      const bits = await bitsOf(read);
      await read.close();
      await model.close();
      expect(bits.some((x) => x !== 0)).toBe(true);

      const mapped = await load(`one-${name}`, { prepared: null });
      const first = await load(`one-${name}`);
      const second = await load(`one-${name}`, { threads: 1 });
      expect([mapped.prepared, first.prepared, second.prepared]).toEqual([false, false, true]);
      for (const other of [mapped, first, second]) expect(other.bits).toEqual(bits);
      expect([...first.lines, ...second.lines]).toEqual([]);
    }
    expect((await kept()).every((file) => /^[0-9a-f]{16}-[0-9a-f]{32}\.panels$/.test(file))).toBe(
      true,
    );
    expect(await preparedFacts()).toMatchObject({ files: 2, limitBytes: 8 * 2 ** 30 });
  });

  it("other activations are other weights in memory", async () => {
    const plain = await load("one-w3");
    const integer = await load("one-w3", { activations: "i8" });
    expect(integer.bits).not.toEqual(plain.bits);
    expect(await kept()).toHaveLength(2);
    expect(await load("one-w3", { activations: "i8" })).toMatchObject({
      prepared: true,
      bits: integer.bits,
    });
    expect(await load("one-w3")).toMatchObject({ prepared: true, bits: plain.bits });
  });

  it("damage is noticed, named in one line and repaired", async () => {
    const { bits } = await load("one-w4a8");
    const path = await panels();
    const whole = new Uint8Array(await readFile(path));
    const header = new DataView(whole.buffer).getUint32(8, true);
    const body = Math.ceil((44 + header) / 65536) * 65536;
    const damages: [string, (bytes: Uint8Array) => Uint8Array][] = [
      ["empty", () => new Uint8Array(0)],
      ["prefix", (b) => b.subarray(0, 20)],
      ["half", (b) => b.subarray(0, b.length / 2)],
      ["longer", (b) => new Uint8Array([...b, 0])],
      ["magic", (b) => b.fill(1, 0, 1)],
      ["length", (b) => b.fill(255, 8, 12)],
      ["hash", (b) => b.fill(0, 12, 13)],
      ["header", (b) => b.fill(120, 60, 61)],
      ["first panel", (b) => b.fill((b[body] ?? 0) ^ 1, body, body + 1)],
      ["last byte", (b) => b.fill(1, b.length - 1)],
      ["middle", (b) => b.fill((b[body + 40_003] ?? 0) ^ 128, body + 40_003, body + 40_004)],
      ["zeros", (b) => b.fill(0)],
    ];
    for (const [what, damage] of damages) {
      await writeFile(path, damage(whole.slice()));
      const again = await load("one-w4a8");
      expect(again.prepared, what).toBe(false);
      expect(again.bits, what).toEqual(bits);
      expect(again.lines, what).toHaveLength(1);
      expect(again.lines[0], what).toMatch(/^prepared weights are not used and made again: /);
      expect((await readFile(path)).equals(whole), what).toBe(true);
    }
    expect(await load("one-w4a8")).toMatchObject({ prepared: true, bits });
  });

  it("a changed artifact is never mistaken, even with the same sizes and times", async () => {
    const model = at("changing");
    await cp(at("one-w4a8"), model, { recursive: true });
    const one = await load("changing");
    const { atime, mtime, size } = await stat(join(model, "model.safetensors"));
    // Other weights under the old description.
    await copyFile(at("two-w4a8/model.safetensors"), join(model, "model.safetensors"));
    await utimes(join(model, "model.safetensors"), atime, mtime);
    expect(await stat(join(model, "model.safetensors"))).toMatchObject({ size, mtime });
    const other = await load("changing");
    const two = await load("two-w4a8");
    expect(other.prepared).toBe(false);
    expect(other.bits).not.toEqual(one.bits);
    expect(other.bits).toEqual(two.bits);
  });

  it("an artifact that changes while it is open, or changed a moment ago, is not kept", async () => {
    const model = at("busy");
    await cp(at("one-w4a8"), model, { recursive: true });
    const opened = await openModel(model, NATIVE);
    await copyFile(at("two-w4a8/model.safetensors"), join(model, "model.safetensors"));
    await opened.close();
    expect(await kept()).toEqual([]);
    vi.restoreAllMocks();
    await load("busy");
    expect(await kept()).toEqual([]);
  });

  it("weights that were replaced are not kept", async () => {
    const opened = await openModel(at("one-w4a8"), NATIVE);
    await opened.compiled.replaceLayer(0, opened.model);
    await opened.close();
    expect(await kept()).toEqual([]);
    // And in a prepared model replacing does not reach the file.
    const { bits } = await load("one-w4a8");
    const before = await readFile(await panels());
    const other = await loadArtifact(await fileFolder(at("two-w4a8")));
    const mapped = await openModel(at("one-w4a8"), NATIVE);
    expect(mapped.compiled.prepared).toBe(true);
    await mapped.compiled.replaceLayer(0, other);
    expect(await bitsOf(mapped)).not.toEqual(bits);
    await mapped.close();
    await other.close();
    expect((await readFile(await panels())).equals(before)).toBe(true);
    expect((await load("one-w4a8")).bits).toEqual(bits);
  });

  it("first loads side by side leave one whole file", async () => {
    const all = await Promise.all(Array.from({ length: 4 }, () => load("one-w4a8")));
    expect(all.flatMap(({ lines }) => lines)).toEqual([]);
    expect(await kept()).toHaveLength(1);
    const later = await load("one-w4a8");
    expect(later.prepared).toBe(true);
    for (const { bits } of all) expect(bits).toEqual(later.bits);
  });

  it("what a killed writer left is never used, and goes", async () => {
    const { bits } = await load("one-w4a8");
    const path = await panels();
    const half = (await readFile(path)).subarray(0, 70_000);
    await rm(path);
    const name = path.slice(join(home, "prepared").length + 1);
    const left = join(home, "prepared", `.${name}.tmp-1-0badcafe`);
    await writeFile(left, half);
    await utimes(left, 0, 0);
    const again = await load("one-w4a8");
    expect(again).toMatchObject({ prepared: false, bits, lines: [] });
    expect(await kept()).toEqual([name]);
    // So does what another build made of the same artifact, when it was not used for a day.
    const [artifact] = name.split("-");
    const others = [
      `${artifact}-${"0".repeat(32)}.panels`,
      `${artifact}-${"1".repeat(32)}.panels`,
      "ab-cd.panels",
    ];
    for (const other of others) await writeFile(join(home, "prepared", other), half);
    await utimes(join(home, "prepared", others[0] as string), 0, 0);
    await utimes(join(home, "prepared", others[2] as string), 0, 0);
    await rm(path);
    await load("one-w4a8");
    expect(await kept()).toEqual([name, others[1], others[2]].sort());
    expect(await load("one-w4a8")).toMatchObject({ prepared: true, bits });
  });

  it("keeps within its limit: the least recently used goes; off keeps nothing", async () => {
    await load("one-w4a8");
    const [first] = await kept();
    const { size } = await stat(await panels());
    vi.stubEnv("NIBBLE_PREPARED", String(Math.ceil(size * 1.5)));
    const old = new Date(Date.now() - 1e6);
    await utimes(await panels(), old, old);
    await load("two-w4a8");
    const second = await kept();
    expect(second).toHaveLength(1);
    expect(second[0]).not.toBe(first);
    vi.stubEnv("NIBBLE_PREPARED", "1000");
    await load("one-w4a8");
    expect(await kept()).toEqual(second);
    vi.stubEnv("NIBBLE_PREPARED", "off");
    expect((await load("two-w4a8")).prepared).toBe(false);
    vi.stubEnv("NIBBLE_PREPARED", "much");
    await expect(load("two-w4a8")).rejects.toThrow(/NIBBLE_PREPARED is "much"/);
    expect(preparedLimit({ NIBBLE_PREPARED: "2GiB" })).toBe(2 ** 31);
  });

  it("a home that cannot be written is one line, no failure", async () => {
    await writeFile(at("file"), "");
    vi.stubEnv("NIBBLE_HOME", join(at("file"), "home"));
    const { lines, prepared } = await load("one-w4a8");
    expect(prepared).toBe(false);
    expect(lines.at(-1)).toMatch(/^prepared weights are not kept: .*NIBBLE_PREPARED=off/);
  });

  it("a folder in the place of the file is one line, no failure", async () => {
    const { bits } = await load("one-w4a8");
    const path = await panels();
    await rm(path);
    await mkdir(path);
    const again = await load("one-w4a8");
    expect(again.bits).toEqual(bits);
    expect(again.lines).toHaveLength(2);
  });

  it.runIf(process.platform === "linux")(
    "a file that is cut short under a running model is an error, not the end of the process",
    async () => {
      await load("one-w4a8");
      const opened = await openModel(at("one-w4a8"), NATIVE);
      expect(opened.compiled.prepared).toBe(true);
      await truncate(await panels(), 65536);
      await expect(allLogits(opened.runner, IDS)).rejects.toThrow(/cut short while the model ran/);
      await opened.close();
      // Removing or replacing it does no harm.
      await rm(await panels());
      const { bits } = await load("one-w4a8");
      const other = await openModel(at("one-w4a8"), NATIVE);
      const file = await open(await panels(), "r");
      await file.close();
      await rm(await panels());
      expect(await bitsOf(other)).toEqual(bits);
      await other.close();
    },
  );
});
