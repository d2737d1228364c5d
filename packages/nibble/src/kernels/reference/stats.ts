/** Router, logit statistics, calibration sums (docs/engine.md, section 5). */
import type { Operands } from "../program.js";
import type { Machine } from "./machine.js";
import { exp } from "./numerics.js";

const f = Math.fround;

/** MoE routing: softmax, top-k, renormalize; row lists per expert. */
export function route({ f32, i32 }: Machine, o: Operands<"route">, rows: number): void {
  const { experts, topK } = o;
  const p = new Float32Array(experts);
  const counts = new Int32Array(experts);
  for (let m = 0; m < rows; m++) {
    const row = o.logitsAt * 16 + m * o.ldLogits;
    let max = f32[row];
    for (let e = 1; e < experts; e++) max = Math.max(max, f32[row + e]);
    let sum = 0;
    for (let e = 0; e < experts; e++) {
      p[e] = exp(f(f32[row + e] - max));
      sum = f(sum + p[e]);
    }
    for (let e = 0; e < experts; e++) p[e] /= sum;
    const chosen: number[] = [];
    let mass = 0;
    for (let rank = 0; rank < topK; rank++) {
      let best = -1;
      for (let e = 0; e < experts; e++) {
        if (!chosen.includes(e) && (best < 0 || p[e] > p[best])) best = e;
      }
      chosen.push(best);
      mass = f(mass + p[best]);
    }
    for (const e of chosen) {
      const entry = e * o.ldLists + counts[e]++;
      i32[o.indexAt * 16 + entry] = m;
      f32[o.weightAt * 16 + entry] = p[e] / mass;
    }
  }
  i32.set(counts, o.countReg);
}

function argmax(f32: Float32Array, at: number, width: number): number {
  let best = 0;
  for (let i = 1; i < width; i++) if (f32[at + i] > f32[at + best]) best = i;
  return best;
}

function logSumExp(f32: Float32Array, at: number, width: number, max: number): number {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += Math.exp(f32[at + i] - max);
  return max + Math.log(sum);
}

export function logitStats(machine: Machine, o: Operands<"logitStats">, rows: number): void {
  const { f32, i32 } = machine;
  for (let m = 0; m < rows; m++) {
    const row = o.logitsAt * 16 + m * o.ldLogits;
    const dst = o.dstAt * 16 + m * 4;
    const best = argmax(f32, row, o.width);
    const max = f32[row + best];
    i32[dst] = best;
    f32[dst + 1] = max;
    f32[dst + 2] = logSumExp(f32, row, o.width, max);
    f32[dst + 3] = o.targetsAt < 0 ? 0 : f32[row + machine.index(o.targetsAt, m, o.width)];
  }
}

export function klDivergence({ f32 }: Machine, o: Operands<"klDivergence">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const reference = o.referenceAt * 16 + m * o.ldReference;
    const model = o.logitsAt * 16 + m * o.ldLogits;
    const bestReference = argmax(f32, reference, o.width);
    const bestModel = argmax(f32, model, o.width);
    const lseReference = logSumExp(f32, reference, o.width, f32[reference + bestReference]);
    const lseModel = logSumExp(f32, model, o.width, f32[model + bestModel]);
    let divergence = 0;
    for (let i = 0; i < o.width; i++) {
      const logP = f32[reference + i] - lseReference;
      divergence += Math.exp(logP) * (logP - (f32[model + i] - lseModel));
    }
    f32[o.dstAt * 16 + 2 * m] = divergence;
    f32[o.dstAt * 16 + 2 * m + 1] = bestReference === bestModel ? 1 : 0;
  }
}

export function gram({ f32, f64 }: Machine, o: Operands<"gram">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    const x = o.srcAt * 16 + m * o.ldSrc;
    for (let i = 0; i < o.width; i++) {
      const row = o.gramAt * 8 + i * o.width;
      const xi = f32[x + i];
      for (let j = i; j < o.width; j++) f64[row + j] += xi * f32[x + j];
    }
  }
}

export function absStats({ f32, f64 }: Machine, o: Operands<"absStats">, rows: number): void {
  for (let m = 0; m < rows; m++) {
    for (let i = 0; i < o.width; i++) {
      const x = Math.abs(f32[o.srcAt * 16 + m * o.ldSrc + i]);
      f64[o.sumAbsAt * 8 + i] += x;
      f32[o.maxAbsAt * 16 + i] = f(Math.max(f32[o.maxAbsAt * 16 + i], x));
    }
  }
}
