/**
 * Small floats with one scale a row (FP6-LLM, arXiv 2401.14112; study: ZeroQuant(4+2), arXiv 2312.08583): sign, exponent
 * and mantissa of 4 to 8 bits, rounded half to even and saturated. Six bits (E3M2) are near lossless without groups and
 * without data. All bit patterns are numbers, but in the 8-bit formats.
 * Bits per weight: bits + 16 / groupSize; 6 + 16 / K by default.
 */
import { z } from "zod";
import { TableParams, type TableRules } from "../encodings/table-params.js";
import { namedTable } from "../encodings/tables.js";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import {
  floatTypeOption,
  groupSizeOption,
  roundingEstimate,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";

const TABLES = {
  e3m2: "fp6_e3m2",
  e2m3: "fp6_e2m3",
  e2m2: "fp5_e2m2",
  e2m1: "fp4_e2m1",
  e4m3: "fp8_e4m3",
  e5m2: "fp8_e5m2",
} as const;
type Format = keyof typeof TABLES;
const FORMATS = Object.keys(TABLES) as [Format, ...Format[]];

export interface FloatOptions extends Targets {
  format: Format;
  groupSize: TableRules["groupSize"];
  /** Scale by the largest weight, or by search for the least squared error. */
  scale: "absmax" | "mse";
  scaleType: "f16" | "bf16" | "f32";
}

export const float = defineMethod<FloatOptions>({
  id: "float",
  kind: "weights",
  title: "Small floats (FP6-LLM)",
  paper: "arXiv:2401.14112",
  summary: "FP6 and other 4 to 8-bit floats, one scale a row; near lossless at 6 bits, no data.",
  options: z.strictObject({
    format: z.enum(FORMATS).default("e3m2"),
    groupSize: groupSizeOption.default("channel"),
    scale: z.enum(["absmax", "mse"]).default("absmax"),
    scaleType: floatTypeOption.default("f16"),
    ...targetShape,
  }),
  needs: () => NO_NEEDS,
  produces: ({ format, groupSize }) => {
    const table = TABLES[format];
    return { encoding: "lut", bits: namedTable(table).bits, groupSize, table };
  },
  estimate: (shape, o) => roundingEstimate(shape, o.groupSize, o.scale === "mse" ? 250 : 5),
  targets: targetsOf,
  async solve(weight, { n, k, path }, _stats, { format, groupSize, scale, scaleType }) {
    checkFinite(weight, path);
    const clip = scale === "mse" ? { norm: 2, maxShrink: 0.5 } : null;
    const rules = {
      table: TABLES[format],
      groupSize,
      twoScale: false,
      scaleType,
      ties: "even",
      clip,
    } as const;
    const params = new TableParams(rules, n, k, path);
    params.fitAll(weight);
    return { tensor: params.toTensor(params.encode(weight)) };
  },
});
