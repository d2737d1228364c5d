import { describe, expect, it } from "vitest";
import { gaussian, relativeError, studentT } from "../../test/support/solver.js";
import { decode } from "../encodings/quant-tensor.js";
import { roundFloat } from "../encodings/stored-floats.js";
import type { Gint } from "../encodings/types.js";
import { NO_NEEDS } from "./contract.js";
import {
  type EasyquantOptions,
  easyquant,
  gridError,
  gridGradient,
  outlierMask,
  quantizeEasy,
} from "./easyquant.js";
import { roundToNearest, rtn } from "./rtn.js";

const options = (o: object = {}): EasyquantOptions => easyquant.options.parse(o);
/** Row errors of the weights that are not outliers. */
function rowErrors(
  w: Float32Array,
  decoded: Float32Array,
  mask: Uint8Array,
  n: number,
  k: number,
): number[] {
  return Array.from({ length: n }, (_, r) => {
    let sum = 0;
    for (let i = r * k; i < (r + 1) * k; i++)
      if (!mask[i]) sum += ((decoded[i] as number) - (w[i] as number)) ** 2;
    return sum;
  });
}

describe("easyquant", () => {
  it("asks for no data", () => {
    expect(easyquant.needs(options())).toEqual(NO_NEEDS);
  });

  it("the gradient is that of the error, away from rounding boundaries", () => {
    const values = Float64Array.from({ length: 40 }, (_, i) => Math.sin(i * 1.7) + 0.013);
    for (const s of [0.09, 0.131, 0.2]) {
      const h = 1e-7;
      const numeric = (gridError(values, s + h, 8) - gridError(values, s - h, 8)) / (2 * h);
      expect(gridGradient(values, s, 8)).toBeCloseTo(numeric, 4);
    }
  });

  it("Gaussian: 0.27 % outliers at 3 sigma (0.03), 4 + 16/K + their 32 bits", () => {
    const [n, k] = [256, 1024];
    const mask = outlierMask(gaussian(n * k, 1, 0.02), 3);
    expect(Math.abs((100 * mask.reduce((a, b) => a + b, 0)) / (n * k) - 0.27)).toBeLessThan(0.03);
  });

  it.each(["search", "adam"] as const)(
    "%s: no row is worse than its start; outliers are exact in f16",
    (optimizer) => {
      const [n, k] = [24, 200];
      const w = studentT(n * k, 2, 0.02);
      const o = options({ optimizer });
      const mask = outlierMask(w, 3);
      const decoded = decode(quantizeEasy(w, n, k, o));
      const plain = w.map((x, i) => {
        const row = w.subarray(Math.floor(i / k) * k, (Math.floor(i / k) + 1) * k);
        const at = Math.floor(i / k) * k;
        const top = row.reduce((m, y, c) => (mask[at + c] ? m : Math.max(m, Math.abs(y))), 0);
        const s = roundFloat(top / 7, "f16");
        return s * Math.max(-8, Math.min(7, Math.round(x / s)));
      });
      const before = rowErrors(w, plain, mask, n, k);
      rowErrors(w, decoded, mask, n, k).forEach((error, r) => {
        expect(error).toBeLessThanOrEqual((before[r] as number) * (1 + 1e-6));
      });
      for (const [i, kept] of mask.entries())
        if (kept) expect(decoded[i]).toBe(roundFloat(w[i] as number, "f16"));
    },
  );

  it("search reaches the error of Adam in every row (0.1 %)", () => {
    const [n, k] = [24, 200];
    const w = studentT(n * k, 3, 0.02);
    const mask = outlierMask(w, 3);
    const errors = (optimizer: string) =>
      rowErrors(w, decode(quantizeEasy(w, n, k, options({ optimizer }))), mask, n, k);
    const total = (list: number[]) => list.reduce((a, b) => a + b, 0);
    expect(total(errors("search"))).toBeLessThanOrEqual(total(errors("adam")) * 1.001);
  });

  it("without outliers it is symmetric rounding with a better range", () => {
    const [n, k] = [16, 256];
    const w = gaussian(n * k, 4);
    const tensor = quantizeEasy(w, n, k, options({ sigma: null }));
    expect(tensor.csr).toBeUndefined();
    const narrow = roundToNearest(w, n, k, rtn.options.parse({ sym: "narrow" }));
    expect(relativeError(decode(tensor), w)).toBeLessThan(relativeError(decode(narrow), w));
    expect((tensor.main as Gint).zero).toEqual({ kind: "const", value: 8 });
  });

  it("a row of outliers only gets scale 1 and the codes of 0; a constant matrix has no outliers", () => {
    const w = gaussian(8 * 64, 5, 0.001);
    w.fill(1, 0, 64);
    const tensor = quantizeEasy(w, 8, 64, options({ sigma: 1 }));
    expect((tensor.main as Gint).scale.data[0]).toBe(1);
    expect(
      decode(tensor)
        .subarray(0, 64)
        .every((x) => x === 1),
    ).toBe(true);
    expect(outlierMask(new Float32Array(9).fill(2), 3).some((m) => m === 1)).toBe(false);
  });

  it("groups lower the error further", () => {
    const w = studentT(8 * 256, 6);
    const error = (groupSize: unknown) =>
      relativeError(decode(quantizeEasy(w, 8, 256, options({ groupSize }))), w);
    expect(error(64)).toBeLessThan(error("channel"));
  });
});
