import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { allocateBits, allocatedBitsPerWeight, type Sensitivity } from "./sensitivity.js";

const module = fc.record({
  weights: fc.integer({ min: 1, max: 1000 }),
  losses: fc.array(fc.double({ min: 0, max: 10, noNaN: true }), { minLength: 3, maxLength: 3 }),
});
const modules = fc.array(module, { minLength: 1, maxLength: 6 }).map((list): Sensitivity[] =>
  list.map(({ weights, losses }, i) => ({
    path: `layers.${i}.q`,
    weights,
    loss: { 2: losses[0] as number, 4: losses[1] as number, 8: losses[2] as number },
  })),
);
const target = fc.double({ min: 2.5, max: 9, noNaN: true });
const loss = (list: Sensitivity[], bits: ReadonlyMap<string, number>) =>
  list.reduce((sum, one) => sum + (one.loss[bits.get(one.path) as number] as number), 0);

/** The best of all allocations. */
function bruteForce(list: Sensitivity[], budget: number): number {
  const total = list.reduce((sum, { weights }) => sum + weights, 0);
  const best = (i: number, left: number): number => {
    const one = list[i];
    if (!one) return 0;
    let least = Number.POSITIVE_INFINITY;
    for (const bits of [2, 4, 8]) {
      if (one.weights * bits <= left * (1 + 1e-12)) {
        least = Math.min(
          least,
          (one.loss[bits] as number) + best(i + 1, left - one.weights * bits),
        );
      }
    }
    return least;
  };
  return best(0, budget * total);
}

describe("allocateBits", () => {
  it("never spends more than the target, uses measured widths, gives the same twice (property)", () => {
    fc.assert(
      fc.property(modules, target, (list, bpw) => {
        const bits = allocateBits(list, bpw, 0.5);
        expect([...bits.keys()]).toEqual(list.map((one) => one.path));
        for (const b of bits.values()) expect([2, 4, 8]).toContain(b);
        expect(allocatedBitsPerWeight(list, bits, 0.5)).toBeLessThanOrEqual(bpw + 1e-9);
        expect(allocateBits(list, bpw, 0.5)).toEqual(bits);
      }),
    );
  });

  it("is not worse than one width for all that fits (property)", () => {
    fc.assert(
      fc.property(modules, target, (list, bpw) => {
        const got = loss(list, allocateBits(list, bpw, 0));
        for (const b of [2, 4, 8].filter((width) => width <= bpw)) {
          expect(got).toBeLessThanOrEqual(
            list.reduce((sum, one) => sum + (one.loss[b] as number), 0) + 1e-12,
          );
        }
      }),
    );
  });

  it("is optimal at the budgets it spends exactly (property)", () => {
    fc.assert(
      fc.property(modules, target, (list, bpw) => {
        const first = allocateBits(list, bpw, 0);
        // At what was spent, nothing better exists unless a step was skipped for its size.
        const spent = allocatedBitsPerWeight(list, first, 0);
        const again = allocateBits(list, spent, 0);
        expect(loss(list, again)).toBeLessThanOrEqual(loss(list, first) + 1e-12);
        expect(loss(list, again)).toBeGreaterThanOrEqual(bruteForce(list, spent) - 1e-9);
      }),
    );
  });

  it("equal modules and falling gains: the optimum (against all allocations)", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0.1, max: 5, noNaN: true }), { minLength: 2, maxLength: 6 }),
        fc.integer({ min: 0, max: 12 }),
        (sizes, extra) => {
          const list = sizes.map(
            (s, i): Sensitivity => ({
              path: `m${i}`,
              weights: 10,
              loss: { 2: s, 3: s / 4, 4: s / 16 },
            }),
          );
          const bpw = 2 + Math.min(extra, 2 * sizes.length) / sizes.length;
          const got = loss(list, allocateBits(list, bpw, 0));
          const all = (i: number, left: number): number =>
            i === list.length
              ? 0
              : Math.min(
                  ...[2, 3, 4]
                    .filter((b) => b - 2 <= left)
                    .map((b) => (list[i]?.loss[b] as number) + all(i + 1, left - (b - 2))),
                );
          expect(got).toBeCloseTo(all(0, Math.min(extra, 2 * sizes.length)), 9);
        },
      ),
    );
  });

  it("skips a width that pays off only together with the next", () => {
    const list = [
      { path: "a", weights: 1, loss: { 2: 10, 3: 9.9, 4: 0 } },
      { path: "b", weights: 1, loss: { 2: 1, 3: 0.5, 4: 0.4 } },
    ];
    expect([...allocateBits(list, 3, 0).values()]).toEqual([4, 2]);
  });

  it("ties go to the module that comes first", () => {
    const list = ["x", "y", "z"].map(
      (path): Sensitivity => ({ path, weights: 8, loss: { 4: 1, 8: 0 } }),
    );
    expect(Object.fromEntries(allocateBits(list, 4 + 4 / 3, 0))).toEqual({ x: 8, y: 4, z: 4 });
    expect(Object.fromEntries(allocateBits([...list].reverse(), 4 + 4 / 3, 0))).toEqual({
      z: 8,
      y: 4,
      x: 4,
    });
  });

  it("a wider module whose loss is not smaller stays narrow", () => {
    expect([
      ...allocateBits([{ path: "a", weights: 5, loss: { 3: 1, 4: 1.2, 8: 1 } }], 16, 0).values(),
    ]).toEqual([3]);
  });

  it("refuses targets that nothing fits, and sensitivities that make no sense", () => {
    const one = { path: "layers.0.q", weights: 100, loss: { 3: 1, 4: 0.5 } };
    expect(() => allocateBits([one], 3.2, 0.3)).toThrow(
      /3\.2 bits per weight are not enough: the narrowest widths take 3\.300/,
    );
    expect(() => allocateBits([{ ...one, loss: {} }], 4, 0)).toThrow(/layers\.0\.q/);
    expect(() => allocateBits([{ ...one, loss: { 3: Number.NaN } }], 4, 0)).toThrow(/layers\.0\.q/);
    expect(() => allocateBits([one], Number.NaN, 0)).toThrow(/numbers of bits/);
    expect(allocateBits([], 4, 0.3).size).toBe(0);
  });
});
