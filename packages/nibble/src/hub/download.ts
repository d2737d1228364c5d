/**
 * Repositories of the hub -> the shared Hugging Face cache, through @huggingface/hub. An interrupted file goes on where it
 * stopped; every file is compared with its hash before it gets its name. Node only.
 */
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { copyFile, mkdir, open, rename, rm, stat, symlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import type { ListFileEntry } from "@huggingface/hub";
import { writeError, writeFileAtomic } from "../core/atomic-write.js";
import { FormatError, InterruptedError, ModelError, NibbleError } from "../core/errors.js";
import type { OnProgress } from "../core/progress.js";
import { type Environment, exists, isOffline, modelInFolder, repoFolder } from "./cache.js";

export interface DownloadOptions {
  onProgress?: OnProgress | undefined;
  signal?: AbortSignal | undefined;
  env?: Environment | undefined;
  /** Longest wait for an answer, and for the next bytes of one. Default 30 s. */
  timeoutMs?: number | undefined;
}

/** Files a model needs, beside its weights. */
const SMALL_FILES = new Set([
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "nibble.json",
  "report.json",
]);
const INDEX = "model.safetensors.index.json";
const SHARD = /^model-\d{5}-of-\d{5}\.safetensors$/;

/** Error code when no server answers, so that callers may look elsewhere. */
export const UNREACHABLE = "hub-unreachable";

/**
 * Fetches what is missing of a repository at a revision.
 * @param repo `org/name`
 * @param revision branch, tag or commit
 * @returns the snapshot folder, or the .gguf file of a repository that has just one
 * @throws ModelError (code `hub-unreachable` when there is no connection), FormatError for bytes that do not match
 *   their hash, ResourceError when the disk is full, InterruptedError
 */
export async function downloadModel(
  repo: string,
  revision = "main",
  options: DownloadOptions = {},
): Promise<string> {
  const env = options.env ?? process.env;
  const unsafe = revision.includes("..") || !/^[\w][\w./-]*$/.test(revision);
  if (unsafe || !/^[\w.-]+\/[\w.-]+$/.test(repo) || repo.includes("..")) {
    throw new ModelError(`${repo}@${revision} is no name of a model on the hub`, {
      hint: "Write org/name or org/name@revision.",
    });
  }
  if (isOffline(env)) {
    throw new ModelError(
      "the model is not in the cache, and HF_HUB_OFFLINE is set",
      {
        place: repo,
        hint: "Unset HF_HUB_OFFLINE to fetch it.",
      },
      UNREACHABLE,
    );
  }
  const hub = await import("@huggingface/hub");
  const session = new Session(repo, options, env);
  const { common } = session;
  const info = await session.ask(() =>
    hub.modelInfo({ ...common, name: repo, revision, additionalFields: ["sha"] }),
  );
  const commit = info.sha;
  if (!/^[0-9a-f]{40}$/.test(commit)) {
    throw new FormatError("the hub named no commit", { place: repo });
  }
  const entries: ListFileEntry[] = [];
  await session.ask(async () => {
    const designation = { type: "model" as const, name: repo };
    for await (const entry of hub.listFiles({ ...common, repo: designation, revision: commit })) {
      entries.push(entry);
    }
  });
  const wanted = choose(repo, entries);
  const folder = repoFolder(repo, env);
  const total = wanted.reduce((sum, entry) => sum + sizeOf(entry), 0);
  let before = 0;
  for (const entry of wanted) {
    await session.file(folder, commit, entry, before, total, () =>
      hub.downloadFile({
        ...common,
        repo: { type: "model", name: repo },
        path: entry.path,
        revision: commit,
        xet: false,
      }),
    );
    before += sizeOf(entry);
  }
  // The name of the revision comes last: until then the snapshot does not count as complete.
  if (revision !== commit) await writeFileAtomic(join(folder, "refs", revision), commit);
  return modelInFolder(join(folder, "snapshots", commit));
}

/** Bytes of a file itself, not of the pointer that stands for it in git. */
function sizeOf(entry: ListFileEntry): number {
  return entry.lfs?.size ?? entry.size;
}

/** The files of a repository that make the model, small ones first. */
function choose(repo: string, entries: readonly ListFileEntry[]): ListFileEntry[] {
  const files = entries.filter((entry) => entry.type === "file" && !entry.path.includes("/"));
  const small = files.filter(({ path }) => SMALL_FILES.has(path));
  const sharded = files.some(({ path }) => path === INDEX);
  let weights = files.filter(({ path }) =>
    sharded ? path === INDEX || SHARD.test(path) : path === "model.safetensors",
  );
  if (weights.length === 0) {
    weights = files.filter(({ path }) => path.endsWith(".gguf"));
    if (weights.length > 1) {
      throw new ModelError(
        `there are ${weights.length} .gguf files: ${weights.map(({ path }) => path).join(", ")}`,
        { place: repo, hint: "Download one of them and name its path." },
      );
    }
  }
  if (weights.length === 0) {
    throw new ModelError("the repository has neither safetensors nor .gguf files", { place: repo });
  }
  return [...small, ...weights].sort((a, b) => sizeOf(a) - sizeOf(b));
}

/** One download of a repository: credentials, time limits, progress. */
class Session {
  readonly common: { hubUrl?: string; accessToken?: string; fetch: typeof fetch };
  readonly #timeoutMs: number;
  #reportedAt = 0;

  constructor(
    private readonly repo: string,
    private readonly options: DownloadOptions,
    env: Environment,
  ) {
    this.#timeoutMs = options.timeoutMs ?? 30_000;
    this.common = {
      fetch: (input, init) => this.#fetch(input, init),
      ...(env.HF_ENDPOINT && { hubUrl: env.HF_ENDPOINT.replace(/\/+$/, "") }),
      ...(env.HF_TOKEN && { accessToken: env.HF_TOKEN }),
    };
  }

  /** fetch that gives up when no answer comes. Reading the answer has its own limit. */
  async #fetch(input: Parameters<typeof fetch>[0], init?: RequestInit): Promise<Response> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), this.#timeoutMs);
    const { signal } = this.options;
    try {
      return await fetch(input, {
        ...init,
        signal: signal ? AbortSignal.any([signal, limit.signal]) : limit.signal,
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Runs a request and types its errors. */
  async ask<T>(request: () => Promise<T>): Promise<T> {
    try {
      return await request();
    } catch (cause) {
      throw this.#typed(cause);
    }
  }

  #typed(cause: unknown): Error {
    if (cause instanceof NibbleError) return cause;
    if (this.options.signal?.aborted) {
      return new InterruptedError("the download was interrupted; the next one goes on from here", {
        place: this.repo,
        cause,
      });
    }
    const status = (cause as { statusCode?: number }).statusCode;
    if (status === 401 || status === 403) {
      return new ModelError("the repository does not exist, or is private or gated", {
        place: this.repo,
        hint: "Check the name; for private and gated models set HF_TOKEN.",
        cause,
      });
    }
    if (status === 404) {
      return new ModelError("there is no such repository or revision", { place: this.repo, cause });
    }
    if (status !== undefined) {
      return new ModelError(`the hub answered ${status}`, { place: this.repo, cause });
    }
    return new ModelError(
      `the hub does not answer (${(cause as Error).message})`,
      { place: this.repo, hint: "Check the connection, or name a local path.", cause },
      UNREACHABLE,
    );
  }

  /** Brings one file into the cache. */
  async file(
    folder: string,
    commit: string,
    entry: ListFileEntry,
    before: number,
    total: number,
    openBlob: () => Promise<Blob | null>,
  ): Promise<void> {
    const etag = entry.lfs?.oid ?? entry.oid ?? "";
    if (!/^[0-9a-f]{40,64}$/.test(etag)) {
      throw new FormatError(`the hub gives no hash for ${entry.path}`, { place: this.repo });
    }
    const blob = join(folder, "blobs", etag);
    const pointer = join(folder, "snapshots", commit, entry.path);
    if (await exists(pointer)) return;
    await mkdir(dirname(blob), { recursive: true }).catch((cause) => {
      throw writeError(blob, cause);
    });
    if (!(await exists(blob))) await this.#fetchBlob(blob, entry, etag, before, total, openBlob);
    await link(blob, pointer);
  }

  async #fetchBlob(
    blob: string,
    entry: ListFileEntry,
    etag: string,
    before: number,
    total: number,
    openBlob: () => Promise<Blob | null>,
  ): Promise<void> {
    const incomplete = `${blob}.incomplete`;
    const size = sizeOf(entry);
    const have = await stat(incomplete).then(
      ({ size: bytes }) => bytes,
      () => 0,
    );
    let done = have <= size ? have : 0;
    // Git's own object hash for small files, plain SHA-256 for large ones.
    const hash = entry.lfs ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
    if (done > 0) await hashFile(incomplete, done, hash);
    const handle = await open(incomplete, done > 0 ? "r+" : "w").catch((cause) => {
      throw writeError(blob, cause);
    });
    try {
      if (done < size) {
        const remote = await this.ask(openBlob);
        if (!remote)
          throw new ModelError(`${entry.path} is not there any more`, { place: this.repo });
        const reader = remote.slice(done, size).stream().getReader();
        try {
          for (;;) {
            const { value, done: end } = await this.#next(reader);
            if (end) break;
            hash.update(value);
            try {
              await handle.write(value, 0, value.length, done);
            } catch (cause) {
              throw writeError(blob, cause);
            }
            done += value.length;
            this.#report(entry.path, before + done, total);
          }
        } finally {
          reader.cancel().catch(() => {});
        }
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (done < size) {
      throw new ModelError(
        `the connection ended after ${done} of ${size} bytes of ${entry.path}`,
        { place: this.repo, hint: "Run the command again; it goes on from there." },
        UNREACHABLE,
      );
    }
    if (done !== size || hash.digest("hex") !== etag) {
      await rm(incomplete, { force: true });
      throw new FormatError(`${entry.path} does not match its hash`, {
        place: this.repo,
        hint: "The download was damaged and has been removed; run the command again.",
      });
    }
    await rename(incomplete, blob);
  }

  /** The next bytes of a stream, within the time limit. */
  async #next(
    reader: ReadableStreamDefaultReader<Uint8Array>,
  ): Promise<{ value: Uint8Array; done: false } | { value?: undefined; done: true }> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("no bytes for too long")), this.#timeoutMs);
    });
    try {
      const result = await Promise.race([reader.read(), late]);
      this.options.signal?.throwIfAborted();
      return result.done ? { done: true } : { value: result.value, done: false };
    } catch (cause) {
      throw this.#typed(cause);
    } finally {
      clearTimeout(timer);
    }
  }

  #report(name: string, bytes: number, total: number): void {
    const now = performance.now();
    if (bytes < total && now - this.#reportedAt < 250) return;
    this.#reportedAt = now;
    this.options.onProgress?.({
      type: "step",
      stage: "downloading",
      item: Math.floor(bytes / 1024),
      total: Math.ceil(total / 1024),
      name: `KiB, ${name}`,
      bytes,
    });
  }
}

/** Feeds the first `bytes` of a file to a hash. */
async function hashFile(path: string, bytes: number, hash: Hash): Promise<void> {
  for await (const part of createReadStream(path, { end: bytes - 1 })) hash.update(part as Buffer);
}

/** Makes `pointer` stand for `blob`: a relative link, or a copy where links are not allowed. */
async function link(blob: string, pointer: string): Promise<void> {
  try {
    await mkdir(dirname(pointer), { recursive: true });
    await symlink(relative(dirname(pointer), blob), pointer);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "EEXIST" && (await exists(pointer))) return;
    try {
      await rm(pointer, { force: true }); // a link whose blob is gone
      await copyFile(blob, pointer);
    } catch (second) {
      throw writeError(pointer, second);
    }
  }
}
