/**
 * The conformance suite: random programs of every op, run by the reference and by another backend over the same arena image.
 * After a run every byte of the arena must be equal, except where the op is a float op (docs/engine.md, section 1) and its
 * bound applies. Called inside a vitest file:
 *
 *   conformanceSuite(wasmBackend, { exactAttention: true });
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import { attentionCases } from "./conformance/attention-cases.js";
import { FAULTS, pagedToken } from "./conformance/faults.js";
import { Lab, type Region } from "./conformance/lab.js";
import { linearCases } from "./conformance/linear-cases.js";
import { type Make, rowCases } from "./conformance/row-cases.js";
import { copyOf, execute, REGISTER_BYTES, upload } from "./conformance/run.js";
import { statsCases } from "./conformance/stats-cases.js";
import type { Backend, Engine } from "./contract.js";
import { CONTROL_BYTES } from "./ops.js";
import { referenceBackend, STATUS_WORD } from "./reference.js";

export interface ConformanceOptions {
  /** False for a backend that uses fma in attention's P·V and f32 q·k. */
  exactAttention: boolean;
  /** What the bounds of ops (by case) are multiplied by, for backends with coarser products. */
  slack?: Readonly<Record<string, number>>;
  /** Random programs per op. Default 60. */
  programs?: number;
  /** Pairs of runs that race for the registers. Default 300. */
  races?: number;
}

const ARENA_BYTES = 16 * 2 ** 20;
const THREADS = [1, 2, 3];

const ELEMENT = { f32: Float32Array, i32: Int32Array, f64: Float64Array, i8: Int8Array };

/** First element of a region that is not as expected, or null. */
function firstDifference(
  region: Region,
  expected: Uint8Array<ArrayBuffer>,
  actual: Uint8Array<ArrayBuffer>,
  slack: number,
): string | null {
  const { start, bytes, tolerance } = region;
  if (region.ignored || sameBytes(expected, actual, start, start + bytes)) return null;
  const Type = ELEMENT[region.type];
  const size = Type.BYTES_PER_ELEMENT;
  const a = new Type(expected.buffer, start, bytes / size);
  const b = new Type(actual.buffer, start, bytes / size);
  for (let i = 0; i < a.length; i++) {
    const from = start + i * size;
    if (sameBytes(expected, actual, from, from + size)) continue;
    const bound = typeof tolerance === "number" ? tolerance : tolerance ? tolerance[i] : 0;
    const allowed = bound * slack;
    if (allowed > 0 && Math.abs(a[i] - b[i]) <= allowed) continue;
    const width = region.rowBytes / size;
    const place = width > 0 ? `row ${Math.floor(i / width)}, column ${i % width}` : `${i}`;
    return `${region.name}[${place}] is ${b[i]}, expected ${a[i]} (allowed difference ${allowed})`;
  }
  return null;
}

