import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AffineColumns, decodeAffine } from "./affine-bytes.js";

describe("8-bit columns", () => {
  it("err by half a step of their column and half a unit of f16, and decode to what they replace", () => {
    const scale = fc.double({ min: 2 ** -24, max: 1000, noNaN: true }).map(Math.fround);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.array(scale, { minLength: 1 }),
        (groups, v) => {
          const n = Math.ceil(v.length / groups);
          const values = Float32Array.from({ length: n * groups }, (_, i) => v[i % v.length] ?? 1);
          const before = values.slice();
          const columns = new AffineColumns(n, groups);
          for (let g = 0; g < groups; g++) columns.store(values, g);
          expect(decodeAffine(columns.bytes)).toEqual(values);
          for (let i = 0; i < values.length; i++) {
            const step = columns.bytes.step[i % groups] as number;
            const x = before[i] as number;
            expect(values[i]).toBeGreaterThan(0);
            expect(Math.abs((values[i] as number) - x)).toBeLessThanOrEqual(
              step / 2 + (x + step) * 2 ** -10 + 2 ** -24,
            );
          }
        },
      ),
    );
  });

  it("keep a column of equal values exactly", () => {
    const values = new Float32Array(8).fill(0.375);
    const columns = new AffineColumns(4, 2);
    columns.store(values, 0);
    columns.store(values, 1);
    expect([...values]).toEqual(new Array(8).fill(0.375));
    expect([...columns.bytes.step]).toEqual([0, 0]);
  });
});
