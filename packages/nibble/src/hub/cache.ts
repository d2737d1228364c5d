/**
 * Where models lie on this machine: NIBBLE_MODEL_DIR, NIBBLE_HOME/models, and the cache that all Hugging Face tools share
 * (models--org--name/{blobs,refs,snapshots}). Node only.
 */
import { readdir, readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { ModelError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";

export { nibbleHome };

/** Environment variables; process.env fits. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** A variable that is set to something. */
function variable(env: Environment, name: string): string | undefined {
  return env[name] || undefined;
}

/** Folders that hold models by name, in the order they are searched. */
export function modelFolders(env: Environment = process.env): string[] {
  const own = variable(env, "NIBBLE_MODEL_DIR");
  return [...(own ? [resolve(own)] : []), join(nibbleHome(env), "models")];
}

/** Root of the shared Hugging Face cache. */
export function hubCache(env: Environment = process.env): string {
  const home =
    variable(env, "HF_HOME") ??
    join(variable(env, "XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "huggingface");
  return resolve(
    variable(env, "HF_HUB_CACHE") ?? variable(env, "HUGGINGFACE_HUB_CACHE") ?? join(home, "hub"),
  );
}

/** Folder of a repository `org/name` within the cache. */
export function repoFolder(repo: string, env: Environment = process.env): string {
  return join(hubCache(env), `models--${repo.replaceAll("/", "--")}`);
}

/** True when the hub must not be asked. */
export function isOffline(env: Environment = process.env): boolean {
  return /^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? "");
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

const COMMIT = /^[0-9a-f]{40}$/;

/**
 * The model of a repository in the cache, if all its weights are there.
 * @param revision branch, tag or commit
 * @returns the snapshot folder, or the .gguf file in it
 */
export async function cachedModel(
  repo: string,
  revision = "main",
  env: Environment = process.env,
): Promise<string | null> {
  const folder = repoFolder(repo, env);
  const commit = COMMIT.test(revision)
    ? revision
    : (await readFile(join(folder, "refs", revision), "utf8").catch(() => "")).trim();
  if (!COMMIT.test(commit)) return null;
  const snapshot = join(folder, "snapshots", commit);
  return (await exists(snapshot)) ? modelInFolder(snapshot).catch(() => null) : null;
}

/**
 * What to open in a folder: the folder itself when it is a checkpoint or a nibble artifact, else its only .gguf file.
 * @throws ModelError when weights are missing, or when there are several .gguf files
 */
export async function modelInFolder(folder: string): Promise<string> {
  const names = new Set(await readdir(folder));
  const present = async (name: string) => names.has(name) && (await exists(join(folder, name)));
  if (names.has("config.json") || names.has("nibble.json")) {
    const index = "model.safetensors.index.json";
    if (!names.has(index)) {
      if (await present("model.safetensors")) return folder;
    } else {
      const missing: string[] = [];
      for (const shard of await shardNames(join(folder, index))) {
        if (!(await present(shard))) missing.push(shard);
      }
      if (missing.length === 0) return folder;
      throw new ModelError(`${missing.length} weight files are missing, e.g. ${missing[0]}`, {
        place: folder,
        hint: "Fetch the model again: nibble pull.",
      });
    }
  }
  const files = [...names].filter((name) => name.endsWith(".gguf")).sort();
  const [only] = files;
  if (files.length === 1 && only !== undefined) return join(folder, only);
  if (files.length > 1) {
    throw new ModelError(`there are ${files.length} .gguf files: ${files.join(", ")}`, {
      place: folder,
      hint: "Name one of them.",
    });
  }
  throw new ModelError("there is no model here: no config.json with weights and no .gguf file", {
    place: folder,
    hint: "Name the folder that holds config.json, or a .gguf file.",
  });
}

/** Files that an index names; the index is checked in full when it is opened. */
async function shardNames(path: string): Promise<Set<string>> {
  try {
    const index = JSON.parse(await readFile(path, "utf8")) as { weight_map?: object };
    return new Set(Object.values(index.weight_map ?? {}).filter((x) => typeof x === "string"));
  } catch {
    return new Set(["a readable model.safetensors.index.json"]);
  }
}
