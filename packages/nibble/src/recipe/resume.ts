/**
 * Solved blocks on disk: a run that was interrupted, killed or ran out of disk continues with the block it was in. The
 * folder's name is a fingerprint of everything that decides the result (model, recipe, calibration tokens, seed, backend,
 * version), so state of another run can never be picked up.
 */
import { createHash } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { NibbleError } from "../core/errors.js";
import { fileSource } from "../core/file-source.js";
import { nibbleHome } from "../core/home.js";
import { describe, deserialize, type StoredDtype, serialize } from "../encodings/serialize.js";
import type { QuantTensor } from "../encodings/types.js";
import { openSafetensors, type SafetensorsReader } from "../formats/safetensors.js";
import { saveSafetensors } from "../formats/safetensors-save.js";
import type { SolveRecord, SolveState } from "./quantize-model.js";
import type { SavedScale } from "./site-scales.js";

/** SHA-256 of values that JSON can hold, in a fixed key order. */
export function fingerprint(parts: Record<string, unknown>): string {
  const sorted = (value: unknown): unknown =>
    Array.isArray(value)
      ? value.map(sorted)
      : value && typeof value === "object"
        ? Object.fromEntries(
            Object.entries(value)
              .sort(([a], [b]) => (a < b ? -1 : 1))
              .map(([k, v]) => [k, sorted(v)]),
          )
        : value;
  return createHash("sha256")
    .update(JSON.stringify(sorted(parts)))
    .digest("hex");
}

/** Nothing is kept: for runs without resume. Tensors stay in memory with the model. */
export const noState: SolveState = { load: async () => null, save: async () => {} };

interface UnitFacts {
  modules: Record<string, unknown>;
  records: SolveRecord[];
  scales: SavedScale[];
}

function factsOf(reader: SafetensorsReader): UnitFacts {
  const facts = JSON.parse(reader.metadata.get("nibble") ?? "null") as UnitFacts | null;
  if (!facts) throw new Error("no description");
  return facts;
}

function readTensor(
  reader: SafetensorsReader,
  path: string,
  description: unknown,
): Promise<QuantTensor> {
  return deserialize(path, description, async (name) => {
    const entry = reader.tensors.get(name);
    if (!entry) throw new Error(`${name} is missing`);
    return {
      name,
      dtype: entry.dtype as StoredDtype,
      shape: [...entry.shape],
      bytes: await reader.readRaw(name),
    };
  });
}

export interface DiskState extends SolveState {
  readonly folder: string;
  /** One tensor of a saved unit. */
  tensor(unit: string, path: string): Promise<QuantTensor>;
  /** Units found when the state was opened. */
  remove(): Promise<void>;
}

/**
 * @param id fingerprint of the run
 * @param log told when a damaged file of the state is solved again
 */
export async function openDiskState(id: string, log: (line: string) => void): Promise<DiskState> {
  return openStateFolder(join(nibbleHome(), "resume", id.slice(0, 32)), log);
}

/** The same in a folder of the caller's choice. */
export async function openStateFolder(
  folder: string,
  log: (line: string) => void,
): Promise<DiskState> {
  await mkdir(folder, { recursive: true });
  const file = (unit: string) => join(folder, `${unit}.safetensors`);
  return {
    folder,
    async tensor(unit, path) {
      const source = await fileSource(file(unit));
      try {
        const reader = await openSafetensors(source);
        return await readTensor(reader, path, factsOf(reader).modules[path]);
      } finally {
        await source.close();
      }
    },
    async load(unit) {
      let source: Awaited<ReturnType<typeof fileSource>>;
      try {
        source = await fileSource(file(unit));
      } catch (error) {
        if (error instanceof NibbleError) return null; // not solved yet
        throw error;
      }
      try {
        const reader = await openSafetensors(source);
        const facts = factsOf(reader);
        const tensors = new Map<string, QuantTensor>();
        for (const [path, description] of Object.entries(facts.modules)) {
          tensors.set(path, await readTensor(reader, path, description));
        }
        return { tensors, records: facts.records, scales: facts.scales };
      } catch (error) {
        log(
          `saved state of ${unit} cannot be used (${(error as Error).message}); it is solved again`,
        );
        return null;
      } finally {
        await source.close();
      }
    },
    async save(unit, { tensors, records, scales }) {
      const facts: UnitFacts = { modules: {}, records, scales };
      const parts = [];
      for (const [path, tensor] of tensors) {
        facts.modules[path] = describe(tensor);
        for (const { name, dtype, shape, bytes } of serialize(path, tensor)) {
          parts.push({ name, dtype, shape, data: () => bytes });
        }
      }
      await saveSafetensors(file(unit), parts, { nibble: JSON.stringify(facts) });
    },
    async remove() {
      await rm(folder, { recursive: true, force: true });
    },
  };
}
