/**
 * Control words of the arena (bytes 1024..4095), the barrier, and the split of work over threads.
 *
 * The last thread that reaches a barrier decides for all whether the run goes on: a thread that is already ahead may
 * report an error at any time, and threads that saw different answers would wait for each other for ever.
 */

/** 0 = ok, else 1 + word index of the failing instruction. Control word 256 of the arena. */
export const STATUS: usize = 1024;
/** Threads that have arrived at the current barrier. */
const ARRIVED: usize = 1216;
/** Number of the current barrier. */
const GENERATION: usize = 1280;
/** Threads asleep at the barrier. */
const SLEEPERS: usize = 1344;
/** Copy of STATUS that all threads act upon. */
const STOP: usize = 1408;
/** How often a thread looks at a barrier or at the job word before it sleeps; written by the host. */
const SPINS: usize = 1472;

/** This instance's thread and its private scratch memory; set by runProgram. */
export let thread: i32 = 0;
export let threads: i32 = 1;
export let scratch: usize = 0;
/** Word index of the instruction being executed. */
export let instruction: i32 = 0;

export function setThread(index: i32, count: i32, scratchAt: usize): void {
  thread = index;
  threads = count;
  scratch = scratchAt;
}

export function setInstruction(word: i32): void {
  instruction = word;
}

/** Ends the run at the next barrier; the first error stays. */
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

/** Waits for all threads. False when the run has to end. */
export function barrier(): bool {
  if (threads == 1) return load<i32>(STATUS) == 0;
  if (ASC_FEATURE_THREADS) {
    const generation = atomic.load<i32>(GENERATION);
    if (atomic.add<i32>(ARRIVED, 1) == threads - 1) {
      store<i32>(STOP, atomic.load<i32>(STATUS));
      atomic.store<i32>(ARRIVED, 0);
      atomic.store<i32>(GENERATION, generation + 1);
      if (atomic.load<i32>(SLEEPERS) != 0) atomic.notify(GENERATION, -1);
    } else {
      let spins = load<i32>(SPINS);
      let x = idle;
      while (atomic.load<i32>(GENERATION) == generation) {
        x = pause(x);
        if (--spins < 0) {
          atomic.add<i32>(SLEEPERS, 1);
          atomic.wait<i32>(GENERATION, generation, -1);
          atomic.sub<i32>(SLEEPERS, 1);
        }
      }
      idle = x;
    }
    return load<i32>(STOP) == 0;
  }
  return true;
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

/** First of `count` items that belongs to thread t; thread t's share ends where that of t + 1 begins. */
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
