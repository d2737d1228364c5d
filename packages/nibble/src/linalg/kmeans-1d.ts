/**
 * Weighted k-means on a line: values are sorted once, so that clusters are intervals and their sums are differences of
 * prefix sums. Lloyd's iteration from two fixed starts, or the optimum by dynamic programming (divide and conquer over
 * the last boundary, O(k n log n)). Deterministic.
 */
import { risingOrder } from "./order.js";

export interface Kmeans1dOptions {
  clusters: number;
  method: "lloyd" | "dp";
  /** Most iterations of Lloyd's. */
  iterations: number;
}

/** Distinct values, rising, with prefix sums of w, w x and w x^2 about the mean. */
interface Line {
  x: Float64Array;
  mean: number;
  w: Float64Array;
  wx: Float64Array;
  wxx: Float64Array;
}

/**
 * Centroids, rising; when there are fewer distinct values than clusters, the last one is repeated.
 * @param weights >= 0, one a value; values of weight 0 attract nothing. null, or all 0: equal weights
 */
export function kmeans1d(
  values: Float32Array,
  weights: Float64Array | null,
  { clusters, method, iterations }: Kmeans1dOptions,
): Float64Array {
  const line = makeLine(values, weights);
  const m = line.x.length;
  if (m <= clusters) {
    return Float64Array.from(
      { length: clusters },
      (_, i) => line.x[Math.min(i, m - 1)] + line.mean,
    );
  }
  let best: Float64Array;
  if (method === "dp") best = optimum(line, clusters);
  else {
    const starts = [gridStart(line, clusters), quantileStart(line, clusters)];
    const runs = starts.map((start) => lloyd(line, start, iterations));
    best = inertia(line, runs[1]) < inertia(line, runs[0]) ? runs[1] : runs[0];
  }
  return best.map((c) => c + line.mean);
}

/** Sum of weight * (value - nearest centroid)^2. */
export function inertia1d(
  values: Float32Array,
  weights: Float64Array | null,
  centroids: Float64Array,
): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    let nearest = Number.POSITIVE_INFINITY;
    for (let c = 0; c < centroids.length; c++)
      nearest = Math.min(nearest, (values[i] - centroids[c]) ** 2);
    sum += (weights ? weights[i] : 1) * nearest;
  }
  return sum;
}

function makeLine(values: Float32Array, given: Float64Array | null): Line {
  const weights = given?.some((w) => w > 0) ? given : null;
  const order = risingOrder(values);
  const x = new Float64Array(values.length);
  const mass = new Float64Array(values.length);
  let m = 0;
  let total = 0;
  let moment = 0;
  for (const i of order) {
    const weight = weights ? weights[i] : 1;
    if (weight === 0) continue;
    if (m === 0 || x[m - 1] !== values[i]) x[m++] = values[i];
    mass[m - 1] += weight;
    total += weight;
    moment += weight * values[i];
  }
  const mean = total > 0 ? moment / total : 0;
  const line: Line = {
    x: x.subarray(0, m),
    mean,
    w: new Float64Array(m + 1),
    wx: new Float64Array(m + 1),
    wxx: new Float64Array(m + 1),
  };
  for (let i = 0; i < m; i++) {
    x[i] -= mean;
    line.w[i + 1] = line.w[i] + mass[i];
    line.wx[i + 1] = line.wx[i] + mass[i] * x[i];
    line.wxx[i + 1] = line.wxx[i] + mass[i] * x[i] * x[i];
  }
  return line;
}

/** A uniform grid over the range: Lloyd's can only improve on rounding to nearest. */
function gridStart({ x }: Line, clusters: number): Float64Array {
  const low = x[0];
  const step = (x[x.length - 1] - low) / (clusters - 1 || 1);
  return Float64Array.from({ length: clusters }, (_, c) => low + c * step);
}

/** Middles of equal shares of the weight. */
function quantileStart({ x, w }: Line, clusters: number): Float64Array {
  const total = w[w.length - 1];
  let i = 0;
  return Float64Array.from({ length: clusters }, (_, c) => {
    const share = ((c + 0.5) / clusters) * total;
    while (w[i + 1] < share) i++;
    return x[i];
  });
}

function lloyd(line: Line, start: Float64Array, iterations: number): Float64Array {
  const { x, w, wx } = line;
  const centroids = start.slice();
  const clusters = centroids.length;
  const ends = new Uint32Array(clusters);
  for (let iteration = 0; iteration < iterations; iteration++) {
    let changed = false;
    for (let c = 0; c < clusters; c++) {
      const end =
        c + 1 < clusters ? firstAbove(x, (centroids[c] + centroids[c + 1]) / 2) : x.length;
      if (ends[c] !== end) changed = true;
      ends[c] = end;
    }
    if (!changed) break;
    for (let c = 0; c < clusters; c++) {
      const from = c > 0 ? ends[c - 1] : 0;
      const mass = w[ends[c]] - w[from];
      if (ends[c] > from && mass > 0) centroids[c] = (wx[ends[c]] - wx[from]) / mass;
    }
  }
  return centroids;
}

/** Index of the first value > limit. */
function firstAbove(x: Float64Array, limit: number): number {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] > limit) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Inertia of the intervals that rising centroids cut, about those centroids. */
function inertia({ x, w, wx, wxx }: Line, centroids: Float64Array): number {
  let from = 0;
  let sum = 0;
  for (let c = 0; c < centroids.length; c++) {
    const end =
      c + 1 < centroids.length ? firstAbove(x, (centroids[c] + centroids[c + 1]) / 2) : x.length;
    const mass = w[end] - w[from];
    sum +=
      wxx[end] - wxx[from] - 2 * centroids[c] * (wx[end] - wx[from]) + centroids[c] ** 2 * mass;
    from = end;
  }
  return sum;
}

function optimum({ x, w, wx, wxx }: Line, clusters: number): Float64Array {
  const m = x.length;
  const cost = (from: number, to: number) => {
    const mass = w[to] - w[from];
    const moment = wx[to] - wx[from];
    return wxx[to] - wxx[from] - (moment * moment) / mass;
  };
  let previous = Float64Array.from({ length: m + 1 }, (_, j) => (j === 0 ? 0 : cost(0, j)));
  /** cuts[c][j]: where the last of c + 1 clusters over the first j values begins. */
  const cuts = [new Uint32Array(m + 1)];
  for (let c = 1; c < clusters; c++) {
    const current = new Float64Array(m + 1).fill(Number.POSITIVE_INFINITY);
    const cut = new Uint32Array(m + 1);
    const solve = (low: number, high: number, first: number, last: number): void => {
      if (low > high) return;
      const j = (low + high) >> 1;
      for (let i = Math.max(c, first); i <= Math.min(j - 1, last); i++) {
        const total = previous[i] + cost(i, j);
        if (total < current[j]) {
          current[j] = total;
          cut[j] = i;
        }
      }
      solve(low, j - 1, first, cut[j]);
      solve(j + 1, high, cut[j], last);
    };
    solve(c + 1, m, c, m - 1);
    previous = current;
    cuts.push(cut);
  }
  const centroids = new Float64Array(clusters);
  let end = m;
  for (let c = clusters - 1; c >= 0; c--) {
    const from = c > 0 ? cuts[c][end] : 0;
    centroids[c] = (wx[end] - wx[from]) / (w[end] - w[from]);
    end = from;
  }
  return centroids;
}
