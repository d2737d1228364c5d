/**
 * Incremental SHA-256 (FIPS 180-4) that runs everywhere: Node's own implementation where there is one, else plain
 * TypeScript, because the browser's WebCrypto cannot hash a stream.
 */

export interface Hasher {
  update(bytes: Uint8Array): void;
  /** Hex digest; ends the hasher. */
  digest(): string;
}

/** A new hasher: native if the platform has one. */
export function sha256(): Hasher {
  const host = globalThis as { process?: { getBuiltinModule?: (name: string) => unknown } };
  const crypto = host.process?.getBuiltinModule?.("node:crypto") as
    | typeof import("node:crypto")
    | undefined;
  if (!crypto) return new PlainSha256();
  const hash = crypto.createHash("sha256");
  return { update: (bytes) => void hash.update(bytes), digest: () => hash.digest("hex") };
}

/** First 32 bits of the fractional part of a root of the n-th prime. */
function fraction(root: number): number {
  return Math.floor((root - Math.floor(root)) * 2 ** 32) | 0;
}

/** Round constants (cube roots of 64 primes) and initial state (square roots of 8). */
function constants(): { k: Int32Array; h: Int32Array } {
  const primes: number[] = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p !== 0)) primes.push(n);
  return {
    k: Int32Array.from(primes, (p) => fraction(Math.cbrt(p))),
    h: Int32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p))),
  };
}

/** The algorithm in TypeScript, some 150 MB/s. */
export class PlainSha256 implements Hasher {
  readonly #k: Int32Array;
  readonly #state: Int32Array;
  readonly #block = new Uint8Array(64);
  readonly #view = new DataView(this.#block.buffer);
  readonly #words = new Int32Array(64);
  #filled = 0;
  #length = 0;

  constructor() {
    const { k, h } = constants();
    this.#k = k;
    this.#state = h;
  }

  update(bytes: Uint8Array): void {
    this.#length += bytes.length;
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + 64 - this.#filled);
      this.#block.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === 64) {
        this.#compress();
        this.#filled = 0;
      }
    }
  }

  digest(): string {
    const bits = BigInt(this.#length) * 8n;
    this.update(Uint8Array.of(0x80));
    while (this.#filled !== 56) this.update(Uint8Array.of(0));
    this.#view.setBigUint64(56, bits);
    this.#compress();
    return Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  #compress(): void {
    const w = this.#words;
    const k = this.#k;
    const state = this.#state;
    // Indices below stay within 64 and 8; `| 0` also settles the type of each read.
    const word = (i: number) => (w[i] as number) | 0;
    for (let i = 0; i < 16; i++) w[i] = this.#view.getInt32(4 * i);
    for (let i = 16; i < 64; i++) {
      const x = word(i - 15);
      const y = word(i - 2);
      const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
      const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
      w[i] = (word(i - 16) + s0 + word(i - 7) + s1) | 0;
    }
    let [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = state;
    for (let i = 0; i < 64; i++) {
      const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + (k[i] as number) + word(i)) | 0;
      const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    const next = [a, b, c, d, e, f, g, h];
    for (let i = 0; i < 8; i++) state[i] = ((state[i] as number) + (next[i] as number)) | 0;
  }
}

function rotate(x: number, bits: number): number {
  return (x >>> bits) | (x << (32 - bits));
}
