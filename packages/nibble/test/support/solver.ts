/** What tests of solvers need: weights, inputs, statistics, a context, errors. */
import { Philox } from "../../src/core/rng.js";
import { effectiveWeight } from "../../src/encodings/quant-tensor.js";
import type { QuantTensor } from "../../src/encodings/types.js";
import { referenceLinalg } from "../../src/linalg/engine-linalg.js";
import { createMemo, type SiteStatsView, type SolveContext } from "../../src/methods/contract.js";

/** Standard normals times `scale`. */
export function gaussian(count: number, seed = 0, scale = 1): Float32Array {
  return Float32Array.from(new Philox(seed, "gaussian").normals(count), (x) => x * scale);
}

/** Student-t with 4 degrees of freedom times `scale`. */
export function studentT(count: number, seed = 0, scale = 1): Float32Array {
  const rng = new Philox(seed, "student");
  return Float32Array.from({ length: count }, () => {
    let chi = 0;
    for (let i = 0; i < 4; i++) chi += rng.normal() ** 2;
    return (scale * rng.normal()) / Math.sqrt(chi / 4);
  });
}

/** Correlated inputs [tokens, k] whose channels have very different sizes, a few of them outliers. */
export function activations(tokens: number, k: number, seed = 0): Float64Array {
  const rng = new Philox(seed, "activations");
  const size = Float64Array.from(
    { length: k },
    () => Math.exp(rng.normal()) * (rng.uniform() < 0.03 ? 8 : 1),
  );
  const mix = rng.normals(k * 8);
  const x = new Float64Array(tokens * k);
  for (let t = 0; t < tokens; t++) {
    const factors = rng.normals(8);
    for (let c = 0; c < k; c++) {
      let shared = 0;
      for (let f = 0; f < 8; f++) shared += (mix[c * 8 + f] as number) * (factors[f] as number);
      x[t * k + c] = (size[c] as number) * (rng.normal() + 0.4 * shared);
    }
  }
  return x;
}

export type FullStats = Required<Omit<SiteStatsView, "drift">>;

export function statsOf(x: Float64Array, k: number): FullStats {
  const count = x.length / k;
  const hessian = new Float64Array(k * k);
  const sumAbs = new Float64Array(k);
  const maxAbs = new Float32Array(k);
  for (let t = 0; t < count; t++) {
    const row = x.subarray(t * k, (t + 1) * k);
    for (let i = 0; i < k; i++) {
      const size = Math.abs(row[i] as number);
      sumAbs[i] = (sumAbs[i] as number) + size;
      maxAbs[i] = Math.max(maxAbs[i] as number, size);
      for (let j = i; j < k; j++) {
        hessian[i * k + j] =
          (hessian[i * k + j] as number) + (row[i] as number) * (row[j] as number);
      }
    }
  }
  return { count, hessian, sumAbs, maxAbs };
}

export function solveContext(seed = 0): SolveContext & { messages: string[] } {
  const messages: string[] = [];
  return {
    rng: new Philox(seed, "test"),
    engineLinalg: referenceLinalg,
    log: (message) => messages.push(message),
    memo: createMemo(),
    messages,
  };
}

/** Sum of (w' - w)^2 / sum of w^2. */
export function relativeError(decoded: Float32Array, w: Float32Array): number {
  let error = 0;
  let total = 0;
  for (const [i, x] of w.entries()) {
    error += ((decoded[i] as number) - x) ** 2;
    total += x ** 2;
  }
  return error / total;
}

/** Squared output error over all inputs x [tokens, k], summed over outputs. */
export function outputError(tensor: QuantTensor, w: Float32Array, x: Float64Array): number {
  const q = effectiveWeight(tensor);
  const { n, k } = tensor;
  let sum = 0;
  for (let t = 0; t < x.length / k; t++) {
    for (let r = 0; r < n; r++) {
      let y = 0;
      for (let c = 0; c < k; c++) {
        y += ((w[r * k + c] as number) - (q[r * k + c] as number)) * (x[t * k + c] as number);
      }
      sum += y * y;
    }
  }
  return sum;
}
