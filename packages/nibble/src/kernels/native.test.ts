/** The native backend against the reference: every variant that this processor runs, loading, running, failing. */
import { describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import { packCodes } from "../encodings/packed-codes.js";
import { Random } from "./conformance/lab.js";
import { conformanceSuite } from "./conformance.js";
import { loadAddon, makeNativeBackend, nativeBackend } from "./native.js";
import { packPanel32, segmentWidths } from "./panel32.js";
import { ProgramBuilder } from "./program.js";

/** Variants of the addon that run here; null when it was not built. */
function usable(): string[] | null {
  try {
    return loadAddon()
      .variants()
      .filter((variant) => variant.runs)
      .map((variant) => variant.name);
  } catch {
    return null;
  }
}

const variants = usable();

describe.runIf(variants === null)("native backend that was not built", () => {
  it("says so and refuses to make an engine", async () => {
    const status = await nativeBackend.status();
    expect(status.available).toBe(false);
    expect(status.notices).toHaveLength(1);
    await expect(nativeBackend.createEngine({ arenaBytes: 1 << 20, threads: 1 })).rejects.toThrow(
      BackendError,
    );
  });
});

/** Both operands in bf16 err by 2^-8, a product by a little more than 2^-7; the bounds of the suite are 1e-5. */
const BF16_CASES = ["dense weights", "integer weights", "table weights"].map(
  (weights) => `linearFloat, ${weights}`,
);
const BF16_SLACK = Object.fromEntries([...BF16_CASES, "gram"].map((op) => [op, 0.00785 / 1e-5]));

for (const variant of variants ?? []) {
  describe(`native ${variant}`, () => {
    it("answers the known-answer probe", async () => {
      const status = await makeNativeBackend(variant).status();
      expect(status).toEqual({ id: "native", variant, available: true, notices: [] });
    });
    // Teams that grow and shrink in the middle of runs, and full ones in between: no bit depends on it.
    conformanceSuite(() => makeNativeBackend(variant, [3, 3, 1, 3, 2, 1, 3]), {
      exactAttention: true,
      slack: variant === "avx512bf16" ? BF16_SLACK : {},
      programs: variant === variants?.[0] ? 60 : 24,
    });
  });
}

/** A program that adds `count` rows of ones at line 128 to line 64. */
function adder() {
  const builder = new ProgramBuilder();
  builder.emit("add", {
    rowsReg: 0,
    srcAt: 128,
    ldSrc: 16,
    dstAt: 64,
    ldDst: 16,
    width: 16,
    alphaF: 1,
  });
  return builder.build({ scratchAt: 1024, scratchLines: 8192, maxRows: 1, arenaLines: 65536 });
}

describe.runIf(variants !== null)("native engine", () => {
  it("names an unknown variant", async () => {
    const status = await makeNativeBackend("avx513").status();
    expect(status.available).toBe(false);
    expect(status.notices[0]).toMatch(/avx513, expected .*baseline/);
  });

  it("runs asynchronously and synchronously, one run at a time", async () => {
    const engine = await nativeBackend.createEngine({ arenaBytes: 1 << 22, threads: 2 });
    const program = engine.load(adder());
    const memory = new Float32Array(engine.memory);
    new Int32Array(engine.memory)[0] = 1;
    memory.fill(1, 128 * 16, 129 * 16);
    const first = engine.run(program);
    await expect(engine.run(program)).rejects.toThrow(/already running/);
    expect(() => engine.runSync(program)).toThrow(/already running/);
    await first;
    engine.runSync(program);
    for (let i = 0; i < 100; i++) await engine.run(program);
    expect([...memory.subarray(64 * 16, 65 * 16)]).toEqual(Array(16).fill(102));
    program.dispose();
    expect(() => engine.runSync(program)).toThrow(/disposed/);
    await engine.dispose();
    await engine.dispose();
    expect(() => engine.load(adder())).toThrow(/disposed/);
  });

  it("packs tile64 codes into the panels that TypeScript writes", async () => {
    const random = new Random(3);
    for (const threads of [1, 3]) {
      const engine = await nativeBackend.createEngine({ arenaBytes: 1 << 15, threads });
      const memory = new Uint8Array(engine.memory);
      for (let round = 0; round < 60; round++) {
        const interleaved = random.chance(0.3);
        const n = interleaved ? 32 * random.int(1, 3) : random.int(1, 100);
        const k = random.int(1, 130);
        const bits = random.int(1, 8);
        const codes = Uint8Array.from({ length: n * k }, () => random.int(0, 2 ** bits - 1));
        const packed = packCodes(codes, bits, n, k);
        const expected = packPanel32(codes, n, k, bits, interleaved);
        for (const width of segmentWidths(bits)) {
          memory.fill(0);
          const source = packed.segments[width] as Uint8Array;
          const cut = random.int(0, n);
          const job = { width, k, n, interleaved, targetAt: 100 };
          const middle = (cut * source.length) / n;
          engine.pack?.({ ...job, source, first: 0, rows: cut });
          engine.pack?.({ ...job, source: source.subarray(middle), first: cut, rows: n - cut });
          const bytes = expected[width]?.length as number;
          const panels = memory.subarray(6400, 6400 + bytes);
          expect(Buffer.compare(panels, expected[width] as Uint8Array), `${n} x ${k}`).toBe(0);
          expect(memory.subarray(6400 + bytes).every((byte) => byte === 0)).toBe(true);
        }
      }
      await engine.dispose();
    }
  });

  it("refuses to pack what does not fit", async () => {
    const engine = await nativeBackend.createEngine({ arenaBytes: 1 << 16, threads: 1 });
    const job = { source: new Uint8Array(32 * 32), width: 4, k: 64, targetAt: 100, n: 32 } as const;
    const rows = { first: 0, rows: 32, interleaved: false };
    engine.pack?.({ ...job, ...rows });
    for (const wrong of [
      { targetAt: 1 },
      { targetAt: -1 },
      { targetAt: 1020 },
      { k: 65 },
      { k: 0 },
      { n: 31 },
      { first: 1 },
      { rows: -1 },
      { n: 2 ** 30 },
      { n: 33, interleaved: true },
      { width: 3 as 4 },
    ]) {
      expect(() => engine.pack?.({ ...job, ...rows, ...wrong }), `${Object.keys(wrong)}`).toThrow();
    }
    await engine.dispose();
  });

  it("names the word of a hostile instruction", async () => {
    const engine = await nativeBackend.createEngine({ arenaBytes: 1 << 22, threads: 1 });
    const words = adder();
    const code = words[7] as number;
    for (const [word, value] of [
      [code + 3, 2 ** 31 - 1],
      [code + 3, 3],
      [code + 4, -1],
      [code + 7, 2 ** 30],
      [code + 2, 256],
      [code + 1, 4],
      [code, 99],
    ] as const) {
      const broken = words.slice();
      broken[word] = value;
      expect(() => engine.load(broken)).toThrow(new RegExp(`word ${code} `));
    }
    for (const [word, value] of [
      [8, 65535],
      [11, 1 << 20],
      [0, 0],
      [3, -1],
      [4, 2 ** 31 - 1],
    ] as const) {
      const broken = words.slice();
      broken[word] = value;
      expect(() => engine.load(broken)).toThrow(BackendError);
    }
    await engine.dispose();
  });
});

describe.runIf(variants !== null)("the pace of a team", () => {
  const MS = 1e6;
  /** Counts after windows of 10 ms, in each of which every thread lost the given share. */
  const pace = (threads: number, shares: number[]) => {
    const windows = shares.flatMap((share, i) => [
      (i + 1) * 10 * MS,
      10 * MS,
      share * 10 * MS,
      share * 10 * MS,
    ]);
    return loadAddon().pace(threads, Float64Array.from(windows));
  };

  it("keeps all threads while little is lost", () => {
    expect(pace(2, Array(50).fill(0.12))).toEqual(Array(50).fill(2));
    expect(pace(1, Array(50).fill(0.9))).toEqual(Array(50).fill(1));
  });

  it("gives up a thread for every processor that something else uses, never the last", () => {
    expect(pace(4, [0.3])).toEqual([3]);
    expect(pace(4, [0, 0.3, 0.3, 0.3, 0.3])).toEqual([4, 3, 2, 1, 1]);
    const lost = Float64Array.of(10 * MS, 10 * MS, 6 * MS, 35 * MS);
    expect(loadAddon().pace(8, lost)).toEqual([5]);
    lost[3] = 200 * MS;
    expect(loadAddon().pace(8, lost)).toEqual([1]);
  });

  it("tries all threads again, ever less often while that fails", () => {
    // Beside a busy process: two threads lose, one does not.
    const shares: number[] = [];
    let counts = [2];
    for (let i = 0; i < 200; i++) {
      shares.push(counts.at(-1) === 2 ? 0.4 : 0);
      counts = [2, ...pace(2, shares)];
    }
    const tries = counts.flatMap((count, i) => (count === 2 ? [i] : []));
    const gaps = tries.slice(1).map((at, i) => at - (tries[i] as number));
    expect(gaps).toEqual([3, 5, 8, 14, 27, 53]); // windows: 16, 32, 64 … ms and the one that failed
  });

  it("uses all threads again soon after the neighbour has gone", () => {
    const counts = pace(2, [0.5, 0, 0, 0, 0, 0]);
    expect(counts).toEqual([1, 1, 2, 2, 2, 2]);
  });

  it("goes back to the count that worked when a try fails", () => {
    expect(pace(4, [0.3, 0.3, 0, 0, 0.3, 0])).toEqual([3, 2, 2, 4, 2, 2]);
  });
});
