/**
 * Folds: linear maps that move into the weights around them. A map acts on the channels of one side of a weight, and
 * everything is expressed on roles, so GQA, biases, ties and MoE are handled once. Folds are lazy: the list of maps is kept with
 * the tensor, and reading it applies them in f64, a strip of rows or columns at a time, with one f32 rounding per side.
 */
import { ModelError } from "../core/errors.js";
import { applyHadamard, applyMatrix, type HadamardOrder } from "../linalg/hadamard.js";
import { type LazyTensor, type Model, type Parameter, parameter } from "./model.js";
import type { LinearRole } from "./roles.js";

/** v <- T v for a vector of channels. */
export type ChannelMap =
  /** v_i <- factors_i v_i */
  | { op: "scale"; factors: ArrayLike<number> }
  /** Consecutive blocks of order.n * inner channels, each transformed by H (x) I_inner. */
  | { op: "hadamard"; order: HadamardOrder; inner?: number }
  /** Consecutive blocks of count * inner channels, each transformed by M (x) I_inner; M f64 [count, count]. */
  | { op: "matrix"; matrix: Float64Array; count: number; inner?: number }
  /** v <- v - mean(v) */
  | { op: "center" };

/** Elements of an f64 strip. */
const STRIP = 1 << 16;

/** Applies a map to x [outer, channels, inner] along the middle axis, in place. */
export function applyMap(
  map: ChannelMap,
  x: Float64Array,
  outer: number,
  channels: number,
  inner: number,
): void {
  switch (map.op) {
    case "scale":
      for (let o = 0, at = 0; o < outer; o++) {
        for (let c = 0; c < channels; c++) {
          const factor = map.factors[c] as number;
          for (const end = at + inner; at < end; at++) x[at] = (x[at] as number) * factor;
        }
      }
      break;
    case "hadamard": {
      const width = map.inner ?? 1;
      const blocks = channels / (map.order.n * width);
      applyHadamard(x, map.order, { outer: outer * blocks, inner: width * inner });
      break;
    }
    case "matrix": {
      const width = map.inner ?? 1;
      const blocks = channels / (map.count * width);
      applyMatrix(x, map.matrix, map.count, { outer: outer * blocks, inner: width * inner });
      break;
    }
    case "center":
      for (let o = 0; o < outer; o++) {
        for (let l = 0; l < inner; l++) {
          const at = o * channels * inner + l;
          let mean = 0;
          for (let c = 0; c < channels; c++) mean += (x[at + c * inner] as number) / channels;
          for (let c = 0; c < channels; c++) {
            x[at + c * inner] = (x[at + c * inner] as number) - mean;
          }
        }
      }
  }
}

/** A tensor [n, k] (or [n]) with maps on its input side (each row) and its output side (each column). */
class FoldedTensor implements LazyTensor {
  readonly shape: readonly number[];
  /** Maps of the output side mix rows: then there is no part of them to be had. */
  readonly readRows?: (from: number, to: number) => Promise<Float32Array>;
  readonly #base: LazyTensor;
  readonly #input: readonly ChannelMap[];
  readonly #output: readonly ChannelMap[];

  constructor(base: LazyTensor, input: readonly ChannelMap[], output: readonly ChannelMap[]) {
    this.shape = base.shape;
    this.#base = base;
    this.#input = input;
    this.#output = output;
    if (base.readRows && output.length === 0) {
      this.readRows = async (from, to) => {
        const rows = await base.readRows?.(from, to);
        if (!rows) throw new Error("the base tensor lost its rows");
        this.#foldRows(rows);
        return rows;
      };
    }
  }

