/** Rotations of single head rows, in the arithmetic of the kernels: norm of a head, RoPE, Hadamard of a head. */
const f = Math.fround;

/** cos and sin [positions, half], as model/rope.ts makes them. */
export interface RopeTable {
  cos: Float32Array;
  sin: Float32Array;
  half: number;
}

/** target[to..] = RoPE of source[at..] at a position; the two may be the same place. */
export function rotate(
  source: Float32Array,
  at: number,
  target: Float32Array,
  to: number,
  { cos, sin, half }: RopeTable,
  position: number,
): void {
  const row = position * half;
  for (let i = 0; i < half; i++) {
    const a = source[at + i] as number;
    const b = source[at + half + i] as number;
    const c = cos[row + i] as number;
    const s = sin[row + i] as number;
    target[to + i] = f(a * c) - f(b * s);
    target[to + half + i] = f(b * c) + f(a * s);
  }
}

/** Normalized Hadamard of x[at .. at + size) in place; its own inverse. `size` is a power of two. */
export function hadamardHead(x: Float32Array, at: number, size: number): void {
  for (let h = 1; h < size; h *= 2) {
    for (let j = at; j < at + size; j += 2 * h) {
      for (let i = j; i < j + h; i++) {
        const a = x[i] as number;
        const b = x[i + h] as number;
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
  }
  const norm = f(1 / f(Math.sqrt(size)));
  for (let i = at; i < at + size; i++) x[i] = (x[i] as number) * norm;
}
