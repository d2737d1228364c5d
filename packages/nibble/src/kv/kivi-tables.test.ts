/** What page tables allow for a kivi cache, whose newest rows stand in a ring beside the pages. */
import { expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { cacheBitsPerElement, cacheBytes, PageTables, planCache } from "./cache.js";
import { kvPreset } from "./presets.js";

const { config: tiny } = tinyModel();
const config = { ...tiny, headDim: 64 };

function kiviTables() {
  const plan = planCache(kvPreset("kivi2"), config, { tokens: 1024, sequences: 2, layers: 1 });
  const copies: number[][] = [];
  const tables = new PageTables(
    plan.descriptor,
    new Int32Array(plan.tableBytes / 4),
    2,
    () => {},
    (from, to) => copies.push([from, to]),
  );
  const write = (slot: number, from: number, to: number) => {
    tables.reserve(slot, to);
    const positions = Array.from({ length: to - from }, (_, i) => from + i);
    tables.wrote(
      positions.map(() => slot),
      positions,
    );
  };
  return { tables, write, copies, plan };
}

it("a sequence goes back as far as its ring holds exact rows, or to nothing", () => {
  const { tables, write, plan } = kiviTables();
  const reach = plan.descriptor.tailTokens - plan.descriptor.residual;
  expect(reach).toBe(128);
  write(0, 0, 600);
  expect(tables.keepable(0, 600 - reach)).toBe(600 - reach);
  expect(tables.keepable(0, 600 - reach - 1)).toBe(0);
  expect(() => tables.truncate(0, 600 - reach - 1)).toThrow(
    expect.objectContaining({ code: "kv-truncate" }),
  );
  expect(tables.length(0)).toBe(600);
  tables.truncate(0, 500);
  // What was written before the cut still limits how far the next may go.
  write(0, 500, 510);
  expect(tables.keepable(0, 471)).toBe(0);
  expect(tables.keepable(0, 472)).toBe(472);
  tables.truncate(0, 0);
  write(0, 0, 40);
  expect(tables.keepable(0, 1)).toBe(1);
});

it("a fork copies the ring; pages alone cannot begin a sequence", () => {
  const { tables, write, copies } = kiviTables();
  write(0, 0, 64);
  const pages = [tables.pages(0, 0)];
  expect(() => tables.adopt(1, pages, 32)).toThrow(/cannot begin/);
  tables.fork(0, 1);
  expect(copies).toEqual([[0, 1]]);
  expect(tables.length(1)).toBe(64);
});

it("bytes are those of pages and rings", () => {
  for (const [name, bits] of [
    ["kivi2", 3],
    ["kivi4", 5],
  ] as const) {
    const kv = kvPreset(name);
    expect(cacheBitsPerElement(kv, 64)).toBe(bits);
    const heads = config.numHiddenLayers * config.numKeyValueHeads;
    const ring = 256 * 64 * 2 * 4;
    expect(cacheBytes(kv, config, 320)).toBe(heads * ((320 * 64 * 2 * bits) / 8 + ring));
    const layers = config.numHiddenLayers;
    const plan = planCache(kv, config, { tokens: 320, sequences: 1, layers });
    expect((plan.poolLines + plan.tailLines) * 64).toBe(cacheBytes(kv, config, 320));
  }
});
