/** The NEON kernels under an emulator. `npm run test:arm64` builds them and sets NIBBLE_EMULATED to the command. */
import { describe, expect, it } from "vitest";
import { emulatedBackend } from "./conformance/emulated.js";
import { conformanceSuite } from "./conformance.js";
import { probeArenaBytes, probeEngine } from "./probe.js";

const command = process.env.NIBBLE_EMULATED?.split(" ") ?? [];

describe.runIf(command.length > 0)("native neon, emulated", () => {
  const backend = emulatedBackend(command);
  it("answers the known-answer probe", async () => {
    const engine = await backend.createEngine({ arenaBytes: probeArenaBytes(2), threads: 2 });
    expect(probeEngine(engine)).toBeNull();
  });
  conformanceSuite(backend, { exactAttention: true, programs: 8, races: 5 });
});
