/**
 * The calibration artifact of a cache (docs/kv-calibration.md): a safetensors file whose metadata says of which model and
 * for which cache it is, and whose tensors are named `layers.<layer>.<name>`: [kvHeads, n] with a row for each KV head, or
 * [n] for all heads of the layer.
 */
import type { ByteSource } from "../core/byte-source.js";
import { FormatError, ModelError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import { openSafetensors } from "../formats/safetensors.js";
import type { ModelConfig } from "../model/config.js";

export const KV_CALIBRATION_FORMAT = { format: "nibble-kv-calibration", version: "1" } as const;

export interface KvCalibration {
  /** Everything the file says of itself: model, its sha256, cache, text, how sensitivities were estimated. */
  metadata: ReadonlyMap<string, string>;
  /** Of the whole file; part of the key of shared prefixes. */
  sha256: string;
  /** Tensors of one layer and KV head by name; empty when the file has none. */
  tensors(layer: number, kvHead: number): ReadonlyMap<string, Float32Array>;
}

type Shape = Pick<ModelConfig, "numHiddenLayers" | "numKeyValueHeads" | "headDim">;

/** What the file says of the model's shape. */
export const shapeMetadata = (config: Shape) => ({
  layers: String(config.numHiddenLayers),
  kvHeads: String(config.numKeyValueHeads),
  headDim: String(config.headDim),
});

/**
 * Reads and checks an artifact; it is small and held whole. The caller closes the source.
 * @throws FormatError for a file that is none or is damaged, ModelError code "kv-calibration" when it is of a model of
 *   another shape
 */
export async function readKvCalibration(source: ByteSource, config: Shape): Promise<KvCalibration> {
  const { name: place } = source;
  const hint = "Make it with: nibble calibrate-kv <model> -o file.";
  const reader = await openSafetensors(source);
  const { metadata } = reader;
  if (metadata.get("format") !== KV_CALIBRATION_FORMAT.format) {
    throw new FormatError("this safetensors file is no cache calibration", { place, hint });
  }
  const version = metadata.get("version");
  if (version !== KV_CALIBRATION_FORMAT.version) {
    throw new FormatError(
      `cache calibration of format version ${version}, this nibble reads ${KV_CALIBRATION_FORMAT.version}`,
      { place, hint },
    );
  }
  for (const [key, want] of Object.entries(shapeMetadata(config))) {
    if (metadata.get(key) !== want) {
      throw new ModelError(
        `the calibration is of a model with ${key} ${metadata.get(key)}, this one has ${want}`,
        { place, hint: "Calibrate this model: nibble calibrate-kv." },
        "kv-calibration",
      );
    }
  }
  const heads = config.numKeyValueHeads;
  const layers = Array.from({ length: config.numHiddenLayers }, () =>
    Array.from({ length: heads }, () => new Map<string, Float32Array>()),
  );
  for (const [name, { shape, dtype }] of reader.tensors) {
    const [, index, tensor] = /^layers\.(0|[1-9]\d*)\.([a-z]\.[a-zA-Z]+)$/.exec(name) ?? [];
    const layer = layers[Number(index)];
    const perHead = shape.length === 2 && shape[0] === heads;
    if (tensor === undefined || !layer || dtype !== "F32" || !(perHead || shape.length === 1)) {
      throw new FormatError(`tensor "${name}" ${dtype} [${shape}] does not belong here`, {
        place,
        hint,
      });
    }
    const values = await reader.readF32(name);
    if (!values.every(Number.isFinite)) {
      throw new FormatError(`tensor "${name}" holds numbers that are not finite`, { place, hint });
    }
    const each = perHead ? values.length / heads : values.length;
    for (const [h, map] of layer.entries()) {
      map.set(tensor, perHead ? values.subarray(h * each, (h + 1) * each) : values);
    }
  }
  const hash = sha256();
  hash.update(await source.read(0, source.size));
  return {
    metadata,
    sha256: hash.digest(),
    tensors: (layer, kvHead) => layers[layer]?.[kvHead] ?? new Map(),
  };
}
