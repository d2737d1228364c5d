/**
 * A Hugging Face model folder (config.json, safetensors, tokenizer files), wherever it lies: facts, weights and the files
 * that travel with the model.
 */
import { type ByteFolder, chunks, jsonObject, readSmall } from "../core/byte-source.js";
import { FormatError, ModelError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import type { ModelConfig } from "../model/config.js";
import type { ModelSource, SidecarFiles, WeightSource } from "../model/model.js";
import { parseHfConfig } from "./hf-config.js";
import { openSafetensorsFolder, type SafetensorsReader } from "./safetensors.js";

/** Everything a Model is built from (model/load.ts). */
export interface ModelFiles {
  config: ModelConfig;
  source: WeightSource;
  files: SidecarFiles;
  id: ModelSource;
}

/** Files beside the weights that travel with a model. */
export const SIDECAR_NAMES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "generation_config.json",
] as const;

/**
 * Opens an unquantized checkpoint folder. The caller closes `source`.
 * @param id what the user named
 * @throws ModelError for what is missing or not supported, FormatError for damaged files
 */
export async function openHfFolder(folder: ByteFolder, id = folder.name): Promise<ModelFiles> {
  const configBytes = await readSmall(folder, "config.json");
  if (!configBytes) {
    throw new ModelError("config.json is missing", {
      place: id,
      hint: "Name a Hugging Face model folder, a .gguf file, or a name on the hub.",
    });
  }
  const files: SidecarFiles = new Map();
  for (const name of SIDECAR_NAMES) {
    const bytes = await readSmall(folder, name);
    if (bytes) files.set(name, bytes);
  }
  const generation = files.get("generation_config.json");
  const config = parseHfConfig(
    jsonObject(configBytes, "config.json"),
    generation ? jsonObject(generation, "generation_config.json") : null,
  );
  const reader = await openSafetensorsFolder(folder);
  if (!reader) throw noWeights(folder, id);
  return {
    config,
    source: safetensorsSource(reader),
    files,
    id: { id, sha256: once(() => hashCheckpoint(configBytes, reader)) },
  };
}

/** Float tensors of a checkpoint under their own names. */
export function safetensorsSource(reader: SafetensorsReader): WeightSource {
  return {
    names: () => reader.tensors.keys(),
    has: (name) => reader.tensors.has(name),
    shape(name) {
      const entry = reader.tensors.get(name);
      if (!entry) throw new FormatError(`there is no tensor ${name}`, { place: "checkpoint" });
      return entry.shape;
    },
    read: (name) => reader.readF32(name),
    readRows: (name, from, to) => reader.readF32Rows(name, from, to),
    close: () => reader.close(),
  };
}

/** SHA-256 over config.json and all weight files in name order. */
async function hashCheckpoint(config: Uint8Array, reader: SafetensorsReader): Promise<string> {
  const hash = sha256();
  hash.update(config);
  for (const source of reader.sources) {
    for await (const part of chunks(source)) hash.update(part);
  }
  return hash.digest();
}

function noWeights(folder: ByteFolder, id: string): ModelError {
  const pickle = folder.names().find((name) => /\.(bin|pt|pth)$/.test(name));
  return new ModelError(
    pickle
      ? `the weights are in ${pickle}, a format that can run code, which nibble does not open`
      : "model.safetensors is missing",
    { place: id, hint: "Convert the model to safetensors (transformers: save_pretrained)." },
  );
}

/** Runs `compute` at the first call and remembers its result. */
export function once<T>(compute: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => {
    result ??= compute();
    return result;
  };
}
