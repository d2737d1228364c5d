import fc from "fast-check";
import { describe, expect, it } from "vitest";
import golden from "../../test/golden/hadamard.json" with { type: "json" };
import { Philox } from "../core/rng.js";
import {
  applyHadamard,
  applyMatrix,
  hadamardMatrix,
  hadamardOrder,
  requireHadamardOrder,
} from "./hadamard.js";
import { hadamardSigns } from "./hadamard-matrices.js";

const EPS = 2 ** -52;
const ramp = (n: number) =>
  Float64Array.from({ length: n }, (_, t) => (((37 * t) % 101) - 50) / 50);

describe("orders", () => {
  it.each([
    [64, 1],
    [576, 36],
    [1536, 12],
    [11008, 172],
    [13824, 108],
    [14336, 28],
    [5120, 20],
    [896, 28],
    [4864, 76],
    [8960, 140],
    [3328, 52],
    [60, 60],
    [1, 1],
    [2, 1],
  ])("%i uses k = %i", (n, k) => expect(hadamardOrder(n)?.k).toBe(k));

  it.each([3, 9, 6, 18, 0, -4, 2.5])("%d has none", (n) => expect(hadamardOrder(n)).toBeNull());

  it("an impossible size names the block size that would do", () => {
    expect(() => requireHadamardOrder(1432, "mlp_out")).toThrow(
      expect.objectContaining({
        code: "no-hadamard",
        hint: expect.stringContaining("blockSize 8"),
      }),
    );
  });

  it("every generated A_k up to 260 fulfils A A^T = k I", { timeout: 20000 }, () => {
    for (let k = 4; k <= 260; k += 4) {
      const a = hadamardSigns(k);
      if (!a) continue;
      for (let i = 0; i < k; i++) {
        for (let j = 0; j <= i; j++) {
          let dot = 0;
          for (let t = 0; t < k; t++) dot += (a[i * k + t] as number) * (a[j * k + t] as number);
          if (dot !== (i === j ? k : 0)) throw new Error(`order ${k}: rows ${i}, ${j}`);
        }
      }
    }
    for (const k of [12, 20, 28, 36, 52, 60, 92, 108, 116, 140, 156, 172]) {
      expect(hadamardSigns(k), String(k)).not.toBeNull();
    }
  });

  it.each(Object.entries(golden.A))("A_%s equals the golden rows", (k, rows) => {
    const signs = hadamardSigns(Number(k)) as Int8Array;
    const text = rows.map((_, i) =>
      Array.from(signs.subarray(i * rows.length, (i + 1) * rows.length), (s) =>
        s > 0 ? "+" : "-",
      ).join(""),
    );
    expect(text).toEqual(rows);
  });
});

describe("transform", () => {
  it.each(golden.cases)("n = $n equals the golden values within 1e-4", (c) => {
    const order = requireHadamardOrder(c.n);
    expect([order.k, order.m]).toEqual([c.k, c.m]);
    const x = ramp(c.n);
    applyHadamard(x, order, { outer: 1 });
    const back = ramp(c.n);
    applyHadamard(back, order, { outer: 1, transpose: true });
    const close = (a: Float64Array, b: number[]) =>
      a.forEach((v, i) => {
        expect(Math.abs(v - (b[i] as number))).toBeLessThan(1e-4);
      });
    close(x.slice(0, 8), c.Hx_first8);
    close(x.slice(-4), c.Hx_last4);
    close(back.slice(0, 8), c.HTx_first8);
  });

  it.each([12, 36, 64, 576, 172 * 2])("H H^T = I for n = %i within n eps", (n) => {
    const order = requireHadamardOrder(n);
    const h = hadamardMatrix(order);
    applyHadamard(h, order, { outer: 1, inner: n, transpose: true });
    let worst = 0;
    for (const [i, v] of h.entries())
      worst = Math.max(worst, Math.abs(v - (i % (n + 1) === 0 ? 1 : 0)));
    expect(worst).toBeLessThan(n * EPS);
  });

  it("transforming a vector, an inner axis and multiplying by the dense matrix agree", () => {
    const sizes = fc.constantFrom(1, 2, 4, 12, 20, 24, 36, 52, 64, 72);
    fc.assert(
      fc.property(sizes, fc.nat(1000), fc.boolean(), (n, seed, transpose) => {
        const order = requireHadamardOrder(n);
        const rows = 3;
        const x = new Philox(seed).normals(rows * n);
        const fast = Float64Array.from(x);
        applyHadamard(fast, order, { outer: rows, transpose });
        const columns = Float64Array.from(
          x,
          (_, i) => x[(i % rows) * n + Math.floor(i / rows)] as number,
        );
        applyHadamard(columns, order, { outer: 1, inner: rows, transpose });
        const h = hadamardMatrix(order);
        if (transpose) {
          for (let i = 0; i < n; i++) {
            for (let j = 0; j < i; j++) {
              const t = h[i * n + j] as number;
              h[i * n + j] = h[j * n + i] as number;
              h[j * n + i] = t;
            }
          }
        }
        const dense = Float64Array.from(x);
        applyMatrix(dense, h, n, { outer: rows });
        for (let r = 0; r < rows; r++) {
          for (let i = 0; i < n; i++) {
            expect(fast[r * n + i]).toBeCloseTo(dense[r * n + i] as number, 12);
            expect(columns[i * rows + r]).toBeCloseTo(dense[r * n + i] as number, 12);
          }
        }
      }),
      { numRuns: 40 },
    );
  });

  it("f32 arrays are rounded once", () => {
    const order = requireHadamardOrder(72);
    const x = new Philox(1).normals(72);
    const single = Float32Array.from(x);
    const double = Float64Array.from(single);
    applyHadamard(single, order, { outer: 1 });
    applyHadamard(double, order, { outer: 1 });
    expect(single).toEqual(Float32Array.from(double));
  });

  it("head mixing is the Kronecker product with the identity", () => {
    const heads = 4;
    const inner = 3;
    const order = requireHadamardOrder(heads);
    const x = new Philox(2).normals(heads * inner);
    const mixed = Float64Array.from(x);
    applyMatrix(mixed, hadamardMatrix(order), heads, { outer: 1, inner });
    const fast = Float64Array.from(x);
    applyHadamard(fast, order, { outer: 1, inner });
    mixed.forEach((v, i) => {
      expect(v).toBeCloseTo(fast[i] as number, 14);
    });
  });
});
