import { describe, expect, it } from "vitest";
import {
  activations,
  gaussian,
  relativeError,
  solveContext,
  statsOf,
  studentT,
} from "../../test/support/solver.js";
import { bitsPerWeight, decode } from "../encodings/quant-tensor.js";
import { roundFloat } from "../encodings/stored-floats.js";
import { roundToNearest, rtn } from "./rtn.js";
import { type SqueezeOptions, squeeze, squeezellm, squeezeOutliers } from "./squeezellm.js";

const options = (o: object = {}): SqueezeOptions => squeezellm.options.parse(o);
const dense = { sensitivity: 0, outliers: 0 };
const ones = (k: number) => new Float64Array(k).fill(1);

describe("squeezellm", () => {
  const [n, k] = [32, 300];
  const w = studentT(n * k, 1, 0.02);
  const sensitivity = Float64Array.from({ length: k }, (_, c) => 1 + ((c * 7919) % 100));

  it("table and side-car add up to the removed weights, up to f16 of the difference", () => {
    const o = options({ outliers: 0.01 });
    const mask = squeezeOutliers(w, n, k, sensitivity, o);
    const tensor = squeeze(w, n, k, sensitivity, o);
    const decoded = decode(tensor);
    const table = decode({ ...tensor, csr: undefined } as never);
    let marked = 0;
    for (const [i, m] of mask.entries()) {
      if (!m) continue;
      marked++;
      const delta = Math.fround((w[i] as number) - (table[i] as number));
      expect(decoded[i]).toBe(Math.fround((table[i] as number) + roundFloat(delta, "f16")));
      expect(Math.abs((decoded[i] as number) - (w[i] as number))).toBeLessThanOrEqual(
        Math.abs(delta) * 2 ** -11,
      );
    }
    expect(tensor.csr?.columns.length).toBe(marked);
  });

  it("keeps the fraction that was asked for (10 %), sensitive ones first", () => {
    for (const outliers of [0.004, 0.02]) {
      const mask = squeezeOutliers(
        w,
        n,
        k,
        sensitivity,
        options({ sensitivity: 0.0005, outliers }),
      );
      const got = mask.reduce((a, b) => a + b, 0) / w.length;
      expect(got / (outliers + 0.0005)).toBeGreaterThan(0.9);
      expect(got / (outliers + 0.0005)).toBeLessThan(1.1);
    }
    const few = squeezeOutliers(
      w,
      n,
      k,
      sensitivity,
      options({ sensitivity: 0.0005, outliers: 0 }),
    );
    const top = Math.max(...sensitivity);
    for (const [i, m] of few.entries()) if (m) expect(sensitivity[i % k]).toBe(top);
    expect(few.reduce((a, b) => a + b, 0)).toBe(Math.floor(n * k * 0.0005));
  });

  it("outlierRange is the official quartile rule", () => {
    const values = Float32Array.from({ length: 101 }, (_, i) => i - 50);
    values[0] = -400;
    const mask = squeezeOutliers(
      values,
      1,
      101,
      null,
      options({ sensitivity: 0, outlierRange: 1.5 }),
    );
    expect([...mask.keys()].filter((i) => mask[i])).toEqual([0]); // q1 -25, q3 25: beyond 100
  });

  it("a row of at most 16 distinct values has no error", () => {
    const few = Float32Array.from({ length: 4 * 200 }, (_, i) => 0.125 * ((i * 13) % 16) - 1);
    expect(decode(squeeze(few, 4, 200, ones(200), options(dense)))).toEqual(few);
  });

  it("inertia: per-row integers >= Lloyd >= dynamic programming", () => {
    for (const bits of [3, 4]) {
      const inertia = (decoded: Float32Array) =>
        decoded.reduce(
          (sum, x, i) => sum + (sensitivity[i % k] as number) * (x - (w[i] as number)) ** 2,
          0,
        );
      const of = (kmeans: string) =>
        inertia(
          decode(
            squeeze(w, n, k, sensitivity, options({ ...dense, bits, kmeans, tableType: "f32" })),
          ),
        );
      const integers = inertia(decode(roundToNearest(w, n, k, rtn.options.parse({ bits }))));
      expect(of("dp")).toBeLessThanOrEqual(of("lloyd") * (1 + 1e-6));
      expect(of("lloyd")).toBeLessThan(integers);
    }
  });

  it("equal sensitivities are unweighted k-means, and their scale does not matter", () => {
    const plain = decode(squeeze(w, n, k, null, options(dense)));
    expect(decode(squeeze(w, n, k, ones(k), options(dense)))).toEqual(plain);
    const weighted = decode(squeeze(w, n, k, sensitivity, options()));
    expect(
      decode(
        squeeze(
          w,
          n,
          k,
          sensitivity.map((x) => 8 * x),
          options(),
        ),
      ),
    ).toEqual(weighted);
    expect(weighted).not.toEqual(plain);
  });

  it("removed weights do not attract the table", () => {
    const row = gaussian(256, 3, 0.1);
    row[17] = 50;
    const kept = squeeze(row, 1, 256, null, options({ sensitivity: 0, outliers: 1 / 256 }));
    expect(decode(kept)[17]).toBeCloseTo(50, 1);
    expect(
      relativeError(
        decode(kept).map((x, i) => (i === 17 ? 0 : x)),
        row.map((x, i) => (i === 17 ? 0 : x)),
      ),
    ).toBeLessThan(0.02);
  });

  it("costs 4.375 bits dense at K = 576 and 1536 on average, as in the specification", () => {
    const b576 = bitsPerWeight(squeeze(gaussian(8 * 576), 8, 576, null, options(dense)));
    const b1536 = bitsPerWeight(squeeze(gaussian(8 * 1536), 8, 1536, null, options(dense)));
    expect(b576).toBeCloseTo(4 + (16 * 16) / 576, 9);
    expect(b1536).toBeCloseTo(4 + (16 * 16) / 1536, 9);
  });

  it("reads the Hessian's diagonal, says so, and needs nothing with fisher: none", async () => {
    const x = activations(200, k, 2);
    const { tensor, notes } = await squeezellm.solve(
      w.slice(),
      { n, k, path: "w" },
      statsOf(x, k),
      options(),
      solveContext(),
    );
    expect(notes?.[0]).toContain("Hessian");
    const diagonal = Float64Array.from({ length: k }, (_, c) => {
      let sum = 0;
      for (let t = 0; t < 200; t++) sum += (x[t * k + c] as number) ** 2;
      return sum / 200;
    });
    expect(decode(tensor)).toEqual(decode(squeeze(w, n, k, diagonal, options())));
    expect(squeezellm.needs(options({ fisher: "none" })).calibration).toBe(false);
  });

  it("refuses a table that f16 cannot hold", async () => {
    const huge = gaussian(64, 4, 1e6);
    await expect(
      squeezellm.solve(
        huge,
        { n: 1, k: 64, path: "w" },
        null,
        options({ fisher: "none" }),
        solveContext(),
      ),
    ).rejects.toThrow(/w: a weight does not fit in f16/);
  });
});
