/**
 * A forward pass of a whole model in f64 and plain loops, with its online transforms and nothing quantized: the oracle
 * for folds and rotations. Written from the architecture papers, independent of the graph and the kernels.
 */
import { hadamardMatrix, requireHadamardOrder } from "../src/linalg/hadamard.js";
import { isTied, type Model, type OnlineTransform, parameter } from "../src/model/model.js";
import type { Site } from "../src/model/roles.js";

type Vector = Float64Array;
const at = (x: ArrayLike<number>, i: number) => x[i] as number;

/** y = M x for M [rows, x.length]; `transpose`: M is [x.length, rows]. */
function multiply(m: ArrayLike<number>, x: Vector, rows: number, transpose = false): Vector {
  return Float64Array.from({ length: rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < x.length; j++)
      sum += at(m, transpose ? j * rows + i : i * x.length + j) * at(x, j);
    return sum;
  });
}

const matrices = new Map<number, Vector>();
function matrixOf(size: number): Vector {
  const known = matrices.get(size) ?? hadamardMatrix(requireHadamardOrder(size));
  matrices.set(size, known);
  return known;
}

/** Block-diagonal dense Hadamard. */
function hadamard(x: Vector, size: number, transpose = false): Vector {
  const h = matrixOf(size);
  const out = new Float64Array(x.length);
  for (let b = 0; b < x.length; b += size) {
    out.set(multiply(h, x.subarray(b, b + size), size, transpose), b);
  }
  return out;
}

function online(model: Model, site: Site | "embed_out" | "head_in", input: Vector): Vector {
  let x = input;
  for (const t of model.transforms) {
    if (t.site === site) x = transform(model, t, x);
  }
  return x;
}

function transform(model: Model, t: OnlineTransform, x: Vector): Vector {
  if (t.op === "hadamard") return hadamard(x, t.size);
  if (t.op === "headMix") {
    const { headDim } = model.config;
    const m = t.matrix ?? matrixOf(t.order);
    return Float64Array.from(x, (_, i) => {
      let sum = 0;
      for (let j = 0; j < t.order; j++) {
        sum += at(m, Math.floor(i / headDim) * t.order + j) * at(x, j * headDim + (i % headDim));
      }
      return sum;
    });
  }
  if (t.dense) return multiply(t.dense, x, x.length);
  if (t.site === "embed_out")
    return hadamard(
      x.map((v, i) => v * at(t.signs, i)),
      t.size,
    );
  return hadamard(x, t.size, true).map((v, i) => v * at(t.signs, i) * (t.gain ? at(t.gain, i) : 1));
}

function rmsNorm(x: Vector, gain: ArrayLike<number>, epsilon: number): Vector {
  const square = x.reduce((sum, v) => sum + v * v, 0) / x.length;
  return x.map((v, i) => (v / Math.sqrt(square + epsilon)) * at(gain, i));
}

function rope(x: Vector, position: number, theta: number): Vector {
  const half = x.length / 2;
  return Float64Array.from(x, (v, i) => {
    const angle = position / theta ** ((2 * (i % half)) / x.length);
    const other = i < half ? -at(x, i + half) : at(x, i - half);
    return v * Math.cos(angle) + other * Math.sin(angle);
  });
}

const add = (a: Vector, b: ArrayLike<number>) => a.map((v, i) => v + at(b, i));

