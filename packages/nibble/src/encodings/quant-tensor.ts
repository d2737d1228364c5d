/**
 * Decoding and accounting of QuantTensors. Quality is always measured on what is decoded here or run by the kernels from
 * the same codes, never on a private simulation.
 */
import { decodeGintRows } from "./gint.js";
import { decodeLutRows } from "./lut.js";
import { describe, tensorPlan, tensorPlanBytes } from "./serialize.js";
import type { QuantTensor } from "./types.js";

/** The whole weight [n, k] in f32, for the input behind `pre`: main term + csr + low rank. */
export function decode(tensor: QuantTensor): Float32Array {
  return decodeRows(tensor, 0, tensor.n);
}

/** Rows [from, to) of `decode`, into `out` if given. */
export function decodeRows(
  tensor: QuantTensor,
  from: number,
  to: number,
  out: Float32Array = new Float32Array((to - from) * tensor.k),
): Float32Array {
  const { k, main, csr } = tensor;
  switch (main.kind) {
    case "gint":
      decodeGintRows(main, from, to, out);
      break;
    case "lut":
      decodeLutRows(main, from, to, out);
      break;
    case "dense":
      out.set(main.data.subarray(from * k, to * k));
      break;
  }
  if (csr) {
    for (let r = from; r < to; r++) {
      for (let i = csr.rowPointers[r]; i < csr.rowPointers[r + 1]; i++) {
        out[(r - from) * k + csr.columns[i]] += csr.values.data[i];
      }
    }
  }
  for (const { a, b, alpha } of tensor.lowRank ?? []) {
    const rank = a.shape[0];
    for (let r = from; r < to; r++) {
      for (let j = 0; j < rank; j++) {
        const f = alpha * b.data[r * rank + j];
        for (let c = 0; c < k; c++) out[(r - from) * k + c] += f * a.data[j * k + c];
      }
    }
  }
  return out;
}

/** The weight for the input before `pre`: W pre(x) = effectiveWeight x. */
export function effectiveWeight(tensor: QuantTensor): Float32Array {
  const { n, k } = tensor;
  let w = decode(tensor);
  for (const op of [...tensor.pre].reverse()) {
    const next = new Float32Array(w.length);
    for (let c = 0; c < k; c++) {
      const to = op.op === "perm" ? op.index[c] : c;
      const factor = op.op === "scale" ? op.values.data[c] : 1;
      for (let r = 0; r < n; r++) next[r * k + to] = factor * w[r * k + c];
    }
    w = next;
  }
  return w;
}

/** Bytes of everything stored for the tensor: codes, scales, zeros, tables, side-cars. */
export function storedBytes(tensor: QuantTensor): number {
  return tensorPlanBytes(tensorPlan("", describe(tensor)));
}

/** 8 * storedBytes / (n k). */
export function bitsPerWeight(tensor: QuantTensor): number {
  return (8 * storedBytes(tensor)) / (tensor.n * tensor.k);
}
