/**
 * Control words of the arena (bytes 1024..4095) and how threads share a run.
 *
 * Each phase of each instruction is cut into tickets. A thread takes the next ticket, does that share of the work, and who
 * finishes the last ticket opens the next phase. Nobody waits for a thread that holds no ticket: one that lost its
 * processor, or is late to the run, costs only the ticket it holds. Results do not depend on who does what: a ticket is
 * a range of rows, panels or heads, never a part of a sum.
 */

/** 0 = ok, else 1 + word index of the failing instruction. Control word 256 of the arena. */
export const STATUS: usize = 1024;
/** Byte address of the program that runs; written by the host, as STATE, WORD, PHASE and FINISHED are at start. */
export const PROGRAM: usize = 1092;
/** i64: generation (counts phases), u16 number of tickets or ENDED, u16 next ticket; from the high bits to the low. */
export const STATE: usize = 1216;
/** Word index of the current instruction, and its phase. */
export const WORD: usize = 1280;
export const PHASE: usize = 1284;
/** Tickets finished in this phase. */
export const FINISHED: usize = 1344;
/** Threads asleep until the next phase. */
export const SLEEPERS: usize = 1408;
/** How often a thread looks for the next phase before it sleeps. */
export const SPINS: usize = 1472;
export const ENDED: i32 = 0x7fff;

/** The ticket being worked on, how many there are, and this thread's private scratch memory. */
export let thread: i32 = 0;
export let threads: i32 = 1;
export let scratch: usize = 0;
/** Word index of the instruction being executed. */
let instruction: i32 = 0;

export function setTicket(ticket: i32, tickets: i32, word: i32, scratchAt: usize): void {
  thread = ticket;
  threads = tickets;
  instruction = word;
  scratch = scratchAt;
}

/** Ends the run after this phase; the first error stays. */
export function fail(): void {
  if (ASC_FEATURE_THREADS) {
    atomic.cmpxchg<i32>(STATUS, 0, 1 + instruction);
  } else if (load<i32>(STATUS) == 0) {
    store<i32>(STATUS, 1 + instruction);
  }
}

/**
 * One look's worth of idling, about 5 ns: wasm has no pause instruction, and a bare loop would take execution slots from a
 * hyper-thread that shares the core. A chain of square roots occupies almost nothing; its result is kept so that it stays.
 */
let idle: f64 = 2;

// @ts-ignore: decorator
@inline
function pause(x: f64): f64 {
  return sqrt<f64>(x + 2);
}

/** Looks `spins` times whether the word at `at` still holds `value`. True when it changed. */
export function spin(at: usize, value: i32, spins: i32): bool {
  if (ASC_FEATURE_THREADS) {
    let x = idle;
    while (spins-- > 0 && atomic.load<i32>(at) == value) x = pause(x);
    idle = x;
    return atomic.load<i32>(at) != value;
  }
  return load<i32>(at) != value;
}

/** Waits until the generation is no longer `generation`: looks for a while, then sleeps. */
export function waitForPhase(generation: i32): void {
  if (ASC_FEATURE_THREADS) {
    if (spin(STATE + 4, generation, load<i32>(SPINS))) return;
    atomic.add<i32>(SLEEPERS, 1);
    atomic.wait<i32>(STATE + 4, generation, -1);
    atomic.sub<i32>(SLEEPERS, 1);
  }
}

/** Opens the next phase with its tickets, or ends the run (ENDED), and wakes who sleeps. */
export function publish(generation: i32, tickets: i32): void {
  const state = ((<i64>(generation + 1)) << 32) | ((<i64>tickets) << 16);
  if (ASC_FEATURE_THREADS) {
    atomic.store<i64>(STATE, state);
    if (atomic.load<i32>(SLEEPERS) != 0) atomic.notify(STATE + 4, -1);
  } else {
    store<i64>(STATE, state);
  }
}

/** First of `count` items that belongs to ticket t; its share ends where that of t + 1 begins. */
// @ts-ignore: decorator
@inline
export function shareOf(count: i32, t: i32): i32 {
  return <i32>((<i64>count * t) / threads);
}

/** Operand of the instruction at pc. */
// @ts-ignore: decorator
@inline
export function operand(pc: usize, field: i32): i32 {
  return load<i32>(pc + ((<usize>field) << 2));
}

// @ts-ignore: decorator
@inline
export function operandF(pc: usize, field: i32): f32 {
  return load<f32>(pc + ((<usize>field) << 2));
}

/** Byte address of an operand counted in lines. Meaningless when it is absent: ask `has` first. */
// @ts-ignore: decorator
@inline
export function place(pc: usize, field: i32): usize {
  return (<usize>load<u32>(pc + ((<usize>field) << 2))) << 6;
}

/** The same, but 0 when the operand is absent. */
// @ts-ignore: decorator
@inline
export function placeOrZero(pc: usize, field: i32): usize {
  const line = operand(pc, field);
  return line < 0 ? 0 : (<usize>line) << 6;
}
