// Written by scripts/generate-ops.mjs from packages/nibble/src/kernels/ops.ts. Do not edit.

// Program
export const PROGRAM_MAGIC: i32 = 1818388846;
export const PROGRAM_VERSION: i32 = 1;
export const PAGE_TOKENS: i32 = 32;
export const ATTENTION_CHUNK: i32 = 128;
export const CONTROL_BYTES: i32 = 4096;
export const LINE: i32 = 64;
export const OP_COUNT: i32 = 27;

// KIND
export const KIND_F32: i32 = 1;
export const KIND_F16: i32 = 2;
export const KIND_BF16: i32 = 3;
export const KIND_GINT: i32 = 4;
export const KIND_LUT: i32 = 5;

// SCALAR
export const SCALAR_F32: i32 = 0;
export const SCALAR_F16: i32 = 1;

// ZERO
export const ZERO_CONST: i32 = 0;
export const ZERO_INT: i32 = 1;
export const ZERO_FLOAT: i32 = 2;

// EPILOGUE
export const EPILOGUE_STORE: i32 = 0;
export const EPILOGUE_ADD: i32 = 1;
export const EPILOGUE_SWIGLU: i32 = 2;

// CODEC
export const CODEC_F32: i32 = 0;
export const CODEC_F16: i32 = 1;
export const CODEC_INT8: i32 = 2;
export const CODEC_INT4: i32 = 3;
export const CODEC_KIVI4: i32 = 4;
export const CODEC_KIVI2: i32 = 5;

// Header
export const H_MAGIC: i32 = 0;
export const H_VERSION: i32 = 1;
export const H_TOTAL_WORDS: i32 = 2;
export const H_WEIGHTS: i32 = 3;
export const H_WEIGHTS_START: i32 = 4;
export const H_CACHES: i32 = 5;
export const H_CACHES_START: i32 = 6;
export const H_CODE_START: i32 = 7;
export const H_SCRATCH_AT: i32 = 8;
export const H_SCRATCH_LINES: i32 = 9;
export const H_MAX_ROWS: i32 = 10;
export const H_ARENA_LINES: i32 = 11;
export const H_MAX_LOGIT_ROWS: i32 = 12;
export const HEADER_WORDS: i32 = 13;

// Weight descriptor
export const W_KIND: i32 = 0;
export const W_N: i32 = 1;
export const W_K: i32 = 2;
export const W_PANELS: i32 = 3;
export const W_K_PAD: i32 = 4;
export const W_BITS: i32 = 5;
export const W_SEG8_AT: i32 = 6;
export const W_SEG4_AT: i32 = 7;
export const W_SEG2_AT: i32 = 8;
export const W_SEG1_AT: i32 = 9;
export const W_GROUP_SIZE: i32 = 10;
export const W_GROUPS: i32 = 11;
export const W_SCALE_AT: i32 = 12;
export const W_SCALE_TYPE: i32 = 13;
export const W_ZERO_KIND: i32 = 14;
export const W_ZERO_CONST_F: i32 = 15;
export const W_ZERO_AT: i32 = 16;
export const W_CODE_SUM_AT: i32 = 17;
export const W_BIAS_AT: i32 = 18;
export const W_INTERLEAVED: i32 = 19;
export const W_DENSE_AT: i32 = 20;
export const W_TABLE_AT: i32 = 21;
export const W_TABLE_SCOPE: i32 = 22;
export const W_NEGATIVE_SCALE_AT: i32 = 23;
export const WEIGHT_WORDS: i32 = 24;

// Cache descriptor
export const C_KEY_CODEC: i32 = 0;
export const C_VALUE_CODEC: i32 = 1;
export const C_KEY_ZERO_INT: i32 = 2;
export const C_VALUE_ZERO_INT: i32 = 3;
export const C_KEY_CLIP_F: i32 = 4;
export const C_VALUE_CLIP_F: i32 = 5;
export const C_HADAMARD: i32 = 6;
export const C_QUERY_BITS: i32 = 7;
export const C_POOL_AT: i32 = 8;
export const C_PAGE_LINES: i32 = 9;
export const C_HEAD_LINES: i32 = 10;
export const C_KEY_LINES: i32 = 11;
export const C_TABLE_AT: i32 = 12;
export const C_LAYERS: i32 = 13;
export const C_MAX_PAGES: i32 = 14;
export const C_KV_HEADS: i32 = 15;
export const C_HEAD_DIM: i32 = 16;
export const C_PAGES: i32 = 17;
export const C_SLOTS: i32 = 18;
export const C_RESIDUAL: i32 = 19;
export const C_TAIL_AT: i32 = 20;
export const C_TAIL_TOKENS: i32 = 21;
export const CACHE_WORDS: i32 = 22;

