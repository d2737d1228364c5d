/**
 * config.json of Hugging Face checkpoints -> ModelConfig, in the spellings of transformers 4.x and 5.x, with the defaults of
 * each architecture's configuration class. What the engine cannot run is refused by name.
 */
import { FormatError, ModelError, nearestName } from "../core/errors.js";
import type { Architecture, ModelConfig, RopeParameters } from "../model/config.js";

type Json = Record<string, unknown>;

interface Defaults {
  vocab_size: number;
  intermediate_size: number;
  /** null: as many as attention heads. */
  num_key_value_heads: number | null;
  /** null: hidden_size / num_attention_heads. */
  head_dim: number | null;
  rms_norm_eps: number;
  max_position_embeddings: number;
  rope_theta: number;
  bos_token_id: number | null;
  eos_token_id: number | null;
}

/** Values a config.json may leave out (transformers 5.23, models/<name>/configuration_<name>.py). */
const DEFAULTS: Record<Architecture, Defaults> = {
  llama: {
    vocab_size: 32000,
    intermediate_size: 11008,
    num_key_value_heads: null,
    head_dim: null,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 2048,
    rope_theta: 10000,
    bos_token_id: 1,
    eos_token_id: 2,
  },
  mistral: {
    vocab_size: 32000,
    intermediate_size: 14336,
    num_key_value_heads: 8,
    head_dim: null,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 131072,
    rope_theta: 10000,
    bos_token_id: 1,
    eos_token_id: 2,
  },
  qwen2: {
    vocab_size: 151936,
    intermediate_size: 22016,
    num_key_value_heads: 32,
    head_dim: null,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 32768,
    rope_theta: 10000,
    bos_token_id: null,
    eos_token_id: null,
  },
  qwen3: {
    vocab_size: 151936,
    intermediate_size: 22016,
    num_key_value_heads: 32,
    head_dim: 128,
    rms_norm_eps: 1e-6,
    max_position_embeddings: 32768,
    rope_theta: 10000,
    bos_token_id: null,
    eos_token_id: null,
  },
  mixtral: {
    vocab_size: 32000,
    intermediate_size: 14336,
    num_key_value_heads: 8,
    head_dim: null,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 131072,
    rope_theta: 1e6,
    bos_token_id: 1,
    eos_token_id: 2,
  },
};
const HIDDEN_SIZE = 4096;
const LAYERS = 32;
const HEADS = 32;
/** Qwen2 and Qwen3: sliding window and its first layer, where `use_sliding_window` is set. */
const QWEN_WINDOW = 4096;
const QWEN_FULL_LAYERS = 28;
const MISTRAL_WINDOW = 4096;

const ROPE_TYPES = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"] as const;

/** Limit of every size: keeps products of two below 2^53 and refuses nonsense early. */
const MAX_SIZE = 2 ** 26;
/** Limit of what there is a list of: layers, heads, experts. */
const MAX_COUNT = 4096;

/**
 * Facts of a model from its config.json and generation_config.json.
 * @param raw config.json as parsed; kept in `ModelConfig.raw`
 * @param generation generation_config.json, whose end tokens join those of config.json
 * @throws ModelError for an architecture, activation or quantization that is not supported, by name;
 *   FormatError for a value that makes no sense
 */
export function parseHfConfig(raw: Json, generation: Json | null = null): ModelConfig {
  const architecture = architectureOf(raw);
  refuseUnsupported(raw, architecture);
  const defaults = DEFAULTS[architecture];
  const size = (name: string, fallback: number) => positiveInteger(raw, name, fallback);
  const count = (name: string, fallback: number) => positiveInteger(raw, name, fallback, MAX_COUNT);

  const hiddenSize = size("hidden_size", HIDDEN_SIZE);
  const numHiddenLayers = count("num_hidden_layers", LAYERS);
  const numAttentionHeads = count("num_attention_heads", HEADS);
  const numKeyValueHeads =
    raw.num_key_value_heads === null
      ? numAttentionHeads
      : count("num_key_value_heads", defaults.num_key_value_heads ?? numAttentionHeads);
  const equalHeads = hiddenSize / numAttentionHeads;
  const headDim =
    raw.head_dim === null ? equalHeads : size("head_dim", defaults.head_dim ?? equalHeads);
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    throw bad("head_dim", `${headDim} is not an even integer`);
  }
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    throw bad("num_key_value_heads", `${numKeyValueHeads} does not divide ${numAttentionHeads}`);
  }
  const maxPositionEmbeddings = size("max_position_embeddings", defaults.max_position_embeddings);
  return {
    architecture,
    vocabSize: size("vocab_size", defaults.vocab_size),
    hiddenSize,
    intermediateSize: size("intermediate_size", defaults.intermediate_size),
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    rmsNormEps: positive(raw, "rms_norm_eps", defaults.rms_norm_eps),
    maxPositionEmbeddings,
    tieWordEmbeddings: flag(raw, "tie_word_embeddings"),
    rope: parseRope(raw, defaults.rope_theta),
    bias: biases(raw, architecture),
    qkNorm: architecture === "qwen3",
    slidingWindow: slidingWindows(raw, architecture, numHiddenLayers),
    experts: architecture === "mixtral" ? expertsOf(raw) : null,
    bosTokenId: tokenIds(raw, "bos_token_id", defaults.bos_token_id)[0] ?? null,
    eosTokenIds: [
      ...new Set([
        ...tokenIds(raw, "eos_token_id", defaults.eos_token_id),
        ...(generation ? tokenIds(generation, "eos_token_id", null) : []),
      ]),
    ],
    raw,
  };
}

