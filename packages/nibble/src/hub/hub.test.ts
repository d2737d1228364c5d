import { createHash } from "node:crypto";
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FormatError, InterruptedError, ModelError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import type { ProgressEvent } from "../core/progress.js";
import {
  cachedModel,
  type Environment,
  hubCache,
  modelFolders,
  modelInFolder,
  repoFolder,
} from "./cache.js";
import { downloadModel, UNREACHABLE } from "./download.js";
import { ALIASES, resolveModel } from "./resolve.js";

let folder: string;
let env: Environment;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nibble-hub-"));
  env = { NIBBLE_HOME: join(folder, "home"), HF_HOME: join(folder, "hf"), HF_HUB_OFFLINE: "1" };
});
afterEach(() => rm(folder, { recursive: true }));

const commit = "0123456789abcdef0123456789abcdef01234567";
const gitHash = (bytes: Uint8Array) =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
const sha = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** A hub of one repository. `hook` may answer a request itself. */
async function hub(
  files: Record<string, Uint8Array>,
  hook: (request: IncomingMessage, response: ServerResponse) => boolean = () => false,
) {
  const seen: string[] = [];
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const url = new URL(request.url ?? "", "http://x");
    seen.push(
      `${url.pathname} ${request.headers.range ?? ""} ${request.headers.authorization ?? ""}`.trim(),
    );
    if (hook(request, response)) return;
    const json = (value: unknown) => {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(value));
    };
    if (url.pathname.startsWith("/api/models/org/tiny/revision/")) {
      return json({
        _id: "1",
        id: "org/tiny",
        sha: commit,
        private: false,
        gated: false,
        downloads: 0,
        likes: 0,
        lastModified: "2026-01-01",
      });
    }
    if (url.pathname.startsWith(`/api/models/org/tiny/tree/${commit}`)) {
      return json(
        Object.entries(files).map(([path, bytes]) => ({
          type: "file",
          path,
          size: bytes.length,
          oid: gitHash(bytes),
          ...(path.endsWith(".safetensors") && {
            lfs: { oid: sha(bytes), size: bytes.length, pointerSize: 130 },
          }),
        })),
      );
    }
    const bytes = files[url.pathname.replace(`/org/tiny/resolve/${commit}/`, "")];
    if (!bytes) return void response.writeHead(404).end();
    const match = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [from, to] = match ? [Number(match[1]), Number(match[2])] : [0, bytes.length - 1];
    response.writeHead(match ? 206 : 200, {
      etag: '"x"',
      "content-range": `bytes ${from}-${to}/${bytes.length}`,
    });
    response.end(bytes.subarray(from, to + 1));
  };
  const server: Server = createServer(answer);
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    env: { ...env, HF_HUB_OFFLINE: "", HF_ENDPOINT: url, HF_TOKEN: "hf_test" },
    seen,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

const weights = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 31) & 255);
const repo = {
  "config.json": new TextEncoder().encode("{}"),
  "tokenizer.json": new TextEncoder().encode("{ }"),
  "model.safetensors": weights,
  "README.md": new TextEncoder().encode("not fetched"),
  "onnx/model.onnx": new Uint8Array(10),
};

