/** Planes of pages: where the keys or values of a head in a page are, and how they are coded. */
import type { Cache } from "../decode.js";
import { LINE, PAGE_TOKENS } from "../ops.js";
import type { Machine } from "./machine.js";

/** One kind of data of one head in one page: where it is and how it is coded. */
export interface Plane {
  /** First byte in the arena. */
  at: number;
  codec: number;
  zeroInt: boolean;
  clip: number;
  headDim: number;
  keys: boolean;
}

/** The keys or values of `head` in page number `page`. */
export function planeOf(c: Cache, page: number, head: number, keys: boolean): Plane {
  const line = c.poolAt + page * c.pageLines + head * c.headLines + (keys ? 0 : c.keyLines);
  return {
    at: line * LINE,
    codec: keys ? c.keyCodec : c.valueCodec,
    zeroInt: (keys ? c.keyZeroInt : c.valueZeroInt) === 1,
    clip: keys ? c.keyClipF : c.valueClipF,
    headDim: c.headDim,
    keys,
  };
}

/** Checked page number of slot `position` of a sequence. */
export function pageOf(
  machine: Machine,
  c: Cache,
  sequence: number,
  layer: number,
  position: number,
): number {
  const entry = (sequence * c.layers + layer) * c.maxPages + Math.floor(position / PAGE_TOKENS);
  return machine.index(c.tableAt, entry, c.pages);
}
