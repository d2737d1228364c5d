import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fetchDatasetFile } from "./dataset.js";

let server: Server;
let home = "";
const asked: string[] = [];
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "nibble-data-"));
  server = createServer((request, response) => {
    asked.push(`${request.url} ${request.headers.authorization ?? ""}`.trim());
    if (request.url?.endsWith("/good.jsonl")) response.end("line\n");
    else response.writeHead(404).end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
});
afterAll(async () => {
  server.close();
  await rm(home, { recursive: true });
});
const env = () => ({
  NIBBLE_HOME: home,
  HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
  HF_TOKEN: "t",
});

describe("fetchDatasetFile", () => {
  it("fetches once and keeps the file", async () => {
    for (let i = 0; i < 2; i++) {
      const bytes = await fetchDatasetFile("org/set", "data/good.jsonl", { env: env() });
      expect(new TextDecoder().decode(bytes)).toBe("line\n");
    }
    expect(asked).toEqual(["/datasets/org/set/resolve/main/data/good.jsonl Bearer t"]);
  });
  it("says what to do when there is no such file, no connection, or no permission to connect", async () => {
    await expect(fetchDatasetFile("org/set", "bad.jsonl", { env: env() })).rejects.toMatchObject({
      code: "task-missing",
      hint: expect.stringContaining("--task-dir"),
    });
    const nowhere = { ...env(), HF_ENDPOINT: "http://127.0.0.1:1" };
    await expect(fetchDatasetFile("org/set", "b", { env: nowhere })).rejects.toMatchObject({
      code: "hub-unreachable",
    });
    const offline = { ...env(), HF_HUB_OFFLINE: "1" };
    await expect(fetchDatasetFile("org/set", "b", { env: offline })).rejects.toThrow(
      /HF_HUB_OFFLINE/,
    );
  });
});