// embed
export const OP_EMBED: i32 = 1;
export const EMBED_WORDS: i32 = 7;
export const EMBED_ROWS_REG: i32 = 2;
export const EMBED_DST_AT: i32 = 3;
export const EMBED_LD_DST: i32 = 4;
export const EMBED_TOKENS_AT: i32 = 5;
export const EMBED_TABLE_W: i32 = 6;

// rmsnorm
export const OP_RMSNORM: i32 = 2;
export const RMSNORM_WORDS: i32 = 10;
export const RMSNORM_ROWS_REG: i32 = 2;
export const RMSNORM_SRC_AT: i32 = 3;
export const RMSNORM_LD_SRC: i32 = 4;
export const RMSNORM_DST_AT: i32 = 5;
export const RMSNORM_LD_DST: i32 = 6;
export const RMSNORM_WIDTH: i32 = 7;
export const RMSNORM_GAIN_AT: i32 = 8;
export const RMSNORM_EPSILON_F: i32 = 9;

// quantize
export const OP_QUANTIZE: i32 = 3;
export const QUANTIZE_WORDS: i32 = 15;
export const QUANTIZE_ROWS_REG: i32 = 2;
export const QUANTIZE_SRC_AT: i32 = 3;
export const QUANTIZE_LD_SRC: i32 = 4;
export const QUANTIZE_WIDTH: i32 = 5;
export const QUANTIZE_CODES_AT: i32 = 6;
export const QUANTIZE_LD_CODES: i32 = 7;
export const QUANTIZE_SCALE_AT: i32 = 8;
export const QUANTIZE_SUM_AT: i32 = 9;
export const QUANTIZE_ZERO_AT: i32 = 10;
export const QUANTIZE_BITS: i32 = 11;
export const QUANTIZE_SYMMETRIC: i32 = 12;
export const QUANTIZE_GROUP_SIZE: i32 = 13;
export const QUANTIZE_CLIP_F: i32 = 14;

// rmsnormQuantize
export const OP_RMSNORM_QUANTIZE: i32 = 4;
export const RMSNORM_QUANTIZE_WORDS: i32 = 17;
export const RMSNORM_QUANTIZE_ROWS_REG: i32 = 2;
export const RMSNORM_QUANTIZE_SRC_AT: i32 = 3;
export const RMSNORM_QUANTIZE_LD_SRC: i32 = 4;
export const RMSNORM_QUANTIZE_WIDTH: i32 = 5;
export const RMSNORM_QUANTIZE_CODES_AT: i32 = 6;
export const RMSNORM_QUANTIZE_LD_CODES: i32 = 7;
export const RMSNORM_QUANTIZE_SCALE_AT: i32 = 8;
export const RMSNORM_QUANTIZE_SUM_AT: i32 = 9;
export const RMSNORM_QUANTIZE_ZERO_AT: i32 = 10;
export const RMSNORM_QUANTIZE_BITS: i32 = 11;
export const RMSNORM_QUANTIZE_SYMMETRIC: i32 = 12;
export const RMSNORM_QUANTIZE_GROUP_SIZE: i32 = 13;
export const RMSNORM_QUANTIZE_CLIP_F: i32 = 14;
export const RMSNORM_QUANTIZE_GAIN_AT: i32 = 15;
export const RMSNORM_QUANTIZE_EPSILON_F: i32 = 16;

