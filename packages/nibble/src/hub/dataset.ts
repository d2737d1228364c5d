/**
 * One file of a data set on the hub, kept under NIBBLE_HOME/datasets. Node only. Data sets for evaluation are single small
 * files, so this is a plain download: whole or not at all, no resume.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { writeFileAtomic } from "../core/atomic-write.js";
import { ModelError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import { type Environment, isOffline } from "./cache.js";

export interface DatasetOptions {
  signal?: AbortSignal | undefined;
  env?: Environment | undefined;
  /** Longest wait for the whole file. Default 60 s. */
  timeoutMs?: number | undefined;
}

/**
 * Bytes of a file of a data set, from the cache or fetched.
 * @param dataset `org/name`
 * @param file path in the repository
 * @throws ModelError when it cannot be had, with the way to provide it by hand
 */
export async function fetchDatasetFile(
  dataset: string,
  file: string,
  options: DatasetOptions = {},
): Promise<Uint8Array> {
  const env = options.env ?? process.env;
  const kept = join(nibbleHome(env), "datasets", dataset.replaceAll("/", "--"), file);
  const known = await readFile(kept).catch(() => null);
  if (known) return known;
  const place = `${dataset}/${file}`;
  const hint = "Put <task>.jsonl into a folder and name it with --task-dir.";
  if (isOffline(env)) {
    throw new ModelError("the data set is not in the cache, and HF_HUB_OFFLINE is set", {
      place,
      hint,
    });
  }
  const endpoint = (env.HF_ENDPOINT || "https://huggingface.co").replace(/\/+$/, "");
  const limit = AbortSignal.timeout(options.timeoutMs ?? 60_000);
  let response: Response;
  let bytes: Uint8Array;
  try {
    response = await fetch(`${endpoint}/datasets/${dataset}/resolve/main/${file}`, {
      signal: options.signal ? AbortSignal.any([options.signal, limit]) : limit,
      ...(env.HF_TOKEN ? { headers: { authorization: `Bearer ${env.HF_TOKEN}` } } : {}),
    });
    bytes = new Uint8Array(await response.arrayBuffer());
  } catch (cause) {
    options.signal?.throwIfAborted();
    throw new ModelError("the hub cannot be reached", { place, hint, cause }, "hub-unreachable");
  }
  if (!response.ok) {
    throw new ModelError(`the hub answered ${response.status}`, { place, hint }, "task-missing");
  }
  const announced = Number(response.headers.get("content-length") ?? bytes.length);
  if (bytes.length !== announced) {
    throw new ModelError(`${bytes.length} of ${announced} bytes arrived`, {
      place,
      hint: "Try again.",
    });
  }
  await writeFileAtomic(kept, bytes);
  return bytes;
}
