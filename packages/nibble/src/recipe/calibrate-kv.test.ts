import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { tinyModel } from "../../test/tiny-model.js";
import { bufferSource } from "../core/byte-source.js";
import { saveSafetensors } from "../formats/safetensors-save.js";
import { kvCodecs } from "../kv/codecs/index.js";
import { readKvCalibration } from "../runtime/kv-calibration.js";
import { type CalibrateKvOptions, calibrateKv } from "./calibrate-kv.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-calibrate-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const KV = { k: { codec: "kvquant", bits: 3 }, v: { codec: "kvquant", bits: 2 } };
const run = (changes: Partial<CalibrateKvOptions> = {}) =>
  calibrateKv(tinyModel(), {
    kv: KV,
    output: join(folder, "kv.safetensors"),
    file: null,
    samples: 4,
    seqlen: 24,
    seed: 0,
    backend: "reference",
    threads: 1,
    ...changes,
  });
const load = async (path = join(folder, "kv.safetensors"), config = tinyModel().config) =>
  readKvCalibration(bufferSource(await readFile(path), "kv.safetensors"), config);

describe("calibrateKv", () => {
  it("writes tables that the codecs work with, equal bytes for equal seeds", async () => {
    const events: string[] = [];
    const result = await run({
      onProgress: (e) => void (e.type === "step" && events.push(`${e.stage} ${e.item}/${e.total}`)),
    });
    expect(result).toMatchObject({ layers: 2, tokens: 96, sampledTokens: 96, tensors: 12 });
    expect(events).toContain("calibrating 2/2");
    expect(await readdir(folder)).toEqual(["kv.safetensors"]);
    const artifact = await load();
    expect(artifact.sha256).toBe(result.sha256);
    expect(artifact.metadata.get("sensitivity")).toContain("no gradients");
    expect(JSON.parse(artifact.metadata.get("kv") as string)).toEqual(KV);
    for (let layer = 0; layer < 2; layer++) {
      for (let kvHead = 0; kvHead < 2; kvHead++) {
        for (const plane of ["k", "v"] as const) {
          const { codec, ...entry } = KV[plane];
          const definition = kvCodecs.get(codec);
          const calibration = artifact.tensors(layer, kvHead);
          const info = { plane, headDim: 8, layer, kvHead, seed: 0, calibration };
          expect(() => definition.create(definition.options.parse(entry), info)).not.toThrow();
        }
      }
    }
    expect(artifact.tensors(0, 0).get("k.low")).not.toEqual(artifact.tensors(0, 1).get("k.low"));
    expect(artifact.tensors(0, 0).get("k.table")).toEqual(artifact.tensors(0, 1).get("k.table"));
    const again = await run({ output: join(folder, "again.safetensors") });
    expect(again.sha256).toBe(result.sha256);
    const other = await run({ output: join(folder, "other.safetensors"), seed: 1 });
    expect(other.sha256).not.toBe(result.sha256);
  });

  it("keeps to its memory, and learns for GEAR over a base and for QAQ too", async () => {
    const gear = { codec: "gear", base: { codec: "kvquant", bits: 3, group: 32 } };
    const result = await run({
      kv: { k: gear, v: { codec: "qaq" } },
      maxBytes: 50 * 8 * 16,
    });
    expect(result.sampledTokens).toBe(50);
    expect([...(await load()).tensors(1, 1).keys()].sort()).toEqual([
      "k.high",
      "k.low",
      "k.norm",
      "k.table",
    ]);
    await run({ kv: { k: { codec: "qaq" }, v: { codec: "qaq" } } });
    const norm = (await load()).tensors(0, 1).get("q.norm");
    expect(norm?.length).toBe(1);
    expect(norm?.[0]).toBeGreaterThan(0);
  });

  it("refuses caches that learn nothing, windows beyond the model, texts without a tokenizer", async () => {
    const fp = { codec: "fp16" };
    await expect(run({ kv: { k: fp, v: fp } })).rejects.toThrow(/learns nothing/);
    await expect(run({ seqlen: 65 })).rejects.toThrow(/trained on 64/);
    const file = join(folder, "text.txt");
    await expect(run({ file })).rejects.toThrow(/cannot be read/);
    await writeFile(file, "words");
    await expect(run({ file })).rejects.toThrow(/no tokenizer/);
    expect(await readdir(folder)).toEqual(["text.txt"]);
  });
});

describe("readKvCalibration", () => {
  const good = {
    format: "nibble-kv-calibration",
    version: "1",
    layers: "2",
    kvHeads: "2",
    headDim: "8",
  };
  const save = async (metadata: Record<string, string>, name = "layers.0.k.table", value = 1) => {
    const path = join(folder, "made.safetensors");
    const data = Float32Array.of(0, value);
    await saveSafetensors(
      path,
      [{ name, dtype: "F32", shape: [2], data: () => new Uint8Array(data.buffer) }],
      metadata,
    );
    return load(path);
  };

  it("names what is wrong with a file", async () => {
    expect((await save(good)).tensors(0, 1).get("k.table")).toEqual(Float32Array.of(0, 1));
    await expect(save({ format: "pt" })).rejects.toThrow(/no cache calibration/);
    await expect(save({ ...good, version: "2" })).rejects.toThrow(/version 2/);
    await expect(save({ ...good, headDim: "64" })).rejects.toThrow(/headDim 64, this one has 8/);
    await expect(save(good, "layers.2.k.table")).rejects.toThrow(/does not belong/);
    await expect(save(good, "model.weight")).rejects.toThrow(/does not belong/);
    await expect(save(good, "layers.0.k.table", Number.NaN)).rejects.toThrow(/not finite/);
    await expect(
      readKvCalibration(bufferSource(new Uint8Array(20)), tinyModel().config),
    ).rejects.toThrow();
  });
});
