/** Opening an artifact, from a folder on disk, from files of a browser, from a server. Tensors are read on demand. */

import { type ByteFolder, jsonObject, readSmall } from "../core/byte-source.js";
import { FormatError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import { deserialize, type StoredDtype } from "../encodings/serialize.js";
import type { KvRecipe, LazyTensor, Model, OnlineTransform, SidecarFiles } from "../model/model.js";
import { parameterSpecs } from "../model/roles.js";
import { parseHfConfig } from "./hf-config.js";
import { type Manifest, parseManifest } from "./nibble-manifest.js";
import { openSafetensorsFolder, type SafetensorsReader } from "./safetensors.js";

/** True for a folder that saveArtifact wrote. */
export function isArtifact(folder: ByteFolder): boolean {
  return folder.has("nibble.json");
}

export async function readManifest(folder: ByteFolder): Promise<Manifest> {
  return parseManifest(new TextDecoder().decode(await required(folder, "nibble.json")));
}

async function required(folder: ByteFolder, name: string): Promise<Uint8Array> {
  const bytes = await readSmall(folder, name);
  if (!bytes) throw new FormatError(`${name} is missing`, { place: folder.name });
  return bytes;
}

/**
 * Opens an artifact. Tensors are read on demand, each checked against its description first.
 * @throws FormatError naming file and tensor
 */
export async function loadArtifact(folder: ByteFolder): Promise<Model> {
  const manifest = await readManifest(folder);
  const reader = await openSafetensorsFolder(folder);
  if (!reader) throw new FormatError("model.safetensors is missing", { place: folder.name });
  try {
    return await buildArtifact(folder, manifest, reader);
  } catch (error) {
    await reader.close();
    throw error;
  }
}

async function buildArtifact(
  folder: ByteFolder,
  manifest: Manifest,
  reader: SafetensorsReader,
): Promise<Model> {
  const names = Object.keys(manifest.files).filter(
    (name) => !name.endsWith(".safetensors") && name !== "config.json",
  );
  for (const name of names) {
    if (name.includes("/") || name.includes("\\") || name.startsWith(".")) {
      throw new FormatError(`file name ${JSON.stringify(name)} leaves the folder`, {
        place: "nibble.json",
      });
    }
  }
  const texts = await Promise.all(names.map((name) => required(folder, name)));
  const files: SidecarFiles = new Map(names.map((name, i) => [name, texts[i] as Uint8Array]));
  const { quantization_config: _marker, ...raw } = jsonObject(
    await required(folder, "config.json"),
    "config.json",
  );
  const generation = files.get("generation_config.json");
  const config = parseHfConfig(
    raw,
    generation ? jsonObject(generation, "generation_config.json") : null,
  );
  const parameters: Model["parameters"] = new Map();
  const lazy = (name: string, shape: readonly number[]): LazyTensor => {
    const entry = reader.tensors.get(name);
    if (!entry) throw new FormatError("is missing", { place: `tensor ${name}` });
    if (entry.dtype !== "F32" || entry.shape.join() !== shape.join()) {
      throw new FormatError(`is ${entry.dtype} [${entry.shape}], expected F32 [${shape}]`, {
        place: `tensor ${name}`,
      });
    }
    return { shape, read: () => reader.readF32(name) };
  };
  for (const spec of parameterSpecs(config)) {
    if (spec.path === "head" && manifest.tied) continue;
    const description = manifest.linears[spec.module];
    const [n = 0, k = 0] = spec.shape;
    if (description && (description.shape[0] !== n || description.shape[1] !== k)) {
      throw new FormatError(
        `${spec.module} is [${description.shape}], the config says [${spec.shape}]`,
        {
          place: "nibble.json",
        },
      );
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
    source: {
      id: manifest.source.id,
      sha256: async () => manifest.source.sha256,
      artifact: hashText(JSON.stringify(manifest)),
    },
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
    ...(reader.sources.every(({ drop }) => drop) && {
      dropPages: () => {
        for (const source of reader.sources) source.drop?.();
      },
    }),
    close: () => reader.close(),
  };
}

function hashText(text: string): string {
  const hash = sha256();
  hash.update(new TextEncoder().encode(text));
  return hash.digest();
}
