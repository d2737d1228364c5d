/** Exports of the kernels' WebAssembly module. `packages/nibble/src/kernels/wasm.ts` is the only user. */
export { spin } from "./control";
export { runTickets } from "./executor";
export { ceilingDot, ceilingFma, ceilingRead, dotOperations } from "./ceilings";