// hadamardQuantize
export const OP_HADAMARD_QUANTIZE: i32 = 5;
export const HADAMARD_QUANTIZE_WORDS: i32 = 24;
export const HADAMARD_QUANTIZE_ROWS_REG: i32 = 2;
export const HADAMARD_QUANTIZE_SRC_AT: i32 = 3;
export const HADAMARD_QUANTIZE_LD_SRC: i32 = 4;
export const HADAMARD_QUANTIZE_WIDTH: i32 = 5;
export const HADAMARD_QUANTIZE_CODES_AT: i32 = 6;
export const HADAMARD_QUANTIZE_LD_CODES: i32 = 7;
export const HADAMARD_QUANTIZE_SCALE_AT: i32 = 8;
export const HADAMARD_QUANTIZE_SUM_AT: i32 = 9;
export const HADAMARD_QUANTIZE_ZERO_AT: i32 = 10;
export const HADAMARD_QUANTIZE_BITS: i32 = 11;
export const HADAMARD_QUANTIZE_SYMMETRIC: i32 = 12;
export const HADAMARD_QUANTIZE_GROUP_SIZE: i32 = 13;
export const HADAMARD_QUANTIZE_CLIP_F: i32 = 14;
export const HADAMARD_QUANTIZE_BLOCKS: i32 = 15;
export const HADAMARD_QUANTIZE_ORDER_K: i32 = 16;
export const HADAMARD_QUANTIZE_ORDER_M: i32 = 17;
export const HADAMARD_QUANTIZE_INNER: i32 = 18;
export const HADAMARD_QUANTIZE_MATRIX_AT: i32 = 19;
export const HADAMARD_QUANTIZE_TRANSPOSE: i32 = 20;
export const HADAMARD_QUANTIZE_PRE_SIGN_AT: i32 = 21;
export const HADAMARD_QUANTIZE_POST_SIGN_AT: i32 = 22;
export const HADAMARD_QUANTIZE_NORM_F: i32 = 23;

// hadamard
export const OP_HADAMARD: i32 = 6;
export const HADAMARD_WORDS: i32 = 16;
export const HADAMARD_ROWS_REG: i32 = 2;
export const HADAMARD_SRC_AT: i32 = 3;
export const HADAMARD_LD_SRC: i32 = 4;
export const HADAMARD_DST_AT: i32 = 5;
export const HADAMARD_LD_DST: i32 = 6;
export const HADAMARD_BLOCKS: i32 = 7;
export const HADAMARD_ORDER_K: i32 = 8;
export const HADAMARD_ORDER_M: i32 = 9;
export const HADAMARD_INNER: i32 = 10;
export const HADAMARD_MATRIX_AT: i32 = 11;
export const HADAMARD_TRANSPOSE: i32 = 12;
export const HADAMARD_PRE_SIGN_AT: i32 = 13;
export const HADAMARD_POST_SIGN_AT: i32 = 14;
export const HADAMARD_NORM_F: i32 = 15;

// mixHeads
export const OP_MIX_HEADS: i32 = 7;
export const MIX_HEADS_WORDS: i32 = 10;
export const MIX_HEADS_ROWS_REG: i32 = 2;
export const MIX_HEADS_SRC_AT: i32 = 3;
export const MIX_HEADS_LD_SRC: i32 = 4;
export const MIX_HEADS_DST_AT: i32 = 5;
export const MIX_HEADS_LD_DST: i32 = 6;
export const MIX_HEADS_COUNT: i32 = 7;
export const MIX_HEADS_INNER: i32 = 8;
export const MIX_HEADS_MATRIX_AT: i32 = 9;

// columns
export const OP_COLUMNS: i32 = 8;
export const COLUMNS_WORDS: i32 = 10;
export const COLUMNS_ROWS_REG: i32 = 2;
export const COLUMNS_SRC_AT: i32 = 3;
export const COLUMNS_LD_SRC: i32 = 4;
export const COLUMNS_DST_AT: i32 = 5;
export const COLUMNS_LD_DST: i32 = 6;
export const COLUMNS_WIDTH: i32 = 7;
export const COLUMNS_PERM_AT: i32 = 8;
export const COLUMNS_SCALE_AT: i32 = 9;

// linearInt
export const OP_LINEAR_INT: i32 = 9;
export const LINEAR_INT_WORDS: i32 = 13;
export const LINEAR_INT_ROWS_REG: i32 = 2;
export const LINEAR_INT_CODES_AT: i32 = 3;
export const LINEAR_INT_LD_CODES: i32 = 4;
export const LINEAR_INT_SCALE_AT: i32 = 5;
export const LINEAR_INT_SUM_AT: i32 = 6;
export const LINEAR_INT_ZERO_AT: i32 = 7;
export const LINEAR_INT_ACTIVATION_GROUPS: i32 = 8;
export const LINEAR_INT_WEIGHT_W: i32 = 9;
export const LINEAR_INT_DST_AT: i32 = 10;
export const LINEAR_INT_LD_DST: i32 = 11;
export const LINEAR_INT_EPILOGUE: i32 = 12;

