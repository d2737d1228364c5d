import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { bufferSource } from "../core/byte-source.js";
import { NibbleError } from "../core/errors.js";
import { Philox } from "../core/rng.js";
import { sha256 } from "../core/sha256.js";
import type { KvPlane } from "../model/model.js";
import { calibrateKv } from "../recipe/calibrate-kv.js";
import { readKvCalibration } from "./kv-calibration.js";
import { type OpenedModel, type OpenOptions, openLoaded } from "./opened.js";
import { readPromptCache } from "./prompt-cache.js";
import { createSession, type GenerateOptions, type Session } from "./session.js";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-prompt-cache-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const opened: OpenedModel[] = [];
afterEach(async () => {
  for (const model of opened.splice(0)) await model.close();
});
/** Head size 32, which kivi needs. */
async function open(options: OpenOptions = {}, hash = "0"): Promise<OpenedModel> {
  const model = tinyModel({ maxPositionEmbeddings: 320, headDim: 32 });
  const source = { id: "tiny", sha256: async () => hash.repeat(64) };
  const result = await openLoaded(
    { ...model, source },
    {
      backend: "reference",
      threads: 1,
      maxRows: 64,
      ...options,
    },
  );
  opened.push(result);
  return result;
}

const PROMPT = Array.from({ length: 150 }, (_, i) => new Philox(1, "prompt", i).below(50));
async function drain(session: Session, ids: number[], options: GenerateOptions) {
  const tokens: number[] = [];
  for await (const piece of session.generate(ids, options)) tokens.push(piece.token);
  return tokens;
}
const answer = (session: Session, ids: number[], maxTokens = 30) =>
  drain(session, ids, { maxTokens, temperature: 1, seed: 2 });

it("a later process begins where this one was, for every codec", async () => {
  for (const kv of ["fp32", "fp16", "quarot-kv4", "kivi2"]) {
    const path = join(folder, `${kv}.cache`);
    const first = createSession(await open({ kv }));
    const tokens = await answer(first, PROMPT, 1);
    // 150 tokens are in the cache: four full pages.
    expect(await first.saveCache(path)).toBe(128);
    tokens.push(...(await answer(first, [...PROMPT, ...tokens], 20)));

    const later = await open({ kv, sequences: 2, ...(kv === "kivi2" ? { maxRows: 32 } : {}) });
    const second = createSession(later, 1);
    // Something else was there before.
    await answer(second, PROMPT.slice(20, 90), 3);
    expect(await second.loadCache(path)).toBe(128);
    const again = await answer(second, PROMPT, 1);
    expect(second.summary?.reusedTokens).toBe(128);
    again.push(...(await answer(second, [...PROMPT, ...again], 20)));
    expect(again).toEqual(tokens);

    // A prompt that leaves the saved text earlier still gives what it gives without a file.
    const third = createSession(later, 0);
    await third.loadCache(path);
    const other = [...PROMPT.slice(0, 70), 3, 4, 5];
    const fresh = createSession(await open({ kv }));
    expect(await answer(third, other)).toEqual(await answer(fresh, other));
  }
});

it("greedy answers go on over managed caches as if the session had never ended", async () => {
  const calibration = join(folder, "kv.safetensors");
  const kvquant = { codec: "kvquant", bits: 3, group: 8 };
  await calibrateKv(tinyModel({ maxPositionEmbeddings: 320, headDim: 32 }), {
    ...{ kv: { k: kvquant, v: kvquant }, output: calibration, file: null, samples: 2, seqlen: 24 },
    ...{ seed: 0, backend: "reference", threads: 1 },
  });
  const kvCalibration = await readKvCalibration(
    bufferSource(await readFile(calibration), "kv"),
    tinyModel({ headDim: 32 }).config,
  );
  const kivi = { codec: "kivi", bits: 2, group: 32, residual: 32 };
  const both = (plane: KvPlane, sinks = 0) => ({ k: plane, v: plane, sinks });
  for (const kv of [
    both(kivi, 2),
    both({ codec: "gear", base: { ...kivi, residual: 64 }, rank: 2 }),
    both(kvquant, 1),
    both({ codec: "qaq", qNorm: 300, window: 33 }),
    { ...both({ codec: "fp16" }), retention: { type: "h2o", heavy: 0.2, recent: 0.2 } },
  ]) {
    const path = join(folder, "managed.cache");
    const greedy = { maxTokens: 25, temperature: 0 };
    const first = createSession(await open({ kv, kvCalibration }));
    await drain(first, PROMPT, { ...greedy, maxTokens: 1 });
    const kept = await first.saveCache(path);
    expect(kept).toBe(first.cachedTokens.length);
    const prompt = [...PROMPT, 7, 8];
    const expected = await drain(first, prompt, greedy);
    const second = createSession(await open({ kv, kvCalibration, sequences: 2 }), 1);
    expect(await second.loadCache(path)).toBe(kept);
    expect([kv, await drain(second, prompt, greedy)]).toEqual([kv, expected]);
    expect(second.summary?.reusedTokens).toBe(kept);
    // Codes mean something else under other tables.
    const other = await open({ kv, kvCalibration: { ...kvCalibration, sha256: "f".repeat(64) } });
    await expect(createSession(other).loadCache(path)).rejects.toMatchObject({
      code: "prompt-cache-kv",
    });
  }
});