/** Logits [ids.length][vocabSize]. */
export async function tinyForward(model: Model, ids: readonly number[]): Promise<Vector[]> {
  const { config } = model;
  const { headDim, numAttentionHeads: heads, numKeyValueHeads: kvHeads, rmsNormEps } = config;
  const read = (path: string) => {
    const { weight } = parameter(model, path);
    if ("quant" in weight) throw new Error("nothing is quantized here");
    return weight.read();
  };
  const linear = async (path: string) => {
    const { bias, spec } = parameter(model, path);
    const w = await read(path);
    const b = bias ? await bias.read() : null;
    return (x: Vector) => {
      const y = multiply(w, x, spec.shape[0] as number);
      return b ? add(y, b) : y;
    };
  };
  const embed = await read("embed");
  const d = config.hiddenSize;
  let xs = ids.map((id) =>
    online(model, "embed_out", Float64Array.from(embed.subarray(id * d, (id + 1) * d))),
  );

  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const p = `layers.${layer}`;
    const [q, k, v, o] = await Promise.all(["q", "k", "v", "o"].map((r) => linear(`${p}.${r}`)));
    if (!q || !k || !v || !o) throw new Error("unreachable");
    const gains = await Promise.all(config.qkNorm ? [read(`${p}.qNorm`), read(`${p}.kNorm`)] : []);
    const inputGain = await read(`${p}.inputNorm`);
    const inputs = xs.map((x) => online(model, "attn_in", rmsNorm(x, inputGain, rmsNormEps)));
    const split = (y: Vector, count: number, position: number | null, gain?: Float32Array) =>
      Array.from({ length: count }, (_, h) => {
        let head: Vector = y.slice(h * headDim, (h + 1) * headDim);
        if (gain) head = rmsNorm(head, gain, rmsNormEps);
        if (position === null) return head;
        head = rope(head, position, config.rope.theta);
        return model.kv?.k.hadamard ? hadamard(head, headDim) : head;
      });
    const queries = inputs.map((x, t) => split(q(x), heads, t, gains[0]));
    const keys = inputs.map((x, t) => split(k(x), kvHeads, t, gains[1]));
    const values = inputs.map((x) => split(v(x), kvHeads, null));
    xs = xs.map((x, t) => {
      const z = new Float64Array(heads * headDim);
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor((h * kvHeads) / heads);
        const query = queries[t]?.[h] as Vector;
        const scores = Array.from({ length: t + 1 }, (_, s) => {
          const key = keys[s]?.[kv] as Vector;
          return query.reduce((sum, a, i) => sum + a * at(key, i), 0) / Math.sqrt(headDim);
        });
        const max = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - max));
        const total = weights.reduce((a, b) => a + b, 0);
        for (const [s, w] of weights.entries()) {
          const value = values[s]?.[kv] as Vector;
          for (let i = 0; i < headDim; i++) {
            z[h * headDim + i] = at(z, h * headDim + i) + (w / total) * at(value, i);
          }
        }
      }
      return add(x, o(online(model, "attn_out", z)));
    });

    const postGain = await read(`${p}.postNorm`);
    const mlp = async (prefix: string) => {
      const [gate, up, down] = await Promise.all(
        ["gate", "up", "down"].map((r) => linear(`${prefix}.${r}`)),
      );
      if (!gate || !up || !down) throw new Error("unreachable");
      return (x: Vector) => {
        const u = up(x);
        const a = gate(x).map((g, i) => (g / (1 + Math.exp(-g))) * at(u, i));
        return down(online(model, "mlp_out", a));
      };
    };
    if (config.experts) {
      const { count, perToken } = config.experts;
      const router = await linear(`${p}.router`);
      const experts = await Promise.all(
        Array.from({ length: count }, (_, e) => mlp(`${p}.experts.${e}`)),
      );
      xs = xs.map((x) => {
        const h = online(model, "mlp_in", rmsNorm(x, postGain, rmsNormEps));
        const logits = router(h);
        const chosen = [...logits.keys()]
          .sort((a, b) => at(logits, b) - at(logits, a))
          .slice(0, perToken);
        const weights = chosen.map((e) => Math.exp(at(logits, e)));
        const total = weights.reduce((a, b) => a + b, 0);
        return chosen.reduce((sum, e, i) => {
          const y = experts[e]?.(h) as Vector;
          return sum.map((s, j) => s + (at(weights, i) / total) * at(y, j));
        }, x);
      });
    } else {
      const run = await mlp(p);
      xs = xs.map((x) => add(x, run(online(model, "mlp_in", rmsNorm(x, postGain, rmsNormEps)))));
    }
  }

  const finalGain = await read("finalNorm");
  const head = isTied(model) ? embed : await read("head");
  return xs.map((x) =>
    multiply(head, online(model, "head_in", rmsNorm(x, finalGain, rmsNormEps)), config.vocabSize),
  );
}