// linearFloat
export const OP_LINEAR_FLOAT: i32 = 10;
export const LINEAR_FLOAT_WORDS: i32 = 9;
export const LINEAR_FLOAT_ROWS_REG: i32 = 2;
export const LINEAR_FLOAT_SRC_AT: i32 = 3;
export const LINEAR_FLOAT_LD_SRC: i32 = 4;
export const LINEAR_FLOAT_WEIGHT_W: i32 = 5;
export const LINEAR_FLOAT_DST_AT: i32 = 6;
export const LINEAR_FLOAT_LD_DST: i32 = 7;
export const LINEAR_FLOAT_EPILOGUE: i32 = 8;

// siluMul
export const OP_SILU_MUL: i32 = 11;
export const SILU_MUL_WORDS: i32 = 10;
export const SILU_MUL_ROWS_REG: i32 = 2;
export const SILU_MUL_GATE_AT: i32 = 3;
export const SILU_MUL_LD_GATE: i32 = 4;
export const SILU_MUL_UP_AT: i32 = 5;
export const SILU_MUL_LD_UP: i32 = 6;
export const SILU_MUL_DST_AT: i32 = 7;
export const SILU_MUL_LD_DST: i32 = 8;
export const SILU_MUL_WIDTH: i32 = 9;

// add
export const OP_ADD: i32 = 12;
export const ADD_WORDS: i32 = 9;
export const ADD_ROWS_REG: i32 = 2;
export const ADD_SRC_AT: i32 = 3;
export const ADD_LD_SRC: i32 = 4;
export const ADD_DST_AT: i32 = 5;
export const ADD_LD_DST: i32 = 6;
export const ADD_WIDTH: i32 = 7;
export const ADD_ALPHA_F: i32 = 8;

// appendKv
export const OP_APPEND_KV: i32 = 13;
export const APPEND_KV_WORDS: i32 = 20;
export const APPEND_KV_ROWS_REG: i32 = 2;
export const APPEND_KV_QKV_AT: i32 = 3;
export const APPEND_KV_LD_QKV: i32 = 4;
export const APPEND_KV_POSITIONS_AT: i32 = 5;
export const APPEND_KV_SEQUENCES_AT: i32 = 6;
export const APPEND_KV_COS_AT: i32 = 7;
export const APPEND_KV_SIN_AT: i32 = 8;
export const APPEND_KV_HEADS: i32 = 9;
export const APPEND_KV_KV_HEADS: i32 = 10;
export const APPEND_KV_HEAD_DIM: i32 = 11;
export const APPEND_KV_QUERY_GAIN_AT: i32 = 12;
export const APPEND_KV_KEY_GAIN_AT: i32 = 13;
export const APPEND_KV_EPSILON_F: i32 = 14;
export const APPEND_KV_CACHE_C: i32 = 15;
export const APPEND_KV_LAYER: i32 = 16;
export const APPEND_KV_QUERY_AT: i32 = 17;
export const APPEND_KV_QUERY_SCALE_AT: i32 = 18;
export const APPEND_KV_QUERY_SUM_AT: i32 = 19;

// attention
export const OP_ATTENTION: i32 = 14;
export const ATTENTION_WORDS: i32 = 19;
export const ATTENTION_ROWS_REG: i32 = 2;
export const ATTENTION_POSITIONS_AT: i32 = 3;
export const ATTENTION_SEQUENCES_AT: i32 = 4;
export const ATTENTION_HEADS: i32 = 5;
export const ATTENTION_KV_HEADS: i32 = 6;
export const ATTENTION_HEAD_DIM: i32 = 7;
export const ATTENTION_CACHE_C: i32 = 8;
export const ATTENTION_LAYER: i32 = 9;
export const ATTENTION_QUERY_AT: i32 = 10;
export const ATTENTION_QUERY_SCALE_AT: i32 = 11;
export const ATTENTION_QUERY_SUM_AT: i32 = 12;
export const ATTENTION_DST_AT: i32 = 13;
export const ATTENTION_LD_DST: i32 = 14;
export const ATTENTION_SOFTMAX_SCALE_F: i32 = 15;
export const ATTENTION_SLIDING_WINDOW: i32 = 16;
export const ATTENTION_PARTS_AT: i32 = 17;
export const ATTENTION_PARTS_LINES: i32 = 18;

