/**
 * Scales (and float zero points) of a grouped grid in 8 bits: value = low[g] + step[g] * code with one (low, step) for each
 * group of columns, shared by all rows (`u8 affine` of the storage formats). 8 bits a value instead of 16, and 64 bits a
 * group of columns; in groups of 32 that is a quarter bit a weight. Values are rounded to f16 when decoded, so that kernels
 * read them as they read f16 scales.
 */
import { f16ToF32, f32ToF16 } from "../core/dtype.js";
import type { AffineBytes } from "./types.js";

/** What a code stands for. */
function decoded(low: number, step: number, code: number): number {
  return f16ToF32(f32ToF16(Math.fround(low + Math.fround(step * code))));
}

/** 8-bit values of an array [n, G], filled one column at a time. */
export class AffineColumns {
  readonly bytes: AffineBytes;

  constructor(
    readonly n: number,
    readonly groups: number,
  ) {
    this.bytes = {
      codes: new Uint8Array(n * groups),
      low: new Float32Array(groups),
      step: new Float32Array(groups),
    };
  }

  /** Stores column g of `values` [n, G] and replaces it by what was stored; positive f16 values stay positive. */
  store(values: Float32Array, g: number): void {
    const { n, groups } = this;
    const { codes, low, step } = this.bytes;
    let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (let r = 0; r < n; r++) {
      const x = values[r * groups + g] as number;
      if (x < least) least = x;
      if (x > most) most = x;
    }
    const bottom = Math.fround(least);
    const unit = Math.fround(Math.max(0, most - bottom) / 255);
    low[g] = bottom;
    step[g] = unit;
    for (let r = 0; r < n; r++) {
      const at = r * groups + g;
      const steps = unit === 0 ? 0 : Math.round(((values[at] as number) - bottom) / unit);
      const code = Math.min(255, Math.max(0, steps));
      codes[at] = code;
      values[at] = decoded(bottom, unit, code);
    }
  }
}

/** Values [n, G] of stored bytes. */
export function decodeAffine({ codes, low, step }: AffineBytes): Float32Array {
  const groups = low.length;
  return Float32Array.from(codes, (code, i) =>
    decoded(low[i % groups] as number, step[i % groups] as number, code),
  );
}
