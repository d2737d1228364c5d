/**
 * Files and folders that appear whole or not at all: written beside their place, flushed, then renamed. A process that
 * dies half-way leaves only a `.tmp-…` entry, which the next write of the same target removes. Node only.
 */
import { randomBytes } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { ResourceError } from "./errors.js";

/** A file under construction. Exactly one of `commit` and `abort` ends it. */
export interface AtomicFile {
  /** Appends bytes. */
  write(bytes: Uint8Array): Promise<void>;
  /** Flushes and puts the file in its place. */
  commit(): Promise<void>;
  /** Removes what was written. */
  abort(): Promise<void>;
}

/** Leftovers older than this are removed: no write takes that long between two flushes. */
const STALE_MS = 24 * 3600 * 1000;

/** A name beside `path` that no other process uses; what is left there is removed as `removeStale` says. */
export function temporary(path: string): string {
  const stamp = Date.now().toString(36);
  return join(dirname(path), `.${basename(path)}.tmp-${stamp}-${randomBytes(4).toString("hex")}`);
}

/** Removes what a write of `path` that died a day ago or earlier left behind. */
async function removeStale(path: string): Promise<void> {
  const prefix = `.${basename(path)}.tmp-`;
  for (const name of await readdir(dirname(path))) {
    if (!name.startsWith(prefix)) continue;
    const begun = Number.parseInt(name.slice(prefix.length), 36);
    if (Date.now() - begun > STALE_MS) {
      await rm(join(dirname(path), name), { recursive: true, force: true });
    }
  }
}

/**
 * Starts a file that replaces `path` on commit. Its folder is made when it is missing.
 * @param durable false for what can be made again and is checked when it is read: then a loss of power may leave it damaged
 * @throws ResourceError when the disk is full or the place may not be written.
 */
export async function atomicFile(path: string, durable = true): Promise<AtomicFile> {
  const beside = temporary(path);
  let handle: FileHandle;
  try {
    await mkdir(dirname(path), { recursive: true });
    await removeStale(path);
    handle = await open(beside, "wx");
  } catch (cause) {
    throw writeError(path, cause);
  }
  let isOpen = true;
  const end = async () => {
    if (!isOpen) return;
    isOpen = false;
    await handle.close();
  };
  return {
    async write(bytes) {
      try {
        for (let done = 0; done < bytes.length; ) {
          const { bytesWritten } = await handle.write(bytes, done, bytes.length - done);
          done += bytesWritten;
        }
      } catch (cause) {
        throw writeError(path, cause);
      }
    },
    async commit() {
      try {
        if (durable) await handle.sync();
        await end();
        await rename(beside, path);
        if (durable) await syncFolder(dirname(path));
      } catch (cause) {
        throw writeError(path, cause);
      }
    },
    async abort() {
      await end();
      await rm(beside, { force: true });
    },
  };
}

/** Writes a whole file atomically. @throws as atomicFile. */
export async function writeFileAtomic(path: string, data: Uint8Array | string): Promise<void> {
  const file = await atomicFile(path);
  try {
    await file.write(typeof data === "string" ? new TextEncoder().encode(data) : data);
    await file.commit();
  } catch (cause) {
    await file.abort();
    throw cause;
  }
}

/**
 * Fills a new folder beside `path` by `fill`, then puts it in the place of `path`. An old folder there is moved away
 * first and removed afterwards, so a reader finds the old one, the new one, or for an instant none, never a mixture.
 * @throws what `fill` throws (the old folder is untouched then), ResourceError.
 */
export async function writeFolderAtomic(
  path: string,
  fill: (folder: string) => Promise<void>,
): Promise<void> {
  const beside = temporary(path);
  try {
    await mkdir(dirname(path), { recursive: true });
    await removeStale(path);
    await mkdir(beside);
  } catch (cause) {
    throw writeError(path, cause);
  }
  try {
    await fill(beside);
  } catch (cause) {
    await rm(beside, { recursive: true, force: true });
    throw cause;
  }
  const old = temporary(path);
  try {
    await syncFolder(beside);
    const replaced = await rename(path, old).then(
      () => true,
      (cause: NodeJS.ErrnoException) => {
        if (cause.code === "ENOENT") return false;
        throw cause;
      },
    );
    try {
      await rename(beside, path);
    } catch (cause) {
      if (replaced) await rename(old, path);
      throw cause;
    }
    await syncFolder(dirname(path));
    await rm(old, { recursive: true, force: true });
  } catch (cause) {
    await rm(beside, { recursive: true, force: true });
    throw writeError(path, cause);
  }
}

/** Makes renames in a folder durable; not every platform lets a folder be opened. */
async function syncFolder(path: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, "r");
    await handle.sync();
  } catch {
    // The rename itself has happened; only its durability against power loss is the file system's own business here.
  } finally {
    await handle?.close();
  }
}

/** The typed error of a failed write. */
export function writeError(path: string, cause: unknown): Error {
  const code = (cause as NodeJS.ErrnoException).code;
  const place = basename(path);
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new ResourceError("the disk is full", {
      place,
      hint: "Free some space or choose another place with -o.",
      cause,
    });
  }
  if (cause instanceof ResourceError) return cause;
  const what = `cannot be written (${code ?? (cause as Error).message})`;
  return new ResourceError(what, { place, hint: "Choose a place you may write to.", cause });
}
