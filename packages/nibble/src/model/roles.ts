/**
 * Roles: the names passes work on, and how they map to HF module names. Role paths are
 * `embed`, `head`, `finalNorm`, `layers.<i>.<q|k|v|o|gate|up|down|router|inputNorm|postNorm|qNorm|kNorm>` and
 * `layers.<i>.experts.<e>.<gate|up|down>`. An architecture is this table plus the flags of ModelConfig.
 */
import type { ModelConfig } from "./config.js";

export type LinearRole = "q" | "k" | "v" | "o" | "gate" | "up" | "down";
/** Inputs of linears. A site owns its online transforms, its calibration statistics and its activation quantizer. */
export type Site = "attn_in" | "attn_out" | "mlp_in" | "mlp_out";
export const SITES: readonly Site[] = ["attn_in", "attn_out", "mlp_in", "mlp_out"];
export const SITE_OF: Record<LinearRole, Site> = {
  q: "attn_in",
  k: "attn_in",
  v: "attn_in",
  o: "attn_out",
  gate: "mlp_in",
  up: "mlp_in",
  down: "mlp_out",
};
export const LINEAR_ROLES = Object.keys(SITE_OF) as LinearRole[];

export interface ParameterSpec {
  /** Role path, e.g. "layers.3.q". */
  path: string;
  /** HF module name, e.g. "model.layers.3.self_attn.q_proj"; tensors are `<module>.weight`, `<module>.bias`. */
  module: string;
  kind: "linear" | "norm" | "embedding" | "head" | "router";
  /** [out, in] of the weight, or [size] of a norm gain. */
  shape: number[];
  bias: boolean;
  layer: number | null;
  role: LinearRole | null;
  expert: number | null;
}

/** Every parameter of a model in checkpoint order. `head` is listed even when tied (then it shares the embedding's tensor). */
export function parameterSpecs(config: ModelConfig): ParameterSpec[] {
  const { hiddenSize: d, intermediateSize: f, headDim, vocabSize } = config;
  const qRows = config.numAttentionHeads * headDim;
  const kvRows = config.numKeyValueHeads * headDim;
  const specs: ParameterSpec[] = [];
  const add = (
    path: string,
    module: string,
    kind: ParameterSpec["kind"],
    shape: number[],
    extra: Partial<ParameterSpec> = {},
  ) =>
    specs.push({
      path,
      module,
      kind,
      shape,
      bias: false,
      layer: null,
      role: null,
      expert: null,
      ...extra,
    });

  add("embed", "model.embed_tokens", "embedding", [vocabSize, d]);
  for (let i = 0; i < config.numHiddenLayers; i++) {
    const base = `model.layers.${i}`;
    const linear = (
      role: LinearRole,
      module: string,
      shape: number[],
      bias: boolean,
      expert: number | null = null,
    ) => {
      const path =
        expert === null ? `layers.${i}.${role}` : `layers.${i}.experts.${expert}.${role}`;
      add(path, `${base}.${module}`, "linear", shape, { bias, layer: i, role, expert });
    };
    add(`layers.${i}.inputNorm`, `${base}.input_layernorm`, "norm", [d], { layer: i });
    linear("q", "self_attn.q_proj", [qRows, d], config.bias.q);
    linear("k", "self_attn.k_proj", [kvRows, d], config.bias.k);
    linear("v", "self_attn.v_proj", [kvRows, d], config.bias.v);
    if (config.qkNorm) {
      add(`layers.${i}.qNorm`, `${base}.self_attn.q_norm`, "norm", [headDim], { layer: i });
      add(`layers.${i}.kNorm`, `${base}.self_attn.k_norm`, "norm", [headDim], { layer: i });
    }
    linear("o", "self_attn.o_proj", [d, qRows], config.bias.o);
    add(`layers.${i}.postNorm`, `${base}.post_attention_layernorm`, "norm", [d], { layer: i });
    if (config.experts) {
      const moe = "block_sparse_moe";
      add(`layers.${i}.router`, `${base}.${moe}.gate`, "router", [config.experts.count, d], {
        layer: i,
      });
      for (let e = 0; e < config.experts.count; e++) {
        linear("gate", `${moe}.experts.${e}.w1`, [f, d], false, e);
        linear("up", `${moe}.experts.${e}.w3`, [f, d], false, e);
        linear("down", `${moe}.experts.${e}.w2`, [d, f], false, e);
      }
    } else {
      linear("gate", "mlp.gate_proj", [f, d], config.bias.mlp);
      linear("up", "mlp.up_proj", [f, d], config.bias.mlp);
      linear("down", "mlp.down_proj", [d, f], config.bias.mlp);
    }
  }
  add("finalNorm", "model.norm", "norm", [d]);
  add("head", "lm_head", "head", [vocabSize, d]);
  return specs;
}
