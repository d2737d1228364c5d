/**
 * AFPQ (arXiv 2311.01792): small float and NormalFloat tables with one scale for the positive and one for the negative
 * weights of a group, so that they adapt to asymmetric groups without a zero point (which would spoil their density around
 * 0). Solvers: round to nearest, or the column sweep of GPTQ with these tables (groups are fitted from updated weights).
 * Bits per weight: bits + 32 / groupSize (16 / groupSize with one scale).
 */
import { z } from "zod";
import { NumericError } from "../core/errors.js";
import { TableParams, type TableRules } from "../encodings/table-params.js";
import { namedTable } from "../encodings/tables.js";
import { sweep } from "../linalg/sweep.js";
import {
  defineMethod,
  NO_NEEDS,
  type SiteStatsView,
  type SolveContext,
  type Solved,
  type Targets,
} from "./contract.js";
import {
  codeBits,
  floatTypeOption,
  groupSizeOption,
  groupsOf,
  roundingEstimate,
  targetShape,
  targetsOf,
} from "./shared/common-options.js";
import { checkFinite } from "./shared/group-params.js";
import { hessianFactor } from "./shared/hessian-factor.js";

const TABLES = { nf4: "nf4", nf3: "nf3", fp4: "fp4_e2m1", fp3: "fp3" } as const;

export interface AfpqOptions extends Targets {
  table: keyof typeof TABLES;
  groupSize: TableRules["groupSize"];
  twoScale: boolean;
  solver: "rtn" | "gptq";
  /** "mse": range search as in RTN (2.4-norm), each side on its own with two scales. */
  clip: "none" | "mse";
  scaleType: "f16" | "bf16" | "f32";
  /** For solver gptq. */
  percDamp: number;
  blockSize: number;
}

const CLIP = { norm: 2.4, maxShrink: 0.8 };

function paramsOf(o: AfpqOptions, n: number, k: number, path: string): TableParams {
  const { groupSize, twoScale, scaleType } = o;
  const clip = o.clip === "mse" ? CLIP : null;
  return new TableParams(
    { table: TABLES[o.table], groupSize, twoScale, scaleType, ties: "lower", clip },
    n,
    k,
    path,
  );
}

async function solveGptq(
  weight: Float32Array,
  { n, k, path }: { n: number; k: number; path: string },
  stats: SiteStatsView | null,
  o: AfpqOptions,
  ctx: SolveContext,
): Promise<Solved> {
  if (!stats?.hessian) {
    throw new NumericError("solver: gptq needs the Hessian of the inputs", {
      place: path,
      hint: "Give calibration text, or use solver: rtn.",
    });
  }
  const factor = await ctx.memo(stats, `gptq:${o.percDamp}:false`, () =>
    hessianFactor(stats, k, { percDamp: o.percDamp, actOrder: false }, path, ctx),
  );
  const params = paramsOf(o, n, k, path);
  if (!factor.u) {
    const note = "no inverse Hessian at any damping up to 1; rounded to nearest instead";
    ctx.log(`${path}: ${note}`);
    params.fitAll(weight);
    return { tensor: params.toTensor(params.encode(weight)), notes: [note] };
  }
  for (const c of factor.dead) for (let r = 0; r < n; r++) weight[r * k + c] = 0;
  const grouped = params.groups > 1;
  if (!grouped) params.fitAll(weight);
  const codes = new Uint8Array(n * k);
  const loss = await sweep(
    weight,
    n,
    k,
    factor.u,
    {
      blockSize: o.blockSize,
      alignment: grouped ? params.width : 0,
      onBlock(from) {
        if (grouped && from % params.width === 0) params.fitGroup(weight, from / params.width);
      },
      quantizeColumn(column, rowFrom, rowTo, values) {
        const g = Math.floor(column / params.width);
        for (let r = rowFrom; r < rowTo; r++) {
          const p = params.at(r, g);
          const code = params.code(values[r - rowFrom] as number, p);
          codes[r * k + column] = code;
          values[r - rowFrom] = params.value(code, p);
        }
      },
    },
    ctx.engineLinalg,
  );
  const { notes } = factor;
  return { tensor: params.toTensor(codes), loss, ...(notes.length > 0 && { notes }) };
}

export const afpq = defineMethod<AfpqOptions>({
  id: "afpq",
  kind: "weights",
  title: "AFPQ",
  paper: "arXiv:2311.01792",
  summary:
    "NF4, NF3, FP4 or FP3 with separate scales for positive and negative weights; strong at 3 bits.",
  options: z.strictObject({
    table: z.enum(["nf4", "nf3", "fp4", "fp3"]).default("nf4"),
    groupSize: groupSizeOption.default(128),
    twoScale: z.boolean().default(true),
    solver: z.enum(["rtn", "gptq"]).default("rtn"),
    clip: z.enum(["none", "mse"]).default("none"),
    scaleType: floatTypeOption.default("f16"),
    percDamp: z.number().gt(0).max(1).default(0.01),
    blockSize: z.int().min(1).max(4096).default(128),
    ...targetShape,
  }),
  needs: (o) => (o.solver === "rtn" ? NO_NEEDS : { ...NO_NEEDS, calibration: true, hessian: true }),
  produces: (o) => {
    const table = TABLES[o.table];
    return { encoding: "lut", bits: namedTable(table).bits, groupSize: o.groupSize, table };
  },
  storedBits(shape, { table, groupSize, twoScale, scaleType }) {
    const scaleBits = (twoScale ? 2 : 1) * (scaleType === "f32" ? 32 : 16);
    return codeBits(shape, namedTable(TABLES[table]).bits) + groupsOf(shape, groupSize) * scaleBits;
  },
  estimate(shape, o) {
    const { n, k } = shape;
    const { peakBytes, flops } = roundingEstimate(shape, o.groupSize, o.clip === "mse" ? 400 : 5);
    if (o.solver === "rtn") return { peakBytes, flops };
    return {
      peakBytes: peakBytes + 12 * k * k + 4 * n * o.blockSize,
      flops: flops + (4 / 3) * k ** 3 + n * k * k,
    };
  },
  targets: targetsOf,
  async solve(weight, shape, stats, o, ctx) {
    const { n, k, path } = shape;
    checkFinite(weight, path);
    if (o.solver === "gptq") return solveGptq(weight, shape, stats, o, ctx);
    const params = paramsOf(o, n, k, path);
    params.fitAll(weight);
    return { tensor: params.toTensor(params.encode(weight)) };
  },
});
