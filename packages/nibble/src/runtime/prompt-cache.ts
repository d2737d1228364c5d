/**
 * The file of a prompt cache: what a session has in its cache, so that a later process begins where this one was.
 *
 *   "NIBBLEPC" | u32 version | u32 header bytes | header (JSON) | tokens i32 [n] | cache bytes | SHA-256 of all before
 *
 * little endian. The header names the model and the calibration of the cache by hash, the resolved cache recipe, how
 * activations are quantized, and the sizes. All of it is checked before
 * anything is touched, and sizes against the file before anything is allocated.
 */
import { z } from "zod";
import type { ByteSource } from "../core/byte-source.js";
import { FormatError, ModelError, ResourceError } from "../core/errors.js";
import { sha256 } from "../core/sha256.js";
import type { OpenedModel } from "./opened.js";

const MAGIC = "NIBBLEPC";
const VERSION = 1;
const FIXED = 16;
const MAX_HEADER = 1 << 16;
const DIGEST = 32;

const headerSchema = z.strictObject({
  /** SHA-256 of the model's source, or of the artifact's description. */
  model: z.string().regex(/^[0-9a-f]{64}$/),
  /** The resolved cache recipe as JSON text, with the hash of its calibration in place of a path. */
  kv: z.string(),
  /** How the inputs of linears are quantized while the model runs, as JSON text. */
  activations: z.string(),
  tokens: z
    .number()
    .int()
    .min(0)
    .max(2 ** 31),
  bytes: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER),
});

export interface PromptCache {
  tokens: number[];
  bytes: Uint8Array;
}

/** Parts of a file, in order. */
export async function promptCacheFile(
  opened: OpenedModel,
  { tokens, bytes }: PromptCache,
): Promise<Uint8Array[]> {
  const header = new TextEncoder().encode(
    JSON.stringify({
      model: await fingerprint(opened),
      kv: cacheOf(opened),
      activations: JSON.stringify(opened.model.activations),
      tokens: tokens.length,
      bytes: bytes.length,
    } satisfies z.infer<typeof headerSchema>),
  );
  const fixed = new Uint8Array(FIXED);
  fixed.set(new TextEncoder().encode(MAGIC));
  const view = new DataView(fixed.buffer);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, header.length, true);
  const ids = new DataView(new ArrayBuffer(tokens.length * 4));
  for (const [i, token] of tokens.entries()) ids.setInt32(4 * i, token, true);
  const parts = [fixed, header, new Uint8Array(ids.buffer), bytes];
  return [...parts, digest(parts)];
}

/**
 * Reads and checks a file against the model that is to use it.
 * @throws FormatError for what is truncated, damaged or no prompt cache; ModelError code "prompt-cache-model" or
 *   "prompt-cache-kv" for that of another model or cache recipe; ResourceError when it exceeds the context
 */
export async function readPromptCache(
  opened: OpenedModel,
  source: ByteSource,
): Promise<PromptCache> {
  const place = source.name;
  const damaged = (message: string) =>
    new FormatError(message, { place, hint: "Delete the file; the next run writes a new one." });
  const fixed = await source.read(0, Math.min(FIXED, source.size));
  if (fixed.length < FIXED || new TextDecoder().decode(fixed.subarray(0, 8)) !== MAGIC) {
    throw damaged("is no prompt cache of nibble");
  }
  const view = new DataView(fixed.buffer, fixed.byteOffset, FIXED);
  const version = view.getUint32(8, true);
  if (version !== VERSION) {
    throw damaged(`is a prompt cache of version ${version}, this program reads ${VERSION}`);
  }
  const headerBytes = view.getUint32(12, true);
  if (headerBytes > MAX_HEADER || FIXED + headerBytes + DIGEST > source.size) {
    throw damaged(`says that its header has ${headerBytes} bytes, more than there can be`);
  }
  const header = parseHeader(await source.read(FIXED, headerBytes), damaged);
  const expected = FIXED + headerBytes + header.tokens * 4 + header.bytes + DIGEST;
  if (expected !== source.size) {
    throw damaged(`has ${source.size} bytes, its header says ${expected}`);
  }
  if (header.model !== (await fingerprint(opened))) {
    throw new ModelError(
      "was written with another model",
      { place, hint: "Use one file a model, or delete this one." },
      "prompt-cache-model",
    );
  }
  if (header.kv !== cacheOf(opened)) {
    throw new ModelError(
      `was written with the cache ${header.kv}, the model is open with ${cacheOf(opened)}`,
      { place, hint: "Use the same --kv, or delete the file." },
      "prompt-cache-kv",
    );
  }
  if (header.activations !== JSON.stringify(opened.model.activations)) {
    throw new ModelError(
      "was written by a run that quantized its activations in another way",
      { place, hint: "Use the same --activations, or delete the file." },
      "prompt-cache-model",
    );
  }
  if (header.tokens > opened.compiled.maxContext) {
    throw new ResourceError(
      `holds ${header.tokens} tokens, the context ${opened.compiled.maxContext}`,
      { place, hint: "Open the model with a larger --max-context." },
      "context-full",
    );
  }
  const all = await source.read(0, source.size);
  const body = all.subarray(0, all.length - DIGEST);
  if (digest([body]).some((byte, i) => byte !== all[body.length + i])) {
    throw damaged("does not have the checksum that it should have");
  }
  const ids = new DataView(all.buffer, all.byteOffset + FIXED + headerBytes, header.tokens * 4);
  const tokens = Array.from({ length: header.tokens }, (_, i) => ids.getInt32(4 * i, true));
  const { vocabSize } = opened.runner;
  if (tokens.some((token) => token < 0 || token >= vocabSize)) {
    throw damaged("holds tokens that the model does not have");
  }
  const bytes = body.subarray(FIXED + headerBytes + header.tokens * 4);
  opened.image.check(bytes, header.tokens);
  return { tokens, bytes };
}

/** Everything that says what the bytes of a cache mean. */
function cacheOf({ kv, kvCalibration }: OpenedModel): string {
  const { calibration: _, ...recipe } = kv;
  return JSON.stringify({
    ...recipe,
    ...(kvCalibration ? { calibration: kvCalibration.sha256 } : {}),
  });
}

function parseHeader(bytes: Uint8Array, damaged: (message: string) => FormatError) {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw damaged("has a header that is no JSON");
  }
  const header = headerSchema.safeParse(value);
  if (!header.success) throw damaged(`has a wrong header: ${header.error.issues[0]?.message}`);
  return header.data;
}

/** What keys and values depend on besides tokens, cache recipe and its calibration, and activations. */
async function fingerprint({ model }: OpenedModel): Promise<string> {
  return model.source.artifact ?? (await model.source.sha256());
}

function digest(parts: readonly Uint8Array[]): Uint8Array {
  const hash = sha256();
  for (const part of parts) hash.update(part);
  return Uint8Array.from(hash.digest().match(/../g) ?? [], (hex) => Number.parseInt(hex, 16));
}
