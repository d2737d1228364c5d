/**
 * The hidden states of all calibration rows between two blocks: in memory, or in a file that has no name any more (it is
 * removed as soon as it is open, so a killed process leaves nothing behind). The same values either way.
 */
import { randomBytes } from "node:crypto";
import { closeSync, mkdirSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { ResourceError } from "../core/errors.js";

export interface HiddenStates {
  /** Copies rows [from, from + out.length / width) to `out`. */
  read(from: number, out: Float32Array): void;
  write(from: number, rows: Float32Array): void;
  close(): void;
}

/** Rows of a piece in memory: one array of all rows could pass what an ArrayBuffer may hold. */
const PIECE_ROWS = 512;

/** @param width floats of a row */
export function hiddenInMemory(rows: number, width: number): HiddenStates {
  const pieces = Array.from(
    { length: Math.ceil(rows / PIECE_ROWS) },
    (_, i) => new Float32Array(Math.min(PIECE_ROWS, rows - i * PIECE_ROWS) * width),
  );
  const eachPart = (
    from: number,
    count: number,
    visit: (piece: Float32Array, at: number, done: number, take: number) => void,
  ) => {
    for (let done = 0; done < count; ) {
      const row = from + done;
      const at = row % PIECE_ROWS;
      const take = Math.min(count - done, PIECE_ROWS - at);
      visit(pieces[Math.floor(row / PIECE_ROWS)] as Float32Array, at, done, take);
      done += take;
    }
  };
  return {
    read(from, out) {
      eachPart(from, out.length / width, (piece, at, done, take) =>
        out.set(piece.subarray(at * width, (at + take) * width), done * width),
      );
    },
    write(from, values) {
      eachPart(from, values.length / width, (piece, at, done, take) =>
        piece.set(values.subarray(done * width, (done + take) * width), at * width),
      );
    },
    close() {
      pieces.length = 0;
    },
  };
}

/**
 * @param prefix path that the file's name begins with; its folder is made when it is missing
 * @throws ResourceError when the file cannot be made or the disk is full
 */
export function hiddenOnDisk(prefix: string, width: number): HiddenStates {
  const path = `${prefix}-${randomBytes(4).toString("hex")}`;
  const failed = (cause: unknown) => {
    const { code } = cause as NodeJS.ErrnoException;
    return new ResourceError(
      code === "ENOSPC" || code === "EDQUOT"
        ? "the disk is full: the hidden states of the calibration text do not fit beside the output"
        : `hidden states cannot be spilled beside the output (${code ?? (cause as Error).message})`,
      {
        hint: "Free some space, choose another place with -o, use fewer --samples, or allow more with --max-memory.",
        cause,
      },
    );
  };
  let file: number;
  let removed = false;
  try {
    mkdirSync(dirname(path), { recursive: true });
    file = openSync(path, "wx+", 0o600);
  } catch (cause) {
    throw failed(cause);
  }
  const remove = () => {
    if (removed) return;
    try {
      unlinkSync(path);
      removed = true;
    } catch {
      // Not every system removes an open file; `close` tries again.
    }
  };
  remove();
  const all = (
    values: Float32Array,
    from: number,
    move: (bytes: Uint8Array, done: number, length: number, position: number) => number,
  ) => {
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    const start = from * width * 4;
    try {
      for (let done = 0; done < bytes.length; ) {
        const moved = move(bytes, done, bytes.length - done, start + done);
        if (moved === 0) throw new Error("the file became shorter");
        done += moved;
      }
    } catch (cause) {
      throw failed(cause);
    }
  };
  return {
    read: (from, out) => all(out, from, (...place) => readSync(file, ...place)),
    write: (from, rows) => all(rows, from, (...place) => writeSync(file, ...place)),
    close() {
      closeSync(file);
      remove();
    },
  };
}
