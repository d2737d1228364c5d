/**
 * Random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counter based.
 * A stream is (seed, name): the seed is the key, a hash of the name is the upper half of the counter, so streams do not
 * depend on the order in which they are used and no state is global.
 */
import { UsageError } from "./errors.js";

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;
const ROUNDS = 10;

/** Upper 32 bits of the product of two unsigned 32-bit numbers. */
function multiplyHigh(a: number, b: number): number {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const low = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + Math.floor(middle / 0x10000) + Math.floor(low / 0x10000)) >>> 0;
}

type Words4 = readonly [number, number, number, number];

/** The Philox4x32-10 block function: four counter words and two key words to four random 32-bit words. */
export function philox4x32(counter: Words4, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0) >>> 0;
    const high1 = multiplyHigh(MULTIPLIER_1, c2);
    const low1 = Math.imul(MULTIPLIER_1, c2) >>> 0;
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** FNV-1a of the UTF-16 code units, with a chosen start value. */
function hashName(name: string, start: number): number {
  let h = start;
  for (let i = 0; i < name.length; i++) h = Math.imul(h ^ name.charCodeAt(i), 0x01000193);
  return h >>> 0;
}

export class Philox {
  readonly #key: readonly [number, number];
  readonly #high: readonly [number, number];
  #block: number;
  #words: Words4 = [0, 0, 0, 0];
  #used = 4;
  #spareNormal: number | null = null;

  /**
   * @param seed integer in 0 .. 2^53 - 1
   * @param name path of the stream
   * @param block where in the stream to begin, in blocks of four words (a step number, say)
   * @throws UsageError when the seed is no such integer
   */
  constructor(
    readonly seed: number,
    readonly name = "",
    block = 0,
  ) {
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw new UsageError(`seed ${seed} is not an integer between 0 and 2^53 - 1`, {
        hint: "Use a seed such as 0.",
      });
    }
    this.#key = [seed >>> 0, Math.floor(seed / 0x100000000)];
    this.#block = block;
    this.#high = [hashName(name, 0x811c9dc5), hashName(name, 0x050c5d1f)];
  }

  /** An independent stream; equal (seed, path) gives equal numbers whatever was drawn before. */
  stream(name: string): Philox {
    return new Philox(this.seed, `${this.name}/${name}`);
  }

  /** 32 random bits. */
  uint32(): number {
    if (this.#used === 4) {
      const low = this.#block >>> 0;
      const high = Math.floor(this.#block / 0x100000000);
      this.#words = philox4x32([low, high, ...this.#high], this.#key);
      this.#block++;
      this.#used = 0;
    }
    return this.#words[this.#used++] as number;
  }

  /** Uniform in [0, 1) with 53 random bits. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 0x4000000 + low) / 0x20000000000000;
  }

  /** Uniform integer in 0 .. bound - 1 without bias; 1 <= bound <= 2^32. */
  below(bound: number): number {
    const limit = 0x100000000 - (0x100000000 % bound);
    for (;;) {
      const word = this.uint32();
      if (word < limit) return word % bound;
    }
  }

  /** Standard normal (Box-Muller; both numbers of a pair are used). */
  normal(): number {
    if (this.#spareNormal !== null) {
      const spare = this.#spareNormal;
      this.#spareNormal = null;
      return spare;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spareNormal = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** n independent standard normals. */
  normals(n: number): Float64Array {
    return Float64Array.from({ length: n }, () => this.normal());
  }

  /** n independent signs, +1 or -1. */
  signs(n: number): Float32Array {
    const out = new Float32Array(n);
    let word = 0;
    for (let i = 0; i < n; i++) {
      if ((i & 31) === 0) word = this.uint32();
      out[i] = (word >>> (i & 31)) & 1 ? 1 : -1;
    }
    return out;
  }

  /** A uniformly random permutation of 0 .. n - 1 (Fisher-Yates). */
  permutation(n: number): Uint32Array {
    const out = Uint32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const a = out[i] as number;
      out[i] = out[j] as number;
      out[j] = a;
    }
    return out;
  }
}
