/*
 * What an op sees while a program runs, and the table of ops each instruction set provides. Sources that list
 * ISA_NAME below are compiled once per instruction set (build.mjs); everything else once.
 */
#ifndef NIBBLE_KERNELS_H
#define NIBBLE_KERNELS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include "ops.h"

#define REGISTERS 256
#define STATUS_WORD 256

struct nb_team;

/* One thread's view of a run. */
typedef struct nb_ctx {
  uint8_t *arena;
  int64_t arena_bytes; /* the program's arenaLines, in bytes */
  const int32_t *words;
  const int32_t *weights; /* first weight descriptor */
  const int32_t *caches;
  uint8_t *scratch; /* private to this thread */
  int64_t scratch_bytes;
  int64_t max_rows;
  int64_t max_logit_rows;
  int thread, threads; /* threads: how many do the present op */
  struct nb_team *team;
} nb_ctx;

typedef void (*nb_op)(nb_ctx *, const int32_t *ins);
/* Indexed by opcode. */
typedef struct nb_kernels {
  const char *name;
  nb_op ops[OP_COUNT + 1];
} nb_kernels;

/* All threads meet. The work counter is 0 afterwards. */
void nb_barrier(nb_ctx *);
/* The next piece of work of the current phase: 0, 1, 2, … */
int64_t nb_next(nb_ctx *);
/* Ends the run after the next barrier with the status of this instruction. */
void nb_fail(nb_ctx *, const int32_t *ins);
/* True when an earlier barrier of this run saw a failure. The same for all threads between two barriers. */
int nb_stopped(nb_ctx *);

extern const nb_kernels nb_kernels_baseline;
#if defined(__x86_64__)
extern const nb_kernels nb_kernels_avx2;
extern const nb_kernels nb_kernels_avxvnni;
extern const nb_kernels nb_kernels_avx512vnni;
extern const nb_kernels nb_kernels_avx512bf16; /* avx512vnni with bf16.c */
#elif defined(__aarch64__)
extern const nb_kernels nb_kernels_neon;
#endif

#define NB_JOIN_(a, b) a##_##b
#define NB_JOIN(a, b) NB_JOIN_(a, b)
#ifdef NIBBLE_ISA
#define ISA_NAME(name) NB_JOIN(name, NIBBLE_ISA)
#endif

static inline void *nb_at(const nb_ctx *c, int32_t line) {
  return line < 0 ? NULL : c->arena + (int64_t)line * LINE;
}
static inline float nb_float(int32_t bits) {
  union { int32_t i; float f; } u = {bits};
  return u.f;
}
static inline int32_t nb_rows(const nb_ctx *c, const int32_t *ins) {
  return ((const int32_t *)c->arena)[ins[2]];
}
/* This thread's part [*from, *to) of n equal pieces of work. */
static inline void nb_share(const nb_ctx *c, int64_t n, int64_t *from, int64_t *to) {
  *from = n * c->thread / c->threads;
  *to = n * (c->thread + 1) / c->threads;
}
static inline int64_t nb_round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t nb_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t nb_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Ops of one instruction set. */
#ifdef NIBBLE_ISA
#define NB_OP(name) void ISA_NAME(op_##name)(nb_ctx *c, const int32_t *ins)
NB_OP(embed);
NB_OP(rmsnorm);
NB_OP(quantize);
NB_OP(rmsnorm_quantize);
NB_OP(hadamard_quantize);
NB_OP(hadamard);
NB_OP(mix_heads);
NB_OP(columns);
NB_OP(linear_int);
NB_OP(linear_float);
NB_OP(silu_mul);
NB_OP(add);
NB_OP(append_kv);
NB_OP(attention);
NB_OP(gather_rows);
NB_OP(scatter_add_rows);
NB_OP(route);
NB_OP(logit_stats);
NB_OP(kl_divergence);
NB_OP(csr);
NB_OP(gram);
NB_OP(abs_stats);
NB_OP(gemm);
NB_OP(inverse_factor);
NB_OP(dequantize);
NB_OP(attend_tile);
NB_OP(round_float);

/* Rows shared by several ops. Widths are in floats; src = dst is allowed. */
void ISA_NAME(row_rmsnorm)(const float *x, float *y, int64_t width, const float *gain, float epsilon);

typedef struct nb_quant {
  int64_t width, group_size, groups; /* groups of the sums */
  int bits, symmetric, whole_row;    /* whole_row: one scale and zero */
  float clip;
} nb_quant;
void ISA_NAME(row_quantize)(const float *x, const nb_quant *q, int8_t *codes, float *scale, int32_t *sum, int32_t *zero);

typedef struct nb_hadamard {
  int64_t blocks, k, m, inner;
  const float *matrix; /* +-1 [k, k], already transposed, or NULL */
  const float *pre, *post;
  float norm;
} nb_hadamard;
void ISA_NAME(row_hadamard)(const float *x, float *y, const nb_hadamard *h);
/* Fills h from `blocks` and the words after it; `matrix` goes to room [k * k] floats. */
void ISA_NAME(read_hadamard)(nb_ctx *c, const int32_t *fields, nb_hadamard *h, float *room);
#endif

#endif
