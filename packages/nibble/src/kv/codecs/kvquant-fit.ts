/**
 * Calibration of KVQuant: ranges of key channels, one non-uniform table for the keys and one for the values of a layer, and
 * the Q-Norm of each. The paper weighs every element by its Fisher information, which needs gradients. What stands in for
 * it here is what attention alone tells: the square of the derivative of the layer's attention output, with unknown
 * directions behind it averaged. For a value that is the sum over queries of the squared probability it received; for a key
 * the same times the mean square of the query channels it meets. As the elements are normalized before they are clustered,
 * the weight is multiplied by the squared half range (the paper's appendix; its code leaves that out).
 */
import { kmeans1d } from "../../linalg/kmeans-1d.js";
import { risingOrder } from "../../linalg/order.js";
import type { CalibrationSamples } from "../../observers/kv-samples.js";
import type { CalibrationTensor, PlaneName } from "../contract.js";

/** Most elements the tables are fitted to; beyond it every n-th token is used. */
const MAX_ELEMENTS = 2 ** 21;

interface FitOptions {
  bits: number;
  sparsity: number;
}

/** Elements in the unit range, outliers left out, and their weights. */
interface Normalized {
  x: Float32Array;
  weight: Float64Array;
}

export function fitKvquant(
  o: FitOptions,
  plane: PlaneName,
  samples: CalibrationSamples,
): CalibrationTensor[] {
  return plane === "k" ? fitKeys(o, samples) : fitValues(o, samples);
}

function fitKeys(o: FitOptions, s: CalibrationSamples): CalibrationTensor[] {
  const { rows, kvHeads, headDim, keys } = s;
  const width = kvHeads * headDim;
  const low = new Float32Array(width);
  const high = new Float32Array(width);
  const channel = new Float32Array(rows);
  for (let c = 0; c < width; c++) {
    for (let t = 0; t < rows; t++) channel[t] = keys[t * width + c];
    [low[c], high[c]] = range(channel, o.sparsity);
  }
  const table = fit(
    "k",
    o,
    normalize(
      s,
      keys,
      (_, c) => [low[c], high[c]],
      (t, c) => {
        return s.attention[t * kvHeads + Math.floor(c / headDim)] * s.queries[c];
      },
    ),
  );
  return [
    { name: "k.low", shape: [kvHeads, headDim], data: low },
    { name: "k.high", shape: [kvHeads, headDim], data: high },
    ...table,
  ];
}

function fitValues(o: FitOptions, s: CalibrationSamples): CalibrationTensor[] {
  const { rows, kvHeads, headDim, values } = s;
  const ranges = Array.from({ length: rows * kvHeads }, (_, i) =>
    range(values.subarray(i * headDim, (i + 1) * headDim), o.sparsity),
  );
  const of = (t: number, c: number) => t * kvHeads + Math.floor(c / headDim);
  return fit(
    "v",
    o,
    normalize(
      s,
      values,
      (t, c) => ranges[of(t, c)],
      (t, c) => s.attention[of(t, c)],
    ),
  );
}

/** Percentiles that leave out (1 - sparsity) / 2 at each end, interpolated as numpy does. */
export function range(values: Float32Array, sparsity: number): [number, number] {
  const order = risingOrder(values);
  const at = (share: number) => {
    const place = share * (values.length - 1);
    const below = Math.floor(place);
    const a = values[order[below]];
    return a + (values[order[Math.min(below + 1, values.length - 1)]] - a) * (place - below);
  };
  const share = 1 - (1 - sparsity) / 2;
  return [at(1 - share), at(share)];
}

function normalize(
  { rows, kvHeads, headDim }: CalibrationSamples,
  source: Float32Array,
  rangeOf: (t: number, c: number) => [number, number],
  weightOf: (t: number, c: number) => number,
): Normalized {
  const width = kvHeads * headDim;
  const step = Math.ceil((rows * width) / MAX_ELEMENTS);
  const x = new Float32Array(Math.ceil(rows / step) * width);
  const weight = new Float64Array(x.length);
  let n = 0;
  for (let t = 0; t < rows; t += step) {
    for (let c = 0; c < width; c++) {
      const [low, high] = rangeOf(t, c);
      const half = (high - low) / 2;
      const unit = half > 0 ? (source[t * width + c] - (high + low) / 2) / half : 0;
      if (!(Math.abs(unit) <= 1)) continue;
      x[n] = unit;
      weight[n++] = weightOf(t, c) * half * half;
    }
  }
  return { x: x.subarray(0, n), weight: weight.subarray(0, n) };
}

function fit(plane: PlaneName, o: FitOptions, { x, weight }: Normalized): CalibrationTensor[] {
  const clusters = 2 ** o.bits;
  const points = Float32Array.from(
    kmeans1d(x, weight, { clusters, method: "lloyd", iterations: 50 }),
  ).sort();
  return [
    { name: `${plane}.table`, shape: [clusters], data: points },
    { name: `${plane}.norm`, shape: [2], data: qNorm(x, points) },
  ];
}

/** [scale, offset] that give quantized values the mean and standard deviation of the values (Q-Norm). */
export function qNorm(x: Float32Array, points: Float32Array): Float32Array {
  let [sum, squares, qSum, qSquares] = [0, 0, 0, 0];
  for (const v of x) {
    let q = 0;
    while (q + 1 < points.length && v > (points[q] + points[q + 1]) / 2) q++;
    sum += v;
    squares += v * v;
    qSum += points[q];
    qSquares += points[q] ** 2;
  }
  const n = Math.max(1, x.length);
  const spread = Math.sqrt(Math.max(0, squares / n - (sum / n) ** 2));
  const qSpread = Math.sqrt(Math.max(0, qSquares / n - (qSum / n) ** 2));
  if (!(qSpread > 0)) return Float32Array.of(1, (sum - qSum) / n);
  const scale = spread / qSpread;
  return Float32Array.of(scale, sum / n - (qSum / n) * scale);
}
