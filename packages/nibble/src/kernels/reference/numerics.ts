/**
 * The scalar arithmetic that every executor shares, one f32 rounding after each operation (docs/engine.md, section 3):
 * rounding, the exp polynomial (Cephes expf), silu, the 16-lane sum and the two 16-bit float types.
 */
const f = Math.fround;

/** Round half to even of a number below 2^51 in magnitude. */
export function rne(x: number): number {
  return x + 6755399441055744 - 6755399441055744;
}

// biome-ignore lint/suspicious/noApproximativeNumericConstant: the contract names this literal
const LOG2E = f(1.44269504);
const LN2_HIGH = f(0.693359375);
const LN2_LOW = f(-2.1219444e-4);
const P0 = f(1.98756915e-4);
const P1 = f(1.3981999507e-3);
const P2 = f(8.3334519073e-3);
const P3 = f(4.1665795894e-2);
const P4 = f(1.6666665459e-1);
const P5 = f(5.0000001201e-1);
/** 2^n for n in -126..127, at index n + 126. */
const POW2 = Float32Array.from({ length: 254 }, (_, i) => 2 ** (i - 126));

/** e^x of an f32: 0 below -87, e^88 above 88. Relative error about 2e-7. */
export function exp(x: number): number {
  if (x < -87) return 0;
  const v = Math.min(x, 88);
  const n = rne(f(v * LOG2E));
  const r = f(f(v - f(n * LN2_HIGH)) - f(n * LN2_LOW));
  let p = f(f(P0 * r) + P1);
  p = f(f(p * r) + P2);
  p = f(f(p * r) + P3);
  p = f(f(p * r) + P4);
  p = f(f(p * r) + P5);
  const y = f(f(f(p * f(r * r)) + r) + 1);
  return f(y * POW2[n + 126]);
}

/** g / (1 + e^-g). */
export function silu(g: number): number {
  return f(g / f(1 + exp(-g)));
}

/** Accumulators of one lane16 sum: `add(i, x)` in rising i, then `fold()`. */
export class Lane16 {
  readonly #lanes = new Float32Array(16);

  reset(): void {
    this.#lanes.fill(0);
  }
  add(i: number, x: number): void {
    this.#lanes[i & 15] += x;
  }
  /** Total of the lanes, folded 8, 4, 2, 1. Destroys the lanes. */
  fold(): number {
    const lanes = this.#lanes;
    for (let s = 8; s > 0; s >>= 1) {
      for (let l = 0; l < s; l++) lanes[l] += lanes[l + s];
    }
    return lanes[0];
  }
}

const floatView = new Float32Array(1);
const bitsView = new Uint32Array(floatView.buffer);

/** f32 -> f16 bits, to nearest even, subnormals included; beyond the range gives infinity. */
export function f32ToF16(value: number): number {
  floatView[0] = value;
  const bits = bitsView[0];
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x47800000) return sign | 0x7c00; // 65536 and above
  if (magnitude < 0x38800000) {
    // Below 2^-14: the result counts steps of 2^-24. Scaling by 2^24 is exact, so one rounding remains.
    floatView[0] = value;
    return sign | rne(Math.abs(floatView[0]) * 16777216);
  }
  // Drop 13 mantissa bits; adding (half - 1 + lowest kept bit) rounds half to even and may carry up to infinity.
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

let halfTable: Float32Array | null = null;

/** f16 bits -> f32, exact. */
export function f16ToF32(bits: number): number {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, i) => {
    const exponent = (i >> 10) & 31;
    const mantissa = i & 1023;
    const sign = i & 0x8000 ? -1 : 1;
    if (exponent === 0) return sign * mantissa * 2 ** -24;
    if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  });
  return halfTable[bits];
}

/** f32 -> bf16 bits, to nearest even. */
export function f32ToBf16(value: number): number {
  floatView[0] = value;
  const bits = bitsView[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40; // keep NaN a NaN
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** bf16 bits -> f32, exact. */
export function bf16ToF32(bits: number): number {
  bitsView[0] = bits << 16;
  return floatView[0];
}
