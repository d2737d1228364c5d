/* The ops of one instruction set, by opcode. bf16.c includes it for the variant whose float products are bf16. */
#include "kernels.h"

#define NB_TEXT_(x) #x
#define NB_TEXT(x) NB_TEXT_(x)

#ifdef BF16_TABLE
#define LINEAR_FLOAT_OP ISA_NAME(op_linear_float_bf16)
#define GRAM_OP ISA_NAME(op_gram_bf16)
const nb_kernels nb_kernels_avx512bf16 = {
    "avx512bf16",
#else
#define LINEAR_FLOAT_OP ISA_NAME(op_linear_float)
#define GRAM_OP ISA_NAME(op_gram)
const nb_kernels ISA_NAME(nb_kernels) = {
    NB_TEXT(NIBBLE_ISA),
#endif
    {
        [OP_EMBED] = ISA_NAME(op_embed),
        [OP_RMSNORM] = ISA_NAME(op_rmsnorm),
        [OP_QUANTIZE] = ISA_NAME(op_quantize),
        [OP_RMSNORM_QUANTIZE] = ISA_NAME(op_rmsnorm_quantize),
        [OP_HADAMARD_QUANTIZE] = ISA_NAME(op_hadamard_quantize),
        [OP_HADAMARD] = ISA_NAME(op_hadamard),
        [OP_MIX_HEADS] = ISA_NAME(op_mix_heads),
        [OP_COLUMNS] = ISA_NAME(op_columns),
        [OP_LINEAR_INT] = ISA_NAME(op_linear_int),
        [OP_LINEAR_FLOAT] = LINEAR_FLOAT_OP,
        [OP_SILU_MUL] = ISA_NAME(op_silu_mul),
        [OP_ADD] = ISA_NAME(op_add),
        [OP_APPEND_KV] = ISA_NAME(op_append_kv),
        [OP_ATTENTION] = ISA_NAME(op_attention),
        [OP_GATHER_ROWS] = ISA_NAME(op_gather_rows),
        [OP_SCATTER_ADD_ROWS] = ISA_NAME(op_scatter_add_rows),
        [OP_ROUTE] = ISA_NAME(op_route),
        [OP_LOGIT_STATS] = ISA_NAME(op_logit_stats),
        [OP_KL_DIVERGENCE] = ISA_NAME(op_kl_divergence),
        [OP_CSR] = ISA_NAME(op_csr),
        [OP_GRAM] = GRAM_OP,
        [OP_ABS_STATS] = ISA_NAME(op_abs_stats),
        [OP_GEMM] = ISA_NAME(op_gemm),
        [OP_INVERSE_FACTOR] = ISA_NAME(op_inverse_factor),
        [OP_DEQUANTIZE] = ISA_NAME(op_dequantize),
        [OP_ATTEND_TILE] = ISA_NAME(op_attend_tile),
        [OP_ROUND_FLOAT] = ISA_NAME(op_round_float),
    },
};
