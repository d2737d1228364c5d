import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import { attentionCases } from "./conformance/attention-cases.js";
import { Lab } from "./conformance/lab.js";
import { linearCases } from "./conformance/linear-cases.js";
import { rowCases } from "./conformance/row-cases.js";
import { upload } from "./conformance/run.js";
import { statsCases } from "./conformance/stats-cases.js";
import { CONTROL_BYTES, HEADER, LINE } from "./ops.js";
import { bitsFloat, floatBits, ProgramBuilder } from "./program.js";
import { referenceBackend, STATUS_WORD } from "./reference.js";
import { runFault, validateProgram } from "./validate.js";

const cases = { ...rowCases, ...linearCases, ...attentionCases(true), ...statsCases };

function program(op: string, seed: number): { lab: Lab; words: Int32Array; arenaBytes: number } {
  const lab = new Lab(seed, 3);
  cases[op](lab);
  const words = lab.words(1);
  return { lab, words, arenaBytes: words[HEADER.indexOf("arenaLines")] * LINE };
}

const header = (words: Int32Array, field: (typeof HEADER)[number], value: number) => {
  const copy = words.slice();
  copy[HEADER.indexOf(field)] = value;
  return copy;
};

/** Fills what a program may not touch. */
const GUARD = 0xa5;

/** First byte of start..end that is not GUARD any more, or -1. */
function changed(arena: Uint8Array, start: number, end: number): number {
  for (let i = start; i < end; i++) if (arena[i] !== GUARD) return i;
  return -1;
}

describe("program validation", () => {
  it("accepts every generated program in an arena that just holds it, and refuses one line less", () => {
    for (const op of Object.keys(cases)) {
      const { words, arenaBytes } = program(op, 11);
      expect(() => validateProgram(words, arenaBytes), op).not.toThrow();
      expect(() => validateProgram(words, arenaBytes - 1), op).toThrow(BackendError);
    }
  });

  it("refuses damaged headers and truncated code", () => {
    const { words, arenaBytes } = program("add", 1);
    const bad = [
      words.subarray(0, 5),
      words.subarray(0, words.length - 1),
      header(words, "magic", 1),
      header(words, "version", 2),
      header(words, "weights", -1),
      header(words, "weights", 2 ** 30),
      header(words, "caches", 1),
      header(words, "codeStart", words.length),
      header(words, "codeStart", words.length - 1),
      header(words, "maxRows", 0),
      header(words, "maxRows", 2 ** 31 - 1),
      header(words, "maxLogitRows", 2 ** 30),
      header(words, "scratchLines", 10),
      header(words, "scratchAt", -5),
      header(words, "arenaLines", 2 ** 31 - 1),
      header(words, "arenaLines", -1),
      Int32Array.from([...words, 0]),
    ];
    bad.forEach((wrong, i) => {
      expect(() => validateProgram(wrong, arenaBytes), `header ${i}`).toThrow(BackendError);
    });
    expect(() => validateProgram(words, arenaBytes, 2), "scratch of two threads").toThrow(
      /scratchAt/,
    );
  });

  it("names the instruction", () => {
    const { words, arenaBytes } = program("rmsnorm", 1);
    const word = words[HEADER.indexOf("codeStart")];
    const broken = words.slice();
    broken[word + 3] = 2 ** 30;
    try {
      validateProgram(broken, arenaBytes);
      expect.unreachable();
    } catch (error) {
      expect((error as BackendError).code).toBe("program");
      expect((error as Error).message).toContain(`word ${word} (rmsnorm): srcAt`);
    }
    expect(runFault(words, 1 + word).message).toContain(`word ${word} (rmsnorm)`);
  });

  it("limits registers 1..15 to maxLogitRows", () => {
    const make = (rowsReg: number) => {
      const builder = new ProgramBuilder();
      builder.emit("add", {
        ...{ rowsReg, srcAt: 64, ldSrc: 16, dstAt: 80, ldDst: 16, width: 16, alphaF: 1 },
      });
      const limits = { scratchAt: 96, scratchLines: 8192, maxRows: 5000, maxLogitRows: 2 };
      return builder.build({ ...limits, arenaLines: 96 + 8192 });
    };
    const bytes = (96 + 8192) * LINE;
    expect(() => validateProgram(make(1), bytes)).not.toThrow();
    expect(() => validateProgram(make(0), bytes)).not.toThrow();
    const big = (words: Int32Array) => header(words, "maxRows", 2 ** 20);
    expect(() => validateProgram(big(make(15)), bytes)).not.toThrow();
    expect(() => validateProgram(big(make(16)), bytes)).toThrow(BackendError);
    expect(() => validateProgram(make(256), bytes)).toThrow(BackendError);
  });

  it("whatever words a program holds: it is refused, or it runs without leaving its arena", async () => {
    const engine = await referenceBackend.createEngine({ arenaBytes: 2 ** 21, threads: 1 });
    const arena = new Uint8Array(engine.memory);
    const ops = Object.keys(cases);
    let accepted = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...ops),
        fc.integer({ min: 0, max: 40 }),
        fc.array(
          fc.tuple(
            fc.nat(),
            fc.oneof(
              fc.integer(),
              fc.integer({ min: -3, max: 70 }),
              fc.constantFrom(2 ** 31 - 1, -(2 ** 31), 2 ** 25, 2 ** 26 - 1, floatBits(Number.NaN)),
            ),
          ),
          { minLength: 1, maxLength: 2 },
        ),
        async (op, seed, edits) => {
          const { lab, words, arenaBytes } = program(op, seed);
          if (arenaBytes + 4096 > arena.length) return;
          for (const [at, value] of edits) {
            words[HEADER.length + (at % (words.length - HEADER.length))] = value;
          }
          arena.fill(GUARD);
          upload(engine, lab);
          try {
            engine.runSync(engine.load(words));
            accepted++;
          } catch (error) {
            expect(error).toBeInstanceOf(BackendError);
            expect(["program", "run"]).toContain((error as BackendError).code);
          }
          expect(changed(arena, arenaBytes, arena.length)).toBe(-1);
          expect(changed(arena, 4 * STATUS_WORD + 4, CONTROL_BYTES)).toBe(-1);
        },
      ),
      { numRuns: 250, seed: 7 },
    );
    expect(accepted).toBeGreaterThan(20);
    expect(bitsFloat(floatBits(0.5))).toBe(0.5);
  });
});
