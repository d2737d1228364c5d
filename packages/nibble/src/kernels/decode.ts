/**
 * Reads a flat program back into named fields: the inverse of ProgramBuilder. Only the shape of the word array is checked
 * here (header, table sizes, opcodes, instruction lengths); whether the places make sense is `validate.ts`.
 */
import { BackendError } from "../core/errors.js";
import {
  CACHE,
  type CacheField,
  HEADER,
  type HeaderField,
  OP_NAMES,
  OPS,
  type OpName,
  PROGRAM_MAGIC,
  PROGRAM_VERSION,
  WEIGHT,
  type WeightField,
} from "./ops.js";
import { bitsFloat, type Operands } from "./program.js";

export type Weight = Record<WeightField, number>;
export type Cache = Record<CacheField, number>;
/** One instruction; `word` is its index in the program. Operands whose name ends in F are floats. */
export type Instruction = {
  [O in OpName]: { op: O; word: number; operands: Operands<O> };
}[OpName];

export interface DecodedProgram {
  header: Record<HeaderField, number>;
  weights: Weight[];
  caches: Cache[];
  instructions: Instruction[];
}

/** The error of a program that must not run. `place` names the instruction or table. */
export function programError(place: string, message: string): BackendError {
  return new BackendError(
    message,
    { place, hint: "this is a fault of the program's author or of a damaged model file" },
    "program",
  );
}

function record<F extends string>(words: Int32Array, start: number, fields: readonly F[]) {
  const out = {} as Record<F, number>;
  fields.forEach((name, i) => {
    const word = words[start + i];
    out[name] = name.endsWith("F") ? bitsFloat(word) : word;
  });
  return out;
}

/** @throws BackendError code "program" when the words are not a program. */
export function decodeProgram(words: Int32Array): DecodedProgram {
  if (words.length < HEADER.length + 1) {
    throw programError(
      "header",
      `a program has at least ${HEADER.length + 1} words, not ${words.length}`,
    );
  }
  const header = record(words, 0, HEADER);
  if (header.magic !== PROGRAM_MAGIC) throw programError("header", "the magic number is wrong");
  if (header.version !== PROGRAM_VERSION) {
    throw programError("header", `version ${header.version}, this engine runs ${PROGRAM_VERSION}`);
  }
  if (header.totalWords !== words.length) {
    throw programError("header", `${header.totalWords} words announced, ${words.length} given`);
  }
  const { weights, weightsStart, caches, cachesStart, codeStart } = header;
  if (
    weights < 0 ||
    caches < 0 ||
    weightsStart !== HEADER.length ||
    cachesStart !== weightsStart + weights * WEIGHT.length ||
    codeStart !== cachesStart + caches * CACHE.length ||
    codeStart >= words.length
  ) {
    throw programError("header", "the descriptor tables do not follow one another");
  }
  return {
    header,
    weights: Array.from({ length: weights }, (_, i) =>
      record(words, weightsStart + i * WEIGHT.length, WEIGHT),
    ),
    caches: Array.from({ length: caches }, (_, i) =>
      record(words, cachesStart + i * CACHE.length, CACHE),
    ),
    instructions: decodeCode(words, codeStart),
  };
}

function decodeCode(words: Int32Array, start: number): Instruction[] {
  const instructions: Instruction[] = [];
  let word = start;
  while (words[word] !== 0) {
    const op = OP_NAMES[words[word] - 1];
    if (!op) throw programError(`word ${word}`, `no op has the number ${words[word]}`);
    const fields = OPS[op] as readonly string[];
    const length = words[word + 1];
    if (length !== fields.length + 2) {
      throw programError(
        `word ${word} (${op})`,
        `${length} words, the op has ${fields.length + 2}`,
      );
    }
    if (word + length >= words.length) {
      throw programError(`word ${word} (${op})`, "the program ends inside the instruction");
    }
    const operands = record(words, word + 2, fields);
    instructions.push({ op, word, operands } as Instruction); // fields of OPS[op], by construction
    word += length;
  }
  if (word !== words.length - 1) throw programError(`word ${word}`, "words follow the end mark");
  return instructions;
}
