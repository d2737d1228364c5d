/**
 * Range asymmetric numeral systems (Duda, arXiv 1311.2540): order-0 entropy coding of bytes. Probabilities of 12 bits,
 * states of 32 bits, renormalization by 16-bit words, 1 or 8 interleaved states (symbol i uses state i mod lanes).
 *
 * Stream, little-endian: [mode u8, lanes u8, 0 u16, count u32, chunk u32, present: 32-byte bitmap, frequency u16 each],
 * padded to 4 bytes, then word count u32 [chunks], start states u32 [chunks, lanes], words u16. Mode raw: the symbols
 * follow the 12-byte head; mode constant: one symbol does. A decoder ends with every state at 2^16 and every word
 * used, so damage to a stream is noticed.
 */
import { FormatError } from "../core/errors.js";

const PROBABILITY_BITS = 12;
const TOTAL = 1 << PROBABILITY_BITS;
const LOW = 0x10000;
const MODE = { raw: 0, constant: 1, rans: 2 } as const;
const HEAD = 12;
const MAP = 32;

/**
 * Frequencies of 256 symbols scaled to sum 4096; every symbol that occurs gets at least 1. The rounding error goes to
 * the largest ones.
 */
export function scaleFrequencies(counts: ArrayLike<number>): Uint16Array {
  const out = new Uint16Array(256);
  let total = 0;
  for (let s = 0; s < 256; s++) total += counts[s];
  if (total === 0) return out;
  let rest = TOTAL;
  for (let s = 0; s < 256; s++) {
    if (counts[s] > 0) out[s] = Math.max(1, Math.round((counts[s] / total) * TOTAL));
    rest -= out[s];
  }
  while (rest !== 0) {
    let largest = 0;
    for (let s = 1; s < 256; s++) if (out[s] > out[largest]) largest = s;
    const change = rest > 0 ? rest : -1;
    out[largest] += change;
    rest -= change;
  }
  return out;
}

/** Encodes symbols in chunks that can be decoded on their own. `lanes` 8 decodes faster, 1 costs less per chunk. */
export function ransEncode(symbols: Uint8Array, chunk = LOW, lanes: 1 | 8 = 8): Uint8Array {
  const count = symbols.length;
  const histogram = new Uint32Array(256);
  for (let i = 0; i < count; i++) histogram[symbols[i]]++;
  const present = histogram.reduce((sum, c) => sum + (c > 0 ? 1 : 0), 0);
  if (present <= 1) return plain(MODE.constant, symbols.subarray(0, present), count, chunk);
  const frequency = scaleFrequencies(histogram);
  const start = cumulative(frequency);
  const chunks = Math.ceil(count / chunk);
  const wordCounts = new Uint32Array(chunks);
  const states = new Uint32Array(chunks * lanes);
  const parts: Uint16Array[] = [];
  const words = new Uint16Array(chunk + 2 * lanes); // a symbol emits at most one word
  let totalWords = 0;
  for (let c = 0; c < chunks; c++) {
    const from = c * chunk;
    const x = new Float64Array(lanes).fill(LOW);
    let at = words.length;
    for (let i = Math.min(count, from + chunk) - 1; i >= from; i--) {
      const lane = (i - from) % lanes;
      const s = symbols[i];
      const f = frequency[s];
      let state = x[lane];
      if (state >= f * 0x100000) {
        words[--at] = state % LOW;
        state = Math.floor(state / LOW);
      }
      const quotient = Math.floor(state / f);
      x[lane] = quotient * TOTAL + (state - quotient * f) + start[s];
    }
    states.set(x, c * lanes);
    parts.push(words.slice(at));
    wordCounts[c] = words.length - at;
    totalWords += words.length - at;
  }
  const tables = align4(HEAD + MAP + 2 * present);
  const bytes = tables + 4 * chunks * (1 + lanes) + 2 * totalWords;
  if (bytes >= HEAD + count) return plain(MODE.raw, symbols, count, chunk);
  const out = new Uint8Array(bytes);
  const view = head(out, MODE.rans, lanes, count, chunk);
  let at = HEAD + MAP;
  for (let s = 0; s < 256; s++) {
    if (frequency[s] === 0) continue;
    out[HEAD + (s >> 3)] |= 1 << (s & 7);
    view.setUint16(at, frequency[s], true);
    at += 2;
  }
  at = tables;
  for (const part of [wordCounts, states, ...parts]) {
    out.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at);
    at += part.byteLength;
  }
  return out;
}

