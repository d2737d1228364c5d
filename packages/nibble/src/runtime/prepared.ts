/**
 * Prepared weights: what a model's weights look like in an arena, kept in a file under NIBBLE_HOME/prepared after the first
 * load of an artifact, so that later ones map it in place of reading and packing. Node only. docs/engine.md, section 7.
 *
 * A file is: "NIBPANEL", the length of the header (u32), its SHA-256, the header (JSON), zeros up to a multiple of PANEL_GRAIN,
 * the panels. It is written beside its place and renamed, and never written again.
 */
import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rm, stat, statfs, utimes } from "node:fs/promises";
import { endianness } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { atomicFile, writeError } from "../core/atomic-write.js";
import { ResourceError, UsageError } from "../core/errors.js";
import { nibbleHome } from "../core/home.js";
import { formatBytes, parseBytes } from "../core/memory.js";
import { VERSION } from "../core/version.js";
import { type Engine, PANEL_GRAIN } from "../kernels/contract.js";
import { addonPath } from "../kernels/native.js";
import { LINE, PROGRAM_VERSION } from "../kernels/ops.js";
import type { Model } from "../model/model.js";
import type { Placement, PreparedWeights } from "../model/placement.js";

/** Format of the file and layout of panels; raise it when either changes. */
const FORMAT = 1;
const MAGIC = "NIBPANEL";
const PREFIX_BYTES = MAGIC.length + 4 + 32;
const MAX_HEADER_BYTES = 256 << 20;
const WRITE_BYTES = 4 << 20;
const DEFAULT_LIMIT = "8GiB";
/**
 * A file that changed this short a time ago may change again without a new time stamp on some file systems, so nothing is
 * kept of it.
 */
const SETTLED_MS = 2000;
/** A first answer comes before the writing that would slow it down. */
const WRITE_AFTER_MS = 500;
/** Leftovers of writers that died go after this time, and what another build made of the same artifact and nobody used since. */
const STALE_MS = 24 * 3600 * 1000;

interface Header {
  key: string;
  fileBytes: number;
  offset: number;
  bytes: number;
  /** Hex. */
  sums: string;
  placement: Placement;
}

type Environment = Readonly<Record<string, string | undefined>>;

export interface PreparedOptions {
  /** How activations are quantized when the caller says so. */
  activations: string | null;
  log: (line: string) => void;
  env?: Environment;
}

/** Bytes that all prepared weights together may take, from `NIBBLE_PREPARED`; 0: none are kept or used. */
export function preparedLimit(env: Environment = process.env): number {
  const set = env.NIBBLE_PREPARED || DEFAULT_LIMIT;
  if (set === "off") return 0;
  try {
    return parseBytes(set);
  } catch (cause) {
    throw new UsageError(`NIBBLE_PREPARED is "${set}", expected off or a size like 8GiB`, {
      cause,
    });
  }
}

/** Where they lie. */
export function preparedFolder(env: Environment = process.env): string {
  return join(nibbleHome(env), "prepared");
}

/**
 * The store for one artifact that is about to be compiled, or null when prepared weights are switched off or the model is no
 * artifact.
 * @param folder the artifact
 */
export async function preparedWeights(
  folder: string,
  model: Model,
  options: PreparedOptions,
): Promise<PreparedStore | null> {
  const limit = preparedLimit(options.env);
  const addon = addonPath();
  if (limit === 0 || model.source.artifact === undefined || addon === null) return null;
  const { key, newest } = await identity(folder, model, addon, options.activations);
  const settled = Date.now() - newest >= SETTLED_MS;
  const again = async () => (await identity(folder, model, addon, options.activations)).key === key;
  const of = model.source.artifact.slice(0, 16);
  const path = join(preparedFolder(options.env), `${of}-${key.slice(0, 32)}.panels`);
  return new PreparedStore({ path, key, limit, settled, unchanged: again, log: options.log });
}

/**
 * What decides the bytes: the artifact's description (hashes of its files included), its files as they are now (size, times
 * of change, number of the inode), config and activations, and this build of nibble.
 */
