/** Activation buffers of a compiled model: one allocation each, reused by every layer. */
import { type Arena, codeStride } from "../graph/arena.js";
import { ATTENTION_CHUNK, LINE } from "../kernels/ops.js";
import type { ModelConfig } from "./config.js";
import { type Buffers, listStride } from "./lower.js";
import { ropeTables } from "./rope.js";

export interface BufferSizes {
  /** Rows of one run (prompt chunk). */
  maxRows: number;
  /** Positions with RoPE entries. */
  maxContext: number;
  /** Largest number of weight groups along K of any quantized linear; 1 when there are none. */
  maxGroups: number;
  /** Largest rank of a low-rank side-car, 0 without. */
  maxRank: number;
}

/** Allocates and fills (RoPE tables) what the lowering needs. */
export function allocateBuffers(arena: Arena, config: ModelConfig, sizes: BufferSizes): Buffers {
  const { maxRows, maxGroups } = sizes;
  const { hiddenSize: d, intermediateSize: f, numAttentionHeads: heads, headDim } = config;
  const qRows = heads * headDim;
  const wide = Math.max(d, f, qRows);
  const ldQkv = qRows + 2 * config.numKeyValueHeads * headDim;
  const rows = (width: number) => arena.allocF32(maxRows * width);
  const parameters = () => arena.alloc(maxRows * Math.max(maxGroups, heads) * 4);

  // Room for split attention: few rows over a long context. One part = max, sum and headDim values.
  const chunks = Math.ceil(sizes.maxContext / ATTENTION_CHUNK);
  const partRows = Math.min(maxRows, 16);
  const partsBytes = partRows * heads * chunks * (headDim + 2) * 4;

  const { cos, sin } = ropeTables(config, sizes.maxContext);
  const experts = config.experts;
  const ldRank = Math.max(sizes.maxRank, 1);
  return {
    maxRows,
    residualAt: rows(d),
    normedAt: rows(wide),
    transformedAt: rows(wide),
    wide,
    qkvAt: rows(ldQkv),
    ldQkv,
    attentionAt: rows(qRows),
    ldAttention: qRows,
    gateAt: rows(f),
    upAt: rows(f),
    middleAt: rows(f),
    ldMiddle: f,
    codesAt: arena.alloc(maxRows * codeStride(wide)),
    scaleAt: parameters(),
    sumAt: parameters(),
    zeroAt: parameters(),
    queryAt: rows(qRows),
    queryScaleAt: parameters(),
    querySumAt: parameters(),
    partsAt: arena.alloc(partsBytes),
    partsLines: Math.ceil(partsBytes / LINE),
    positionsAt: arena.alloc(maxRows * 4),
    sequencesAt: arena.alloc(maxRows * 4),
    cosAt: arena.place(cos),
    sinAt: arena.place(sin),
    rankAt: rows(ldRank),
    ldRank,
    moe: experts
      ? {
          inputAt: rows(wide),
          logitsAt: rows(experts.count),
          indexAt: arena.alloc(experts.count * listStride(maxRows) * 4),
          weightAt: arena.alloc(experts.count * listStride(maxRows) * 4),
          gatheredAt: rows(d),
          outputAt: rows(d),
        }
      : null,
  };
}
