/** Short runs block, long ones leave the event loop free. */
import type { Engine, LoadedProgram } from "../kernels/contract.js";

/** Rows up to which a run of one layer is over sooner than waking this thread again would take. */
const SHORT_ROWS = 16;

/** Threads of a browser's page may not wait for others; Node's may, and so may the engine without others. */
const mayBlock = typeof process !== "undefined" && process.versions?.node !== undefined;

export function runProgram(
  engine: Engine,
  program: LoadedProgram,
  rows: number,
): void | Promise<void> {
  if (rows > SHORT_ROWS || !mayBlock) return engine.run(program);
  engine.runSync(program);
}