async function identity(folder: string, model: Model, addon: string, activations: string | null) {
  let newest = 0;
  const facts = async (path: string) => {
    const { size, mtimeNs, ctimeNs, ino } = await stat(path, { bigint: true });
    return {
      changed: Math.max(Number(mtimeNs), Number(ctimeNs)) / 1e6,
      text: `${size} ${mtimeNs} ${ctimeNs} ${ino}`,
    };
  };
  const files: string[] = [];
  for (const name of (await readdir(folder)).sort()) {
    if (!/\.safetensors(\.index\.json)?$/.test(name)) continue;
    const { changed, text } = await facts(join(folder, name));
    newest = Math.max(newest, changed);
    files.push(`${name} ${text}`);
  }
  // The bundled command line lies beside the library and shares its index; among sources there is none that was built.
  const index = fileURLToPath(new URL("../index.js", import.meta.url));
  const build = [
    await facts(addon),
    await facts(index).catch(() => facts(fileURLToPath(import.meta.url))),
  ];
  const parts = {
    format: FORMAT,
    program: PROGRAM_VERSION,
    version: VERSION,
    build: build.map(({ text }) => text),
    machine: `${process.platform} ${process.arch} ${endianness()}`,
    artifact: model.source.artifact,
    config: model.config,
    activations: [activations, model.activations, [...model.activationOverrides]],
    files,
  };
  const key = createHash("sha256").update(JSON.stringify(parts)).digest("hex");
  return { key, newest };
}

interface StoreOptions {
  path: string;
  key: string;
  limit: number;
  settled: boolean;
  /** Whether the artifact is still what it was when it was opened. */
  unchanged: () => Promise<boolean>;
  log: (line: string) => void;
}

export class PreparedStore implements PreparedWeights {
  readonly #options: StoreOptions;
  #offered: (() => Promise<void>) | null = null;
  #timer: NodeJS.Timeout | null = null;
  #writing: Promise<void> | null = null;
  #withdrawn = false;

  constructor(options: StoreOptions) {
    this.#options = options;
  }

  async take(engine: Engine, from: number): Promise<Placement | null> {
    const { path, key, log } = this.#options;
    if (!engine.mapPanels) return null;
    let header: Header | null;
    try {
      header = await readHeader(path);
      if (!header) return null;
      const { placement, fileBytes, offset, bytes } = header;
      if (header.key !== key || placement.from !== from) throw new Error("it is of something else");
      const sums = Buffer.from(header.sums, "hex");
      const file = { path, fileBytes, offset, line: from, bytes, sums: new Uint8Array(sums) };
      if (!engine.mapPanels(file)) throw new Error("its checksums are wrong");
    } catch (error) {
      log(`prepared weights are not used and made again: ${(error as Error).message}`);
      return null;
    }
    const now = new Date();
    await utimes(path, now, now).catch(() => {}); // which was used last only decides which goes first
    return header.placement;
  }

