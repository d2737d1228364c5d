import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { PackedCodes } from "../encodings/types.js";
import {
  allocateSegments,
  groupCodeSums,
  PanelWriter,
  packDensePanels,
  packPanel32,
  paddedColumns,
  panelCount,
  panelSlot,
  type SegmentWidth,
  segmentBytes,
  segmentWidths,
  unpackPanel32,
  writePanelFloats,
  writePanelRow,
} from "./panel32.js";
import { bf16ToF32, f16ToF32 } from "./reference/numerics.js";

const matrix = fc
  .record({
    n: fc.integer({ min: 1, max: 130 }),
    k: fc.integer({ min: 1, max: 130 }),
    bits: fc.integer({ min: 1, max: 8 }),
    seed: fc.integer(),
  })
  .map(({ n, k, bits, seed }) => {
    let state = seed | 1;
    const codes = Uint8Array.from({ length: n * k }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return (state >>> 16) & ((1 << bits) - 1);
    });
    return { n, k, bits, codes };
  });

/** Byte equality: element-wise `toEqual` of large arrays takes most of the test's time. */
function same(a: ArrayBufferView | undefined, b: ArrayBufferView | undefined): boolean {
  const bytes = (x: ArrayBufferView) => Buffer.from(x.buffer, x.byteOffset, x.byteLength);
  return a !== undefined && b !== undefined && bytes(a).equals(bytes(b));
}

/** tile64 packing by its definition, code by code. */
function tile64(codes: Uint8Array, rows: number, cols: number, bits: number): PackedCodes {
  const tiles = Math.ceil(cols / 64);
  const segments: PackedCodes["segments"] = {};
  let shift = 0;
  for (const width of segmentWidths(bits)) {
    const out = new Uint8Array(rows * tiles * 8 * width);
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        const value = (codes[row * cols + col] >> shift) & ((1 << width) - 1);
        const tile = (row * tiles + (col >> 6)) * 8 * width;
        const i = col & 63;
        if (width === 1) out[tile + (i >> 3)] |= value << (i & 7);
        else out[tile + (i % (8 * width))] |= value << (width * Math.floor(i / (8 * width)));
      }
    }
    segments[width] = out;
    shift += width;
  }
  return { bits, rows, cols, segments };
}

/** Place of a code by the words of docs/engine.md: [byte, bit]. */
function place(width: SegmentWidth, slot: number, k: number, kPad: number): [number, number] {
  const columns = 32 / width;
  const step = Math.floor(k / columns);
  const inside = k % columns;
  const panel = Math.floor(slot / 32);
  const half = Math.floor((slot % 32) / 16);
  const j = 4 * (slot % 16) + (inside % 4);
  return [(panel * (kPad / columns) + step) * 128 + 64 * half + j, width * Math.floor(inside / 4)];
}

describe("panel 32", () => {
  it("packs and unpacks any n, k in 1..130 and bits in 1..8", () => {
    fc.assert(
      fc.property(matrix, ({ n, k, bits, codes }) => {
        expect(same(unpackPanel32(packPanel32(codes, n, k, bits), n, k, bits), codes)).toBe(true);
      }),
      { numRuns: 60 },
    );
  });

  it("puts every code where the layout says, and zeros elsewhere", () => {
    fc.assert(
      fc.property(matrix, ({ n, k, bits, codes }) => {
        const packed = packPanel32(codes, n, k, bits);
        const kPad = paddedColumns(k);
        let shift = 0;
        for (const width of segmentWidths(bits)) {
          const expected = new Uint8Array(segmentBytes(n, k, width));
          for (let row = 0; row < n; row++) {
            for (let col = 0; col < k; col++) {
              const [byte, bit] = place(width, row, col, kPad);
              expected[byte] |= ((codes[row * k + col] >> shift) & ((1 << width) - 1)) << bit;
            }
          }
          expect(same(packed[width], expected), `segment ${width}`).toBe(true);
          shift += width;
        }
      }),
      { numRuns: 40 },
    );
  });

  it("gives the same panels from tile64 rows", () => {
    fc.assert(
      fc.property(matrix, ({ n, k, bits, codes }) => {
        const packed = tile64(codes, n, k, bits);
        const segments = allocateSegments(n, k, bits);
        const writer = new PanelWriter(segments, k, bits);
        for (let row = 0; row < n; row++) writer.writePacked(row, packed, row);
        const expected = packPanel32(codes, n, k, bits);
        for (const width of segmentWidths(bits)) {
          expect(same(segments[width], expected[width]), `segment ${width}`).toBe(true);
        }
      }),
      { numRuns: 40 },
    );
  });

  it("interleaves gate and up by 16 and inverts it", () => {
    fc.assert(
      fc.property(matrix, ({ n, k, bits, codes }) => {
        const twice = new Uint8Array(2 * n * k);
        twice.set(codes);
        twice.set(
          codes.map((c) => c ^ 1),
          n * k,
        );
        const segments = packPanel32(twice, 2 * n, k, bits, true);
        expect(same(unpackPanel32(segments, 2 * n, k, bits, true), twice)).toBe(true);
      }),
      { numRuns: 30 },
    );
    expect([0, 15, 16, 20, 24, 40].map((channel) => panelSlot(channel, 48, true))).toEqual([
      0, 15, 32, 36, 16, 48,
    ]);
  });

  it("stores dense rows and scales as [panels][count][32] in f32, f16 and bf16", () => {
    const n = 40;
    const count = 5;
    const value = (slot: number, i: number) => (slot - 7) * 0.25 + i;
    for (const type of ["f32", "f16", "bf16"] as const) {
      const length = panelCount(n) * count * 32;
      const target = type === "f32" ? new Float32Array(length) : new Uint16Array(length);
      for (let slot = 0; slot < n; slot++) {
        writePanelFloats(
          target,
          type,
          slot,
          count,
          Array.from({ length: count }, (_, i) => value(slot, i)),
        );
      }
      const read = { f32: (x: number) => x, f16: f16ToF32, bf16: bf16ToF32 }[type];
      for (let slot = 0; slot < 64; slot++) {
        for (let i = 0; i < count; i++) {
          const at = ((slot >> 5) * count + i) * 32 + (slot & 31);
          expect(read(target[at])).toBe(slot < n ? value(slot, i) : 0);
        }
      }
    }
  });

  it("packs dense matrices at once as row by row", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 70 }), fc.integer({ min: 1, max: 150 }), (n, k) => {
        const data = Float32Array.from({ length: n * k }, (_, i) => i + 1);
        const panels = panelCount(n);
        const one = new Float32Array(panels * 32 * k);
        for (let row = 0; row < n; row++) {
          writePanelRow(one, row, k, data.subarray(row * k, (row + 1) * k));
        }
        const all = new Float32Array(panels * 32 * k).fill(-1);
        const rows = Array.from({ length: panels * 32 }, (_, row) =>
          row < n ? { data, offset: row * k } : null,
        );
        packDensePanels(all, k, rows);
        expect(same(all, one)).toBe(true);
      }),
    );
  });

  it("sums the codes of each group's real columns", () => {
    const sums = new Int32Array(3);
    groupCodeSums(
      Uint8Array.from({ length: 70 }, (_, i) => i),
      70,
      32,
      sums,
    );
    expect([...sums]).toEqual([496, 1520, 64 + 65 + 66 + 67 + 68 + 69]);
    const target = new Int32Array(3 * 32);
    writePanelRow(target, 3, 3, sums);
    expect([target[3], target[35], target[67]]).toEqual([...sums]);
  });
});
