/** Hadamard transforms and mixing across heads (docs/engine.md, section 5; QuaRot, arXiv 2404.00456). */
import type { Operands } from "../program.js";
import type { Machine } from "./machine.js";

type Transform = Pick<
  Operands<"hadamard">,
  | "blocks"
  | "orderK"
  | "orderM"
  | "inner"
  | "matrixAt"
  | "transpose"
  | "preSignAt"
  | "postSignAt"
  | "normF"
>;

/** In-place butterflies h = 1, 2, 4 … along `order` elements `stride` apart; `order` is a power of two. */
export function butterflies(x: Float32Array, at: number, order: number, stride: number): void {
  for (let h = 1; h < order; h *= 2) {
    for (let j = 0; j < order; j += 2 * h) {
      for (let i = j; i < j + h; i++) {
        const a = x[at + i * stride];
        const b = x[at + (i + h) * stride];
        x[at + i * stride] = a + b;
        x[at + (i + h) * stride] = a - b;
      }
    }
  }
}

/** One row: f32[src..] of the arena -> target[dst..]. `src` and `dst` may be the same place. */
export function hadamardRow(
  { f32, i8 }: Machine,
  o: Transform,
  src: number,
  target: Float32Array,
  dst: number,
): void {
  const { blocks, orderK: k, orderM: m, inner } = o;
  const width = blocks * k * m * inner;
  for (let i = 0; i < width; i++) {
    target[dst + i] = o.preSignAt < 0 ? f32[src + i] : f32[src + i] * f32[o.preSignAt * 16 + i];
  }
  for (let block = 0; block < blocks * k; block++) {
    for (let l = 0; l < inner; l++) butterflies(target, dst + block * m * inner + l, m, inner);
  }
  if (k > 1) {
    const column = new Float32Array(k);
    const [rowStep, columnStep] = o.transpose ? [1, k] : [k, 1];
    for (let b = 0; b < blocks; b++) {
      for (let jl = 0; jl < m * inner; jl++) {
        const at = dst + b * k * m * inner + jl;
        for (let i = 0; i < k; i++) column[i] = target[at + i * m * inner];
        for (let i = 0; i < k; i++) {
          const sign = o.matrixAt * 64 + i * rowStep;
          let sum = i8[sign] < 0 ? -column[0] : column[0];
          for (let j = 1; j < k; j++) {
            const v = column[j];
            sum = Math.fround(i8[sign + j * columnStep] < 0 ? sum - v : sum + v);
          }
          target[at + i * m * inner] = sum;
        }
      }
    }
  }
  for (let i = 0; i < width; i++) {
    target[dst + i] *= o.normF;
    if (o.postSignAt >= 0) target[dst + i] *= f32[o.postSignAt * 16 + i];
  }
}

export function hadamard(machine: Machine, o: Operands<"hadamard">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    hadamardRow(machine, o, src, machine.f32, o.dstAt * 16 + m * o.ldDst);
  }
}

export function mixHeads({ f32 }: Machine, o: Operands<"mixHeads">, rows: number): void {
  const { count, inner } = o;
  for (let m = 0; m < rows; m++) {
    const src = o.srcAt * 16 + m * o.ldSrc;
    const dst = o.dstAt * 16 + m * o.ldDst;
    for (let h = 0; h < count; h++) {
      const matrix = o.matrixAt * 16 + h * count;
      for (let l = 0; l < inner; l++) {
        let sum = Math.fround(f32[matrix] * f32[src + l]);
        for (let j = 1; j < count; j++) {
          sum = Math.fround(sum + Math.fround(f32[matrix + j] * f32[src + j * inner + l]));
        }
        f32[dst + h * inner + l] = sum;
      }
    }
  }
}
