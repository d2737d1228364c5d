/** The native backend against the reference: every variant that this processor runs, loading, running, failing. */
import { describe, expect, it } from "vitest";
import { BackendError } from "../core/errors.js";
import { conformanceSuite } from "./conformance.js";
import { loadAddon, makeNativeBackend, nativeBackend } from "./native.js";
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

for (const variant of variants ?? []) {
  describe(`native ${variant}`, () => {
    it("answers the known-answer probe", async () => {
      const status = await makeNativeBackend(variant).status();
      expect(status).toEqual({ id: "native", variant, available: true, notices: [] });
    });
    conformanceSuite(() => makeNativeBackend(variant), {
      exactAttention: true,
      kivi: true,
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