it("equal sessions write equal files, and leave nothing else behind", async () => {
  const [a, b] = [join(folder, "a"), join(folder, "b")];
  const model = await open({ kv: "quarot-kv4" });
  const session = createSession(model);
  await answer(session, PROMPT.slice(0, 70));
  await session.saveCache(a);
  const other = createSession(await open({ kv: "quarot-kv4" }));
  await answer(other, PROMPT.slice(50, 150));
  await answer(other, PROMPT.slice(0, 70));
  await other.saveCache(b);
  expect((await readFile(a)).equals(await readFile(b))).toBe(true);
  expect((await readdir(folder)).filter((name) => name.includes("tmp"))).toEqual([]);
  await expect(session.saveCache(join(a, "under a file"))).rejects.toThrow(
    expect.objectContaining({ code: "resource" }),
  );
});

it("refuses files of other models, recipes and sizes, and leaves the session as it was", async () => {
  const path = join(folder, "mismatch");
  const session = createSession(await open({ kv: "fp16" }));
  await answer(session, PROMPT, 2);
  await session.saveCache(path);
  const refusals: [OpenedModel, string][] = [
    [await open({ kv: "fp16" }, "1"), "prompt-cache-model"],
    [await open({ kv: "fp32" }), "prompt-cache-kv"],
    [await open({ kv: "fp16", maxContext: 96 }), "context-full"],
  ];
  for (const [model, code] of refusals) {
    const other = createSession(model);
    await answer(other, PROMPT.slice(0, 40), 5);
    const before = [...other.cachedTokens];
    await expect(other.loadCache(path)).rejects.toThrow(expect.objectContaining({ code }));
    expect(other.cachedTokens).toEqual(before);
    await answer(other, before, 2);
    expect(other.summary?.reusedTokens).toBe(before.length - 1);
  }
  await expect(session.loadCache(join(folder, "missing"))).rejects.toThrow(NibbleError);
});

it("refuses files written with another calibration, or with activations of another kind", async () => {
  const config = { maxPositionEmbeddings: 320, headDim: 32 };
  const kvquant = { codec: "kvquant", bits: 3, group: 8 };
  const kv = { k: kvquant, v: kvquant };
  const calibrated = async (seed: number) => {
    const output = join(folder, `calibration-${seed}`);
    await calibrateKv(tinyModel(config), {
      ...{ kv, output, file: null, samples: 1, seqlen: 24, seed },
      ...{ backend: "reference", threads: 1 },
    });
    return readKvCalibration(bufferSource(await readFile(output), "kv"), tinyModel(config).config);
  };
  const [one, other] = [await calibrated(0), await calibrated(1)];
  const path = join(folder, "calibrated");
  const session = createSession(await open({ kv, kvCalibration: one }));
  await answer(session, PROMPT.slice(0, 40), 1);
  await session.saveCache(path);
  // The same file from another place is the same calibration.
  const moved = { ...kv, calibration: "elsewhere.safetensors" };
  await createSession(await open({ kv: moved, kvCalibration: one })).loadCache(path);
  const code = (text: string) => expect.objectContaining({ code: text });
  const wrong = createSession(await open({ kv, kvCalibration: other }));
  await expect(wrong.loadCache(path)).rejects.toThrow(code("prompt-cache-kv"));
  const coarse = createSession(await open({ kv, kvCalibration: one, activations: "i8" }));
  await expect(coarse.loadCache(path)).rejects.toThrow(code("prompt-cache-model"));
});