describe("places", () => {
  it("follow the environment in the order of the other tools", () => {
    expect(nibbleHome({ NIBBLE_HOME: "/n" })).toBe("/n");
    expect(modelFolders({ NIBBLE_HOME: "/n", NIBBLE_MODEL_DIR: "/m" })).toEqual([
      "/m",
      "/n/models",
    ]);
    expect(hubCache({ HF_HUB_CACHE: "/a", HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c" })).toBe("/a");
    expect(hubCache({ HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c" })).toBe("/b");
    expect(hubCache({ HF_HOME: "/c", XDG_CACHE_HOME: "/d" })).toBe("/c/hub");
    expect(hubCache({ XDG_CACHE_HOME: "/d" })).toBe("/d/huggingface/hub");
    expect(repoFolder("org/name", { HF_HUB_CACHE: "/a" })).toBe("/a/models--org--name");
  });
  it("modelInFolder: checkpoint, only GGUF file, or what is wrong", async () => {
    await expect(modelInFolder(folder)).rejects.toThrow(/no model here/);
    await writeFile(join(folder, "a.gguf"), "");
    expect(await modelInFolder(folder)).toBe(join(folder, "a.gguf"));
    await writeFile(join(folder, "b.gguf"), "");
    await expect(modelInFolder(folder)).rejects.toThrow(/a.gguf, b.gguf/);
    await writeFile(join(folder, "config.json"), "{}");
    await writeFile(join(folder, "model.safetensors"), "");
    expect(await modelInFolder(folder)).toBe(folder);
    const index = { weight_map: { a: "model-00001-of-00002.safetensors" } };
    await writeFile(join(folder, "model.safetensors.index.json"), JSON.stringify(index));
    await expect(modelInFolder(folder)).rejects.toThrow(/model-00001-of-00002/);
  });
});

describe("downloadModel", () => {
  it("fills the shared cache: blobs, links, refs; with the token and progress; fetches nothing twice", async () => {
    const server = await hub(repo);
    try {
      const events: ProgressEvent[] = [];
      const path = await downloadModel("org/tiny", "main", {
        env: server.env,
        onProgress: (event) => void events.push(event),
      });
      const root = repoFolder("org/tiny", env);
      expect(path).toBe(join(root, "snapshots", commit));
      expect((await readdir(path)).sort()).toEqual([
        "config.json",
        "model.safetensors",
        "tokenizer.json",
      ]);
      expect(await readFile(join(root, "refs", "main"), "utf8")).toBe(commit);
      expect(await readlink(join(path, "model.safetensors"))).toBe(`../../blobs/${sha(weights)}`);
      expect(new Uint8Array(await readFile(join(path, "model.safetensors")))).toEqual(weights);
      expect(server.seen.every((line) => line.endsWith("Bearer hf_test"))).toBe(true);
      expect(events.at(-1)).toMatchObject({ type: "step", stage: "downloading" });
      expect(await cachedModel("org/tiny", "main", env)).toBe(path);
      expect(await cachedModel("org/tiny", commit, env)).toBe(path);
      expect(await resolveModel("org/tiny", { env })).toBe(path);
      const before = server.seen.length;
      await downloadModel("org/tiny", "main", { env: server.env });
      expect(server.seen.slice(before).filter((line) => line.includes("/resolve/"))).toEqual([]);
    } finally {
      server.close();
    }
  });

  it("goes on where a broken connection stopped", async () => {
    let broken = 0;
    const server = await hub(repo, (request, response) => {
      const match = /model.safetensors/.test(request.url ?? "");
      if (!match || request.headers.range === "bytes=0-0" || broken++ > 0) return false;
      response.writeHead(200, { "content-length": String(weights.length) });
      response.write(weights.subarray(0, 60_000), () => setTimeout(() => response.destroy(), 50));
      return true;
    });
    try {
      const first = await downloadModel("org/tiny", "main", { env: server.env }).catch(
        (e: unknown) => e,
      );
      expect(first).toMatchObject({ code: UNREACHABLE });
      const incomplete = join(repoFolder("org/tiny", env), "blobs", `${sha(weights)}.incomplete`);
      const have = (await stat(incomplete)).size;
      expect(have).toBeGreaterThan(0);
      expect(await cachedModel("org/tiny", "main", env)).toBeNull();
      const path = await downloadModel("org/tiny", "main", { env: server.env });
      expect(new Uint8Array(await readFile(join(path, "model.safetensors")))).toEqual(weights);
      expect(server.seen.some((line) => line.includes(`bytes=${have}-${weights.length - 1}`))).toBe(
        true,
      );
    } finally {
      server.close();
    }
  });

  it("damaged bytes are removed and named", async () => {
    const server = await hub(repo);
    try {
      const blobs = join(repoFolder("org/tiny", env), "blobs");
      await mkdir(blobs, { recursive: true });
      await appendFile(join(blobs, `${sha(weights)}.incomplete`), new Uint8Array(1000));
      const promise = downloadModel("org/tiny", "main", { env: server.env });
      await expect(promise).rejects.toThrow(FormatError);
      await expect(promise).rejects.toThrow(/model.safetensors does not match its hash/);
      await downloadModel("org/tiny", "main", { env: server.env });
    } finally {
      server.close();
    }
  });

  it.each<[string, number, RegExp]>([
    ["missing", 404, /no such repository/],
    ["gated", 403, /private or gated/],
    ["broken", 500, /answered 500/],
  ])("%s repository", async (_, status, message) => {
    const server = await hub({}, (__, response) => {
      response.writeHead(status).end();
      return true;
    });
    try {
      const promise = downloadModel("org/tiny", "main", { env: server.env });
      await expect(promise).rejects.toThrow(ModelError);
      await expect(promise).rejects.toThrow(message);
    } finally {
      server.close();
    }
  });

  it("gives up on a silent server, and at once on abort", async () => {
    const server = await hub({}, () => true);
    try {
      const silent = downloadModel("org/tiny", "main", { env: server.env, timeoutMs: 100 });
      await expect(silent).rejects.toMatchObject({ code: UNREACHABLE });
      const controller = new AbortController();
      const aborted = downloadModel("org/tiny", "main", {
        env: server.env,
        signal: controller.signal,
      });
      setTimeout(() => controller.abort(), 50);
      await expect(aborted).rejects.toThrow(InterruptedError);
    } finally {
      server.close();
    }
  });

  it("refuses names that are paths, repositories without weights, and offline use", async () => {
    for (const name of ["../x/y", "a/../b", "org/na me"]) {
      await expect(downloadModel(name, "main", { env })).rejects.toThrow(/no name of a model/);
    }
    await expect(downloadModel("org/x", "../main", { env })).rejects.toThrow(ModelError);
    await expect(downloadModel("org/x", "main", { env })).rejects.toThrow(/HF_HUB_OFFLINE/);
    const server = await hub({ "config.json": new Uint8Array(2) });
    try {
      await expect(downloadModel("org/tiny", "main", { env: server.env })).rejects.toThrow(
        /neither safetensors/,
      );
    } finally {
      server.close();
    }
  });
});

describe("resolveModel", () => {
  it("paths, names in NIBBLE_MODEL_DIR, aliases there", async () => {
    const models = join(folder, "models");
    await mkdir(models);
    const file = join(models, "mine.gguf");
    await writeFile(file, "");
    const own = { ...env, NIBBLE_MODEL_DIR: models };
    expect(await resolveModel(file, { env })).toBe(file);
    expect(await resolveModel(models, { env })).toBe(file);
    expect(await resolveModel("mine", { env: own })).toBe(file);
    expect(await resolveModel("mine.gguf", { env: own })).toBe(file);
    const alias = join(models, ALIASES["smollm2-135m"]?.file ?? "");
    await writeFile(alias, "");
    expect(await resolveModel("smollm2-135m", { env: own })).toBe(alias);
    expect(await resolveModel("nothing/here", { env: own }).catch((e: unknown) => e)).toMatchObject(
      {
        code: UNREACHABLE,
      },
    );
    await writeFile(join(folder, "secret.gguf"), "");
    await expect(resolveModel("../secret", { env: own })).rejects.toThrow(/no such file/);
  });

  it("a link whose blob is gone does not count as cached", async () => {
    const root = repoFolder("org/tiny", env);
    const snapshot = join(root, "snapshots", commit);
    await mkdir(snapshot, { recursive: true });
    await writeFile(join(snapshot, "config.json"), "{}");
    await symlink("../../blobs/gone", join(snapshot, "model.safetensors"));
    expect(await cachedModel("org/tiny", commit, env)).toBeNull();
  });

  it.each([
    ["", /no model was named/],
    ["smollm2-135", /Did you mean smollm2-135m|neither a path/],
    ["/none/at/all", /no such file or folder/],
    ["./none", /no such file or folder/],
    ["none.gguf", /no such file or folder/],
    ["a/b/c", /neither a path/],
  ])("%s is refused with a way out", async (name, message) => {
    const error = (await resolveModel(name, { env }).catch((e: unknown) => e)) as ModelError;
    expect(error).toBeInstanceOf(ModelError);
    expect(error.message).toMatch(message);
    expect(error.hint).toBeTruthy();
  });

  it("an alias that cannot be had names the three ways to provide it", async () => {
    const error = (await resolveModel("smollm2-135m", {
      env,
      pip: [["no-such-program-of-nibble"]],
    }).catch((e: unknown) => e)) as ModelError;
    expect(error).toBeInstanceOf(ModelError);
    expect(error.message).toMatch(/HF_HUB_OFFLINE.*pip is not installed/);
    expect(error.hint).toMatch(/NIBBLE_MODEL_DIR.*hub.*pip/s);
  });
});
