/**
 * Proves that a program cannot leave its arena: every place plus the size that row limits, widths and strides imply is
 * checked here once, so executors only check values they read while running. Arithmetic is in doubles: products of
 * operands (below 2^124) neither wrap nor turn negative, so no huge or negative number slips through.
 */
import { BackendError } from "../core/errors.js";
import { type DecodedProgram, decodeProgram, programError } from "./decode.js";
import { CONTROL_BYTES, HEADER, LINE, OPS } from "./ops.js";
import { requiredScratchLines } from "./scratch.js";
import { checkCache, checkWeight } from "./validate-descriptors.js";
import { checkInstruction } from "./validate-ops.js";

/** Bounds checks of one instruction or descriptor; `place` is how errors name it. */
export class Checker {
  constructor(
    readonly place: string,
    readonly program: DecodedProgram,
  ) {}

  fail(message: string): never {
    throw programError(this.place, message);
  }

  require(condition: boolean, message: string): void {
    if (!condition) this.fail(message);
  }

  integer(name: string, value: number, min: number, max: number): number {
    if (!Number.isInteger(value) || value < min || value > max) {
      this.fail(`${name} is ${value}, expected ${min}..${max}`);
    }
    return value;
  }

  float(name: string, value: number, min: number, max: number): void {
    if (!(value >= min && value <= max)) this.fail(`${name} is ${value}, expected ${min}..${max}`);
  }

  /** `bytes` bytes from line `at` lie between the control block and the program's last line. */
  bytes(name: string, at: number, bytes: number): void {
    const { arenaLines } = this.program.header;
    if (at < CONTROL_BYTES / LINE || at * LINE + bytes > arenaLines * LINE) {
      this.fail(`${name}: ${bytes} bytes at line ${at} leave the arena of ${arenaLines} lines`);
    }
  }

  /** As `bytes`; -1 means absent and is fine. */
  optional(name: string, at: number, bytes: number): void {
    if (at !== -1) this.bytes(name, at, bytes);
  }

  /** Rows of `width` elements of `size` bytes, `ld` elements apart. */
  matrix(name: string, at: number, rows: number, ld: number, width: number, size = 4): void {
    this.integer(`width of ${name}`, width, 1, 2 ** 31);
    if (ld < width) this.fail(`${name}: rows of ${width} elements overlap at stride ${ld}`);
    this.bytes(name, at, ((rows - 1) * ld + width) * size);
  }

  /** Row limit of a register. */
  rows(register: number): number {
    this.integer("rowsReg", register, 0, 255);
    const { maxRows, maxLogitRows } = this.program.header;
    return register >= 1 && register <= 15 ? maxLogitRows : maxRows;
  }
}

/**
 * @param arenaBytes size of the arena the program will run in
 * @param threads threads of the engine; each needs its scratch
 * @throws BackendError code "program" naming the instruction or table that is wrong
 */
export function validateProgram(words: Int32Array, arenaBytes: number, threads = 1): void {
  const program = decodeProgram(words);
  const { header, weights, caches, instructions } = program;
  const head = new Checker("header", program);
  head.integer(
    "arenaLines",
    header.arenaLines,
    CONTROL_BYTES / LINE,
    Math.floor(arenaBytes / LINE),
  );
  head.integer("maxRows", header.maxRows, 1, 2 ** 24);
  head.integer("maxLogitRows", header.maxLogitRows, 1, header.maxRows);
  head.integer("scratchLines", header.scratchLines, requiredScratchLines(program), 2 ** 31);
  head.bytes("scratchAt", header.scratchAt, threads * header.scratchLines * LINE);
  weights.forEach((w, i) => {
    checkWeight(new Checker(`weight ${i}`, program), w);
  });
  caches.forEach((c, i) => {
    checkCache(new Checker(`cache ${i}`, program), c);
  });
  for (const instruction of instructions) {
    const place = `word ${instruction.word} (${instruction.op})`;
    checkInstruction(new Checker(place, program), instruction);
  }
}

/** The error `run` throws when an executor left `status` (docs/engine.md, section 2). */
export function runFault(words: Int32Array, status: number): BackendError {
  const word = status - 1;
  const name = word >= HEADER.length ? Object.keys(OPS)[(words[word] ?? 0) - 1] : undefined;
  return new BackendError(
    "a row count, token, position, page or index that the program read is out of range",
    {
      place: `word ${word} (${name ?? "unknown op"})`,
      hint: "this is a fault of the program's author or of a damaged model file",
    },
    "run",
  );
}
