/** safetensors files on disk, written beside their place and renamed, hashed on the way. Node only. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { atomicFile, writeFileAtomic } from "../core/atomic-write.js";
import {
  MAX_SHARD_BYTES,
  planShards,
  type TensorToWrite,
  writeSafetensors,
} from "./safetensors-write.js";

export interface SavedFile {
  file: string;
  bytes: number;
  /** Hex digest of the file. */
  sha256: string;
}

/**
 * Writes one safetensors file atomically.
 * @throws ModelError for tensors that contradict their shapes, ResourceError when the place cannot be written
 */
export async function saveSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata?: Readonly<Record<string, string>>,
): Promise<{ bytes: number; sha256: string }> {
  const file = await atomicFile(path);
  const hash = createHash("sha256");
  let bytes = 0;
  try {
    const sink = {
      async write(part: Uint8Array) {
        hash.update(part);
        bytes += part.length;
        await file.write(part);
      },
    };
    await writeSafetensors(sink, tensors, metadata);
    await file.commit();
  } catch (cause) {
    await file.abort();
    throw cause;
  }
  return { bytes, sha256: hash.digest("hex") };
}

/**
 * Writes a checkpoint into a folder: `model.safetensors`, or shards and their index beyond `maxShardBytes`. Tensors are
 * written in the given order of shards; within a file in the format's own order.
 * @returns the files in shard order (the index is not among them)
 */
export async function saveCheckpoint(
  folder: string,
  tensors: readonly TensorToWrite[],
  options: { maxShardBytes?: number; metadata?: Readonly<Record<string, string>> } = {},
): Promise<SavedFile[]> {
  const { shards, index } = planShards(tensors, options.maxShardBytes ?? MAX_SHARD_BYTES);
  const saved: SavedFile[] = [];
  for (const shard of shards) {
    const path = join(folder, shard.file);
    saved.push({
      file: shard.file,
      ...(await saveSafetensors(path, shard.tensors, options.metadata)),
    });
  }
  if (index !== null) await writeFileAtomic(join(folder, "model.safetensors.index.json"), index);
  return saved;
}
