import { describe, expect, it } from "vitest";
import type { Engine, LoadedProgram } from "./contract.js";
import { CONTROL_BYTES } from "./ops.js";
import { probeAnswers, probeArenaBytes, probeEngine } from "./probe.js";
import { referenceBackend } from "./reference.js";

const open = () => referenceBackend.createEngine({ arenaBytes: probeArenaBytes(1), threads: 1 });

describe("known-answer probe", () => {
  it("passes on the reference and leaves the arena zeroed", async () => {
    const engine = await open();
    // When the contract changes: print these answers and store them as KNOWN in probe.ts.
    const answers = probeAnswers(engine);
    expect(Object.keys(answers).length).toBeGreaterThan(20);
    expect(probeEngine(engine), JSON.stringify(answers, null, 2)).toBeNull();
    expect(new Uint8Array(engine.memory).subarray(CONTROL_BYTES).some((x) => x !== 0)).toBe(false);
  });

  it("names the op when a result is wrong", async () => {
    const engine = await open();
    /** The engine with something done to its arena around each run. */
    const around = (before: () => void, after: () => void): Engine =>
      Object.create(engine, {
        memory: { value: engine.memory },
        threads: { value: engine.threads },
        load: { value: (words: Int32Array) => engine.load(words) },
        runSync: {
          value: (program: LoadedProgram) => {
            before();
            engine.runSync(program);
            after();
          },
        },
      });
    const words = new Int32Array(engine.memory);
    const written: number[] = [];
    let start = new Int32Array();
    const record = around(
      () => {
        start = words.slice();
      },
      () => {
        for (let i = CONTROL_BYTES / 4; i < words.length; i++) {
          if (words[i] !== start[i]) written.push(i);
        }
      },
    );
    expect(probeEngine(record)).toBeNull();
    const named: (string | null)[] = [];
    for (let i = 0; i < written.length; i += 157) {
      const flip = () => {
        words[written[i]] ^= -(2 ** 31);
      };
      named.push(probeEngine(around(() => {}, flip)));
    }
    // What is not noticed are bytes of cache pages, which are no results.
    expect(named.filter((name) => name !== null).length).toBeGreaterThan(0.8 * named.length);
    expect(new Set(named).size).toBeGreaterThan(8);
  });

  it("says so when the engine cannot run it", async () => {
    const engine = await referenceBackend.createEngine({ arenaBytes: 4096, threads: 1 });
    expect(probeEngine(engine)).toContain("failed to run");
  });
});
