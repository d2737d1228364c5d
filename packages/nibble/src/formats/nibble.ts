/**
 * The nibble artifact: a directory an HF user recognises, with low-bit weights, the online transforms and quantizers of
 * the model, and everything needed to prove where it came from. `nibble.json` is a pure function of inputs, recipe and
 * backend; measured things go to `report.json`. Layout: docs/artifact.md.
 */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { writeFileAtomic, writeFolderAtomic } from "../core/atomic-write.js";
import { FormatError } from "../core/errors.js";
import { fileFolder } from "../core/file-source.js";
import { tensorDescriptionSchema } from "../encodings/description.js";
import { storedBytes } from "../encodings/quant-tensor.js";
import { describe, deserialize, type StoredDtype, serialize } from "../encodings/serialize.js";
import type { ModelConfig } from "../model/config.js";
import type { KvRecipe, LazyTensor, Model, OnlineTransform, SidecarFiles } from "../model/model.js";
import { isTied } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { parseHfConfig } from "./hf-config.js";
import { openSafetensorsFolder, type SafetensorsReader } from "./safetensors.js";
import { saveCheckpoint } from "./safetensors-save.js";
import type { TensorToWrite } from "./safetensors-write.js";

export const ARTIFACT_VERSION = 1;

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

const quantizerSchema = z.strictObject({
  bits: z.int().min(2).max(8),
  granularity: z.union([z.literal("token"), z.int().positive()]),
  symmetric: z.boolean(),
  clip: z.number().gt(0).max(1),
});
const siteSchema = z.enum(["attn_in", "attn_out", "mlp_in", "mlp_out"]);
const layersSchema = z.literal("all");
const size = z.int().positive();
const transformSchema = z.discriminatedUnion("op", [
  z.strictObject({ op: z.literal("hadamard"), site: siteSchema, layers: layersSchema, size }),
  z.strictObject({
    op: z.literal("headMix"),
    site: siteSchema,
    layers: layersSchema,
    order: size,
    matrix: z.string().optional(),
  }),
  z.strictObject({
    op: z.literal("edge"),
    site: z.enum(["embed_out", "head_in"]),
    size,
    signs: z.string(),
    gain: z.string().optional(),
    dense: z.string().optional(),
  }),
]);
const kvPlane = z.strictObject({
  codec: z.enum(["fp32", "fp16", "int8-token", "int4-token"]),
  hadamard: z.boolean().optional(),
  clip: z.number().gt(0).max(1).optional(),
  zero: z.enum(["float", "int"]).optional(),
  qBits: z.union([z.literal(8), z.literal(32)]).optional(),
});
const manifestSchema = z.strictObject({
  formatVersion: z.literal(ARTIFACT_VERSION),
  version: z.string(),
  backend: z.string(),
  source: z.strictObject({ id: z.string(), sha256: z.string() }),
  recipe: z.unknown(),
  seed: z.int(),
  config: z.record(z.string(), z.unknown()),
  tied: z.boolean(),
  transforms: z.array(transformSchema),
  activations: z.partialRecord(siteSchema, quantizerSchema),
  activationOverrides: z.record(z.string(), z.partialRecord(siteSchema, quantizerSchema.nullable())),
  kv: z
    .strictObject({
      k: kvPlane,
      v: kvPlane,
      page: z.int().positive().optional(),
      prefill: z.enum(["exact", "chunked", "stepwise"]).optional(),
    })
    .nullable(),
  linears: z.record(z.string(), tensorDescriptionSchema),
  files: z.record(z.string(), z.string()),
});
type Manifest = z.infer<typeof manifestSchema>;

