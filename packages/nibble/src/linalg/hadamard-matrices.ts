/**
 * Unnormalized Hadamard matrices A_k (entries +-1, A A^T = k I) of the orders that are no powers of two, generated
 * instead of shipped: Paley (1933) for prime q, else a Goethals-Seidel (1967) array of four circulants, whose first rows
 * were found by search over rows that are constant on the orbits of a multiplier group. Tests verify every order.
 */

/** Larger A_k would cost more in the dense k x k step than a block transform is worth. */
const LARGEST_ORDER = 1024;

/**
 * First rows of four circulants with A A^T + B B^T + C C^T + D D^T = 4 n I, keyed by 4 n. Rows of 2 n sign
 * characters are written in full; the others are symmetric and given by their first (n + 1) / 2 entries.
 */
const CIRCULANTS: Record<number, readonly [string, string, string, string]> = {
  52: ["++-+-++", "++--+-+", "+---+++", "+++-++-"],
  92: ["+--++-+-+-++", "+++---++--++", "+--+-+-+++++", "+--+--+++---"],
  116: ["+--+---+-+--+++", "+-+++-+++--+-++", "+--++----+-++++", "++--++-+-++++--"],
  156: [
    "+------++--++-+--+-+++-++-+-++++-++++++",
    "+-----+++--++--+-+++++-++-+-+-++-++-+++",
    "+-----++-----+++-+++-+-++-+-++-+-+++-++",
    "+---+-+---+-+-++--++-----+--++++---++--",
  ],
  172: [
    "++-+--++-+++----+++-++",
    "+--+++--+-+--+-+++++-+",
    "+-+-+----++++-++++-++-",
    "+--++----+-+---+--++++",
  ],
};

const cache = new Map<number, Int8Array | null>();

/** A_k as signs [k, k] row-major, or null when this module knows none. k = 1 gives [1]. Do not change the result. */
export function hadamardSigns(k: number): Int8Array | null {
  if (k === 1) return Int8Array.of(1);
  if (k % 4 !== 0 || k > LARGEST_ORDER) return null;
  let signs = cache.get(k);
  if (signs === undefined) {
    signs = build(k);
    cache.set(k, signs);
  }
  return signs;
}

function build(k: number): Int8Array | null {
  if (isPrime(k - 1)) return paleyOne(k - 1);
  if (isPrime(k / 2 - 1) && (k / 2 - 1) % 4 === 1) return paleyTwo(k / 2 - 1);
  const rows = CIRCULANTS[k];
  return rows ? goethalsSeidel(k / 4, rows) : null;
}

function isPrime(q: number): boolean {
  if (q < 2) return false;
  for (let d = 2; d * d <= q; d++) if (q % d === 0) return false;
  return true;
}

/** Legendre symbol of every residue: 0 for 0, +1 for squares, -1 for the others. */
function legendre(q: number): Int8Array {
  const chi = new Int8Array(q).fill(-1);
  for (let a = 1; a < q; a++) chi[(a * a) % q] = 1;
  chi[0] = 0;
  return chi;
}

/** The bordered Jacobsthal matrix S [q + 1, q + 1]: S[0, 1:] = 1, S[1:, 0] = border, S[i + 1, j + 1] = chi(i - j). */
function conference(q: number, border: 1 | -1): Int8Array {
  const size = q + 1;
  const chi = legendre(q);
  const s = new Int8Array(size * size);
  for (let i = 1; i < size; i++) {
    s[i] = 1;
    s[i * size] = border;
    for (let j = 1; j < size; j++) s[i * size + j] = chi[(i - j + q) % q];
  }
  return s;
}

/** q = 3 mod 4: A = S + I, order q + 1. */
function paleyOne(q: number): Int8Array {
  const a = conference(q, -1);
  for (let i = 0; i <= q; i++) a[i * (q + 1) + i] = 1;
  return a;
}

/** q = 1 mod 4: A = S (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], order 2 (q + 1). */
function paleyTwo(q: number): Int8Array {
  const size = q + 1;
  const s = conference(q, 1);
  const a = new Int8Array(4 * size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const [p, r, t, u] = i === j ? [1, -1, -1, -1] : [1, 1, 1, -1];
      const v = i === j ? 1 : s[i * size + j];
      const at = 2 * i * 2 * size + 2 * j;
      a[at] = v * p;
      a[at + 1] = v * r;
      a[at + 2 * size] = v * t;
      a[at + 2 * size + 1] = v * u;
    }
  }
  return a;
}

/** First row of a circulant from its sign characters, mirrored when only half of it is given. */
function signRow(text: string, n: number): Int8Array {
  const row = new Int8Array(n);
  for (let i = 0; i < n; i++) row[i] = text[i < text.length ? i : n - i] === "+" ? 1 : -1;
  return row;
}

/** [A, BR, CR, DR; -BR, A, D'R, -C'R; -CR, -D'R, A, B'R; -DR, C'R, -B'R, A], R reverses columns, ' transposes. */
function goethalsSeidel(n: number, rows: readonly [string, string, string, string]): Int8Array {
  const [a, b, c, d] = rows.map((text) => signRow(text, n));
  const plain = (row: Int8Array, i: number, j: number) => row[(j - i + n) % n];
  type Block = readonly [sign: 1 | -1, row: Int8Array, kind: "plain" | "reversed" | "transposed"];
  const blocks: readonly (readonly Block[])[] = [
    [
      [1, a, "plain"],
      [1, b, "reversed"],
      [1, c, "reversed"],
      [1, d, "reversed"],
    ],
    [
      [-1, b, "reversed"],
      [1, a, "plain"],
      [1, d, "transposed"],
      [-1, c, "transposed"],
    ],
    [
      [-1, c, "reversed"],
      [-1, d, "transposed"],
      [1, a, "plain"],
      [1, b, "transposed"],
    ],
    [
      [-1, d, "reversed"],
      [1, c, "transposed"],
      [-1, b, "transposed"],
      [1, a, "plain"],
    ],
  ];
  const size = 4 * n;
  const out = new Int8Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const [sign, row, kind] = blocks[Math.floor(i / n)][Math.floor(j / n)];
      const y = i % n;
      const x = j % n;
      const mirrored = n - 1 - x;
      const value =
        kind === "plain"
          ? plain(row, y, x)
          : kind === "reversed"
            ? plain(row, y, mirrored)
            : plain(row, mirrored, y);
      out[i * size + j] = sign * value;
    }
  }
  return out;
}
