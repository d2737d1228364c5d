/** Random rows for tests of streams and policies. */
import { Philox } from "../../src/core/rng.js";

/** One step's rows: queries [rows * heads, d], keys and values [rows, d]. */
export interface StepRows {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
}

/** `scale` sets how peaked attention is. */
export function randomRows(
  name: string,
  rows: number,
  { headDim, heads }: { headDim: number; heads: number },
  scale = 1.5,
): StepRows {
  const rng = new Philox(1, name);
  const draw = (n: number, s: number) => Float32Array.from(rng.normals(n), (x) => x * s);
  return {
    q: draw(rows * heads * headDim, scale),
    k: draw(rows * headDim, scale),
    v: draw(rows * headDim, 1),
  };
}