const bytesOf = (data: Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

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
    tensors.push({
      name,
      dtype: "F32",
      shape: tensor.shape,
      data: async () => bytesOf(await tensor.read()),
    });
    return tensor.shape.reduce((a, b) => a * b, 1) * 4;
  };
  for (const { spec, weight, bias } of model.parameters.values()) {
    let bytes: number;
    if ("quant" in weight) {
      const quant = await weight.quant();
      linears[spec.module] = describe(quant);
      for (const { name, dtype, shape, bytes: data } of serialize(spec.module, quant)) {
        tensors.push({ name, dtype, shape, data: () => data });
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
        [...model.activationOverrides].sort(([a], [b]) => a - b).map(([layer, v]) => [String(layer), v]),
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
          : createHash("sha256").update(saved.map((s) => s.sha256).join("")).digest("hex"),
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

function transformEntry(t: OnlineTransform, index: number, tensors: TensorToWrite[]): Manifest["transforms"][number] {
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

/** True for a folder that saveArtifact wrote. */
export async function isArtifact(path: string): Promise<boolean> {
  return readFile(join(path, "nibble.json")).then(
    () => true,
    () => false,
  );
}

/** Reads nibble.json. @throws FormatError for an unknown version or a field that is not what it must be. */
export async function readManifest(path: string): Promise<Manifest> {
  const place = "nibble.json";
  let json: unknown;
  try {
    json = JSON.parse(await readFile(join(path, place), "utf8"));
  } catch (cause) {
    throw new FormatError(`cannot be read: ${(cause as Error).message}`, { place, cause });
  }
  const version = (json as { formatVersion?: unknown } | null)?.formatVersion;
  if (version !== ARTIFACT_VERSION) {
    throw new FormatError(`format version ${JSON.stringify(version)} is not known, expected ${ARTIFACT_VERSION}`, {
      place,
      hint: "The artifact was written by another version of nibble; update nibble or compress again.",
    });
  }
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FormatError(`${issue?.path.join(".")}: ${issue?.message}`, {
      place,
      hint: "The file is damaged; compress the model again.",
    });
  }
  return parsed.data;
}

/**
 * Opens an artifact. Tensors are read on demand, each checked against its description first.
 * @throws FormatError naming file and tensor
 */
export async function loadArtifact(path: string): Promise<Model> {
  const manifest = await readManifest(path);
  const folder = await fileFolder(path);
  const reader = await openSafetensorsFolder(folder);
  if (!reader) throw new FormatError("model.safetensors is missing", { place: folder.name });
  try {
    return await buildArtifact(path, manifest, reader);
  } catch (error) {
    await reader.close();
    throw error;
  }
}

async function buildArtifact(path: string, manifest: Manifest, reader: SafetensorsReader): Promise<Model> {
  const files: SidecarFiles = new Map();
  for (const name of Object.keys(manifest.files)) {
    if (name.endsWith(".safetensors") || name === "config.json") continue;
    if (name.includes("/") || name.includes("\\") || name.startsWith(".")) {
      throw new FormatError(`file name ${JSON.stringify(name)} leaves the folder`, { place: "nibble.json" });
    }
    files.set(name, new Uint8Array(await readFile(join(path, name))));
  }
  const rawText = await readFile(join(path, "config.json"), "utf8").catch((cause) => {
    throw new FormatError("cannot be read", { place: "config.json", cause });
  });
  let raw: Record<string, unknown>;
  try {
    const { quantization_config: _marker, ...rest } = JSON.parse(rawText) as Record<string, unknown>;
    raw = rest;
  } catch (cause) {
    throw new FormatError("is not JSON", { place: "config.json", cause });
  }
  const generation = files.get("generation_config.json");
  const config = parseHfConfig(
    raw,
    generation ? (JSON.parse(new TextDecoder().decode(generation)) as Record<string, unknown>) : null,
  );
  const parameters: Model["parameters"] = new Map();
  const lazy = (name: string, shape: readonly number[]): LazyTensor => {
    const entry = reader.tensors.get(name);
    if (!entry) throw new FormatError("is missing", { place: `tensor ${name}` });
    if (entry.dtype !== "F32" || entry.shape.join() !== shape.join()) {
      throw new FormatError(`is ${entry.dtype} [${entry.shape}], expected F32 [${shape}]`, { place: `tensor ${name}` });
    }
    return { shape, read: () => reader.readF32(name) };
  };
  for (const spec of parameterSpecs(config)) {
    if (spec.path === "head" && manifest.tied) continue;
    const description = manifest.linears[spec.module];
    const [n = 0, k = 0] = spec.shape;
    if (description && (description.shape[0] !== n || description.shape[1] !== k)) {
      throw new FormatError(`${spec.module} is [${description.shape}], the config says [${spec.shape}]`, {
        place: "nibble.json",
      });
    }
    parameters.set(spec.path, {
      spec,
      weight: description
        ? {
            quant: () =>
              deserialize(spec.module, description, async (name) => {
                const entry = reader.tensors.get(name);
                if (!entry) throw new FormatError("is missing", { place: `tensor ${name}` });
                return {
                  name,
                  // Compared with the description by deserialize, which knows every type it accepts.
                  dtype: entry.dtype as StoredDtype,
                  shape: [...entry.shape],
                  bytes: await reader.readRaw(name),
                };
              }),
          }
        : lazy(`${spec.module}.weight`, spec.shape),
      bias: reader.tensors.has(`${spec.module}.bias`) ? lazy(`${spec.module}.bias`, [n]) : null,
    });
  }
  const transforms = await Promise.all(
    manifest.transforms.map(async (t): Promise<OnlineTransform> => {
      if (t.op === "hadamard") return { op: t.op, site: t.site, size: t.size };
      if (t.op === "headMix") {
        const { op, site, order } = t;
        const matrix = t.matrix ? await lazy(t.matrix, [order, order]).read() : undefined;
        return { op, site, order, ...(matrix ? { matrix } : {}) };
      }
      const signs = await lazy(t.signs, [t.size]).read();
      const gain = t.gain ? await lazy(t.gain, [t.size]).read() : undefined;
      const dense = t.dense ? await lazy(t.dense, [t.size, t.size]).read() : undefined;
      return {
        op: t.op,
        site: t.site,
        size: t.size,
        signs,
        ...(gain ? { gain } : {}),
        ...(dense ? { dense } : {}),
      };
    }),
  );
  return {
    config: { ...config, tieWordEmbeddings: manifest.tied },
    source: { id: manifest.source.id, sha256: async () => manifest.source.sha256 },
    files,
    parameters,
    transforms,
    activations: manifest.activations as Model["activations"],
    activationOverrides: new Map(
      Object.entries(manifest.activationOverrides).map(([layer, sites]) => [
        Number(layer),
        sites as NonNullable<ReturnType<Model["activationOverrides"]["get"]>>,
      ]),
    ),
    kv: manifest.kv as KvRecipe | null,
    close: () => reader.close(),
  };
}
