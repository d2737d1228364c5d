/**
 * The interpreter of flat programs (docs/engine.md, section 2). Threads take tickets of the current phase of the current
 * instruction (control.ts); who finishes the last one goes on to the next.
 */
import { attendTile } from "./attend-tile";
import { attention, attentionPhases } from "./attention";
import {
  ENDED, FINISHED, PHASE, PROGRAM, STATE, STATUS, WORD, fail, publish, setTicket, waitForPhase,
} from "./control";
import { embed } from "./decode";
import { add, columns, gatherRows, mixHeads, scatterAddRows, siluMul } from "./elementwise";
import { gemm, linearFloat } from "./gemm-float";
import { linearInt } from "./gemm-lowbit";
import { hadamard } from "./hadamard";
import { appendKv, appendPhases } from "./kv-append";
import { gram, inverseFactor, inverseFactorPhases } from "./linalg";
import { dequantize, hadamardQuantize, quantize, rmsnorm, rmsnormQuantize, roundFloat } from "./norm-quantize";
import {
  H_CODE_START, H_MAX_LOGIT_ROWS, H_MAX_ROWS, H_SCRATCH_AT, H_SCRATCH_LINES,
  OP_ABS_STATS, OP_ADD, OP_APPEND_KV, OP_ATTEND_TILE, OP_ATTENTION, OP_COLUMNS, OP_CSR, OP_DEQUANTIZE, OP_EMBED, OP_GATHER_ROWS,
  OP_GEMM, OP_GRAM, OP_HADAMARD, OP_HADAMARD_QUANTIZE, OP_INVERSE_FACTOR, OP_KL_DIVERGENCE, OP_LINEAR_FLOAT,
  OP_LINEAR_INT, OP_LOGIT_STATS, OP_MIX_HEADS, OP_QUANTIZE, OP_RMSNORM, OP_RMSNORM_QUANTIZE, OP_ROUTE,
  OP_ROUND_FLOAT,
  OP_SCATTER_ADD_ROWS, OP_SILU_MUL,
} from "./ops";
import { absStats, csr, klDivergence, logitStats, route } from "./stats";

// @ts-ignore: decorator
@inline
function header(program: usize, field: i32): i32 {
  return load<i32>(program + ((<usize>field) << 2));
}

/** Executes one instruction. Unknown opcodes cannot occur: the host validated the program. */
function execute(op: i32, pc: usize, program: usize, rows: i32, maxRows: i32, phase: i32): void {
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
    case OP_APPEND_KV: return appendKv(pc, program, rows, phase);
    case OP_ATTENTION: return attention(pc, program, rows, phase);
    case OP_GATHER_ROWS: return gatherRows(pc, rows, maxRows);
    case OP_SCATTER_ADD_ROWS: return scatterAddRows(pc, rows, maxRows);
    case OP_ROUTE: return route(pc, rows);
    case OP_LOGIT_STATS: return logitStats(pc, rows);
    case OP_KL_DIVERGENCE: return klDivergence(pc, rows);
    case OP_CSR: return csr(pc, program, rows);
    case OP_GRAM: return gram(pc, rows);
    case OP_ABS_STATS: return absStats(pc, rows);
    case OP_GEMM: return gemm(pc, rows);
    case OP_INVERSE_FACTOR: return inverseFactor(pc, phase);
    case OP_DEQUANTIZE: return dequantize(pc, rows);
    case OP_ATTEND_TILE: return attendTile(pc, rows);
    case OP_ROUND_FLOAT: return roundFloat(pc, rows);
    default: return fail();
  }
}

/** Rows the instruction handles in this run, -1 when the register is out of range. */
function rowsOf(program: usize, pc: usize): i32 {
  if (load<i32>(pc) == OP_INVERSE_FACTOR) return 1;
  const register = load<i32>(pc, 8);
  const limit = header(program, register >= 1 && register <= 15 ? H_MAX_LOGIT_ROWS : H_MAX_ROWS);
  const rows = load<i32>((<usize>register) << 2);
  return <u32>rows > <u32>limit ? -1 : rows;
}

