/**
 * The facts of a checkpoint that the graph needs, whatever file they came from (HF config.json or GGUF metadata).
 * Parsing lives in formats/; nothing here is assumed: epsilon, RoPE, biases and head_dim come from the file.
 */
export type Architecture = "llama" | "mistral" | "qwen2" | "qwen3" | "mixtral";

export interface RopeParameters {
  type: "default" | "linear" | "dynamic" | "llama3" | "yarn" | "longrope";
  theta: number;
  /** Every other key of rope_parameters / rope_scaling, in HF spelling (factor, low_freq_factor, …). */
  parameters: Record<string, number | number[] | boolean | string>;
}

export interface ModelConfig {
  architecture: Architecture;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  headDim: number;
  rmsNormEps: number;
  maxPositionEmbeddings: number;
  tieWordEmbeddings: boolean;
  rope: RopeParameters;
  /** Which projections carry a bias. */
  bias: { q: boolean; k: boolean; v: boolean; o: boolean; mlp: boolean };
  /** RMSNorm over each head of q and k before RoPE (Qwen3). */
  qkNorm: boolean;
  /** Per layer: number of visible positions, or null for full attention. */
  slidingWindow: (number | null)[];
  experts: { count: number; perToken: number } | null;
  bosTokenId: number | null;
  eosTokenIds: number[];
  /** The source's config.json as read (or rebuilt from GGUF metadata), kept verbatim for re-export. */
  raw: Record<string, unknown>;
}
