/**
 * How much private scratch each thread may count on (docs/engine.md, section 2). Lowering asks here what to reserve,
 * `validate.ts` checks that it was reserved, executors carve their temporaries from it.
 */
import { type DecodedProgram, decodeProgram } from "./decode.js";
import { LINE } from "./ops.js";

/** Enough for attention items, unpacked pages and tile accumulators of every shape we run. */
const FLOOR_BYTES = 512 * 1024;
/** An unpacked panel of 32 channels, as f32. */
const BYTES_PER_COLUMN = 128;
/** Sixteen f32 rows. */
const BYTES_PER_CHANNEL = 64;

/** Scratch lines a thread needs for linears of up to `maxColumns` inputs and row ops of up to `maxWidth` channels. */
export function scratchLines(maxColumns: number, maxWidth: number): number {
  const bytes = FLOOR_BYTES + BYTES_PER_COLUMN * maxColumns + BYTES_PER_CHANNEL * maxWidth;
  return Math.ceil(bytes / LINE);
}

/** Scratch lines a thread needs to run every instruction of the program. */
export function requiredScratchLines(program: Int32Array | DecodedProgram): number {
  const decoded = program instanceof Int32Array ? decodeProgram(program) : program;
  let maxColumns = 0;
  let maxWidth = 0;
  for (const { op, operands: o } of decoded.instructions) {
    if (op === "linearInt" || op === "linearFloat") {
      maxColumns = Math.max(maxColumns, decoded.weights[o.weightW]?.k ?? 0);
    } else if (op === "gemm") maxColumns = Math.max(maxColumns, o.inner);
    else if (op === "hadamard") {
      maxWidth = Math.max(maxWidth, o.blocks * o.orderK * o.orderM * o.inner);
    } else if (op === "mixHeads") maxWidth = Math.max(maxWidth, o.count * o.inner);
    else if (op === "rmsnormQuantize" || op === "hadamardQuantize") {
      maxWidth = Math.max(maxWidth, o.width);
    }
  }
  return scratchLines(maxColumns, maxWidth);
}