function sameBytes(a: Uint8Array, b: Uint8Array, start: number, end: number): boolean {
  for (let i = start; i < end; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** What differs between two arenas after the same program, or null. */
export function compareArenas(
  lab: Lab,
  expected: Uint8Array<ArrayBuffer>,
  actual: Uint8Array<ArrayBuffer>,
  slack = 1,
): string | null {
  for (const region of lab.regions) {
    const difference = firstDifference(region, expected, actual, slack);
    if (difference) return difference;
  }
  // Everything else is input or canary.
  const covered = lab.regions.map((r) => [r.start, r.start + r.bytes] as const);
  covered.push([REGISTER_BYTES, CONTROL_BYTES]);
  covered.sort((x, y) => x[0] - y[0]);
  let from = 0;
  for (const [start, end] of [...covered, [expected.length, expected.length] as const]) {
    for (let i = from; i < start; i++) {
      if (expected[i] !== actual[i]) {
        const near = lab.regions.findLast((r) => r.start <= i)?.name ?? "the registers";
        return `byte ${i} of the arena, after ${near}, was changed to ${actual[i]}`;
      }
    }
    from = Math.max(from, end);
  }
  return null;
}

/** Runs the rows of a lab one at a time, each as row 0, and gives an image that looks like the whole run. */
async function executeByRow(engine: Engine, lab: Lab): Promise<Uint8Array<ArrayBuffer>> {
  const arena = upload(engine, lab);
  const { image } = lab;
  const buffers = lab.regions.filter((r) => r.rowBytes > 0);
  new Int32Array(engine.memory, 0, 1)[0] = 1;
  const program = engine.load(lab.words(engine.threads));
  const rows = new Map(buffers.map((r) => [r, copyOf(image.subarray(r.start, r.start + r.bytes))]));
  for (let m = 0; m < lab.rows; m++) {
    for (const { start, rowBytes } of buffers) {
      const source = start + m * rowBytes;
      arena.set(image.subarray(source, source + rowBytes), start);
    }
    await engine.run(program);
    for (const [{ start, rowBytes }, out] of rows) {
      out.set(arena.subarray(start, start + rowBytes), m * rowBytes);
    }
  }
  program.dispose();
  const result = copyOf(arena.subarray(0, image.length));
  result.set(image.subarray(0, 4));
  for (const [{ start }, out] of rows) result.set(out, start);
  return result;
}

/** A lab whose float bounds are dropped: for comparing a backend with itself. */
function strict(lab: Lab): Lab {
  for (const region of lab.regions) {
    const bound = region.tolerance;
    // Infinite bounds mark contents that are not defined at all.
    if (typeof bound === "number" && bound !== Number.POSITIVE_INFINITY) delete region.tolerance;
    else if (bound instanceof Float64Array) {
      region.tolerance = bound.map((b) => (b === Number.POSITIVE_INFINITY ? b : 0));
    }
  }
  return lab;
}

function makeLab(make: Make, seed: number, rows?: number): Lab {
  const lab = new Lab(seed, rows);
  make(lab);
  return lab;
}

/**
 * Declares the suite for one backend. It owns its engines.
 * @param backend the backend, or a function that makes it
 */
export function conformanceSuite(
  backend: Backend | (() => Backend | Promise<Backend>),
  { exactAttention, slack = {}, programs = 60, races = 300 }: ConformanceOptions,
): void {
  const cases = {
    ...rowCases,
    ...linearCases,
    ...attentionCases(exactAttention),
    ...statsCases,
  };

  describe("conformance with the reference", () => {
    let reference: Engine;
    const engines: Engine[] = [];
    beforeAll(async () => {
      const tested = typeof backend === "function" ? await backend() : backend;
      reference = await referenceBackend.createEngine({ arenaBytes: ARENA_BYTES, threads: 1 });
      for (const threads of THREADS) {
        engines.push(await tested.createEngine({ arenaBytes: ARENA_BYTES, threads }));
      }
    });
    afterAll(async () => {
      await reference?.dispose();
      for (const engine of engines) await engine.dispose();
    });

    for (const [op, make] of Object.entries(cases)) {
      it(`${op}: ${programs} random programs leave the same arena`, async () => {
        for (let seed = 0; seed < programs; seed++) {
          const lab = makeLab(make, seed);
          const expected = await execute(reference, lab);
          const engine = engines[seed % engines.length];
          const actual = await execute(engine, lab);
          const difference = compareArenas(lab, expected, actual, slack[op]);
          expect(
            difference,
            `seed ${seed}, ${lab.rows} rows, ${engine.threads} threads`,
          ).toBeNull();
        }
      });

      it(`${op}: the same bits for 1, 2 and 3 threads and row by row`, async () => {
        for (let seed = 1000; seed < 1000 + Math.ceil(programs / 10); seed++) {
          const lab = strict(makeLab(make, seed));
          const expected = await execute(engines[0], lab);
          for (const engine of engines.slice(1)) {
            const difference = compareArenas(lab, expected, await execute(engine, lab));
            expect(difference, `seed ${seed}, ${engine.threads} threads`).toBeNull();
          }
          if (!lab.splittable) continue;
          const engine = engines[seed % engines.length];
          const difference = compareArenas(lab, expected, await executeByRow(engine, lab));
          expect(difference, `seed ${seed}, row by row, ${engine.threads} threads`).toBeNull();
        }
      });
    }

    it("does nothing when a register holds 0 rows", async () => {
      for (const make of [rowCases.rmsnorm, linearCases.linearInt]) {
        const lab = makeLab(make, 3, 2);
        lab.register(0, 0);
        const before = copyOf(lab.image);
        expect(compareArenas(lab, before, await execute(engines[2], lab))).toBeNull();
      }
    });

    it("ends a run with BackendError `run` on a bad value, names the instruction, and runs on", async () => {
      for (const [title, spoil] of Object.entries(FAULTS)) {
        for (const engine of [reference, ...engines]) {
          const lab = spoil();
          const words = lab.words(engine.threads);
          const error = await execute(engine, lab).then(
            () => null,
            (reason: unknown) => reason,
          );
          expect(error, title).toBeInstanceOf(BackendError);
          expect((error as BackendError).code, title).toBe("run");
          const status = new Int32Array(engine.memory)[STATUS_WORD];
          expect(status, title).toBe(1 + lastInstruction(words));
          const healthy = makeLab(rowCases.add, 1);
          const difference = compareArenas(
            healthy,
            await execute(reference, healthy),
            await execute(engine, healthy),
          );
          expect(difference, `${title}, next run`).toBeNull();
        }
      }
    });

    it("does not look at pages that the sliding window hides", async () => {
      for (const engine of engines) {
        const lab = pagedToken([-1, 1], 5);
        const expected = await execute(reference, lab);
        expect(compareArenas(lab, expected, await execute(engine, lab))).toBeNull();
      }
    });

    it("a run is over on all threads before the next one changes registers", async () => {
      // Skipped instructions need no barrier: a thread that is late may still have to read that their register holds 0.
      for (const engine of engines) {
        const lab = new Lab(1, 4);
        const at = lab.f32Rows("x", 16, "inout", () => new Float32Array(16).fill(1));
        const one = lab.floats(4 * 16, () => 1);
        const add = { srcAt: one, ldSrc: 16, dstAt: at, ldDst: 16, width: 16, alphaF: 1 };
        lab.emit("add", { ...add, rowsReg: 0 });
        for (let i = 0; i < 20; i++) lab.emit("add", { ...add, rowsReg: 20 });
        upload(engine, lab);
        const program = engine.load(lab.words(engine.threads));
        const registers = new Int32Array(engine.memory, 0, 256);
        for (let i = 0; i < races; i++) {
          registers[20] = 0;
          await engine.run(program);
          registers[20] = 4;
          await engine.run(program);
        }
        program.dispose();
        const x = new Float32Array(engine.memory, at * 64, lab.rows * 16);
        const wrong = x.findIndex((value) => value !== 1 + 22 * races);
        expect(wrong, `${engine.threads} threads: ${x[wrong]}`).toBe(-1);
      }
    });

    it("refuses a program that leaves the arena", () => {
      const lab = makeLab(rowCases.add, 1);
      const words = lab.words(3);
      const engine = engines[2];
      const broken = words.slice();
      broken[lastInstruction(words) + 3] = 2 ** 30;
      expect(() => engine.load(broken)).toThrow(BackendError);
      expect(() => engine.load(words.subarray(0, words.length - 1))).toThrow(BackendError);
    });
  });
}

/** Word of the last instruction of a program. */
function lastInstruction(words: Int32Array): number {
  let word = words[7] as number; // codeStart
  for (let next = word; words[next] !== 0; next += words[next + 1] as number) word = next;
  return word;
}
