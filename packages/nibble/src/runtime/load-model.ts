/** Opens any `<model>`: a nibble artifact, an HF folder, a .gguf file, a hub name, an alias. Nothing is read yet. */
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { fileFolder, fileSource } from "../core/file-source.js";
import type { OnProgress } from "../core/progress.js";
import { openGgufModel } from "../formats/gguf-model.js";
import { openHfFolder } from "../formats/hf-folder.js";
import { isArtifact, loadArtifact } from "../formats/nibble-read.js";
import { resolveModel } from "../hub/resolve.js";
import { mapFile } from "../kernels/native.js";
import { buildModel } from "../model/load.js";
import type { Model } from "../model/model.js";

export interface LoadOptions {
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

/**
 * @param name path, `org/name[@rev]` or alias
 * @throws ModelError when nothing of that name can be had, FormatError for damaged files
 */
export async function loadModel(name: string, options: LoadOptions = {}): Promise<Model> {
  return loadResolved(await resolveModel(name, options), name);
}

/** Opens what `resolveModel` found for a name. @throws FormatError for damaged files */
export async function loadResolved(path: string, name: string): Promise<Model> {
  if ((await stat(path)).isDirectory()) {
    const folder = await fileFolder(path);
    if (isArtifact(folder)) return loadArtifact(await fileFolder(path, mapFile));
    const { config, source, files, id } = await openHfFolder(folder, modelId(name));
    return buildModel(config, source, files, id);
  }
  const { config, source, files, id } = await openGgufModel(await fileSource(path));
  return buildModel(config, source, files, id);
}

/** What the user named, without the folders of this machine. */
function modelId(name: string): string {
  const isPath =
    name.startsWith(".") ||
    name.startsWith("/") ||
    name.includes("\\") ||
    name.split("/").length !== 2;
  return isPath ? basename(name.replace(/\/+$/, "")) : name;
}
