/** Small arithmetic that codecs share. */

/** Round half to even of a number below 2^51 in magnitude. */
export function roundHalfEven(x: number): number {
  return x + 6755399441055744 - 6755399441055744;
}

export const clamp = (x: number, low: number, high: number): number =>
  Math.min(Math.max(x, low), high);
