/** Prompt caches on disk. Node only; the browser does not reach this file. */
import { atomicFile } from "../core/atomic-write.js";
import { fileSource } from "../core/file-source.js";
import type { OpenedModel } from "./opened.js";
import { type PromptCache, promptCacheFile, readPromptCache } from "./prompt-cache.js";

/** @throws ResourceError when the place cannot be written */
export async function writePromptCache(
  path: string,
  opened: OpenedModel,
  cache: PromptCache,
): Promise<void> {
  const parts = await promptCacheFile(opened, cache);
  const file = await atomicFile(path);
  try {
    for (const part of parts) await file.write(part);
    await file.commit();
  } catch (cause) {
    await file.abort();
    throw cause;
  }
}

/** @throws ModelError when there is no such file, and as readPromptCache */
export async function openPromptCache(path: string, opened: OpenedModel): Promise<PromptCache> {
  const source = await fileSource(path);
  try {
    return await readPromptCache(opened, source);
  } finally {
    await source.close();
  }
}