function architectureOf(raw: Json): Architecture {
  const known = Object.keys(DEFAULTS);
  const type = raw.model_type;
  if (typeof type !== "string") {
    throw new FormatError("model_type is missing", {
      place: "config.json",
      hint: "A Hugging Face model folder has a config.json that names its architecture.",
    });
  }
  if (known.includes(type)) return type as Architecture;
  const near = nearestName(type, known);
  throw new ModelError(`the architecture "${type}" is not supported`, {
    place: "config.json, model_type",
    hint: `Supported: ${known.join(", ")}.${near ? ` Nearest: ${near}.` : ""}`,
  });
}

/** Refuses what would otherwise give wrong numbers. */
function refuseUnsupported(raw: Json, architecture: Architecture): void {
  const act = raw.hidden_act ?? "silu";
  if (act !== "silu" && act !== "swish") {
    throw new ModelError(`the activation ${JSON.stringify(act)} is not supported`, {
      place: "config.json, hidden_act",
      hint: `${architecture} models use silu; this checkpoint needs another engine.`,
    });
  }
  const quantization = raw.quantization_config;
  if (typeof quantization === "object" && quantization !== null) {
    const method = (quantization as Json).quant_method;
    throw new ModelError(`weights quantized by ${JSON.stringify(method)} cannot be read here`, {
      place: "config.json, quantization_config.quant_method",
      hint:
        method === "nibble"
          ? "The folder says it is a nibble artifact but holds no nibble.json; fetch it again."
          : "Start from the unquantized model, or from a GGUF file.",
    });
  }
  const rotary = raw.partial_rotary_factor ?? 1;
  if (rotary !== 1) {
    throw new ModelError(`partial rotary embedding (${String(rotary)}) is not supported`, {
      place: "config.json, partial_rotary_factor",
    });
  }
}

function biases(raw: Json, architecture: Architecture): ModelConfig["bias"] {
  if (architecture === "qwen2") return { q: true, k: true, v: true, o: false, mlp: false };
  // Mistral and Mixtral have no such switch; Llama and Qwen3 use it for all four projections.
  const attention =
    architecture === "llama" || architecture === "qwen3" ? flag(raw, "attention_bias") : false;
  const mlp = architecture === "llama" ? flag(raw, "mlp_bias") : false;
  return { q: attention, k: attention, v: attention, o: attention, mlp };
}

/** Visible positions per layer; null is full attention. */
function slidingWindows(raw: Json, architecture: Architecture, layers: number): (number | null)[] {
  const qwen = architecture === "qwen2" || architecture === "qwen3";
  const fallback = architecture === "mistral" ? MISTRAL_WINDOW : qwen ? QWEN_WINDOW : null;
  let window: number | null = null;
  const used = qwen ? flag(raw, "use_sliding_window") : architecture !== "llama";
  if (used && raw.sliding_window !== null) {
    if (raw.sliding_window !== undefined) window = positiveInteger(raw, "sliding_window", 0);
    else window = fallback;
  }
  const types = raw.layer_types ?? null;
  if (types === null) {
    const first = qwen ? integer(raw, "max_window_layers", QWEN_FULL_LAYERS) : 0;
    return Array.from({ length: layers }, (_, i) => (i >= first ? window : null));
  }
  if (!Array.isArray(types) || types.length !== layers) {
    throw bad("layer_types", `a list of ${layers} names is expected`);
  }
  return types.map((type: unknown, i) => {
    if (type === "full_attention") return null;
    if (type === "sliding_attention") {
      if (window === null) throw bad("layer_types", `layer ${i} slides, but there is no window`);
      return window;
    }
    throw new ModelError(`layers of type ${JSON.stringify(type)} are not supported`, {
      place: `config.json, layer_types[${i}]`,
    });
  });
}

