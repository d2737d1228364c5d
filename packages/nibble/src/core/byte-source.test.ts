import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  blobSource,
  bufferSource,
  chunks,
  httpSource,
  jsonObject,
  readSmall,
  sourceFolder,
} from "./byte-source.js";
import { FormatError, ModelError } from "./errors.js";
import { fileFolder, fileSource, openPath } from "./file-source.js";

const data = Uint8Array.from({ length: 1000 }, (_, i) => (i * 7) & 255);
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-source-"));
  await writeFile(join(folder, "a.bin"), data);
  await writeFile(join(folder, "short.bin"), data);
});
afterAll(() => rm(folder, { recursive: true }));

describe.each([
  ["memory", async () => bufferSource(data)],
  ["blob", async () => blobSource(new Blob([data]))],
  ["file", () => fileSource(join(folder, "a.bin"))],
])("%s source", (_, make) => {
  it("reads any range and nothing beyond", async () => {
    const source = await make();
    expect(source.size).toBe(1000);
    expect([...(await source.read(990, 10))]).toEqual([...data.subarray(990)]);
    expect((await source.read(1000, 0)).length).toBe(0);
    for (const [offset, length] of [
      [990, 11],
      [-1, 2],
      [0, 2 ** 53],
      [0.5, 1],
      [0, Number.NaN],
    ] as const) {
      await expect(source.read(offset, length)).rejects.toThrow(FormatError);
    }
    await source.close();
  });
});

describe("files", () => {
  it("a missing file and a folder are typed errors that name no path", async () => {
    await expect(fileSource(join(folder, "none"))).rejects.toThrow(/^none: no such file$/);
    await expect(fileSource(folder)).rejects.toThrow(ModelError);
  });
  it("a file that shrinks while open is a FormatError", async () => {
    const source = await fileSource(join(folder, "short.bin"));
    await truncate(join(folder, "short.bin"), 10);
    await expect(source.read(0, 1000)).rejects.toThrow(FormatError);
    await source.close();
    await expect(source.read(0, 1)).rejects.toThrow(ModelError);
  });
  it("a folder lists its files", async () => {
    const files = await fileFolder(folder);
    expect(files.names()).toEqual(["a.bin", "short.bin"]);
    await expect(files.open("../a.bin")).rejects.toThrow(ModelError);
    expect("names" in (await openPath(folder))).toBe(true);
  });
});

describe("http source", () => {
  it("reads ranges, refuses servers without them", async () => {
    const server = createServer((request, response) => {
      const match = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
      if (request.url === "/plain" || !match) return void response.end(data);
      if (request.url !== "/a.bin") return void response.writeHead(404).end();
      const [from, to] = [Number(match[1]), Number(match[2])];
      response.writeHead(206, { "content-range": `bytes ${from}-${to}/1000` });
      response.end(data.subarray(from, to + 1));
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    try {
      const source = await httpSource(`${base}/a.bin`);
      expect([source.name, source.size]).toEqual(["a.bin", 1000]);
      expect([...(await source.read(5, 6))]).toEqual([...data.subarray(5, 11)]);
      await expect(source.read(999, 2)).rejects.toThrow(FormatError);
      await expect(httpSource(`${base}/plain`)).rejects.toThrow(/ignores range/);
      await expect(httpSource(`${base}/none`)).rejects.toThrow(/404/);
    } finally {
      server.close();
    }
    await expect(httpSource(`${base}/a.bin`)).rejects.toThrow(/no answer/);
  });
});

it("chunks covers a source in order", async () => {
  const parts: number[] = [];
  for await (const part of chunks(bufferSource(data), 300)) parts.push(part.length);
  expect(parts).toEqual([300, 300, 300, 100]);
});

it("readSmall and jsonObject give typed errors", async () => {
  const files = sourceFolder([bufferSource(Uint8Array.of(0xff), "x.json")]);
  expect(await readSmall(files, "none")).toBeNull();
  const bytes = (await readSmall(files, "x.json")) as Uint8Array;
  expect(() => jsonObject(bytes, "x.json")).toThrow(/x.json: not UTF-8/);
  const text = (value: string) => new TextEncoder().encode(value);
  expect(() => jsonObject(text("[1]"), "x.json")).toThrow(/object/);
  expect(() => jsonObject(text("{"), "x.json")).toThrow(FormatError);
});