  offer(engine: Engine, placement: Placement): void {
    const { from, to } = placement;
    const bytes = Math.ceil(((to - from) * LINE) / PANEL_GRAIN) * PANEL_GRAIN;
    if (!engine.panelSums || !this.#options.settled || bytes > this.#options.limit) return;
    const sums = Buffer.from(engine.panelSums(from, bytes)).toString("hex");
    const panels = new Uint8Array(engine.memory, from * LINE, bytes);
    this.#offered = () => this.#write(panels, sums, placement);
    this.#timer = setTimeout(() => void this.#start(), WRITE_AFTER_MS).unref();
  }

  withdraw(): void {
    this.#withdrawn = true;
  }

  /** Writes what was offered, when that has not happened yet. To be called before the engine goes. */
  async finish(): Promise<void> {
    if (this.#timer) clearTimeout(this.#timer);
    await this.#start();
  }

  async #start(): Promise<void> {
    if (this.#withdrawn && !this.#writing) return;
    this.#writing ??=
      this.#offered?.().catch((error: unknown) => {
        this.#options.log(
          `prepared weights are not kept: ${(error as Error).message} (NIBBLE_PREPARED=off leaves them out)`,
        );
      }) ?? null;
    await this.#writing;
  }

  async #write(panels: Uint8Array, sums: string, placement: Placement): Promise<void> {
    const { path, key, limit, unchanged } = this.#options;
    const offset = (header: Buffer) =>
      Math.ceil((PREFIX_BYTES + header.length) / PANEL_GRAIN) * PANEL_GRAIN;
    const describe = (at: number): Buffer => {
      const fileBytes = at + panels.length;
      const header: Header = { key, fileBytes, offset: at, bytes: panels.length, sums, placement };
      return Buffer.from(JSON.stringify(header));
    };
    // The header names its own end: a few digits more than with 0 may take it over a boundary, not twice.
    let at = offset(describe(0));
    at = offset(describe(at));
    const header = describe(at);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(header.length);
    const start = Buffer.concat(
      [Buffer.from(MAGIC), length, createHash("sha256").update(header).digest(), header],
      at,
    );
    const folder = dirname(path);
    await mkdir(folder, { recursive: true }).catch((cause) => {
      throw writeError(folder, cause);
    });
    const disk = await statfs(folder);
    if (disk.bavail * disk.bsize < 2 * panels.length) {
      throw new ResourceError(`the disk has less than ${formatBytes(2 * panels.length)} free`);
    }
    const file = await atomicFile(path, false);
    try {
      await file.write(start);
      for (let done = 0; done < panels.length; done += WRITE_BYTES) {
        if (this.#withdrawn) break;
        await file.write(panels.subarray(done, done + WRITE_BYTES));
      }
      if (this.#withdrawn || !(await unchanged())) await file.abort();
      else await file.commit();
    } catch (error) {
      await file.abort();
      throw error;
    }
    await makeRoom(path, limit);
  }
}

/** The checked header of a file, or null when there is no file. @throws Error with what is wrong */
async function readHeader(path: string): Promise<Header | null> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw error;
  }
  try {
    const { size } = await file.stat();
    const read = async (from: number, bytes: number): Promise<Buffer> => {
      const buffer = Buffer.alloc(bytes);
      const { bytesRead } = await file.read(buffer, 0, bytes, from);
      if (bytesRead < bytes) throw new Error("the file is too short");
      return buffer;
    };
    const prefix = await read(0, PREFIX_BYTES);
    const length = prefix.readUInt32LE(MAGIC.length);
    if (prefix.toString("latin1", 0, MAGIC.length) !== MAGIC || length > MAX_HEADER_BYTES) {
      throw new Error("it does not begin as such a file does");
    }
    const text = await read(PREFIX_BYTES, length);
    if (
      !createHash("sha256")
        .update(text)
        .digest()
        .equals(prefix.subarray(MAGIC.length + 4))
    ) {
      throw new Error("its header is damaged");
    }
    const header = JSON.parse(text.toString()) as Header;
    if (header.fileBytes !== size) throw new Error(`it has ${size} bytes of ${header.fileBytes}`);
    return header;
  } finally {
    await file.close();
  }
}

/** All prepared weights: bytes and time of last use. */
async function listPrepared(folder: string) {
  const names = await readdir(folder).catch(() => []);
  const files = await Promise.all(
    names.map(async (name) => {
      const path = join(folder, name);
      const facts = await stat(path).catch(() => null); // gone meanwhile
      return facts?.isFile() ? [{ path, name, bytes: facts.size, used: facts.mtimeMs }] : [];
    }),
  );
  return files.flat();
}

/** Removes the files that were not used for longest until the others fit, and what writers that died left. */
async function makeRoom(written: string, limit: number): Promise<void> {
  const folder = dirname(written);
  const [artifact = ""] = basename(written).split("-");
  const files = (await listPrepared(folder)).sort((a, b) => b.used - a.used);
  let total = 0;
  for (const { path, name, bytes, used } of files) {
    const stale = Date.now() - used > STALE_MS;
    const whole = name.endsWith(".panels");
    const old = stale && (whole ? name.startsWith(`${artifact}-`) : name.includes(".tmp-"));
    if (whole && !old) total += bytes;
    if (old || (whole && total > limit)) await rm(path, { force: true });
  }
}

/** For `nibble doctor`. */
export async function preparedFacts(env: Environment = process.env) {
  const files = (await listPrepared(preparedFolder(env))).filter(({ name }) =>
    name.endsWith(".panels"),
  );
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  return { files: files.length, bytes, limitBytes: preparedLimit(env) };
}
