/*
 * f32 tile: acc[m][h] = acc + sum over k, in order, of x[m][k] * b_h[k][16 lanes]. The order is that of one chain of
 * (fused) multiply-adds per output, whatever M is, so a row's bits do not depend on its neighbours.
 */
#ifndef NIBBLE_FLOAT_DOTS_H
#define NIBBLE_FLOAT_DOTS_H

#include "kernels.h"
#include "repeat.h"
#include "simd.h"

#if PART == 16
#define FLOAT_TILE 12
#define FLOAT_HALVES 2
#elif PART == 8
#define FLOAT_TILE 6
#define FLOAT_HALVES 1
#else
#define FLOAT_TILE 2
#define FLOAT_HALVES 1
#endif

#ifdef NIBBLE_ISA
/*
 * M <= 12 rows by 32 columns, accumulators in memory [M][32] (read and written), b_h[k * ldb + lane].
 * x[m * row + k * step].
 */
void ISA_NAME(float_tile)(int M, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
                          int64_t ldb, int64_t count, float *acc);
/* The same with a multiplication and an addition, each rounded. */
void ISA_NAME(exact_tile)(int M, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
                          int64_t ldb, int64_t count, float *acc);
#endif

#endif
