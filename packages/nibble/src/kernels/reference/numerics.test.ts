import { describe, expect, it } from "vitest";
import { bf16ToF32, exp, f16ToF32, f32ToBf16, f32ToF16, Lane16, rne, silu } from "./numerics.js";

describe("numerics", () => {
  it("rounds halves to even", () => {
    expect([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, -7.51].map((x) => rne(x) + 0)).toEqual([
      0, 2, 2, 0, -2, 2, -8,
    ]);
  });

  it("exp has relative error < 3e-7, is 1 at 0, 0 below -87 and saturates above 88", () => {
    let worst = 0;
    for (let x = -87; x <= 88; x += 0.0137) {
      worst = Math.max(worst, Math.abs(exp(Math.fround(x)) / Math.exp(Math.fround(x)) - 1));
    }
    expect(worst).toBeLessThan(3e-7);
    expect(exp(0)).toBe(1);
    expect(exp(-87.01)).toBe(0);
    expect(exp(1000)).toBe(exp(88));
    expect(Math.abs(silu(2) - 2 / (1 + Math.exp(-2)))).toBeLessThan(1e-6);
  });

  it("f16 -> f32 -> f16 is the identity on all numbers, and rounding takes the nearest even one", () => {
    const wrong: number[] = [];
    for (let bits = 0; bits < 65536; bits++) {
      if ((bits & 0x7c00) === 0x7c00 && (bits & 0x3ff) !== 0) continue;
      if (f32ToF16(f16ToF32(bits)) !== bits) wrong.push(bits);
    }
    for (let bits = 0; bits < 0x7bff; bits++) {
      const middle = (f16ToF32(bits) + f16ToF32(bits + 1)) / 2;
      if (f32ToF16(middle) !== bits + (bits & 1)) wrong.push(bits);
    }
    expect(wrong).toEqual([]);
    expect(f32ToF16(65519.99)).toBe(0x7bff);
    expect(f32ToF16(65520)).toBe(0x7c00);
    expect(f32ToF16(-1e-9)).toBe(0x8000);
  });

  it("bf16 rounds to nearest even", () => {
    expect(bf16ToF32(f32ToBf16(1 + 2 ** -8))).toBe(1);
    expect(bf16ToF32(f32ToBf16(1 + 3 * 2 ** -8))).toBe(1 + 2 ** -6);
    expect(bf16ToF32(f32ToBf16(-3.5))).toBe(-3.5);
  });

  it("lane16 folds lanes pairwise in f32", () => {
    const lanes = new Lane16();
    lanes.reset();
    for (let i = 0; i < 40; i++) lanes.add(i, i);
    expect(lanes.fold()).toBe(780);
  });
});
