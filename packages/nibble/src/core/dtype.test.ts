import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  bf16ToF32,
  bytesOf,
  decodeBf16,
  decodeF16,
  encodeBf16,
  encodeF16,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  float8Values,
  typedView,
} from "./dtype.js";

describe("binary16", () => {
  it("decodes known values exactly", () => {
    expect(f16ToF32(0x3c00)).toBe(1);
    expect(f16ToF32(0xc000)).toBe(-2);
    expect(f16ToF32(0x7bff)).toBe(65504);
    expect(f16ToF32(0x0001)).toBe(2 ** -24);
    expect(f16ToF32(0x7c00)).toBe(Number.POSITIVE_INFINITY);
    expect(f16ToF32(0x7e00)).toBeNaN();
    expect(Object.is(f16ToF32(0x8000), -0)).toBe(true);
  });

  it("every finite code survives decode and encode", () => {
    for (let bits = 0; bits < 65536; bits++) {
      if ((bits & 0x7c00) === 0x7c00 && bits & 0x3ff) continue;
      if (f32ToF16(f16ToF32(bits)) !== bits) expect.fail(`code ${bits}`);
    }
  });

  it("rounds to nearest, ties to even, for values between any two neighbours", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 0x7bfe }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (code, t) => {
          const low = f16ToF32(code);
          const high = f16ToF32(code + 1);
          const value = Math.fround(low + (high - low) * t);
          const nearer = value - low < high - value;
          const tie = value - low === high - value;
          const expected = tie ? (code & 1 ? code + 1 : code) : nearer ? code : code + 1;
          expect(f32ToF16(value)).toBe(expected);
          expect(f32ToF16(-value)).toBe(expected | 0x8000);
        },
      ),
    );
  });

  it("overflows to infinity from 65520 on and keeps NaN", () => {
    expect(f32ToF16(65519)).toBe(0x7bff);
    expect(f32ToF16(65520)).toBe(0x7c00);
    expect(f32ToF16(-1e30)).toBe(0xfc00);
    expect(f16ToF32(f32ToF16(Number.NaN))).toBeNaN();
  });
});

describe("bfloat16", () => {
  it("rounds to nearest even on bit 16", () => {
    expect(f32ToBf16(1)).toBe(0x3f80);
    expect(f32ToBf16(1 + 2 ** -8)).toBe(0x3f80);
    expect(f32ToBf16(1 + 3 * 2 ** -8)).toBe(0x3f82);
    expect(bf16ToF32(0x3f81)).toBe(1 + 2 ** -7);
    expect(bf16ToF32(f32ToBf16(Number.NaN))).toBeNaN();
  });
});

describe("arrays", () => {
  it("encode and decode like the scalar functions", () => {
    fc.assert(
      fc.property(fc.array(fc.float({ noNaN: true }), { maxLength: 40 }), (list) => {
        const values = Float32Array.from(list);
        expect([...encodeF16(values)]).toEqual(list.map(f32ToF16));
        expect([...encodeBf16(values)]).toEqual(list.map(f32ToBf16));
        expect([...decodeF16(encodeF16(values))]).toEqual(list.map((x) => f16ToF32(f32ToF16(x))));
        expect([...decodeBf16(encodeBf16(values))]).toEqual(
          list.map((x) => bf16ToF32(f32ToBf16(x))),
        );
      }),
    );
  });

  it("typedView copies only when the offset is not aligned", () => {
    const bytes = bytesOf(Float32Array.of(1, 2, 3));
    const view = typedView(Float32Array, bytes.subarray(4));
    expect([...view]).toEqual([2, 3]);
    expect(view.buffer).toBe(bytes.buffer);
    const shifted = new Uint8Array(13);
    shifted.set(bytes, 1);
    expect([...typedView(Float32Array, shifted.subarray(1))]).toEqual([1, 2, 3]);
  });
});

describe("8-bit floats", () => {
  it("e4m3 ends at 448 and has two NaNs", () => {
    const e4m3 = float8Values("e4m3");
    expect(e4m3[0x7e]).toBe(448);
    expect(e4m3[0x01]).toBe(2 ** -9);
    expect(e4m3[0x38]).toBe(1);
    expect(e4m3[0xb8]).toBe(-1);
    expect([...e4m3.keys()].filter((i) => Number.isNaN(e4m3[i]))).toEqual([0x7f, 0xff]);
  });
  it("e5m2 and e8m0 at their ends", () => {
    expect(float8Values("e5m2")[0x7b]).toBe(57344);
    expect(float8Values("e5m2")[0x7c]).toBe(Number.POSITIVE_INFINITY);
    expect(float8Values("e8m0")[127]).toBe(1);
    expect(float8Values("e8m0")[0]).toBe(2 ** -127);
    expect(float8Values("e8m0")[255]).toBeNaN();
  });
});