// gatherRows
export const OP_GATHER_ROWS: i32 = 15;
export const GATHER_ROWS_WORDS: i32 = 9;
export const GATHER_ROWS_ROWS_REG: i32 = 2;
export const GATHER_ROWS_SRC_AT: i32 = 3;
export const GATHER_ROWS_LD_SRC: i32 = 4;
export const GATHER_ROWS_DST_AT: i32 = 5;
export const GATHER_ROWS_LD_DST: i32 = 6;
export const GATHER_ROWS_WIDTH: i32 = 7;
export const GATHER_ROWS_INDEX_AT: i32 = 8;

// scatterAddRows
export const OP_SCATTER_ADD_ROWS: i32 = 16;
export const SCATTER_ADD_ROWS_WORDS: i32 = 10;
export const SCATTER_ADD_ROWS_ROWS_REG: i32 = 2;
export const SCATTER_ADD_ROWS_SRC_AT: i32 = 3;
export const SCATTER_ADD_ROWS_LD_SRC: i32 = 4;
export const SCATTER_ADD_ROWS_DST_AT: i32 = 5;
export const SCATTER_ADD_ROWS_LD_DST: i32 = 6;
export const SCATTER_ADD_ROWS_WIDTH: i32 = 7;
export const SCATTER_ADD_ROWS_INDEX_AT: i32 = 8;
export const SCATTER_ADD_ROWS_WEIGHT_AT: i32 = 9;

// route
export const OP_ROUTE: i32 = 17;
export const ROUTE_WORDS: i32 = 11;
export const ROUTE_ROWS_REG: i32 = 2;
export const ROUTE_LOGITS_AT: i32 = 3;
export const ROUTE_LD_LOGITS: i32 = 4;
export const ROUTE_EXPERTS: i32 = 5;
export const ROUTE_TOP_K: i32 = 6;
export const ROUTE_INDEX_AT: i32 = 7;
export const ROUTE_WEIGHT_AT: i32 = 8;
export const ROUTE_LD_LISTS: i32 = 9;
export const ROUTE_COUNT_REG: i32 = 10;

// logitStats
export const OP_LOGIT_STATS: i32 = 18;
export const LOGIT_STATS_WORDS: i32 = 8;
export const LOGIT_STATS_ROWS_REG: i32 = 2;
export const LOGIT_STATS_LOGITS_AT: i32 = 3;
export const LOGIT_STATS_LD_LOGITS: i32 = 4;
export const LOGIT_STATS_WIDTH: i32 = 5;
export const LOGIT_STATS_TARGETS_AT: i32 = 6;
export const LOGIT_STATS_DST_AT: i32 = 7;

// klDivergence
export const OP_KL_DIVERGENCE: i32 = 19;
export const KL_DIVERGENCE_WORDS: i32 = 9;
export const KL_DIVERGENCE_ROWS_REG: i32 = 2;
export const KL_DIVERGENCE_REFERENCE_AT: i32 = 3;
export const KL_DIVERGENCE_LD_REFERENCE: i32 = 4;
export const KL_DIVERGENCE_LOGITS_AT: i32 = 5;
export const KL_DIVERGENCE_LD_LOGITS: i32 = 6;
export const KL_DIVERGENCE_WIDTH: i32 = 7;
export const KL_DIVERGENCE_DST_AT: i32 = 8;

// csr
export const OP_CSR: i32 = 20;
export const CSR_WORDS: i32 = 11;
export const CSR_ROWS_REG: i32 = 2;
export const CSR_SRC_AT: i32 = 3;
export const CSR_LD_SRC: i32 = 4;
export const CSR_ROW_POINTERS_AT: i32 = 5;
export const CSR_COLUMNS_AT: i32 = 6;
export const CSR_VALUES_AT: i32 = 7;
export const CSR_OUTPUTS: i32 = 8;
export const CSR_DST_AT: i32 = 9;
export const CSR_LD_DST: i32 = 10;

// gram
export const OP_GRAM: i32 = 21;
export const GRAM_WORDS: i32 = 7;
export const GRAM_ROWS_REG: i32 = 2;
export const GRAM_SRC_AT: i32 = 3;
export const GRAM_LD_SRC: i32 = 4;
export const GRAM_WIDTH: i32 = 5;
export const GRAM_GRAM_AT: i32 = 6;

