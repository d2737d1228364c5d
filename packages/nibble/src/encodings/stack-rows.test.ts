import fc from "fast-check";
import { expect, it } from "vitest";
import { gaussian, solveContext } from "../../test/support/solver.js";
import { embeddings } from "../methods/embeddings.js";
import { serialize } from "./serialize.js";
import { stackRows } from "./stack-rows.js";

const options = fc.record({
  bits: fc.integer({ min: 1, max: 8 }),
  groupSize: fc.constantFrom<number | "channel">(32, 64, "channel"),
  sym: fc.constantFrom(false, "narrow"),
  seed: fc.nat(1000),
  rows: fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 }),
});

it("a table solved in bands is the table solved at once, to the byte", async () => {
  await fc.assert(
    fc.asyncProperty(options, async ({ bits, groupSize, sym, seed, rows }) => {
      fc.pre(sym === false || bits > 1);
      const k = 96;
      const n = rows.reduce((a, b) => a + b, 0);
      const w = gaussian(n * k, seed);
      const own = embeddings.options.parse({ bits, groupSize, sym });
      const solve = async (values: Float32Array) => {
        const shape = { n: values.length / k, k, path: "embed" };
        return (await embeddings.solve(values, shape, null, own, solveContext())).tensor;
      };
      const bands = [];
      let row = 0;
      for (const count of rows) {
        bands.push(await solve(w.slice(row * k, (row + count) * k)));
        row += count;
      }
      expect(serialize("t", stackRows(bands))).toEqual(serialize("t", await solve(w.slice())));
    }),
    { numRuns: 60 },
  );
});

it("refuses what has parts that belong to no row", async () => {
  const shape = { n: 2, k: 64, path: "w" };
  const own = embeddings.options.parse({});
  const { tensor } = await embeddings.solve(gaussian(128), shape, null, own, solveContext());
  const index = Uint32Array.from({ length: 64 }, (_, i) => i);
  const permuted = { ...tensor, pre: [{ op: "perm" as const, index }] };
  expect(() => stackRows([permuted, permuted])).toThrow("cannot be stacked");
  // Their 8-bit scales have one range for all rows: such tables are solved whole.
  const shared = embeddings.options.parse({ groupSize: 32, sym: false, scaleType: "u8" });
  const scaled = await embeddings.solve(gaussian(128), shape, null, shared, solveContext());
  expect(() => stackRows([scaled.tensor, scaled.tensor])).toThrow("cannot be stacked");
  expect(embeddings.byRows?.(shared)).toBe(false);
  expect(embeddings.byRows?.(own)).toBe(true);
});
