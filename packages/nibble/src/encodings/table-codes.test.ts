import { describe, expect, it } from "vitest";
import { TableRounder } from "./table-codes.js";
import { namedTable, TABLE_NAMES } from "./tables.js";

const rounder = (name: string, ties: "lower" | "even") => {
  const { values } = namedTable(name);
  const table = new TableRounder(values, ties);
  return {
    values,
    code: (x: number) => table.code(x),
    round: (x: number) => values[table.code(x)] as number,
  };
};

/** Thresholds of bitsandbytes, dQuantizeNF4. */
const NF4_THRESHOLDS = [
  -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
  -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
  0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
  0.5016634166240692, 0.6427869200706482, 0.8614784178118011,
];

describe("table rounding", () => {
  it("every finite value of every table rounds to itself", () => {
    for (const name of TABLE_NAMES) {
      const { values, round } = rounder(name, "even");
      for (const v of values) if (Number.isFinite(v)) expect(round(v)).toBe(v === 0 ? 0 : v);
    }
  });

  it("nf4 has the thresholds of bitsandbytes, strictly greater goes up", () => {
    const { code } = rounder("nf4", "lower");
    for (const [i, threshold] of NF4_THRESHOLDS.entries()) {
      const at = Math.fround(threshold);
      expect(code(at)).toBe(i);
      expect(code(at + 2e-8 + Math.abs(at) * 1e-7)).toBe(i + 1);
    }
  });

  it("fp6 e3m2 rounds half to even and saturates", () => {
    const { round, values } = rounder("fp6_e3m2", "even");
    const cases: [number, number][] = [
      [0.03125, 0],
      [0.09375, 0.125],
      [1.125, 1],
      [1.375, 1.5],
      [26, 24],
      [27, 28],
      [100, 28],
      [-0.03125, 0],
      [-0.09375, -0.125],
      [-1.375, -1.5],
      [-26, -24],
      [-100, -28],
    ];
    for (const [x, y] of cases) expect(round(x)).toBe(y);
    const positive = [
      0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5,
      1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28,
    ];
    expect([...values.subarray(0, 32)]).toEqual(positive);
    for (const v of values) expect(Number.isInteger(v * 16)).toBe(true);
  });

  it("the exponent trick decodes e3m2 like the table", () => {
    const { values } = rounder("fp6_e3m2", "even");
    const view = new DataView(new ArrayBuffer(4));
    values.forEach((v, code) => {
      view.setUint32(0, ((code >> 5) << 31) | ((code & 31) << 21));
      expect(view.getFloat32(0) * 2 ** 124).toBe(v);
    });
  });

  it("fp5 e2m2 has the listed values; fp8 never gives NaN or infinity", () => {
    const { values } = rounder("fp5_e2m2", "even");
    expect([...values.subarray(0, 16)]).toEqual([
      0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7,
    ]);
    expect(rounder("fp8_e4m3", "even").round(1e9)).toBe(448);
    expect(rounder("fp8_e5m2", "even").round(-1e9)).toBe(-57344);
  });

  it("a value between two goes to the nearer, zero has one code", () => {
    for (const name of ["nf3", "fp4_e2m1", "fp3", "fp4-bnb"]) {
      const { values, round, code } = rounder(name, "lower");
      for (let x = -7; x <= 7; x += 0.013) {
        const best = Math.min(...values.map((v) => Math.abs(v - x)));
        expect(Math.abs(round(x) - x)).toBeCloseTo(best, 6);
      }
      expect(Object.is(values[code(-0.0)], 0)).toBe(true);
      expect(Object.is(values[code(-1e-9)], 0)).toBe(true);
    }
  });
});
