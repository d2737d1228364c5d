/**
 * Random access to bytes, wherever they are: a file (file-source.ts), a Blob, memory, an HTTP server. Readers of formats
 * see only this, so the same code runs in Node and in the browser, and nothing larger than what is asked for is held.
 */
import { FormatError, ModelError, NibbleError } from "./errors.js";

export interface ByteSource {
  /** File name without folders, for messages. */
  readonly name: string;
  readonly size: number;
  /**
   * Bytes [offset, offset + length). May be a view of memory that others share: do not write into it.
   * @throws FormatError when the range leaves the source; nothing is allocated then.
   */
  read(offset: number, length: number): Promise<Uint8Array>;
  /**
   * Of a mapped file: what was read so far is dropped from memory and comes back when it is looked at again.
   * @throws FormatError when the file was cut short meanwhile: what was read may have been wrong.
   */
  drop?(): void;
  close(): Promise<void>;
}

/** Several named sources that belong together: a folder, a list of files, a base address. */
export interface ByteFolder {
  readonly name: string;
  names(): readonly string[];
  has(name: string): boolean;
  /** @throws ModelError when there is no such file. */
  open(name: string): Promise<ByteSource>;
}

/** @throws FormatError unless [offset, offset + length) lies within a source of `size` bytes. */
export function checkRange(name: string, size: number, offset: number, length: number): void {
  const inside =
    Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
  if (!inside || offset + length > size) {
    throw new FormatError(`bytes ${offset}..${offset + length} are outside of ${size} bytes`, {
      place: name,
      hint: "The file is truncated or damaged; fetch it again.",
    });
  }
}

/** Memory as a source. Reads are views. */
export function bufferSource(data: ArrayBuffer | Uint8Array, name = "memory"): ByteSource {
  // A Node Buffer is taken as the plain array it is: its slice() does not copy.
  const bytes = ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data);
  return {
    name,
    size: bytes.byteLength,
    async read(offset, length) {
      checkRange(name, bytes.byteLength, offset, length);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  };
}

/** A Blob or File (browser file input, drag and drop) as a source. */
export function blobSource(
  blob: Blob,
  name = "name" in blob ? String(blob.name) : "blob",
): ByteSource {
  return {
    name,
    size: blob.size,
    async read(offset, length) {
      checkRange(name, blob.size, offset, length);
      return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
    },
    async close() {},
  };
}

export interface HttpOptions {
  signal?: AbortSignal;
  headers?: Record<string, string>;
  fetch?: typeof fetch;
}

/**
 * A file behind an HTTP server that answers range requests.
 * @throws ModelError when the server does not answer, or does not support ranges.
 */
export async function httpSource(url: string, options: HttpOptions = {}): Promise<ByteSource> {
  const name = decodeURIComponent(new URL(url).pathname.split("/").at(-1) || url);
  const request = options.fetch ?? fetch;
  const get = async (from: number, to: number): Promise<Response> => {
    let response: Response;
    try {
      response = await request(url, {
        headers: { ...options.headers, Range: `bytes=${from}-${to}` },
        ...(options.signal && { signal: options.signal }),
      });
    } catch (cause) {
      throw new ModelError("no answer from the server", { place: name, cause });
    }
    if (response.status !== 206) {
      await response.body?.cancel();
      throw new ModelError(
        response.ok
          ? "the server ignores range requests"
          : `the server answered ${response.status}`,
        { place: name, hint: "Download the file and open it from disk." },
      );
    }
    return response;
  };
  const first = await get(0, 0);
  await first.body?.cancel();
  const size = Number(/\/(\d+)$/.exec(first.headers.get("content-range") ?? "")?.[1] ?? Number.NaN);
  if (!Number.isSafeInteger(size)) {
    throw new ModelError("the server does not tell the size of the file", { place: name });
  }
  return {
    name,
    size,
    async read(offset, length) {
      checkRange(name, size, offset, length);
      if (length === 0) return new Uint8Array(0);
      const bytes = new Uint8Array(await (await get(offset, offset + length - 1)).arrayBuffer());
      if (bytes.length !== length) {
        throw new FormatError(`${bytes.length} bytes came where ${length} were asked for`, {
          place: name,
        });
      }
      return bytes;
    },
    async close() {},
  };
}

/** Named sources in memory or from a browser's file list, as a folder. */
export function sourceFolder(sources: Iterable<ByteSource>, name = "files"): ByteFolder {
  const map = new Map<string, ByteSource>();
  for (const source of sources) map.set(source.name, source);
  return {
    name,
    names: () => [...map.keys()],
    has: (file) => map.has(file),
    async open(file) {
      const source = map.get(file);
      if (!source) throw missingFile(name, file);
      return source;
    },
  };
}

/** The error of a file that a folder lacks. */
export function missingFile(folder: string, file: string): ModelError {
  return new ModelError(`${file} is missing`, { place: folder });
}

/** The bytes of a whole source in pieces of at most `chunkBytes`, in order. */
export async function* chunks(
  source: ByteSource,
  chunkBytes = 4 << 20,
): AsyncGenerator<Uint8Array> {
  for (let offset = 0; offset < source.size; offset += chunkBytes) {
    yield await source.read(offset, Math.min(chunkBytes, source.size - offset));
  }
}

/** Largest text or JSON file that is read whole. */
const MAX_TEXT_BYTES = 256 << 20;

/** A whole small file of a folder, or null when it is not there. @throws FormatError when it is absurdly large. */
export async function readSmall(folder: ByteFolder, name: string): Promise<Uint8Array | null> {
  if (!folder.has(name)) return null;
  const source = await folder.open(name);
  try {
    if (source.size > MAX_TEXT_BYTES) {
      throw new FormatError(`${source.size} bytes are too many for this kind of file`, {
        place: name,
      });
    }
    return await source.read(0, source.size);
  } finally {
    await source.close();
  }
}

/** UTF-8 text of bytes. @throws FormatError when they are not UTF-8. */
export function utf8(bytes: Uint8Array, place: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FormatError("not UTF-8 text", { place, cause });
  }
}

/** A JSON object of bytes. @throws FormatError when they are not UTF-8, not JSON or not an object. */
export function jsonObject(bytes: Uint8Array, place: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(utf8(bytes, place));
  } catch (cause) {
    if (cause instanceof NibbleError) throw cause;
    throw new FormatError(`not JSON: ${(cause as Error).message}`, { place, cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FormatError("a JSON object is expected", { place });
  }
  return value as Record<string, unknown>;
}