// absStats
export const OP_ABS_STATS: i32 = 22;
export const ABS_STATS_WORDS: i32 = 8;
export const ABS_STATS_ROWS_REG: i32 = 2;
export const ABS_STATS_SRC_AT: i32 = 3;
export const ABS_STATS_LD_SRC: i32 = 4;
export const ABS_STATS_WIDTH: i32 = 5;
export const ABS_STATS_SUM_ABS_AT: i32 = 6;
export const ABS_STATS_MAX_ABS_AT: i32 = 7;

// gemm
export const OP_GEMM: i32 = 23;
export const GEMM_WORDS: i32 = 18;
export const GEMM_ROWS_REG: i32 = 2;
export const GEMM_COLS: i32 = 3;
export const GEMM_INNER: i32 = 4;
export const GEMM_A_AT: i32 = 5;
export const GEMM_A_SKIP: i32 = 6;
export const GEMM_LDA: i32 = 7;
export const GEMM_TRANS_A: i32 = 8;
export const GEMM_B_AT: i32 = 9;
export const GEMM_B_SKIP: i32 = 10;
export const GEMM_LDB: i32 = 11;
export const GEMM_TRANS_B: i32 = 12;
export const GEMM_C_AT: i32 = 13;
export const GEMM_C_SKIP: i32 = 14;
export const GEMM_LDC: i32 = 15;
export const GEMM_ALPHA_F: i32 = 16;
export const GEMM_BETA_F: i32 = 17;

// inverseFactor
export const OP_INVERSE_FACTOR: i32 = 24;
export const INVERSE_FACTOR_WORDS: i32 = 6;
export const INVERSE_FACTOR_SIZE: i32 = 2;
export const INVERSE_FACTOR_HESSIAN_AT: i32 = 3;
export const INVERSE_FACTOR_FACTOR_AT: i32 = 4;
export const INVERSE_FACTOR_STATUS_AT: i32 = 5;

// dequantize
export const OP_DEQUANTIZE: i32 = 25;
export const DEQUANTIZE_WORDS: i32 = 11;
export const DEQUANTIZE_ROWS_REG: i32 = 2;
export const DEQUANTIZE_CODES_AT: i32 = 3;
export const DEQUANTIZE_LD_CODES: i32 = 4;
export const DEQUANTIZE_WIDTH: i32 = 5;
export const DEQUANTIZE_SCALE_AT: i32 = 6;
export const DEQUANTIZE_ZERO_AT: i32 = 7;
export const DEQUANTIZE_GROUP_SIZE: i32 = 8;
export const DEQUANTIZE_DST_AT: i32 = 9;
export const DEQUANTIZE_LD_DST: i32 = 10;

// attendTile
export const OP_ATTEND_TILE: i32 = 26;
export const ATTEND_TILE_WORDS: i32 = 15;
export const ATTEND_TILE_ROWS_REG: i32 = 2;
export const ATTEND_TILE_QUERY_AT: i32 = 3;
export const ATTEND_TILE_LD_QUERY: i32 = 4;
export const ATTEND_TILE_HEADS: i32 = 5;
export const ATTEND_TILE_KV_HEADS: i32 = 6;
export const ATTEND_TILE_HEAD_DIM: i32 = 7;
export const ATTEND_TILE_SLOTS: i32 = 8;
export const ATTEND_TILE_KEYS_AT: i32 = 9;
export const ATTEND_TILE_VALUES_AT: i32 = 10;
export const ATTEND_TILE_RANGES_AT: i32 = 11;
export const ATTEND_TILE_STATE_AT: i32 = 12;
export const ATTEND_TILE_LOGITS_AT: i32 = 13;
export const ATTEND_TILE_SOFTMAX_SCALE_F: i32 = 14;

// roundFloat
export const OP_ROUND_FLOAT: i32 = 27;
export const ROUND_FLOAT_WORDS: i32 = 11;
export const ROUND_FLOAT_ROWS_REG: i32 = 2;
export const ROUND_FLOAT_SRC_AT: i32 = 3;
export const ROUND_FLOAT_LD_SRC: i32 = 4;
export const ROUND_FLOAT_WIDTH: i32 = 5;
export const ROUND_FLOAT_MANTISSA: i32 = 6;
export const ROUND_FLOAT_MIN_EXPONENT: i32 = 7;
export const ROUND_FLOAT_LARGEST_F: i32 = 8;
export const ROUND_FLOAT_DST_AT: i32 = 9;
export const ROUND_FLOAT_LD_DST: i32 = 10;
