/**
 * Rotary position embedding (arXiv:2104.09864) in the rotate_half form, with every context extension of the HF
 * checkpoints: linear, dynamic NTK, llama3, YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753). Angles are computed in
 * float64 and rounded to f32 once; the attention factor is multiplied into both tables.
 */
import { ModelError } from "../core/errors.js";
import type { ModelConfig, RopeParameters } from "./config.js";

/** What the RoPE of a model needs to know; a ModelConfig fits. */
export type RopeConfig = Pick<ModelConfig, "headDim" | "maxPositionEmbeddings" | "rope">;

export interface RopeFrequencies {
  /** Radians per position of pair i (channels i and i + headDim / 2), [headDim / 2], float64. */
  inverse: Float64Array;
  /** Factor of cos and sin (1 unless YaRN or LongRoPE say otherwise). */
  attentionFactor: number;
}

/**
 * Inverse frequencies of a model.
 * @param sequenceLength longest position of the run + 1; only `dynamic` (grows beyond the trained length) and `longrope`
 *   (long factors beyond the original length) depend on it. Default: the trained length.
 * @throws ModelError naming a parameter that is missing or impossible.
 */
export function inverseFrequencies(
  config: RopeConfig,
  sequenceLength = config.maxPositionEmbeddings,
): RopeFrequencies {
  const { headDim, rope } = config;
  const base = geometric(rope.theta, headDim);
  switch (rope.type) {
    case "default":
      return { inverse: base, attentionFactor: 1 };
    case "linear": {
      const factor = positive(rope, "factor");
      return { inverse: base.map((f) => f / factor), attentionFactor: 1 };
    }
    case "dynamic": {
      const factor = positive(rope, "factor");
      const trained = config.maxPositionEmbeddings;
      const length = Math.max(sequenceLength, trained);
      const growth = (factor * length) / trained - (factor - 1);
      const theta = rope.theta * growth ** (headDim / (headDim - 2));
      return { inverse: geometric(theta, headDim), attentionFactor: 1 };
    }
    case "llama3":
      return { inverse: llama3(base, rope, config.maxPositionEmbeddings), attentionFactor: 1 };
    case "yarn":
      return yarn(base, config);
    case "longrope":
      return longrope(base, config, sequenceLength);
  }
}

/**
 * cos and sin of position * inverse frequency, each [positions, headDim / 2] row-major f32, attention factor included.
 * @param positions a count (0 .. count - 1) or the positions themselves
 * @param sequenceLength see inverseFrequencies
 */
export function ropeTables(
  config: RopeConfig,
  positions: number | ArrayLike<number>,
  sequenceLength?: number,
): { cos: Float32Array; sin: Float32Array } {
  const { inverse, attentionFactor } = inverseFrequencies(config, sequenceLength);
  const half = inverse.length;
  const count = typeof positions === "number" ? positions : positions.length;
  const cos = new Float32Array(count * half);
  const sin = new Float32Array(count * half);
  for (let p = 0; p < count; p++) {
    const position = typeof positions === "number" ? p : (positions[p] ?? 0);
    for (let i = 0; i < half; i++) {
      const angle = position * (inverse[i] ?? 0);
      cos[p * half + i] = Math.cos(angle) * attentionFactor;
      sin[p * half + i] = Math.sin(angle) * attentionFactor;
    }
  }
  return { cos, sin };
}

/** theta^(-2i / headDim), i < headDim / 2. */
function geometric(theta: number, headDim: number): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
}

/** Low frequencies divided by `factor`, high ones kept, a linear blend in between. */
function llama3(base: Float64Array, rope: RopeParameters, trained: number): Float64Array {
  const factor = positive(rope, "factor");
  const low = positive(rope, "low_freq_factor");
  const high = positive(rope, "high_freq_factor");
  const original = positive(rope, "original_max_position_embeddings", trained);
  if (high <= low)
    throw bad(rope, "high_freq_factor", `${high} is not above low_freq_factor ${low}`);
  return base.map((frequency) => {
    const waves = (original * frequency) / (2 * Math.PI); // original length / wavelength
    if (waves > high) return frequency;
    if (waves < low) return frequency / factor;
    const smooth = (waves - low) / (high - low);
    return ((1 - smooth) * frequency) / factor + smooth * frequency;
  });
}

/** YaRN: interpolation below `beta_slow` rotations over the original length, none above `beta_fast`, a ramp between. */
function yarn(base: Float64Array, config: RopeConfig): RopeFrequencies {
  const { rope, headDim, maxPositionEmbeddings } = config;
  const original = positive(rope, "original_max_position_embeddings", maxPositionEmbeddings);
  const factor = positive(rope, "factor", maxPositionEmbeddings / original);
  const betaFast = positive(rope, "beta_fast", 32);
  const betaSlow = positive(rope, "beta_slow", 1);
  const correction = (rotations: number) =>
    (headDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(rope.theta));
  const truncate = rope.parameters.truncate ?? true;
  let low = correction(betaFast);
  let high = correction(betaSlow);
  if (truncate) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  low = Math.max(low, 0);
  high = Math.min(high, headDim - 1);
  if (low === high) high += 0.001;
  const inverse = base.map((frequency, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (frequency / factor) * ramp + frequency * (1 - ramp);
  });
  const scale = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  const mscale = optional(rope, "mscale");
  const mscaleAll = optional(rope, "mscale_all_dim");
  const attentionFactor =
    optional(rope, "attention_factor") ??
    (mscale && mscaleAll ? scale(mscale) / scale(mscaleAll) : scale(1));
  return { inverse, attentionFactor };
}

/** LongRoPE: one divisor per frequency, another set beyond the original length. */
function longrope(base: Float64Array, config: RopeConfig, sequenceLength: number): RopeFrequencies {
  const { rope, maxPositionEmbeddings } = config;
  const original = positive(rope, "original_max_position_embeddings", maxPositionEmbeddings);
  const name = sequenceLength > original ? "long_factor" : "short_factor";
  const factors = rope.parameters[name];
  if (!Array.isArray(factors) || factors.length !== base.length) {
    throw bad(rope, name, `a list of ${base.length} numbers is expected`);
  }
  const factor = positive(rope, "factor", maxPositionEmbeddings / original);
  const attentionFactor =
    optional(rope, "attention_factor") ??
    (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
  return { inverse: base.map((frequency, i) => frequency / (factors[i] ?? 1)), attentionFactor };
}

/** A numeric parameter, or undefined when absent or null. */
function optional(rope: RopeParameters, name: string): number | undefined {
  const value = rope.parameters[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw bad(rope, name, `${JSON.stringify(value)} is not a number`);
  }
  return value;
}

/** A parameter that must be above zero. */
function positive(rope: RopeParameters, name: string, fallback?: number): number {
  const value = optional(rope, name) ?? fallback;
  if (value === undefined) throw bad(rope, name, "is missing");
  if (!(value > 0)) throw bad(rope, name, `${value} is not positive`);
  return value;
}

function bad(rope: RopeParameters, name: string, what: string): ModelError {
  return new ModelError(`${name}: ${what}`, {
    place: `rope_parameters of type ${rope.type}`,
    hint: "Compare config.json with the model's original repository.",
  });
}