function expertsOf(raw: Json): { count: number; perToken: number } {
  const count = positiveInteger(raw, "num_local_experts", 8, MAX_COUNT);
  const perToken = positiveInteger(raw, "num_experts_per_tok", 2, MAX_COUNT);
  if (perToken > count) throw bad("num_experts_per_tok", `${perToken} of ${count} experts`);
  return { count, perToken };
}

/** rope_parameters (5.x), or rope_scaling and rope_theta (4.x). */
function parseRope(raw: Json, defaultTheta: number): RopeParameters {
  const name = raw.rope_parameters != null ? "rope_parameters" : "rope_scaling";
  const value = raw[name] ?? {};
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw bad(name, "an object is expected");
  }
  const { rope_type, type, rope_theta, ...rest } = value as Json;
  const spelled = rope_type ?? type ?? "default";
  const resolved = spelled === "su" ? "longrope" : spelled;
  if ("full_attention" in rest || "sliding_attention" in rest) {
    throw new ModelError("position embeddings that differ per layer type are not supported", {
      place: `config.json, ${name}`,
    });
  }
  if (!ROPE_TYPES.includes(resolved as RopeParameters["type"])) {
    throw new ModelError(`the position embedding ${JSON.stringify(resolved)} is not supported`, {
      place: `config.json, ${name}`,
      hint: `Supported: ${ROPE_TYPES.join(", ")}.`,
    });
  }
  const theta = rope_theta ?? raw.rope_theta ?? defaultTheta;
  if (typeof theta !== "number" || !(theta > 1) || !Number.isFinite(theta)) {
    throw bad("rope_theta", `${JSON.stringify(theta)} is not a number above 1`);
  }
  const parameters: RopeParameters["parameters"] = {};
  for (const [key, entry] of Object.entries(rest)) {
    if (entry === null) continue;
    if (typeof entry === "object" && !(Array.isArray(entry) && entry.every(Number.isFinite))) {
      throw bad(`${name}.${key}`, "a number or a list of numbers is expected");
    }
    parameters[key] = entry as number | number[] | boolean | string;
  }
  const original = raw.original_max_position_embeddings;
  // Phi-style configs keep it beside rope_scaling.
  if (typeof original === "number") parameters.original_max_position_embeddings ??= original;
  return { type: resolved as RopeParameters["type"], theta, parameters };
}

/** An id, a list of ids, or none. */
function tokenIds(raw: Json, name: string, fallback: number | null): number[] {
  const value = raw[name] === undefined ? fallback : raw[name];
  const list: unknown[] = value === null ? [] : Array.isArray(value) ? value : [value];
  for (const id of list) {
    if (!Number.isInteger(id) || (id as number) < -1) {
      throw bad(name, `${JSON.stringify(id)} is no token id`);
    }
  }
  return (list as number[]).filter((id) => id >= 0); // -1 means none in some configs
}

function flag(raw: Json, name: string): boolean {
  const value = raw[name] ?? false;
  if (typeof value !== "boolean") throw bad(name, `${JSON.stringify(value)} is not true or false`);
  return value;
}

function integer(raw: Json, name: string, fallback: number, most = MAX_SIZE): number {
  const value = raw[name] ?? fallback;
  if (!Number.isInteger(value) || (value as number) < 0 || (value as number) > most) {
    throw bad(name, `${JSON.stringify(value)} is not an integer from 0 to ${most}`);
  }
  return value as number;
}

function positiveInteger(raw: Json, name: string, fallback: number, most = MAX_SIZE): number {
  // head_dim may come out as a fraction of defaults; its own check names it.
  if (raw[name] == null && !Number.isInteger(fallback)) return fallback;
  const value = integer(raw, name, fallback, most);
  if (value === 0) throw bad(name, "0 is not positive");
  return value;
}

function positive(raw: Json, name: string, fallback: number): number {
  const value = raw[name] ?? fallback;
  if (typeof value !== "number" || !(value > 0) || !Number.isFinite(value)) {
    throw bad(name, `${JSON.stringify(value)} is not a positive number`);
  }
  return value;
}

function bad(name: string, what: string): FormatError {
  return new FormatError(what, {
    place: `config.json, ${name}`,
    hint: "Compare config.json with the model's original repository.",
  });
}