  /** `tensor` with one more map; chains stay flat, so that nothing is rounded in between. */
  static add(tensor: LazyTensor, side: "input" | "output", map: ChannelMap): FoldedTensor {
    const folded = tensor instanceof FoldedTensor ? tensor : new FoldedTensor(tensor, [], []);
    return side === "input"
      ? new FoldedTensor(folded.#base, [...folded.#input, map], folded.#output)
      : new FoldedTensor(folded.#base, folded.#input, [...folded.#output, map]);
  }

  async read(): Promise<Float32Array> {
    const w = await this.#base.read();
    const [n = 1, k = 1] = this.shape;
    this.#foldRows(w);
    if (this.#output.length > 0) {
      const step = Math.min(k, Math.max(1, Math.floor(STRIP / n)));
      for (let column = 0; column < k; column += step) {
        this.#foldColumns(w, n, k, column, Math.min(step, k - column));
      }
    }
    return w;
  }

  #foldRows(w: Float32Array): void {
    if (this.#input.length === 0) return;
    const k = this.shape[1] ?? 1;
    const step = Math.max(1, Math.floor(STRIP / k)) * k;
    for (let at = 0; at < w.length; at += step) {
      const part = w.subarray(at, at + step);
      const x = Float64Array.from(part);
      for (const map of this.#input) applyMap(map, x, part.length / k, k, 1);
      part.set(x);
    }
  }

  #foldColumns(w: Float32Array, n: number, k: number, from: number, count: number): void {
    const x = new Float64Array(n * count);
    for (let r = 0; r < n; r++) {
      for (let c = 0; c < count; c++) x[r * count + c] = w[r * k + from + c] as number;
    }
    for (const map of this.#output) applyMap(map, x, 1, n, count);
    for (let r = 0; r < n; r++) {
      for (let c = 0; c < count; c++) w[r * k + from + c] = x[r * count + c] as number;
    }
  }
}

function dense(target: Parameter): LazyTensor {
  if ("quant" in target.weight) {
    throw new ModelError(`${target.spec.path} is quantized already; it cannot be transformed`, {
      hint: "Transforms come before weight methods; start from the original model.",
    });
  }
  return target.weight;
}

/** Each row r of W <- T r. For orthogonal T: W x = W' (T x). Embedding rows are mapped the same way. */
export function foldInput(target: Parameter, map: ChannelMap): void {
  target.weight = FoldedTensor.add(dense(target), "input", map);
}

/** y <- T y: each column of W and the bias. */
export function foldOutput(target: Parameter, map: ChannelMap): void {
  target.weight = FoldedTensor.add(dense(target), "output", map);
  if (target.bias) target.bias = FoldedTensor.add(target.bias, "output", map);
}

/** y of `from` divided by the scales, x of `to` multiplied by them: nothing changes but the range in between. */
export function scalePair(from: Parameter, to: Parameter, scales: Float64Array): void {
  foldOutput(from, { op: "scale", factors: scales.map((s) => 1 / s) });
  foldInput(to, { op: "scale", factors: scales });
}

const linears = (model: Model, layer: number, ...roles: LinearRole[]) =>
  [...model.parameters.values()].filter(
    ({ spec }) => spec.layer === layer && spec.role !== null && roles.includes(spec.role),
  );

/** Linears that read the normalized residual behind a norm: q, k, v, or gate, up (of every expert) and the router. */
export function readersOf(
  model: Model,
  layer: number,
  norm: "inputNorm" | "postNorm",
): Parameter[] {
  if (norm === "inputNorm") return linears(model, layer, "q", "k", "v");
  const router = model.parameters.get(`layers.${layer}.router`);
  return [...linears(model, layer, "gate", "up"), ...(router ? [router] : [])];
}

/** Linears that add to the residual: o and down (of every expert). */
export function writersOf(model: Model, layer: number): Parameter[] {
  return linears(model, layer, "o", "down");
}

/** Norm gains become 1; what they did moves into the readers. A tied head keeps its table: its gain is returned only. */
export async function fuseNorms(model: Model): Promise<{ finalGain: Float32Array }> {
  const take = async (path: string) => {
    const norm = parameter(model, path);
    const gain = await dense(norm).read();
    norm.weight = {
      shape: norm.spec.shape,
      read: async () => new Float32Array(gain.length).fill(1),
    };
    return gain;
  };
  for (let layer = 0; layer < model.config.numHiddenLayers; layer++) {
    for (const norm of ["inputNorm", "postNorm"] as const) {
      const factors = await take(`layers.${layer}.${norm}`);
      for (const reader of readersOf(model, layer, norm))
        foldInput(reader, { op: "scale", factors });
    }
  }
  const finalGain = await take("finalNorm");
  const head = model.parameters.get("head");
  if (head) foldInput(head, { op: "scale", factors: finalGain });
  return { finalGain };
}

/**
 * Change of basis of the residual stream, x <- T x for orthogonal T = the maps one after another. Norm gains must be 1.
 * @param edges also map the embedding's rows and the head (false: the caller transforms at the edges)
 */
export function rotateResidual(model: Model, maps: readonly ChannelMap[], edges: boolean): void {
  for (const map of maps) {
    for (let layer = 0; layer < model.config.numHiddenLayers; layer++) {
      for (const norm of ["inputNorm", "postNorm"] as const) {
        for (const reader of readersOf(model, layer, norm)) foldInput(reader, map);
      }
      for (const writer of writersOf(model, layer)) foldOutput(writer, map);
    }
    if (!edges) continue;
    foldInput(parameter(model, "embed"), map);
    const head = model.parameters.get("head");
    if (head) foldInput(head, map);
  }
}

/** The same orthogonal map on every head of v (its KV heads) and, undone, on every head that o reads. */
export function rotateValueOut(model: Model, layer: number, perHead: ChannelMap): void {
  foldOutput(parameter(model, `layers.${layer}.v`), perHead);
  foldInput(parameter(model, `layers.${layer}.o`), perHead);
}
