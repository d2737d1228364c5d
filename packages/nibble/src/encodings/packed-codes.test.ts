import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { allocateCodes, packCodes, packedBytes, packRows, unpackCodes } from "./packed-codes.js";

const randomCodes = (bits: number, count: number, seed: number) => {
  const rng = new Philox(seed);
  return Uint8Array.from({ length: count }, () => rng.below(2 ** bits));
};

describe("tile64", () => {
  it("unpack(pack(codes)) = codes for 1..8 bits and all K in 1..130", () => {
    for (let bits = 1; bits <= 8; bits++) {
      for (let cols = 1; cols <= 130; cols++) {
        const codes = randomCodes(bits, 2 * cols, bits * 1000 + cols);
        const packed = packCodes(codes, bits, 2, cols);
        expect(unpackCodes(packed)).toEqual(codes);
        const bytes = Object.values(packed.segments).reduce((sum, s) => sum + s.length, 0);
        expect(bytes).toBe(packedBytes(bits, 2, cols));
      }
    }
  });

  it("6-bit codes 0..63 have the bytes of the specification", () => {
    const packed = packCodes(
      Uint8Array.from({ length: 64 }, (_, i) => i),
      6,
      1,
      64,
    );
    expect(packed.segments[4]?.slice(0, 3)).toEqual(Uint8Array.of(0x00, 0x11, 0x22));
    expect(packed.segments[2]).toEqual(new Uint8Array(16).fill(0xe4));
  });

  it("1-bit segments are a bit string", () => {
    const codes = new Uint8Array(64);
    codes[0] = 1;
    codes[9] = 1;
    codes[63] = 1;
    expect(packCodes(codes, 1, 1, 64).segments[1]).toEqual(Uint8Array.of(1, 2, 0, 0, 0, 0, 0, 128));
  });

  it("rows are written and read in any ranges", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 150 }),
        fc.integer({ min: 1, max: 6 }),
        fc.nat(6),
        (bits, cols, rows, cut) => {
          const codes = randomCodes(bits, rows * cols, cols);
          const middle = Math.min(cut, rows);
          const packed = allocateCodes(bits, rows, cols);
          packRows(packed, middle, codes.subarray(middle * cols));
          packRows(packed, 0, codes.subarray(0, middle * cols));
          expect(unpackCodes(packed, middle, rows)).toEqual(codes.slice(middle * cols));
          expect(unpackCodes(packed)).toEqual(codes);
        },
      ),
    );
  });

  it("refuses codes that do not fit and impossible widths", () => {
    expect(() => packCodes(Uint8Array.of(4), 2, 1, 1)).toThrow(/2 bits/);
    expect(() => allocateCodes(9, 1, 1)).toThrow(/9 bits/);
    expect(() => unpackCodes(allocateCodes(4, 2, 8), 1, 3)).toThrow(/rows 1\.\.3/);
  });
});
