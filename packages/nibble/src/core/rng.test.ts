import { describe, expect, it } from "vitest";
import { Philox, philox4x32 } from "./rng.js";

describe("philox4x32-10", () => {
  // Known answers of the Random123 library (kat_vectors).
  const ones = 0xffffffff;
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [ones, ones, ones, ones],
      [ones, ones],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ] as const)("counter %o key %o", (counter, key, expected) => {
    expect(philox4x32(counter, key)).toEqual(expected);
  });
});

describe("Philox", () => {
  it("gives the same numbers for the same seed and name, and others otherwise", () => {
    const draw = (rng: Philox) => Array.from({ length: 8 }, () => rng.uint32());
    expect(draw(new Philox(7, "a"))).toEqual(draw(new Philox(7, "a")));
    expect(draw(new Philox(7, "a"))).not.toEqual(draw(new Philox(8, "a")));
    expect(draw(new Philox(7, "a"))).not.toEqual(draw(new Philox(7, "b")));
    expect(draw(new Philox(0))).not.toEqual(draw(new Philox(2 ** 32)));
  });

  it("streams do not depend on what was drawn before", () => {
    const used = new Philox(3);
    used.uint32();
    expect(used.stream("x").uint32()).toBe(new Philox(3).stream("x").uint32());
  });

  it("uniform, normal and signs have the right moments", () => {
    const rng = new Philox(1);
    const n = 20000;
    const mean = (f: () => number) => Array.from({ length: n }, f).reduce((s, x) => s + x, 0) / n;
    // Bounds: five standard errors.
    expect(Math.abs(mean(() => rng.uniform()) - 0.5)).toBeLessThan(5 * Math.sqrt(1 / 12 / n));
    expect(Math.abs(mean(() => rng.normal()))).toBeLessThan(5 / Math.sqrt(n));
    expect(Math.abs(mean(() => rng.normal() ** 2) - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
    const signs = rng.signs(n);
    expect(new Set(signs)).toEqual(new Set([1, -1]));
    expect(Math.abs(signs.reduce((s, x) => s + x, 0) / n)).toBeLessThan(5 / Math.sqrt(n));
  });

  it("permutation holds every index once", () => {
    const p = new Philox(5).permutation(1000);
    expect([...p].sort((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_, i) => i));
    expect([...p.slice(0, 20)]).not.toEqual(Array.from({ length: 20 }, (_, i) => i));
  });

  it("refuses seeds that are no integers", () => {
    expect(() => new Philox(0.5)).toThrow(/seed 0.5/);
    expect(() => new Philox(-1)).toThrow(/seed -1/);
  });
});
