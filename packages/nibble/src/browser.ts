/**
 * nibble in a browser page or worker: open a model from files or a server, generate text. The same kernels, formats and
 * numbers as in Node; compression and the CLI are not part of this entry.
 */
import { type ByteSource, blobSource, sourceFolder } from "./core/byte-source.js";
import { ModelError } from "./core/errors.js";
import { openGgufModel } from "./formats/gguf-model.js";
import { openHfFolder } from "./formats/hf-folder.js";
import { isArtifact, loadArtifact } from "./formats/nibble-read.js";
import { buildModel } from "./model/load.js";
import type { Model } from "./model/model.js";

export { NibbleError } from "./core/errors.js";
export { VERSION as version } from "./core/version.js";
export { benchModel } from "./runtime/bench.js";
export { type OpenedModel, type OpenOptions, openLoaded } from "./runtime/opened.js";
export type { SamplingOptions } from "./runtime/sampler.js";
export {
  createSession,
  type GenerateOptions,
  type GenerationSummary,
  Session,
} from "./runtime/session.js";

/** Opens one .gguf file. @throws FormatError for anything else. */
export async function modelFromGguf(file: Blob | ByteSource): Promise<Model> {
  const source = file instanceof Blob ? blobSource(file) : file;
  const { config, source: weights, files, id } = await openGgufModel(source);
  return buildModel(config, weights, files, id);
}

/**
 * Opens the files of a model folder (a nibble artifact or an HF checkpoint), as a directory input or drag and drop gives
 * them, or the single .gguf file among them.
 * @throws ModelError when the files are no model, FormatError for damaged ones
 */
export async function modelFromFiles(files: readonly File[]): Promise<Model> {
  const [first] = files;
  if (!first) throw new ModelError("no files were given");
  if (files.length === 1 && first.name.endsWith(".gguf")) return modelFromGguf(first);
  const folder = sourceFolder(
    files.map((file) => blobSource(file)),
    "files",
  );
  if (isArtifact(folder)) return loadArtifact(folder);
  const { config, source, files: sidecars, id } = await openHfFolder(folder);
  return buildModel(config, source, sidecars, id);
}
