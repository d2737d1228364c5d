import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Philox } from "../core/rng.js";
import { inertia1d, kmeans1d } from "./kmeans-1d.js";
import { risingOrder, valueAtRank } from "./order.js";

const heavy = (n: number, seed: number) => {
  const rng = new Philox(seed, "kmeans");
  return Float32Array.from({ length: n }, () => rng.normal() / Math.sqrt(0.1 + rng.uniform()));
};
const weightsOf = (n: number, seed: number) => {
  const rng = new Philox(seed, "weights");
  return Float64Array.from({ length: n }, () => rng.uniform() ** 4);
};

/** The optimum by trying every set of cuts. */
function bruteForce(values: Float32Array, weights: Float64Array, clusters: number): number {
  const order = [...values.keys()].sort((a, b) => (values[a] as number) - (values[b] as number));
  const best = (from: number, left: number): number => {
    if (left === 0) return from === order.length ? 0 : Number.POSITIVE_INFINITY;
    let least = Number.POSITIVE_INFINITY;
    let mass = 0;
    let moment = 0;
    let square = 0;
    for (let end = from + 1; end <= order.length; end++) {
      const i = order[end - 1] as number;
      const w = weights[i] as number;
      const x = values[i] as number;
      mass += w;
      moment += w * x;
      square += w * x * x;
      least = Math.min(least, square - moment ** 2 / mass + best(end, left - 1));
    }
    return least;
  };
  return best(0, clusters);
}

describe("order statistics", () => {
  it("rising order with ties by index; rank by digits (property)", () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), {
          minLength: 1,
          maxLength: 60,
        }),
        (list) => {
          const values = Float32Array.from(list);
          const expected = [...values.keys()].sort(
            (a, b) => (values[a] as number) - (values[b] as number) || a - b,
          );
          expect([...risingOrder(values)]).toEqual(expected);
          const sizes = values.map(Math.abs);
          const sorted = sizes.slice().sort();
          for (const [i, x] of sorted.entries()) expect(valueAtRank(sizes, i)).toBe(x);
        },
      ),
    );
  });
});

describe("kmeans1d", () => {
  it("dp is the optimum (against brute force)", () => {
    for (let seed = 0; seed < 5; seed++) {
      const values = heavy(11, seed);
      const weights = weightsOf(11, seed).map((w) => w + 0.01);
      const centroids = kmeans1d(values, weights, { clusters: 4, method: "dp", iterations: 50 });
      expect(inertia1d(values, weights, centroids)).toBeCloseTo(bruteForce(values, weights, 4), 9);
    }
  });

  it("rounding to a uniform grid >= Lloyd >= dp", () => {
    for (let seed = 0; seed < 8; seed++) {
      const values = heavy(300, seed);
      const weights = weightsOf(300, seed);
      const run = (method: "lloyd" | "dp") =>
        inertia1d(
          values,
          weights,
          kmeans1d(values, weights, { clusters: 8, method, iterations: 50 }),
        );
      const low = Math.min(...values);
      const grid = Float64Array.from(
        { length: 8 },
        (_, i) => low + (i * (Math.max(...values) - low)) / 7,
      );
      expect(run("dp")).toBeLessThanOrEqual(run("lloyd") * (1 + 1e-9));
      expect(run("lloyd")).toBeLessThanOrEqual(inertia1d(values, weights, grid));
    }
  });

  it("centroids are weighted means of their members (1e-6)", () => {
    const values = heavy(200, 1);
    const weights = weightsOf(200, 1);
    for (const method of ["lloyd", "dp"] as const) {
      const centroids = kmeans1d(values, weights, { clusters: 8, method, iterations: 500 });
      const sums = centroids.map(() => 0);
      const masses = centroids.map(() => 0);
      values.forEach((x, i) => {
        let nearest = 0;
        centroids.forEach((c, j) => {
          if (Math.abs(x - c) < Math.abs(x - (centroids[nearest] as number))) nearest = j;
        });
        sums[nearest] = (sums[nearest] as number) + (weights[i] as number) * x;
        masses[nearest] = (masses[nearest] as number) + (weights[i] as number);
      });
      centroids.forEach((c, j) => {
        if ((masses[j] as number) > 0)
          expect(Math.abs((sums[j] as number) / (masses[j] as number) - c)).toBeLessThan(1e-6);
      });
    }
  });

  it("few distinct values are kept; weight 0 attracts nothing; scaling the weights changes nothing", () => {
    const few = Float32Array.of(3, 1, 3, -2, 1);
    expect([...kmeans1d(few, null, { clusters: 4, method: "lloyd", iterations: 9 })]).toEqual([
      -2, 1, 3, 3,
    ]);
    const outlier = Float32Array.of(1000, 0, 1, 2);
    expect([
      ...kmeans1d(outlier, Float64Array.of(0, 1, 1, 1), {
        clusters: 3,
        method: "dp",
        iterations: 9,
      }),
    ]).toEqual([0, 1, 2]);
    const values = heavy(100, 3);
    const weights = weightsOf(100, 3);
    const options = { clusters: 8, method: "lloyd" as const, iterations: 50 };
    const scaled = kmeans1d(
      values,
      weights.map((w) => w * 16),
      options,
    );
    expect(scaled).toEqual(kmeans1d(values, weights, options));
    expect(kmeans1d(values, new Float64Array(100).fill(2), options)).toEqual(
      kmeans1d(values, null, options),
    );
    expect(kmeans1d(values, new Float64Array(100), options)).toEqual(
      kmeans1d(values, null, options),
    );
  });
});
