/** Files and folders of the disk as byte sources. Node only; the browser bundle does not reach this file. */
import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { type ByteFolder, type ByteSource, checkRange, missingFile } from "./byte-source.js";
import { FormatError, ModelError, ResourceError } from "./errors.js";

/** A file in memory, its pages those of the system's cache. */
export interface MappedBytes {
  readonly bytes: Uint8Array;
  /**
   * Takes the pages that were read out of this process's memory; they come back when they are read again.
   * @returns false when the file was cut short, so that some of what was read was not its bytes
   */
  drop(): boolean;
}

/** Maps a file of `size` bytes; null where that cannot be done, and then the file is read. */
export type MapFile = (path: string, size: number) => MappedBytes | null;

/** Largest single read: the kernel's limit is a little below 2 GiB. */
const MAX_READ = 1 << 30;

/**
 * A file, read by position; several reads may be under way at once. With `map` reads are views of the mapped file.
 * @throws ModelError when it cannot be opened or is not a regular file.
 */
export async function fileSource(
  path: string,
  name = basename(path),
  map: MapFile | null = null,
): Promise<ByteSource> {
  let handle: FileHandle;
  let size: number;
  try {
    handle = await open(path, "r");
  } catch (cause) {
    throw openError(name, cause);
  }
  try {
    const facts = await handle.stat();
    if (!facts.isFile()) throw new ModelError("not a file", { place: name });
    size = facts.size;
  } catch (cause) {
    await handle.close();
    throw cause;
  }
  const shorter = () =>
    new FormatError("the file became shorter while it was read", { place: name });
  const mapped = map && size > 0 ? map(path, size) : null;
  let closed = false;
  if (mapped) {
    await handle.close();
    return {
      name,
      size,
      async read(offset, length) {
        checkRange(name, size, offset, length);
        if (closed) throw new ModelError("the file is closed already", { place: name });
        return mapped.bytes.subarray(offset, offset + length);
      },
      drop() {
        if (!mapped.drop()) throw shorter();
      },
      async close() {
        closed = true; // views may still be in use: the mapping ends with the last of them
      },
    };
  }
  return {
    name,
    size,
    async read(offset, length) {
      checkRange(name, size, offset, length);
      if (closed) throw new ModelError("the file is closed already", { place: name });
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const want = Math.min(MAX_READ, length - done);
        const { bytesRead } = await handle.read(bytes, done, want, offset + done);
        if (bytesRead === 0) throw shorter();
        done += bytesRead;
      }
      return bytes;
    },
    async close() {
      if (closed) return;
      closed = true;
      await handle.close();
    },
  };
}

/**
 * A folder of the disk; its files are listed once, links are followed. With `map` its safetensors files are mapped.
 * @throws ModelError when it cannot be read.
 */
export async function fileFolder(path: string, map: MapFile | null = null): Promise<ByteFolder> {
  const folderName = basename(path) || path;
  let names: string[];
  try {
    const entries = await readdir(path, { withFileTypes: true });
    names = entries
      .filter((entry) => entry.isFile() || entry.isSymbolicLink())
      .map((entry) => entry.name)
      .sort();
  } catch (cause) {
    throw openError(folderName, cause);
  }
  const known = new Set(names);
  return {
    name: folderName,
    names: () => names,
    has: (name) => known.has(name),
    async open(name) {
      if (!known.has(name)) throw missingFile(folderName, name);
      return fileSource(join(path, name), name, name.endsWith(".safetensors") ? map : null);
    },
  };
}

/** A path as a file or folder source. @throws ModelError when there is neither. */
export async function openPath(path: string): Promise<ByteSource | ByteFolder> {
  const facts = await stat(path).catch((cause) => {
    throw openError(basename(path), cause);
  });
  return facts.isDirectory() ? fileFolder(path) : fileSource(path);
}

/** The error of a file that cannot be opened. */
function openError(name: string, cause: unknown): Error {
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === "EMFILE" || code === "ENFILE") {
    return new ResourceError("too many files are open", { place: name, cause });
  }
  const what =
    code === "ENOENT"
      ? "no such file"
      : code === "EACCES"
        ? "may not be read"
        : `cannot be opened (${code ?? "unknown error"})`;
  return new ModelError(what, { place: name, hint: "Check the path and its permissions.", cause });
}
