/**
 * A model on its way through the pipeline: roles mapped to lazily read tensors, the online transforms and activation
 * quantizers of its sites, and its cache recipe. Passes change these entries; nothing is read until somebody asks, and
 * what is asked for is read, folded and released tensor by tensor, so a model larger than memory can be compressed.
 */
import type { QuantTensor } from "../encodings/types.js";
import type { ModelConfig } from "./config.js";
import type { ParameterSpec, Site } from "./roles.js";

/** A tensor that is read on demand. `read` gives a fresh array the caller may change. */
export interface LazyTensor {
  readonly shape: readonly number[];
  read(): Promise<Float32Array>;
  /** Rows [from, to) of a matrix; absent where rows cannot be had without the rest. */
  readRows?(from: number, to: number): Promise<Float32Array>;
}

/** Where weights come from: a safetensors folder, a GGUF file, memory. Names are HF tensor names. */
export interface WeightSource {
  names(): Iterable<string>;
  has(name: string): boolean;
  shape(name: string): readonly number[];
  /** Decoded to f32, HF orientation [out, in]. @throws FormatError when the bytes are not what the header says. */
  read(name: string): Promise<Float32Array>;
  /** Rows [from, to) of a 2-D tensor; for tables too big to hold whole. */
  readRows(name: string, from: number, to: number): Promise<Float32Array>;
  close(): Promise<void>;
}

export interface Parameter {
  readonly spec: ParameterSpec;
  /** Full precision weight (after folds), or the quantized one. */
  weight: LazyTensor | { quant: () => Promise<QuantTensor> };
  bias: LazyTensor | null;
}

/** Online transform of a site, in order, before its quantizer. Applied to every layer unless `layers` says otherwise. */
export type OnlineTransform =
  /** x <- H_size x per consecutive block of `size` (normalized Hadamard, convention of linalg/hadamard.ts). */
  | { op: "hadamard"; site: Site; size: number }
  /** z <- (M (x) I_headDim) z across query heads: Hadamard of `order`, or an explicit orthogonal matrix [order, order]. */
  | { op: "headMix"; site: Site; order: number; matrix?: Float32Array }
  /** Tied-embedding edges. embed_out: x <- H D x; head_in: h <- g (D H^T x^). signs [hiddenSize] of +-1. */
  | {
      op: "edge";
      site: "embed_out" | "head_in";
      size: number;
      signs: Float32Array;
      gain?: Float32Array;
      dense?: Float32Array;
    };

export interface ActivationQuantizer {
  /** Small floats instead of integers: 8 bits, one scale a token; run as f32 values that such floats can hold. */
  format?: "e4m3" | "e5m2";
  bits: number;
  granularity: "token" | number;
  symmetric: boolean;
  clip: number;
}

/** Tokenizer and template files that travel with the model, by file name. */
export type SidecarFiles = Map<string, Uint8Array>;

export interface ModelSource {
  /** What the user named, without machine paths: file name or hub id. */
  id: string;
  /** Hash over config and tensor bytes. Computed on demand: hashing a large file takes time. */
  sha256(): Promise<string>;
  /** Hash of an artifact's own description, its file hashes included; absent where the source itself is read. */
  artifact?: string;
}

export interface Model {
  readonly config: ModelConfig;
  readonly source: ModelSource;
  readonly files: SidecarFiles;
  /** Role path -> parameter. A tied head has no entry of its own until a pass unties it. */
  readonly parameters: Map<string, Parameter>;
  transforms: OnlineTransform[];
  activations: Partial<Record<Site, ActivationQuantizer>>;
  /** Layers whose sites differ from `activations` (null: not quantized there). */
  activationOverrides: Map<number, Partial<Record<Site, ActivationQuantizer | null>>>;
  /** Resolved cache recipe, or null for the exact default. */
  kv: KvRecipe | null;
  /**
   * Set when tensors are views of mapped files: drops what was read from memory; it comes back when it is read again.
   * @throws FormatError when a file was cut short meanwhile
   */
  dropPages?(): void;
  close(): Promise<void>;
}

/** Codec of the keys or values of a cache, with its options; kv/codecs says which there are. */
export interface KvPlane {
  codec: string;
  hadamard?: boolean;
  clip?: number;
  zero?: "float" | "int";
  qBits?: 8 | 32;
  /** kivi: bits of a code, tokens (keys) or channels (values) of a group, newest tokens that stay exact. */
  bits?: number;
  group?: number;
  residual?: number;
  [option: string]: unknown;
}
export type PrefillMode = "exact" | "chunked" | "stepwise";
export interface KvRecipe {
  k: KvPlane;
  v: KvPlane;
  /** Tokens at the start of the text that stay exact. */
  sinks?: number;
  /** Which tokens stay, with the options of the policy; absent: all. */
  retention?: { type: string; [option: string]: unknown };
  /** Tokens of a page. */
  page?: number;
  prefill?: PrefillMode;
  /** File of `nibble calibrate-kv`, for codecs that need one. */
  calibration?: string;
  /** Seed of codecs and policies that draw numbers. */
  seed?: number;
}

/** The parameter at a role path. @throws when the architecture has none: a programming error, not bad input. */
export function parameter(model: Model, path: string): Parameter {
  const found = model.parameters.get(path);
  if (!found) throw new Error(`no parameter ${path} in ${model.config.architecture}`);
  return found;
}

/** True when the head shares the embedding's table. */
export function isTied(model: Model): boolean {
  return !model.parameters.has("head");
}