it("a forged managed cache is refused for what it decodes to", async () => {
  const plane = { codec: "qaq", qNorm: 300, window: 5 };
  const { image, ...model } = await open({ kv: { k: plane, v: plane } });
  const slots = 60;
  await model.runner.prefill(0, PROMPT.slice(0, slots), 0, { logits: false });
  const good = image.save(0, slots);
  image.check(good, slots);
  const forged = (change: (view: DataView) => void) => {
    const bytes = good.slice();
    change(new DataView(bytes.buffer));
    return () => image.check(bytes, slots);
  };
  const view = new DataView(good.buffer);
  // Prompt length, five sizes, positions; then the exact rows, each behind its length.
  const sealed = view.getInt32(4 + 12, true);
  const rows = 4 + 20 + 4 * slots;
  const rowBytes = view.getInt32(rows, true);
  const group = rows + (slots - sealed) * (4 + rowBytes) + 8;
  expect([sealed, view.getInt32(group - 8, true)]).toEqual([32, 1]);
  const format = expect.objectContaining({ code: "format" });
  expect(forged((v) => v.setFloat32(rows + 4, Number.NaN, true))).toThrow(format);
  // The width of the first token, in bits; its centre.
  expect(forged((v) => v.setUint8(group, 30))).toThrow(format);
  expect(forged((v) => v.setUint16(group + 32, 0x7c00, true))).toThrow(format);
});

it("damaged and hostile files give typed errors only", async () => {
  const model = await open({ kv: "quarot-kv4" });
  const session = createSession(model);
  await answer(session, PROMPT.slice(0, 70), 1);
  const path = join(folder, "fuzz");
  await session.saveCache(path);
  const good = await readFile(path);
  const read = (bytes: Uint8Array) => readPromptCache(model, bufferSource(bytes, "fuzz"));
  expect((await read(good)).tokens).toEqual(PROMPT.slice(0, 64));

  const rehash = (bytes: Uint8Array) => {
    const hash = sha256();
    hash.update(bytes.subarray(0, -32));
    bytes.set(Buffer.from(hash.digest(), "hex"), bytes.length - 32);
    return bytes;
  };
  const headerBytes = good.readUInt32LE(12);
  const damage = fc.oneof(
    fc.record({ kind: fc.constant("cut" as const), at: fc.nat(good.length - 1) }),
    fc.record({ kind: fc.constant("append" as const), at: fc.integer({ min: 1, max: 100 }) }),
    fc.record({
      kind: fc.constant("set" as const),
      // Mostly where lengths stand.
      at: fc.oneof(fc.nat(16 + headerBytes), fc.nat(good.length - 1)),
      xor: fc.integer({ min: 1, max: 255 }),
      honest: fc.boolean(),
    }),
  );
  await fc.assert(
    fc.asyncProperty(damage, async (change) => {
      let bytes = new Uint8Array(good);
      if (change.kind === "cut") bytes = bytes.slice(0, change.at);
      else if (change.kind === "append") {
        bytes = new Uint8Array([...bytes, ...new Uint8Array(change.at)]);
      } else {
        bytes[change.at] = (bytes[change.at] as number) ^ change.xor;
        // A forger can write a checksum too: then other tokens or codes are all there is to notice.
        if (change.honest) rehash(bytes);
      }
      const outcome = await read(bytes).catch((error: unknown) => error);
      if (outcome instanceof NibbleError) return;
      expect(change).toMatchObject({ kind: "set", honest: true });
      expect((outcome as { tokens: number[] }).tokens.every((t) => t >= 0 && t < 50)).toBe(true);
    }),
    { numRuns: 400 },
  );
  // Hostile sizes, with a checksum that is right.
  const header = JSON.parse(good.subarray(16, 16 + headerBytes).toString());
  for (const change of [
    { tokens: 2 ** 31 },
    { tokens: 63 },
    { tokens: 0 },
    { bytes: 2 ** 52 },
    { bytes: -1 },
    { tokens: 1e300 },
    { extra: 1 },
  ]) {
    const text = Buffer.from(JSON.stringify({ ...header, ...change }));
    const bytes = Buffer.concat([good.subarray(0, 16), text, good.subarray(16 + headerBytes)]);
    bytes.writeUInt32LE(text.length, 12);
    const error = await read(rehash(bytes)).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: expect.stringMatching(/^(format|context-full)$/) });
  }
  await writeFile(path, good.subarray(0, 100));
  const before = [...session.cachedTokens];
  await expect(session.loadCache(path)).rejects.toThrow(
    expect.objectContaining({ code: "format" }),
  );
  expect(session.cachedTokens).toEqual(before);
});
