/**
 * Corrupted programs and corrupted arenas on the native kernels: a program is refused, or it runs, or it ends with a fault, and
 * whatever happens nothing outside its part of the arena is touched. `npm run test:sanitize` runs this with a fence of
 * poisoned memory around the arena, where a read outside counts too.
 */
import { describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import { attentionCases } from "./conformance/attention-cases.js";
import { Lab, Random } from "./conformance/lab.js";
import { linearCases } from "./conformance/linear-cases.js";
import { rowCases } from "./conformance/row-cases.js";
import { statsCases } from "./conformance/stats-cases.js";
import { loadAddon, makeNativeBackend } from "./native.js";
import { CONTROL_BYTES, HEADER, LINE } from "./ops.js";

const CASES = { ...rowCases, ...linearCases, ...attentionCases(true), ...statsCases };
const PROGRAMS = 12;
/** Corruptions of one program. */
const ROUNDS = 8;
const TAIL_BYTES = 1 << 16;
const TAIL = 0xa7;
/** Words that are corrupted: scratch, limits, descriptors and instructions; not how much of the arena is the program's. */
const FIRST_WORD = HEADER.indexOf("scratchAt");
const ARENA_LINES = HEADER.indexOf("arenaLines");

function usable(): string[] {
  try {
    return loadAddon()
      .variants()
      .filter((variant) => variant.runs)
      .map((variant) => variant.name);
  } catch {
    return [];
  }
}

/** A number that tends to break size checks. */
function hostile(random: Random, old: number, lines: number): number {
  const list = [-1, 0, 1, 2, 3, 31, 33, 64, 2 ** 31 - 1, -(2 ** 31), 2 ** 30, 2 ** 26, 65536];
  const near = [old - 1, old + 1, old * 2, old * 2 + 1, old + 32, old - 32, old >> 1, -old];
  switch (random.int(0, 2)) {
    case 0:
      return random.pick(list) | 0;
    case 1:
      return random.pick(near) | 0;
    default:
      return random.int(0, lines);
  }
}

for (const [which, variant] of usable().entries()) {
  describe(`native ${variant}, hostile programs`, () => {
    for (const [op, make] of Object.entries(CASES)) {
      it(`${op}: stays inside its part of the arena`, async () => {
        const backend = makeNativeBackend(variant);
        let ran = 0;
        for (let seed = 0; seed < (which === 0 ? PROGRAMS : 4); seed++) {
          const random = new Random(7919 * seed + 13);
          const lab = new Lab(seed, random.pick([1, 2, 5, 26]));
          make(lab);
          const threads = 1 + (seed % 2);
          const words = lab.words(threads);
          const arenaBytes = (words[ARENA_LINES] as number) * LINE;
          const tailBytes = seed % 4 < 2 ? TAIL_BYTES : 0;
          const engine = await backend.createEngine({
            arenaBytes: arenaBytes + tailBytes,
            threads,
          });
          const arena = new Uint8Array(engine.memory);
          arena.fill(TAIL, arenaBytes);
          const tail = arena.slice(arenaBytes);
          for (let round = 0; round < ROUNDS; round++) {
            arena.set(lab.image);
            const broken = words.slice();
            const image = new DataView(engine.memory);
            if (round % 2 === 0) {
              for (let i = random.int(1, 3); i > 0; i--) {
                const word = random.int(FIRST_WORD, words.length - 1);
                if (word === ARENA_LINES) continue;
                broken[word] = hostile(
                  random,
                  broken[word] as number,
                  words[ARENA_LINES] as number,
                );
              }
            } else {
              const end = lab.image.length / 4 - 1;
              for (let i = random.int(1, 200); i > 0; i--) {
                const word = random.chance(0.1) ? 0 : random.int(CONTROL_BYTES / 4, end);
                const old = image.getInt32(4 * word, true);
                image.setInt32(4 * word, hostile(random, old, words[ARENA_LINES] as number), true);
              }
            }
            try {
              engine.runSync(engine.load(broken));
              ran++;
            } catch (error) {
              expect(error, `seed ${seed}, round ${round}`).toBeInstanceOf(BackendError);
            }
            expect(
              Buffer.compare(arena.subarray(arenaBytes), tail),
              `seed ${seed}, round ${round}`,
            ).toBe(0);
          }
          await engine.dispose();
        }
        expect(ran).toBeGreaterThan(0); // not everything is refused
      });
    }
  });
}
