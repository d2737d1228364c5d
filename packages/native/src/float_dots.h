/*
 * f32 tile: acc[m][h] = acc + sum over k, in order, of x[m][k] * b_h[k][16 lanes]. The order is that of one chain of
 * (fused) multiply-adds per output, whatever M is, so a row's bits do not depend on its neighbours.
 */
#ifndef NIBBLE_FLOAT_DOTS_H
#define NIBBLE_FLOAT_DOTS_H

#include "kernels.h"
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

/* x[m * row + k * step]; b0 and b1 are the two halves, both with stride ldb. H = 1 or 2 halves. */
INLINE void nb_float_dots(int M, int H, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
                          int64_t ldb, int64_t count, vf acc[][2]) {
  const float *x0 = x, *x1 = x0 + 3 * row, *x2 = x1 + 3 * row, *x3 = x2 + 3 * row;
  __asm__("" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3));
  for (int64_t k = 0; k < count; k++) {
    const vf w0 = v_load(b0), w1 = H > 1 ? v_load(b1) : w0;
    UNROLL for (int m = 0; m < M; m++) {
      const float *b = m < 3 ? x0 : m < 6 ? x1 : m < 9 ? x2 : x3;
      const vf s = v_set(b[(m % 3) * row]);
      acc[m][0] = v_fma(s, w0, acc[m][0]);
      if (H > 1) acc[m][1] = v_fma(s, w1, acc[m][1]);
    }
    b0 += ldb;
    b1 += ldb;
    x0 += step;
    x1 += step;
    x2 += step;
    x3 += step;
  }
}

/* The same for any M from 1 to FLOAT_TILE, accumulators in memory: acc[m * 32 + 16 h + lane]. */
INLINE void nb_float_dots_memory(int M, int H, const float *x, int64_t row, int64_t step, const float *b0,
                                 const float *b1, int64_t ldb, int64_t count, float *memory) {
  vf acc[M][2];
  UNROLL for (int m = 0; m < M; m++) {
    UNROLL for (int h = 0; h < H; h++) acc[m][h] = v_load(memory + m * 32 + 16 * h);
  }
  nb_float_dots(M, H, x, row, step, b0, b1, ldb, count, acc);
  UNROLL for (int m = 0; m < M; m++) {
    UNROLL for (int h = 0; h < H; h++) v_store(memory + m * 32 + 16 * h, acc[m][h]);
  }
}

#ifdef NIBBLE_ISA
/*
 * M <= 12 rows by 32 columns, accumulators in memory [M][32] (read and written), b_h[k * ldb + lane].
 * x[m * row + k * step].
 */
void ISA_NAME(float_tile)(int M, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
                          int64_t ldb, int64_t count, float *acc);
#endif

#endif
