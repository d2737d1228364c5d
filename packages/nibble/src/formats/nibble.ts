/**
 * Writing the nibble artifact: a directory an HF user recognises, with low-bit weights, the online transforms and
 * quantizers of the model, and everything needed to prove where it came from. Node only; reading is nibble-read.ts.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { writeFileAtomic, writeFolderAtomic } from "../core/atomic-write.js";
import { storedBytes } from "../encodings/quant-tensor.js";
import { describe, serialize, tensorPlan } from "../encodings/serialize.js";
import type { QuantTensor } from "../encodings/types.js";
import type { ModelConfig } from "../model/config.js";
import {
  isTied,
  type LazyTensor,
  type Model,
  type OnlineTransform,
  type SidecarFiles,
} from "../model/model.js";
import { rowBands } from "../model/row-bands.js";
import { ARTIFACT_VERSION, type Manifest } from "./nibble-manifest.js";
import { saveCheckpoint } from "./safetensors-save.js";
import type { TensorToWrite } from "./safetensors-write.js";

export interface ArtifactFacts {
  /** nibble's own version. */
  version: string;
  /** Backend that solved the weights, e.g. "native avx512vnni". */
  backend: string;
  /** Resolved recipe, every default filled in. */
  recipe: unknown;
  seed: number;
}

export interface SavedArtifact {
  /** Hash of model.safetensors; of the shards' hashes in order when there are several. */
  sha256: string;
  bytes: number;
  bitsPerWeight: { linears: number; whole: number };
  parameters: number;
}

const bytesOf = (data: Float32Array) =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** A float tensor in bands of rows. */
async function* floatBytes(tensor: LazyTensor): AsyncGenerator<Uint8Array> {
  for await (const { values } of rowBands(tensor)) yield bytesOf(values);
}

async function bytesOfPart(
  module: string,
  quant: () => Promise<QuantTensor>,
  name: string,
): Promise<Uint8Array> {
  const part = serialize(module, await quant()).find((own) => own.name === name);
  if (!part) throw new Error(`${name} is planned and not serialized`);
  return part.bytes;
}

/**
 * Writes a model (whatever state it is in) as an artifact: beside its place, then renamed.
 * @throws ResourceError when the disk is full; nothing is left behind then
 */
export async function saveArtifact(
  folder: string,
  model: Model,
  facts: ArtifactFacts,
): Promise<SavedArtifact> {
  const tensors: TensorToWrite[] = [];
  const linears: Manifest["linears"] = {};
  const tally = { linearBytes: 0, linearCount: 0, bytes: 0, count: 0 };
  const float = (name: string, tensor: LazyTensor) => {
    tensors.push({ name, dtype: "F32", shape: tensor.shape, data: () => floatBytes(tensor) });
    return tensor.shape.reduce((a, b) => a * b, 1) * 4;
  };
  for (const { spec, weight, bias } of model.parameters.values()) {
    let bytes: number;
    if ("quant" in weight) {
      const quant = await weight.quant();
      const description = describe(quant);
      linears[spec.module] = description;
      // Bytes are made when their turn comes: nothing is held twice, or at all where quant() reads a file.
      for (const plan of tensorPlan(spec.module, description)) {
        tensors.push({ ...plan, data: () => bytesOfPart(spec.module, weight.quant, plan.name) });
      }
      bytes = storedBytes(quant);
    } else bytes = float(`${spec.module}.weight`, weight);
    const count = spec.shape.reduce((a, b) => a * b, 1);
    if (spec.kind === "linear") {
      tally.linearBytes += bytes;
      tally.linearCount += count;
    }
    if (bias) {
      bytes += float(`${spec.module}.bias`, bias);
      tally.count += bias.shape[0] ?? 0;
    }
    tally.bytes += bytes;
    tally.count += count;
  }
  const transforms = model.transforms.map((t, i) => transformEntry(t, i, tensors));

  let result: SavedArtifact | null = null;
  await writeFolderAtomic(folder, async (inside) => {
    const saved = await saveCheckpoint(inside, tensors);
    const files: Record<string, string> = {};
    for (const { file, sha256 } of saved) files[file] = sha256;
    const sidecars = sidecarFiles(model);
    for (const [name, data] of sidecars) {
      await writeFileAtomic(join(inside, name), data);
      files[name] = createHash("sha256").update(data).digest("hex");
    }
    const manifest: Manifest = {
      formatVersion: ARTIFACT_VERSION,
      version: facts.version,
      backend: facts.backend,
      source: { id: model.source.id, sha256: await model.source.sha256() },
      recipe: facts.recipe,
      seed: facts.seed,
      config: configFacts(model.config),
      tied: isTied(model),
      transforms,
      activations: model.activations,
      activationOverrides: Object.fromEntries(
        [...model.activationOverrides]
          .sort(([a], [b]) => a - b)
          .map(([layer, v]) => [String(layer), v]),
      ),
      kv: model.kv,
      linears,
      files,
    };
    await writeFileAtomic(join(inside, "nibble.json"), `${JSON.stringify(manifest, null, 1)}\n`);
    const [first] = saved;
    result = {
      sha256:
        saved.length === 1 && first
          ? first.sha256
          : createHash("sha256")
              .update(saved.map((s) => s.sha256).join(""))
              .digest("hex"),
      bytes: saved.reduce((sum, s) => sum + s.bytes, 0),
      bitsPerWeight: {
        linears: tally.linearCount > 0 ? (tally.linearBytes * 8) / tally.linearCount : 0,
        whole: (tally.bytes * 8) / tally.count,
      },
      parameters: tally.count,
    };
  });
  if (!result) throw new Error("writeFolderAtomic did not call its callback");
  return result;
}

/** Writes report.json beside nibble.json: times, peaks, losses, quality. Never hashed. */
export async function saveReport(folder: string, report: unknown): Promise<void> {
  await writeFileAtomic(join(folder, "report.json"), `${JSON.stringify(report, null, 1)}\n`);
}

function transformEntry(
  t: OnlineTransform,
  index: number,
  tensors: TensorToWrite[],
): Manifest["transforms"][number] {
  const place = (what: string, data: Float32Array, shape: number[]) => {
    const name = `nibble.transforms.${index}.${what}`;
    tensors.push({ name, dtype: "F32", shape, data: () => bytesOf(data) });
    return name;
  };
  if (t.op === "hadamard") return { op: t.op, site: t.site, layers: "all", size: t.size };
  if (t.op === "headMix") {
    const { op, site, order, matrix } = t;
    return {
      op,
      site,
      layers: "all",
      order,
      ...(matrix ? { matrix: place("matrix", matrix, [order, order]) } : {}),
    };
  }
  return {
    op: t.op,
    site: t.site,
    size: t.size,
    signs: place("signs", t.signs, [t.size]),
    ...(t.gain ? { gain: place("gain", t.gain, [t.size]) } : {}),
    ...(t.dense ? { dense: place("dense", t.dense, [t.size, t.size]) } : {}),
  };
}

/** Tokenizer files as they are; config.json marked so that other loaders refuse it by name instead of misreading it. */
function sidecarFiles(model: Model): SidecarFiles {
  const files: SidecarFiles = new Map([...model.files].sort(([a], [b]) => (a < b ? -1 : 1)));
  const config = {
    ...model.config.raw,
    tie_word_embeddings: isTied(model),
    quantization_config: { quant_method: "nibble", format_version: ARTIFACT_VERSION },
  };
  files.set("config.json", new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`));
  return files;
}

function configFacts(config: ModelConfig): Record<string, unknown> {
  const { raw: _raw, ...facts } = config;
  return facts;
}
