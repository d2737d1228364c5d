/**
 * The native kernels of another processor, each run a process under an emulator (packages/native/emulate). Slow, for the
 * conformance suite only: it shows what the arm64 kernels compute where there is no such machine.
 */
import { spawnSync } from "node:child_process";
import { BackendError } from "../../core/errors.js";
import type { Backend, Engine, EngineOptions, LoadedProgram } from "../contract.js";
import { HEADER, LINE } from "../ops.js";
import { runFault, validateProgram } from "../validate.js";

class EmulatedEngine implements Engine {
  readonly backend = "native";
  readonly variant = "neon";
  readonly threads: number;
  readonly memory: ArrayBuffer;
  readonly #command: readonly string[];

  constructor(command: readonly string[], { arenaBytes, threads }: EngineOptions) {
    this.#command = command;
    this.threads = threads;
    this.memory = new ArrayBuffer(Math.ceil(arenaBytes / LINE) * LINE);
  }

  load(words: Int32Array): LoadedProgram {
    validateProgram(words, this.memory.byteLength, this.threads);
    return { words: words.slice(), dispose() {} };
  }

  async run(program: LoadedProgram): Promise<void> {
    this.runSync(program);
  }

  runSync({ words }: LoadedProgram): void {
    const bytes = (words[HEADER.indexOf("arenaLines")] as number) * LINE;
    const arena = new Uint8Array(this.memory, 0, bytes);
    const [status, after] = this.#execute(words, arena);
    arena.set(after);
    if (status !== 0) throw runFault(words, status);
  }

  async dispose(): Promise<void> {}

  #execute(words: Int32Array, arena: Uint8Array): [status: number, arena: Uint8Array] {
    const head = Int32Array.of(this.threads, words.length, arena.length);
    const input = Buffer.concat([
      new Uint8Array(head.buffer),
      new Uint8Array(words.buffer, words.byteOffset, words.byteLength),
      arena,
    ]);
    const [file = "", ...args] = this.#command;
    const done = spawnSync(file, args, { input, maxBuffer: arena.length + 4096 });
    if (done.status === 2) {
      const message = done.stderr.toString().trim();
      throw new BackendError(message, { place: "program" }, "program");
    }
    if (done.status !== 0) {
      throw new BackendError(`the emulated run ended with ${done.signal ?? done.status}`, {
        ...(done.error ? { cause: done.error } : {}),
      });
    }
    return [done.stdout.readInt32LE(0), new Uint8Array(done.stdout.subarray(4))];
  }
}

/** @param command the emulator and the program that it runs */
export function emulatedBackend(command: readonly string[]): Backend {
  return {
    id: "native",
    status: async () => ({ id: "native", variant: "neon", available: true, notices: [] }),
    createEngine: async (options) => new EmulatedEngine(command, options),
  };
}
