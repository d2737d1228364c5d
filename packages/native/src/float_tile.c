/* The f32 tiles of float_dots.h, instantiated for every number of rows. */
#include "kernels.h"
#include "float_dots.h"

#define TILE(M)                                                                                                       \
  static __attribute__((noinline)) void tile_##M(const float *x, int64_t row, int64_t step, const float *b0,         \
                                                 const float *b1, int64_t ldb, int64_t count, float *acc) {           \
    if (FLOAT_HALVES == 2) {                                                                                          \
      nb_float_dots_memory(M, 2, x, row, step, b0, b1, ldb, count, acc);                                              \
    } else {                                                                                                          \
      nb_float_dots_memory(M, 1, x, row, step, b0, b0, ldb, count, acc);                                              \
      nb_float_dots_memory(M, 1, x, row, step, b1, b1, ldb, count, acc + 16);                                         \
    }                                                                                                                 \
  }
TILE(1) TILE(2)
#if FLOAT_TILE > 2
TILE(3) TILE(4) TILE(5) TILE(6)
#endif
#if FLOAT_TILE > 6
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif

void ISA_NAME(float_tile)(int M, const float *x, int64_t row, int64_t step, const float *b0, const float *b1,
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
