/**
 * What GPTQ-like solvers derive from the Hessian of a site, once for all linears that share it: dead inputs, processing
 * order and the upper factor U of the damped inverse (arXiv:2210.17323, steps 1 to 6).
 */
import { NumericError } from "../../core/errors.js";
import type { SiteStatsView, SolveContext } from "../contract.js";

export interface FactorOptions {
  percDamp: number;
  actOrder: boolean;
}

export interface HessianFactor {
  /** Upper U f32 [k, k], inverse(H) = U^T U, H per token, damped, in processing order. */
  u: Float32Array;
  /** Column processed at each step (falling diagonal), or null for the natural order. */
  order: Uint32Array | null;
  /** Inputs that were always 0: their weights do not matter and are set to 0. */
  dead: number[];
  /** Mean square of each input [k], in natural order. */
  importance: Float64Array;
  /** For the report: the damping that was needed, if it was raised. */
  notes: string[];
}

/** Smallest raise of the damping; it doubles from there (GPTQModel raises by 0.0015 at a time). */
const DAMP_STEP = 0.0015;

/**
 * Factors the Hessian. When it has no Cholesky factor, damping is raised up to 1; `u` is null when none works.
 * @throws NumericError naming the layer when the Hessian holds NaN or infinities, or nothing was counted.
 */
export async function hessianFactor(
  stats: SiteStatsView,
  k: number,
  options: FactorOptions,
  path: string,
  ctx: Pick<SolveContext, "engineLinalg" | "log">,
): Promise<Omit<HessianFactor, "u"> & { u: Float32Array | null }> {
  const hessian = stats.hessian as Float64Array;
  const { importance, dead } = diagonal(hessian, stats.count, k, path);
  const live = k - dead.length;
  const mean = live === 0 ? 1 : importance.reduce((sum, x) => sum + x, 0) / live;
  // Dead inputs are uncoupled from all others, so their diagonal may be anything: the mean keeps damping relative.
  const diag = importance.map((x) => x || mean);
  const order = options.actOrder ? fallingOrder(diag) : null;
  const notes: string[] = [];
  for (let damp = options.percDamp; ; ) {
    const h = assemble(hessian, stats.count, k, diag, order, damp * mean);
    try {
      const u = await ctx.engineLinalg.inverseFactor(h, k);
      return { u, order, dead, importance, notes };
    } catch (error) {
      if (!(error instanceof NumericError)) throw error;
      if (damp >= 1) return { u: null, order, dead, importance, notes };
      damp = Math.min(1, damp < DAMP_STEP ? DAMP_STEP : 2 * damp);
      notes.splice(0, 1, `percDamp raised from ${options.percDamp} to ${damp}`);
      ctx.log(`${path}: ${error.message}; percDamp raised to ${damp}`);
    }
  }
}

/** Mean square of each input and the list of inputs where it is 0. */
function diagonal(hessian: Float64Array, count: number, k: number, path: string) {
  const wrong = (message: string) =>
    new NumericError(message, { place: path, hint: "Use other calibration text." }, "hessian");
  if (hessian.length !== k * k) {
    throw wrong(`the Hessian has ${hessian.length} entries, ${k} x ${k} expected`);
  }
  if (!(count > 0)) throw wrong("no token reached this layer during calibration");
  for (let i = 0; i < k; i++) {
    for (let j = i; j < k; j++) {
      if (!Number.isFinite(hessian[i * k + j])) throw wrong("the Hessian holds NaN or infinities");
    }
  }
  const importance = Float64Array.from(
    { length: k },
    (_, i) => (hessian[i * k + i] as number) / count,
  );
  const dead = Array.from(importance.keys()).filter((i) => importance[i] === 0);
  return { importance, dead };
}

/** Indices by falling value; ties keep their order. */
function fallingOrder(values: Float64Array): Uint32Array {
  const order = Array.from(values.keys());
  return Uint32Array.from(order.sort((a, b) => (values[b] as number) - (values[a] as number)));
}

/** Upper triangle of the damped Hessian per token, rows and columns in processing order. */
function assemble(
  hessian: Float64Array,
  count: number,
  k: number,
  diag: Float64Array,
  order: Uint32Array | null,
  damping: number,
): Float64Array {
  const h = new Float64Array(k * k);
  for (let i = 0; i < k; i++) {
    const p = order ? (order[i] as number) : i;
    h[i * k + i] = (diag[p] as number) + damping;
    for (let j = i + 1; j < k; j++) {
      const q = order ? (order[j] as number) : j;
      const at = p < q ? p * k + q : q * k + p;
      h[i * k + j] = (hessian[at] as number) / count;
    }
  }
  return h;
}
