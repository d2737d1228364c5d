/**
 * Named tables of the `lut` encoding. Small floats are sign-magnitude: the code is the bit pattern of the format
 * (no infinities or NaN but in fp8). NF tables (QLoRA arXiv:2305.14314, AFPQ arXiv:2311.01792) are ascending.
 */
import { float8Values } from "../core/dtype.js";
import { FormatError, nearestName } from "../core/errors.js";

export interface NamedTable {
  bits: number;
  /** [2^bits] */
  values: Float32Array;
}

const NF4 = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
];
const NF3 = [
  -1, -0.5350227355957031, -0.246931403875351, 0, 0.1833375245332718, 0.3819939494132996,
  0.6229856610298157, 1,
];
/** bitsandbytes' FP4: not E2M1. */
const FP4_BNB = [0, 0.0625, 8, 12, 4, 6, 2, 3].map((x) => x / 12);

/** All values of a float with a sign, `exponent` and `mantissa` bits, and every bit pattern a number. */
function smallFloat(exponent: number, mantissa: number): number[] {
  const bias = 2 ** (exponent - 1) - 1;
  const half = 2 ** (exponent + mantissa);
  return Array.from({ length: 2 * half }, (_, code) => {
    const e = (code % half) >> mantissa;
    const m = (code % 2 ** mantissa) / 2 ** mantissa;
    const magnitude = e === 0 ? m * 2 ** (1 - bias) : (1 + m) * 2 ** (e - bias);
    return code < half ? magnitude : -magnitude;
  });
}

const BUILDERS: Record<string, () => ArrayLike<number>> = {
  nf4: () => NF4,
  nf3: () => NF3,
  "fp4-bnb": () => [...FP4_BNB, ...FP4_BNB.map((x) => -x)],
  fp3: () => [0, 1, 2, 4, -0, -1, -2, -4],
  fp4_e2m1: () => smallFloat(2, 1),
  fp5_e2m2: () => smallFloat(2, 2),
  fp6_e3m2: () => smallFloat(3, 2),
  fp6_e2m3: () => smallFloat(2, 3),
  fp8_e4m3: () => float8Values("e4m3"),
  fp8_e5m2: () => float8Values("e5m2"),
  /** Code 3 is unused and decodes to 0. */
  ternary: () => [-1, 0, 1, 0],
};
const cache = new Map<string, NamedTable>();

export const TABLE_NAMES: readonly string[] = Object.keys(BUILDERS);

/** The table of that name; shared, do not change it. @throws FormatError naming the nearest known table. */
export function namedTable(name: string): NamedTable {
  const known = cache.get(name);
  if (known) return known;
  const build = Object.hasOwn(BUILDERS, name) ? BUILDERS[name] : undefined;
  if (!build) {
    const near = nearestName(name, TABLE_NAMES);
    throw new FormatError(`unknown table "${name}"`, {
      hint: near ? `Did you mean "${near}"?` : `Known tables: ${TABLE_NAMES.join(", ")}.`,
    });
  }
  const values = Float32Array.from(build());
  const table = { bits: Math.log2(values.length), values };
  cache.set(name, table);
  return table;
}
