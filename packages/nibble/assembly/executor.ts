/**
 * The interpreter of flat programs (docs/engine.md, section 2). Every thread runs the same loop over the same words; after
 * each instruction all meet at a barrier.
 */
import { attention } from "./attention";
import { barrier, fail, setInstruction, setThread } from "./control";
import { embed } from "./decode";
import { add, columns, gatherRows, mixHeads, scatterAddRows, siluMul } from "./elementwise";
import { gemm, linearFloat } from "./gemm-float";
import { linearInt } from "./gemm-lowbit";
import { hadamard } from "./hadamard";
import { appendKv } from "./kv-append";
import { gram, inverseFactor } from "./linalg";
import { dequantize, hadamardQuantize, quantize, rmsnorm, rmsnormQuantize } from "./norm-quantize";
import {
  H_CODE_START, H_MAX_LOGIT_ROWS, H_MAX_ROWS, H_SCRATCH_AT, H_SCRATCH_LINES,
  OP_ABS_STATS, OP_ADD, OP_APPEND_KV, OP_ATTENTION, OP_COLUMNS, OP_CSR, OP_DEQUANTIZE, OP_EMBED, OP_GATHER_ROWS,
  OP_GEMM, OP_GRAM, OP_HADAMARD, OP_HADAMARD_QUANTIZE, OP_INVERSE_FACTOR, OP_KL_DIVERGENCE, OP_LINEAR_FLOAT,
  OP_LINEAR_INT, OP_LOGIT_STATS, OP_MIX_HEADS, OP_QUANTIZE, OP_RMSNORM, OP_RMSNORM_QUANTIZE, OP_ROUTE,
  OP_SCATTER_ADD_ROWS, OP_SILU_MUL,
} from "./ops";
import { absStats, csr, klDivergence, logitStats, route } from "./stats";

// @ts-ignore: decorator
@inline
function header(program: usize, field: i32): i32 {
  return load<i32>(program + ((<usize>field) << 2));
}

/** Executes one instruction. Unknown opcodes cannot occur: the host validated the program. */
function execute(op: i32, pc: usize, program: usize, rows: i32, maxRows: i32): void {
  switch (op) {
    case OP_EMBED: return embed(pc, program, rows);
    case OP_RMSNORM: return rmsnorm(pc, rows);
    case OP_QUANTIZE: return quantize(pc, rows);
    case OP_RMSNORM_QUANTIZE: return rmsnormQuantize(pc, rows);
    case OP_HADAMARD_QUANTIZE: return hadamardQuantize(pc, rows);
    case OP_HADAMARD: return hadamard(pc, rows);
    case OP_MIX_HEADS: return mixHeads(pc, rows);
    case OP_COLUMNS: return columns(pc, rows);
    case OP_LINEAR_INT: return linearInt(pc, program, rows);
    case OP_LINEAR_FLOAT: return linearFloat(pc, program, rows);
    case OP_SILU_MUL: return siluMul(pc, rows);
    case OP_ADD: return add(pc, rows);
    case OP_APPEND_KV: return appendKv(pc, program, rows);
    case OP_ATTENTION: return attention(pc, program, rows);
    case OP_GATHER_ROWS: return gatherRows(pc, rows, maxRows);
    case OP_SCATTER_ADD_ROWS: return scatterAddRows(pc, rows, maxRows);
    case OP_ROUTE: return route(pc, rows);
    case OP_LOGIT_STATS: return logitStats(pc, rows);
    case OP_KL_DIVERGENCE: return klDivergence(pc, rows);
    case OP_CSR: return csr(pc, program, rows);
    case OP_GRAM: return gram(pc, rows);
    case OP_ABS_STATS: return absStats(pc, rows);
    case OP_GEMM: return gemm(pc, rows);
    case OP_INVERSE_FACTOR: return inverseFactor(pc);
    case OP_DEQUANTIZE: return dequantize(pc, rows);
    default: return fail();
  }
}

/**
 * Runs the program at byte address `program` as thread `thread` of `threads`. All threads must call it. The host clears the
 * status word before the run and reads it afterwards.
 */
export function runProgram(program: usize, thread: i32, threads: i32): void {
  const scratchBytes = (<usize>header(program, H_SCRATCH_LINES)) << 6;
  setThread(thread, threads, ((<usize>header(program, H_SCRATCH_AT)) << 6) + <usize>thread * scratchBytes);
  const maxRows = header(program, H_MAX_ROWS);
  const maxLogitRows = header(program, H_MAX_LOGIT_ROWS);
  let word = header(program, H_CODE_START);
  while (true) {
    const pc = program + ((<usize>word) << 2);
    const op = load<i32>(pc);
    if (op == 0) {
      // Skipped instructions have no barrier. Without this one thread 0 could report the end, and the host change
      // registers, while another thread has still to read that a register holds 0 rows.
      barrier();
      return;
    }
    setInstruction(word);
    let rows = 1;
    if (op != OP_INVERSE_FACTOR) {
      const register = load<i32>(pc, 8);
      const limit = register >= 1 && register <= 15 ? maxLogitRows : maxRows;
      rows = load<i32>((<usize>register) << 2);
      if (<u32>rows > <u32>limit) {
        fail();
        rows = -1;
      }
    }
    if (rows != 0) {
      if (rows > 0) execute(op, pc, program, rows, maxRows);
      if (!barrier()) return;
    }
    word += load<i32>(pc, 4);
  }
}
