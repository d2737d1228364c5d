/**
 * Embedding and head as integers, rounded to nearest with one scale a row: at 4-bit linears the tables are the largest part
 * of a small model, and 8 bits cost nothing measurable. A tied table stays one table.
 */
import { z } from "zod";
import { defineMethod, NO_NEEDS, type Targets } from "./contract.js";
import { roundToNearest } from "./rtn.js";
import {
  checkGrid,
  type GridOptions,
  gridEstimate,
  gridProduces,
  gridShape,
} from "./shared/grid-options.js";
import { checkFinite } from "./shared/group-params.js";

const { bits, groupSize, sym, scaleType } = gridShape;

interface EmbeddingOptions extends Targets {
  bits: number;
  groupSize: GridOptions["groupSize"];
  sym: GridOptions["sym"];
  scaleType: GridOptions["scaleType"];
}

/** What these options leave out keeps RTN's defaults: integer zeros, range with 0, no clip search. */
function grid(options: EmbeddingOptions): GridOptions {
  const rest = { clipNorm: 2.4, clipGrid: 100, clipMaxShrink: 0.8 };
  return { ...rest, ...options, zero: "int", range: "zero", clip: "none" };
}

export const embeddings = defineMethod<EmbeddingOptions>({
  id: "embeddings",
  kind: "embeddings",
  title: "Embedding and head as integers",
  paper: "round to nearest",
  summary: "Stores the embedding and the head with 1..8 bits, 8 unless told otherwise.",
  options: z
    .strictObject({
      bits: bits.default(8),
      groupSize,
      sym: sym.default("narrow"),
      scaleType,
      targets: z.array(z.string()).default(["embed", "head"]),
      ignore: z.array(z.string()).default([]),
    })
    .superRefine((options, ctx) => checkGrid(grid(options), ctx)),
  needs: () => NO_NEEDS,
  produces: (o) => gridProduces(grid(o)),
  estimate: (shape, o) => gridEstimate(shape, grid(o)),
  targets: ({ targets, ignore }) => ({ targets, ignore }),
  // 8-bit scales have a range in common for all rows.
  byRows: ({ groupSize, scaleType }) => groupSize !== "tensor" && scaleType !== "u8",
  async solve(weight, { n, k, path }, _stats, options) {
    checkFinite(weight, path);
    return { tensor: roundToNearest(weight, n, k, grid(options)) };
  },
});
