import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { referenceBackend } from "../kernels/reference.js";
import { type GemmCall, referenceLinalg } from "../linalg/engine-linalg.js";
import { createKernelLinalg, type KernelLinalg } from "./kernel-linalg.js";

const random = (count: number, seed: number) => Float32Array.from(new Philox(seed).normals(count));

describe("kernel linear algebra", () => {
  let linalg: KernelLinalg;
  beforeAll(async () => {
    linalg = await createKernelLinalg(referenceBackend, 1, { n: 24, k: 40 });
  });
  afterAll(() => linalg.dispose());

  it.each([
    [24, 40, 16],
    [1, 1, 1],
    // Does not fit at once: rows are cut into bands.
    [600, 40, 40],
  ])(
    "gemm %i x %i x %i equals the plain one within 1e-5, all transposes",
    async (rows, cols, inner) => {
      for (const transA of [false, true]) {
        for (const transB of [false, true]) {
          const start = random(5 + rows * (cols + 3), 3);
          const call = (data: Float32Array): GemmCall => ({
            rows,
            cols,
            inner,
            a: { data: random(rows * inner + 2, 1), offset: 2, stride: transA ? rows : inner },
            b: { data: random(cols * inner, 2), offset: 0, stride: transB ? inner : cols },
            c: { data, offset: 5, stride: cols + 3 },
            transA,
            transB,
            alpha: -1,
            beta: 1,
          });
          const expected = start.slice();
          await referenceLinalg.gemm(call(expected));
          const actual = start.slice();
          await linalg.gemm(call(actual));
          actual.forEach((x, i) => {
            expect(Math.abs(x - (expected[i] as number))).toBeLessThan(1e-5 * inner + 1e-6);
          });
        }
      }
    },
  );

  it("inverseFactor equals the plain one, also queued, and reports a failing column", async () => {
    const n = 20;
    const x = new Philox(4).normals(3 * n * n);
    const h = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        for (let t = 0; t < 3 * n; t++) {
          h[i * n + j] =
            (h[i * n + j] as number) + (x[t * n + i] as number) * (x[t * n + j] as number);
        }
      }
    }
    const expected = await referenceLinalg.inverseFactor(h.slice(), n);
    const [first, bad, second] = await Promise.allSettled([
      linalg.inverseFactor(h.slice(), n),
      linalg.inverseFactor(Float64Array.of(1, 2, 2, 1), 2),
      linalg.inverseFactor(h.slice(), n),
    ]);
    expect(first).toEqual(second);
    expect(bad).toMatchObject({ status: "rejected", reason: { code: "not-positive-definite" } });
    if (first.status !== "fulfilled") throw first.reason;
    first.value.forEach((u, i) => {
      expect(u).toBeCloseTo(expected[i] as number, 5);
    });
  });
});
