/**
 * A GGUF file as a model: metadata -> the config.json that its Hugging Face original would have, tensors under HF names with
 * the row order of q and k undone, tokenizer files rebuilt. Layout rules: llama.cpp, conversion/llama.py.
 */
import { type ByteSource, chunks } from "../core/byte-source.js";
import { FormatError, ModelError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import type { ModelConfig } from "../model/config.js";
import type { WeightSource } from "../model/model.js";
import { type ParameterSpec, parameterSpecs } from "../model/roles.js";
import { inverseFrequencies } from "../model/rope.js";
import { type GgufFile, openGguf } from "./gguf.js";
import { ggufTokenizer, Keys } from "./gguf-tokenizer.js";
import { parseHfConfig } from "./hf-config.js";
import { type ModelFiles, once } from "./hf-folder.js";

type Json = Record<string, unknown>;
type Rope = Json & { rope_type: string };

const ARCHITECTURES = ["llama", "qwen2", "qwen3"];
const ROPE_FACTORS = "rope_freqs.weight";
/** Keys that change the computation in ways the graph does not have; absent in the supported families. */
const UNSUPPORTED_KEYS = [
  "attention.scale",
  "attention.clamp_kqv",
  "attention.logit_softcapping",
  "logit_scale",
  "embedding_scale",
  "residual_scale",
  "final_logit_softcapping",
];

export interface GgufModelFiles extends ModelFiles {
  /** Divisors of the inverse RoPE frequencies [headDim / 2] as stored in the file, or null. */
  ropeFactors: Float32Array | null;
}

/**
 * Opens a GGUF model. The caller closes `source`.
 * @throws ModelError for an architecture, tensor or tokenizer that is not supported, by name; FormatError for damage
 */
export async function openGgufModel(bytes: ByteSource, id = bytes.name): Promise<GgufModelFiles> {
  const file = await openGguf(bytes);
  const tokenizer = ggufTokenizer(file);
  const ropeFactors = file.tensors.has(ROPE_FACTORS) ? await file.readF32(ROPE_FACTORS) : null;
  const raw = hfConfigOf(file, ropeFactors, tokenizer);
  const config = parseHfConfig(raw);
  const source = ggufSource(file, config);
  return {
    config,
    source,
    files: tokenizer.files,
    id: { id, sha256: once(() => hashFile(bytes)) },
    ropeFactors,
  };
}

/** SHA-256 of the file, the same that `sha256sum` prints. */
async function hashFile(bytes: ByteSource): Promise<string> {
  const hash = sha256();
  for await (const part of chunks(bytes)) hash.update(part);
  return hash.digest();
}

/** The config.json that the file's metadata stand for, in both spellings of the RoPE keys. */
function hfConfigOf(
  file: GgufFile,
  ropeFactors: Float32Array | null,
  tokenizer: { bosTokenId: number | null; eosTokenIds: number[] },
): Json {
  const keys = new Keys(file.name, file.metadata);
  const arch = keys.text("general.architecture");
  if (arch === null) throw keys.fail("general.architecture", "is missing");
  if (!ARCHITECTURES.includes(arch)) {
    throw new ModelError(`the architecture "${arch}" is not supported`, {
      place: `${file.name}, general.architecture`,
      hint: `Supported in GGUF files: ${ARCHITECTURES.join(", ")}.`,
    });
  }
  if ((keys.number("split.count") ?? 1) > 1) {
    throw new ModelError("the file is one part of several", {
      place: file.name,
      hint: "Merge the parts with llama-gguf-split --merge.",
    });
  }
  for (const name of UNSUPPORTED_KEYS) {
    if (file.metadata.has(`${arch}.${name}`)) {
      throw new ModelError(`${arch}.${name} is not supported`, { place: file.name });
    }
  }
  const number = (name: string) => scalar(keys, `${arch}.${name}`);
  const required = (name: string): number => {
    const value = number(name);
    if (value === null) throw keys.fail(`${arch}.${name}`, "is missing");
    return value;
  };
  const embedding = file.tensors.get("token_embd.weight");
  if (!embedding)
    throw new FormatError("tensor token_embd.weight is missing", { place: file.name });
  const hidden = required("embedding_length");
  const heads = required("attention.head_count");
  const headDim = number("attention.key_length") ?? hidden / heads;
  for (const name of ["attention.value_length", "rope.dimension_count"]) {
    const value = number(name) ?? headDim;
    if (value !== headDim) {
      throw new ModelError(`${arch}.${name} is ${value}, supported is the head size ${headDim}`, {
        place: file.name,
      });
    }
  }
  const context = required("context_length");
  const theta = number("rope.freq_base") ?? 10000;
  const experts = number("expert_count") ?? 0;
  const window = number("attention.sliding_window") ?? 0;
  const type = arch !== "llama" ? arch : experts > 0 ? "mixtral" : window > 0 ? "mistral" : "llama";
  const rope = ropeOf(keys, arch, ropeFactors, { theta, headDim, context });
  return {
    architectures: [CLASSES[type]],
    model_type: type,
    vocab_size: embedding.shape[0] ?? 0,
    hidden_size: hidden,
    intermediate_size: required("feed_forward_length"),
    num_hidden_layers: required("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: number("attention.head_count_kv") ?? heads,
    head_dim: headDim,
    hidden_act: "silu",
    // Stored as f32; seven digits give back the decimal it came from.
    rms_norm_eps: Number(required("attention.layer_norm_rms_epsilon").toPrecision(7)),
    max_position_embeddings: context,
    rope_theta: theta,
    rope_scaling: rope.rope_type === "default" ? null : rope,
    rope_parameters: { ...rope, rope_theta: theta },
    tie_word_embeddings: !file.tensors.has("output.weight"),
    attention_bias: type !== "qwen2" && file.tensors.has("blk.0.attn_q.bias"),
    ...(type === "llama" && { mlp_bias: file.tensors.has("blk.0.ffn_up.bias") }),
    ...((type === "mistral" || type === "mixtral") && { sliding_window: window || null }),
    ...(experts > 0 && {
      num_local_experts: experts,
      num_experts_per_tok: required("expert_used_count"),
    }),
    bos_token_id: tokenizer.bosTokenId,
    eos_token_id: tokenizer.eosTokenIds,
  };
}

const CLASSES: Record<string, string> = {
  llama: "LlamaForCausalLM",
  mistral: "MistralForCausalLM",
  mixtral: "MixtralForCausalLM",
  qwen2: "Qwen2ForCausalLM",
  qwen3: "Qwen3ForCausalLM",
};

/** A number, or the one number that a per-layer list repeats. */
function scalar(keys: Keys, key: string): number | null {
  const list = keys.isArray(key) ? keys.numbers(key) : null;
  if (!list) return keys.number(key);
  const first = list[0];
  for (let i = 0; i < list.length; i++) {
    if (list[i] !== first) {
      throw new ModelError(
        `differs between layers (${first}, ${list[i]}), which is not supported`,
        {
          place: `${keys.file}, ${key}`,
        },
      );
    }
  }
  return first ?? null;
}

/** rope_parameters without theta. */
function ropeOf(
  keys: Keys,
  arch: string,
  factors: Float32Array | null,
  facts: { theta: number; headDim: number; context: number },
): Rope {
  const scaling = `${arch}.rope.scaling`;
  const original = keys.number(`${scaling}.original_context_length`);
  if (factors) return factorsAsRope(keys.file, factors, { ...facts, original });
  const type = keys.text(`${scaling}.type`) ?? "none";
  // Files of 2023 have only this key, which means linear.
  const factor = keys.number(`${scaling}.factor`) ?? keys.number(`${arch}.rope.scale_linear`) ?? 1;
  if (type === "none" && factor === 1) return { rope_type: "default" };
  if (type === "linear" || type === "none") {
    return factor === 1 ? { rope_type: "default" } : { rope_type: "linear", factor };
  }
  if (type !== "yarn") {
    throw new ModelError(`the position embedding "${type}" is not supported`, {
      place: `${keys.file}, ${scaling}.type`,
    });
  }
  const attention = keys.number(`${scaling}.attn_factor`);
  const betaFast = keys.number(`${scaling}.yarn_beta_fast`);
  const betaSlow = keys.number(`${scaling}.yarn_beta_slow`);
  return {
    rope_type: "yarn",
    factor,
    original_max_position_embeddings: original ?? facts.context,
    ...(betaFast !== null && { beta_fast: betaFast }),
    ...(betaSlow !== null && { beta_slow: betaSlow }),
    // There it multiplies YaRN's own factor, here it replaces it.
    ...(attention !== null && { attention_factor: attention * (0.1 * Math.log(factor) + 1) }),
  };
}

/**
 * Llama 3 scaling is stored as one divisor per frequency. Its parameters follow from them when low_freq_factor is 1, as
 * in all published models; where they do not give the divisors back, the divisors themselves become LongRoPE factors.
 */
function factorsAsRope(
  file: string,
  factors: Float32Array,
  facts: { theta: number; headDim: number; context: number; original: number | null },
): Rope {
  if (factors.length !== facts.headDim / 2 || factors.some((f) => !(f > 0 && Number.isFinite(f)))) {
    throw new FormatError(`${facts.headDim / 2} positive factors are expected`, {
      place: `${file}, tensor ${ROPE_FACTORS}`,
    });
  }
  const { theta, headDim, context } = facts;
  const base = { headDim, maxPositionEmbeddings: context };
  const plain = inverseFrequencies({ ...base, rope: { type: "default", theta, parameters: {} } });
  const factor = Math.max(...factors);
  // Between the ends 1 / f = (1 - s) / factor + s, where s is linear in the frequency: two points give the line.
  const points = [...factors].flatMap((f, i) => {
    const s = (1 / f - 1 / factor) / (1 - 1 / factor);
    return s > 1e-4 && s < 1 - 1e-4 ? [{ s, waves: (plain.inverse[i] ?? 0) / (2 * Math.PI) }] : [];
  });
  const [first, last] = [points[0], points.at(-1)];
  const slope = first && last ? (first.s - last.s) / (first.waves - last.waves) : 0; // original / (high - low)
  const low = first ? slope * first.waves - first.s : 0; // low / (high - low), and low = 1
  if (slope > 0 && low > 0) {
    const tidy = (x: number) => Number(x.toPrecision(5));
    const candidate = {
      factor: tidy(factor),
      low_freq_factor: 1,
      high_freq_factor: tidy(1 + 1 / low),
      original_max_position_embeddings: facts.original ?? Math.round(slope / low),
    };
    const rope = { type: "llama3" as const, theta, parameters: candidate };
    const { inverse } = inverseFrequencies({ ...base, rope });
    const same = inverse.every((f, i) => {
      const stored = (plain.inverse[i] ?? 0) / (factors[i] ?? 1);
      return Math.abs(f / stored - 1) < 1e-4;
    });
    if (same) return { rope_type: "llama3", ...candidate };
  }
  const list = [...factors];
  return {
    rope_type: "longrope",
    short_factor: list,
    long_factor: list,
    factor: 1,
    attention_factor: 1,
    original_max_position_embeddings: context,
  };
}

interface Place {
  /** Name in the file. */
  tensor: string;
  shape: readonly number[];
  /** Heads whose rows are interleaved, 0 for none. */
  heads: number;
  /** Rows before this expert's slice of a stacked tensor. */
  firstRow: number;
}

const ROLE_NAMES: Record<string, string> = {
  embed: "token_embd",
  finalNorm: "output_norm",
  head: "output",
  inputNorm: "attn_norm",
  postNorm: "ffn_norm",
  qNorm: "attn_q_norm",
  kNorm: "attn_k_norm",
  router: "ffn_gate_inp",
  q: "attn_q",
  k: "attn_k",
  v: "attn_v",
  o: "attn_output",
  gate: "ffn_gate",
  up: "ffn_up",
  down: "ffn_down",
};

/** Name of a parameter's module in a GGUF file, without `.weight`. */
function moduleName(spec: ParameterSpec): string {
  const name = ROLE_NAMES[spec.path.split(".").at(-1) ?? ""] ?? spec.path;
  if (spec.layer === null) return name;
  return `blk.${spec.layer}.${name}${spec.expert === null ? "" : "_exps"}`;
}

/**
 * Tensors of a file under HF names.
 * @throws ModelError for a tensor that the architecture does not have: the file computes something else
 */
function ggufSource(file: GgufFile, config: ModelConfig): WeightSource {
  // The rotation of llama.cpp's "llama" pairs neighbours (2j, 2j + 1), HF pairs (j, j + headDim / 2).
  const permuted = ["llama", "mistral", "mixtral"].includes(config.architecture);
  const places = new Map<string, Place>();
  const used = new Set<string>([ROPE_FACTORS]);
  for (const spec of parameterSpecs(config)) {
    if (spec.kind === "head" && config.tieWordEmbeddings) continue;
    const heads =
      !permuted || (spec.role !== "q" && spec.role !== "k")
        ? 0
        : spec.role === "q"
          ? config.numAttentionHeads
          : config.numKeyValueHeads;
    for (const kind of spec.bias ? ["weight", "bias"] : ["weight"]) {
      const name = `${moduleName(spec)}.${kind}`;
      const tensor = file.tensors.get(name);
      if (!tensor) continue; // buildModel names what is missing
      used.add(name);
      const stacked = spec.expert !== null;
      const shape = stacked ? tensor.shape.slice(1) : tensor.shape;
      if (stacked && tensor.shape[0] !== config.experts?.count) {
        throw new FormatError(
          `shape [${tensor.shape}] does not hold ${config.experts?.count} experts`,
          {
            place: `${file.name}, tensor ${name}`,
          },
        );
      }
      const firstRow = stacked ? (spec.expert ?? 0) * (shape[0] ?? 0) : 0;
      places.set(`${spec.module}.${kind}`, { tensor: name, shape, heads, firstRow });
    }
  }
  for (const name of file.tensors.keys()) {
    if (used.has(name)) continue;
    throw new ModelError(`tensor ${name} is not part of a ${config.architecture} model`, {
      place: file.name,
      hint: "The file needs a graph that nibble does not have, or an adapter was merged by halves.",
    });
  }
  const find = (name: string): Place => {
    const place = places.get(name);
    if (!place) throw new FormatError(`there is no tensor ${name}`, { place: file.name });
    return place;
  };
  const rows = async (name: string, from: number, to: number): Promise<Float32Array> => {
    const { tensor, shape, heads, firstRow } = find(name);
    const count = shape.length > 1 ? (shape[0] ?? 0) : 1;
    if (
      !(Number.isInteger(from) && Number.isInteger(to) && 0 <= from && from <= to && to <= count)
    ) {
      throw new FormatError(`rows ${from}..${to} are outside of [${shape}]`, { place: name });
    }
    if (heads === 0) return file.readF32(tensor, firstRow + from, firstRow + to);
    if (shape.length === 1)
      return unpermute(await file.readF32(tensor), 1, heads, 0, shape[0] ?? 0);
    // Whole heads are read: the rows of a range are spread over theirs.
    const size = count / heads;
    const first = Math.floor(from / size) * size;
    const last = Math.min(count, Math.ceil(to / size) * size);
    const values = await file.readF32(tensor, first, last);
    return unpermute(values, shape[1] ?? 1, (last - first) / size, from - first, to - first);
  };
  return {
    names: () => places.keys(),
    has: (name) => places.has(name),
    shape: (name) => find(name).shape,
    read: async (name) => {
      const { shape } = find(name);
      return rows(name, 0, shape.length > 1 ? (shape[0] ?? 0) : 1);
    },
    readRows: rows,
    close: () => file.close(),
  };
}

/** Rows [from, to) of `values` [heads * size, width] in HF order: row h * size / 2 + j of a head is stored as 2j + h. */
function unpermute(
  values: Float32Array,
  width: number,
  heads: number,
  from: number,
  to: number,
): Float32Array {
  const size = values.length / width / heads;
  const half = size / 2;
  const out = new Float32Array((to - from) * width);
  for (let row = from; row < to; row++) {
    const head = Math.floor(row / size);
    const within = row % size;
    const stored = head * size + 2 * (within % half) + Math.floor(within / half);
    out.set(values.subarray(stored * width, (stored + 1) * width), (row - from) * width);
  }
  return out;
}
