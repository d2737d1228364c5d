/** Runs a lab's program on an engine. */
import type { Engine } from "../contract.js";
import { CONTROL_BYTES } from "../ops.js";
import type { Lab } from "./lab.js";

/** Registers: the part of the control block that a program's author writes. */
export const REGISTER_BYTES = 1024;

/** Puts the lab's image into the arena, leaving alone what belongs to the executor. */
export function upload(engine: Engine, lab: Lab): Uint8Array {
  const arena = new Uint8Array(engine.memory);
  arena.set(lab.image.subarray(0, REGISTER_BYTES));
  arena.set(lab.image.subarray(CONTROL_BYTES), CONTROL_BYTES);
  return arena;
}

/** Runs the lab's program and returns a copy of the arena up to the end of the image. */
export async function execute(engine: Engine, lab: Lab): Promise<Uint8Array<ArrayBuffer>> {
  const arena = upload(engine, lab);
  const program = engine.load(lab.words(engine.threads));
  try {
    await engine.run(program);
  } finally {
    program.dispose();
  }
  return copyOf(arena.subarray(0, lab.image.length));
}

/** Copy in an ordinary ArrayBuffer, so that typed views can be laid over it. */
export function copyOf(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return copy;
}