/** Phases of an instruction: what stands in one phase is complete before the next begins. */
function phasesOf(program: usize, pc: usize, rows: i32, tickets: i32): i32 {
  const op = load<i32>(pc);
  if (op == OP_ATTENTION) return attentionPhases(pc, program, rows, tickets);
  if (op == OP_APPEND_KV) return appendPhases(pc, program, rows);
  return op == OP_INVERSE_FACTOR ? inverseFactorPhases(pc) : 1;
}

/** Many rows are cut finer than the number of threads: the end of a phase then waits less for the slowest. */
// @ts-ignore: decorator
@inline
function ticketsOf(rows: i32, workers: i32): i32 {
  return workers > 1 && rows >= 32 ? workers * 4 : workers;
}

/** Does one ticket. */
function work(program: usize, word: i32, phase: i32, ticket: i32, tickets: i32, worker: i32): void {
  const pc = program + ((<usize>word) << 2);
  const scratchBytes = (<usize>header(program, H_SCRATCH_LINES)) << 6;
  setTicket(ticket, tickets, word, ((<usize>header(program, H_SCRATCH_AT)) << 6) + <usize>worker * scratchBytes);
  const rows = rowsOf(program, pc);
  if (rows < 0) fail();
  else if (rows > 0) execute(load<i32>(pc), pc, program, rows, header(program, H_MAX_ROWS), phase);
}

/** Opens the phase after a finished one. True when the program is at its end, or a ticket has failed. */
function advance(program: usize, word: i32, phase: i32, generation: i32, tickets: i32, workers: i32): bool {
  let pc = program + ((<usize>word) << 2);
  let next = word;
  let ended = ASC_FEATURE_THREADS ? atomic.load<i32>(STATUS) != 0 : load<i32>(STATUS) != 0;
  if (!ended) {
    const rows = rowsOf(program, pc);
    phase++;
    if (rows == 0 || phase >= phasesOf(program, pc, rows, tickets)) {
      phase = 0;
      do {
        next += load<i32>(pc, 4);
        pc = program + ((<usize>next) << 2);
        ended = load<i32>(pc) == 0;
      } while (!ended && rowsOf(program, pc) == 0);
      if (!ended) tickets = ticketsOf(rowsOf(program, pc), workers);
    }
  }
  store<i32>(WORD, next);
  store<i32>(PHASE, phase);
  store<i32>(FINISHED, 0);
  publish(generation, ended ? ENDED : tickets);
  return ended;
}

/**
 * Works on the run described by the control words, as thread `worker` of `workers`, until it has ended. True when this
 * thread ended it. A thread may come late, leave, and come again: the program is read with each ticket.
 */
export function runTickets(worker: i32, workers: i32): bool {
  while (true) {
    const state = ASC_FEATURE_THREADS ? atomic.load<i64>(STATE) : load<i64>(STATE);
    const ticket = <i32>state & 0xffff;
    const tickets = (<i32>state) >>> 16;
    const generation = <i32>(state >> 32);
    if (tickets == ENDED) return false;
    if (ticket == tickets) {
      waitForPhase(generation);
      continue;
    }
    const program = <usize>load<u32>(PROGRAM);
    const word = load<i32>(WORD);
    const phase = load<i32>(PHASE);
    if (ASC_FEATURE_THREADS) {
      // What was read above belongs to this generation: the exchange fails when there is a newer one.
      if (atomic.cmpxchg<i64>(STATE, state, state + 1) != state) continue;
    }
    work(program, word, phase, ticket, tickets, worker);
    const last = ASC_FEATURE_THREADS ? atomic.add<i32>(FINISHED, 1) == tickets - 1 : true;
    if (last && advance(program, word, phase, generation, tickets, workers)) return true;
  }
}
