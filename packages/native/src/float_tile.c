/*
 * The f32 tiles of float_dots.h, instantiated for every number of rows: with fma where the machine has it, and (compiled
 * once more by exact_tile.c) with two roundings, for attention, whose results are equal on every backend.
 */
#include "kernels.h"
#include "float_dots.h"

#ifdef EXACT_TILE
#define TILE_NAME ISA_NAME(exact_tile)
#define MULTIPLY_ADD(a, b, c) v_add(c, v_mul(a, b))
#else
#define TILE_NAME ISA_NAME(float_tile)
#define MULTIPLY_ADD(a, b, c) v_fma(a, b, c)
#endif

#define LOAD_ONE(m) vf a##m = v_load(acc + (m) * 32);
#define LOAD_TWO(m) vf a##m = v_load(acc + (m) * 32), c##m = v_load(acc + (m) * 32 + 16);
#define STORE_ONE(m) v_store(acc + (m) * 32, a##m);
#define STORE_TWO(m)              \
  v_store(acc + (m) * 32, a##m);  \
  v_store(acc + (m) * 32 + 16, c##m);
#define X(m) (((m) < 3 ? x0 : (m) < 6 ? x1 : (m) < 9 ? x2 : x3)[((m) % 3) * row])
#define FMA_ONE(m) a##m = MULTIPLY_ADD(v_set(X(m)), w0, a##m);
#define FMA_TWO(m)            \
  {                           \
    const vf s = v_set(X(m)); \
    a##m = MULTIPLY_ADD(s, w0, a##m); \
    c##m = MULTIPLY_ADD(s, w1, c##m); \
  }

#define BODY(M, HALVES, b0, b1, acc_)                                                                                 \
  {                                                                                                                   \
    float *acc = acc_;                                                                                                \
    const float *x0 = x, *x1 = x0 + 3 * row, *x2 = x1 + 3 * row, *x3 = x2 + 3 * row, *u = b0, *v = b1;                \
    __asm__("" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3));                                                             \
    REPEAT(M, LOAD_##HALVES)                                                                                          \
    for (int64_t k = 0; k < count; k++) {                                                                             \
      const vf w0 = v_load(u), w1 = v_load(v);                                                                        \
      (void)w1;                                                                                                       \
      REPEAT(M, FMA_##HALVES)                                                                                         \
      u += ldb, v += ldb, x0 += step, x1 += step, x2 += step, x3 += step;                                             \
    }                                                                                                                 \
    REPEAT(M, STORE_##HALVES)                                                                                         \
  }

#if FLOAT_HALVES == 2
#define TILE_BODY(M) BODY(M, TWO, b0, b1, out)
#else
#define TILE_BODY(M) BODY(M, ONE, b0, b0, out) BODY(M, ONE, b1, b1, out + 16)
#endif
#define TILE(M)                                                                                                       \
  static __attribute__((noinline)) void tile_##M(const float *x, int64_t row, int64_t step, const float *b0,         \
                                                 const float *b1, int64_t ldb, int64_t count, float *out) {           \
    TILE_BODY(M)                                                                                                      \
  }
TILE(1) TILE(2)
#if FLOAT_TILE > 2
TILE(3) TILE(4) TILE(5) TILE(6)
#endif
#if FLOAT_TILE > 6
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif

void TILE_NAME(int M, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
                          int64_t ldb, int64_t count, float *acc) {
  while (M > 0) {
    const int now = M < FLOAT_TILE ? M : FLOAT_TILE;
    switch (now) {
      case 1: tile_1(x, row, step, b0, b1, ldb, count, acc); break;
      case 2: tile_2(x, row, step, b0, b1, ldb, count, acc); break;
#if FLOAT_TILE > 2
      case 3: tile_3(x, row, step, b0, b1, ldb, count, acc); break;
      case 4: tile_4(x, row, step, b0, b1, ldb, count, acc); break;
      case 5: tile_5(x, row, step, b0, b1, ldb, count, acc); break;
      case 6: tile_6(x, row, step, b0, b1, ldb, count, acc); break;
#endif
#if FLOAT_TILE > 6
      case 7: tile_7(x, row, step, b0, b1, ldb, count, acc); break;
      case 8: tile_8(x, row, step, b0, b1, ldb, count, acc); break;
      case 9: tile_9(x, row, step, b0, b1, ldb, count, acc); break;
      case 10: tile_10(x, row, step, b0, b1, ldb, count, acc); break;
      case 11: tile_11(x, row, step, b0, b1, ldb, count, acc); break;
      default: tile_12(x, row, step, b0, b1, ldb, count, acc);
#endif
    }
    M -= now;
    x += now * row;
    acc += now * 32;
  }
}