/** What a symbol is merged with as it is decoded: a byte each, bit 7 of which goes to bit 15 of the result. */
export interface Merge {
  residue: Uint8Array;
  symbolShift: number;
  residueShift: number;
}

/** Decodes single chunks of a stream. @throws FormatError code "damaged" when the stream is not what it claims to be. */
export class RansDecoder {
  /** Number of symbols; symbols of a chunk. */
  readonly count: number;
  readonly chunk: number;
  readonly #bytes: Uint8Array;
  readonly #mode: number;
  readonly #lanes: number;
  /** symbol << 24 | frequency << 12 | slot - start, by slot. */
  readonly #table = new Int32Array(TOTAL);
  #states = new Uint32Array(0);
  /** First word of each chunk, and the end. */
  #wordStart = new Float64Array(0);
  #words = new Uint16Array(0);

  /** @param place tensor or file, for messages */
  constructor(
    bytes: Uint8Array,
    private readonly place: string,
  ) {
    if (bytes.length < HEAD) this.#damaged("is shorter than its head");
    this.#bytes = bytes;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#mode = view.getUint8(0);
    this.#lanes = view.getUint8(1);
    this.count = view.getUint32(4, true);
    this.chunk = view.getUint32(8, true);
    if (this.chunk === 0) this.#damaged("has chunks of no symbols");
    if (this.#mode === MODE.raw) {
      if (bytes.length !== HEAD + this.count) this.#damaged(`should hold ${this.count} bytes`);
    } else if (this.#mode === MODE.constant) {
      if (bytes.length !== HEAD + (this.count > 0 ? 1 : 0)) this.#damaged("has a wrong length");
    } else if (this.#mode === MODE.rans) this.#readTables(view);
    else this.#damaged(`has unknown mode ${this.#mode}`);
  }

  /**
   * Decodes chunk c into `out` (at least its number of symbols, which is the result). Symbol s with byte r of the
   * residue becomes ((r & 128) << 8) | (s << symbolShift) | ((r & 127) << residueShift), modulo 2^16.
   */
  decode(c: number, out: Uint16Array, { residue, symbolShift, residueShift }: Merge): number {
    const from = c * this.chunk;
    const n = Math.min(this.chunk, this.count - from);
    if (residue.length < n) throw new RangeError(`${residue.length} bytes for ${n} symbols`);
    if (this.#mode === MODE.rans) {
      const words = this.#words.subarray(this.#wordStart[c], this.#wordStart[c + 1]);
      const states = this.#states.slice(c * this.#lanes, (c + 1) * this.#lanes);
      const run = this.#lanes === 8 ? decode8 : decode1;
      const used = run(this.#table, states, words, residue, out, n, symbolShift, residueShift);
      if (used !== words.length || states.some((x) => x !== LOW)) {
        this.#damaged(`is damaged in chunk ${c}`);
      }
      return n;
    }
    const raw = this.#mode === MODE.raw;
    for (let i = 0; i < n; i++) {
      const s = this.#bytes[HEAD + (raw ? from + i : 0)];
      const r = residue[i];
      out[i] = ((r & 128) << 8) | (s << symbolShift) | ((r & 127) << residueShift);
    }
    return n;
  }

  /** Decodes everything. */
  decodeAll(): Uint8Array {
    const out = new Uint16Array(this.count);
    const merge = { residue: new Uint8Array(this.chunk), symbolShift: 0, residueShift: 0 };
    for (let c = 0; c * this.chunk < this.count; c++) {
      this.decode(c, out.subarray(c * this.chunk), merge);
    }
    return Uint8Array.from(out);
  }

  #readTables(view: DataView): void {
    const bytes = this.#bytes;
    const lanes = this.#lanes;
    if (lanes !== 1 && lanes !== 8) this.#damaged(`has ${lanes} states`);
    if (bytes.length < HEAD + MAP) this.#damaged("is cut off");
    let at = HEAD + MAP;
    let slot = 0;
    for (let s = 0; s < 256; s++) {
      if (!((bytes[HEAD + (s >> 3)] >> (s & 7)) & 1)) continue;
      if (at + 2 > bytes.length) this.#damaged("is cut off");
      const f = view.getUint16(at, true);
      at += 2;
      if (f === 0 || f >= TOTAL || slot + f > TOTAL) this.#damaged("has impossible frequencies");
      for (let i = 0; i < f; i++) this.#table[slot + i] = (s << 24) | (f << 12) | i;
      slot += f;
    }
    if (slot !== TOTAL) this.#damaged("has impossible frequencies");
    at = align4(at);
    const chunks = Math.ceil(this.count / this.chunk);
    const fixed = at + 4 * chunks * (1 + lanes);
    if (fixed > bytes.length) this.#damaged("is cut off");
    this.#wordStart = new Float64Array(chunks + 1);
    for (let c = 0; c < chunks; c++)
      this.#wordStart[c + 1] = this.#wordStart[c] + view.getUint32(at + 4 * c, true);
    at += 4 * chunks;
    if (fixed + 2 * this.#wordStart[chunks] !== bytes.length) this.#damaged("has a wrong length");
    this.#states = new Uint32Array(bytes.slice(at, fixed).buffer);
    this.#words = new Uint16Array(bytes.slice(fixed).buffer);
  }

  #damaged(what: string): never {
    throw new FormatError(
      `the compressed stream ${what}`,
      { place: this.place, hint: "get the file again" },
      "damaged",
    );
  }
}

function decode1(
  table: Int32Array,
  states: Uint32Array,
  words: Uint16Array,
  residue: Uint8Array,
  out: Uint16Array,
  n: number,
  symbolShift: number,
  residueShift: number,
): number {
  let at = 0;
  let x = states[0] | 0;
  for (let i = 0; i < n; i++) {
    const e = table[x & 4095];
    const r = residue[i];
    out[i] = ((r & 128) << 8) | ((e >>> 24) << symbolShift) | ((r & 127) << residueShift);
    x = (Math.imul((e >>> 12) & 4095, x >>> 12) + (e & 4095)) | 0;
    if (x >>> 16 === 0) x = (x << 16) | words[at++];
  }
  states[0] = x;
  return at;
}

/**
 * v3: eight states in locals, unrolled, so that eight multiplications are in flight; the residue is merged on the way. A
 * word beyond the end reads as 0.
 */
function decode8(
  table: Int32Array,
  states: Uint32Array,
  words: Uint16Array,
  residue: Uint8Array,
  out: Uint16Array,
  n: number,
  symbolShift: number,
  residueShift: number,
): number {
  let at = 0;
  let [x0, x1, x2, x3, x4, x5, x6, x7] = Array.from(states, (x) => x | 0);
  const full = n & ~7;
  for (let i = 0; i < full; i += 8) {
    const e0 = table[x0 & 4095];
    const e1 = table[x1 & 4095];
    const e2 = table[x2 & 4095];
    const e3 = table[x3 & 4095];
    const e4 = table[x4 & 4095];
    const e5 = table[x5 & 4095];
    const e6 = table[x6 & 4095];
    const e7 = table[x7 & 4095];
    const r0 = residue[i];
    const r1 = residue[i + 1];
    const r2 = residue[i + 2];
    const r3 = residue[i + 3];
    const r4 = residue[i + 4];
    const r5 = residue[i + 5];
    const r6 = residue[i + 6];
    const r7 = residue[i + 7];
    out[i] = ((r0 & 128) << 8) | ((e0 >>> 24) << symbolShift) | ((r0 & 127) << residueShift);
    out[i + 1] = ((r1 & 128) << 8) | ((e1 >>> 24) << symbolShift) | ((r1 & 127) << residueShift);
    out[i + 2] = ((r2 & 128) << 8) | ((e2 >>> 24) << symbolShift) | ((r2 & 127) << residueShift);
    out[i + 3] = ((r3 & 128) << 8) | ((e3 >>> 24) << symbolShift) | ((r3 & 127) << residueShift);
    out[i + 4] = ((r4 & 128) << 8) | ((e4 >>> 24) << symbolShift) | ((r4 & 127) << residueShift);
    out[i + 5] = ((r5 & 128) << 8) | ((e5 >>> 24) << symbolShift) | ((r5 & 127) << residueShift);
    out[i + 6] = ((r6 & 128) << 8) | ((e6 >>> 24) << symbolShift) | ((r6 & 127) << residueShift);
    out[i + 7] = ((r7 & 128) << 8) | ((e7 >>> 24) << symbolShift) | ((r7 & 127) << residueShift);
    x0 = (Math.imul((e0 >>> 12) & 4095, x0 >>> 12) + (e0 & 4095)) | 0;
    x1 = (Math.imul((e1 >>> 12) & 4095, x1 >>> 12) + (e1 & 4095)) | 0;
    x2 = (Math.imul((e2 >>> 12) & 4095, x2 >>> 12) + (e2 & 4095)) | 0;
    x3 = (Math.imul((e3 >>> 12) & 4095, x3 >>> 12) + (e3 & 4095)) | 0;
    x4 = (Math.imul((e4 >>> 12) & 4095, x4 >>> 12) + (e4 & 4095)) | 0;
    x5 = (Math.imul((e5 >>> 12) & 4095, x5 >>> 12) + (e5 & 4095)) | 0;
    x6 = (Math.imul((e6 >>> 12) & 4095, x6 >>> 12) + (e6 & 4095)) | 0;
    x7 = (Math.imul((e7 >>> 12) & 4095, x7 >>> 12) + (e7 & 4095)) | 0;
    if (x0 >>> 16 === 0) x0 = (x0 << 16) | words[at++];
    if (x1 >>> 16 === 0) x1 = (x1 << 16) | words[at++];
    if (x2 >>> 16 === 0) x2 = (x2 << 16) | words[at++];
    if (x3 >>> 16 === 0) x3 = (x3 << 16) | words[at++];
    if (x4 >>> 16 === 0) x4 = (x4 << 16) | words[at++];
    if (x5 >>> 16 === 0) x5 = (x5 << 16) | words[at++];
    if (x6 >>> 16 === 0) x6 = (x6 << 16) | words[at++];
    if (x7 >>> 16 === 0) x7 = (x7 << 16) | words[at++];
  }
  states.set([x0, x1, x2, x3, x4, x5, x6, x7]);
  for (let i = full; i < n; i++) {
    const lane = i & 7;
    let x = states[lane] | 0;
    const e = table[x & 4095];
    const r = residue[i];
    out[i] = ((r & 128) << 8) | ((e >>> 24) << symbolShift) | ((r & 127) << residueShift);
    x = (Math.imul((e >>> 12) & 4095, x >>> 12) + (e & 4095)) | 0;
    if (x >>> 16 === 0) x = (x << 16) | words[at++];
    states[lane] = x;
  }
  return at;
}

function head(
  out: Uint8Array,
  mode: number,
  lanes: number,
  count: number,
  chunk: number,
): DataView {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  view.setUint8(0, mode);
  view.setUint8(1, lanes);
  view.setUint32(4, count, true);
  view.setUint32(8, chunk, true);
  return view;
}

function plain(mode: number, symbols: Uint8Array, count: number, chunk: number): Uint8Array {
  const out = new Uint8Array(HEAD + symbols.length);
  head(out, mode, 1, count, chunk);
  out.set(symbols, HEAD);
  return out;
}

function cumulative(frequency: Uint16Array): Uint32Array {
  const start = new Uint32Array(256);
  for (let s = 1; s < 256; s++) start[s] = start[s - 1] + frequency[s - 1];
  return start;
}

function align4(n: number): number {
  return (n + 3) & ~3;
}
