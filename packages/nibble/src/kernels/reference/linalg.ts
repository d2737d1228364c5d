/** Dense algebra of the solvers: gemm and the inverse Cholesky factor (docs/engine.md, section 5). */
import type { Operands } from "../program.js";
import type { Machine } from "./machine.js";

const f = Math.fround;

export function gemm({ f32 }: Machine, o: Operands<"gemm">, rows: number): void {
  const a = o.aAt * 16 + o.aSkip;
  const b = o.bAt * 16 + o.bSkip;
  const [aRow, aInner] = o.transA ? [1, o.lda] : [o.lda, 1];
  const [bInner, bColumn] = o.transB ? [1, o.ldb] : [o.ldb, 1];
  const acc = new Float32Array(o.cols);
  for (let i = 0; i < rows; i++) {
    acc.fill(0);
    for (let k = 0; k < o.inner; k++) {
      const x = f32[a + i * aRow + k * aInner];
      const row = b + k * bInner;
      for (let j = 0; j < o.cols; j++) acc[j] += f(x * f32[row + j * bColumn]);
    }
    const c = o.cAt * 16 + o.cSkip + i * o.ldc;
    for (let j = 0; j < o.cols; j++) {
      const y = f(o.alphaF * acc[j]);
      f32[c + j] = o.betaF === 0 ? y : f(o.betaF * f32[c + j]) + y;
    }
  }
}

/**
 * H = R R^T with R upper triangular, found from the last column to the first; then U = R^-1, since
 * U^T U = R^-T R^-1 = inverse(H). R overwrites the upper triangle of H.
 */
export function inverseFactor({ f32, f64, i32 }: Machine, o: Operands<"inverseFactor">): void {
  const n = o.size;
  const h = o.hessianAt * 8;
  const u = o.factorAt * 16;
  i32[o.statusAt * 16] = 0;
  for (let j = n - 1; j >= 0; j--) {
    let pivot = f64[h + j * n + j];
    for (let k = j + 1; k < n; k++) pivot -= f64[h + j * n + k] ** 2;
    if (!(pivot > 0 && pivot < Number.POSITIVE_INFINITY)) {
      i32[o.statusAt * 16] = 1 + j;
      return;
    }
    const root = Math.sqrt(pivot);
    f64[h + j * n + j] = root;
    for (let i = 0; i < j; i++) {
      let sum = f64[h + i * n + j];
      for (let k = j + 1; k < n; k++) sum -= f64[h + i * n + k] * f64[h + j * n + k];
      f64[h + i * n + j] = sum / root;
    }
  }
  // Row i of U solves U R = I from the left: u_ij = (delta_ij - sum over k in i..j-1 of u_ik r_kj) / r_jj.
  const row = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    row.fill(0);
    row[i] = 1;
    for (let k = i; k < n; k++) {
      row[k] /= f64[h + k * n + k];
      for (let j = k + 1; j < n; j++) row[j] -= row[k] * f64[h + k * n + j];
    }
    for (let j = i; j < n; j++) f32[u + i * n + j] = row[j];
  }
}
