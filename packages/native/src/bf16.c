/*
 * F2: linearFloat and gram with `vdpbf16ps`, which multiplies pairs of bfloat16 and adds to f32. Both operands are rounded to bf16
 * (nearest even, subnormals to zero), so a product errs by up to 2^-7: the variant is never chosen by itself.
 *
 * One chain of dot products per output, pairs (k, k+1) in rising order, whatever the number of rows: the row rule of
 * docs/engine.md holds, and codes minus an integer zero are exact (at most 8 bits).
 */
#include "epilogue.h"
#include "repeat.h"
#if defined(__AVX512BF16__)

#define ROWS 12
#define COLUMNS 32
/* Bytes of activations converted at a time. */
#define PASS_BYTES (384 * 1024)

/* lane i: bf16 of a in the low half, of b in the high half. */
INLINE __m512i pairs(__m512 a, __m512 b) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

#define LOAD(m) __m512 a##m = _mm512_loadu_ps(acc + (m) * 32), c##m = _mm512_loadu_ps(acc + (m) * 32 + 16);
#define STORE(m)                           \
  _mm512_storeu_ps(acc + (m) * 32, a##m);  \
  _mm512_storeu_ps(acc + (m) * 32 + 16, c##m);
#define DOT(m)                                                                                                   \
  {                                                                                                              \
    const __m512bh s = (__m512bh)_mm512_set1_epi32(((m) < 3 ? x0 : (m) < 6 ? x1 : (m) < 9 ? x2 : x3)[((m) % 3) * row]); \
    a##m = _mm512_dpbf16_ps(a##m, s, w0);                                                                        \
    c##m = _mm512_dpbf16_ps(c##m, s, w1);                                                                        \
  }
/* acc[M][32] += x[m * row + p * step] (pairs) times b[p][32] (pairs), for p < count. */
#define TILE(M)                                                                                                   \
  static __attribute__((noinline)) void tile_##M(const int32_t *x, int64_t row, int64_t step, const int32_t *b,  \
                                                 int64_t count, float *acc) {                                     \
    const int32_t *x0 = x, *x1 = x0 + 3 * row, *x2 = x1 + 3 * row, *x3 = x2 + 3 * row;                            \
    __asm__("" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3));                                                         \
    REPEAT(M, LOAD)                                                                                               \
    for (; count > 0; count--, b += 32, x0 += step, x1 += step, x2 += step, x3 += step) {                         \
      const __m512bh w0 = (__m512bh)_mm512_loadu_si512(b), w1 = (__m512bh)_mm512_loadu_si512(b + 16);             \
      REPEAT(M, DOT)                                                                                              \
    }                                                                                                             \
    REPEAT(M, STORE)                                                                                              \
  }
TILE(12) TILE(6) TILE(3) TILE(1)

static void tile(int M, const int32_t *x, int64_t row, int64_t step, const int32_t *b, int64_t count, float *acc) {
#define RUN(n)                                                                   \
  for (; M >= n; M -= n, x += n * row, acc += n * COLUMNS) tile_##n(x, row, step, b, count, acc);
  RUN(12) RUN(6) RUN(3) RUN(1)
#undef RUN
}

/* Rows k, k+1 of f32 [count][32] -> pairs [count / 2][32]; a missing last row is 0. */
static void pack_panel(const float *values, int64_t count, int32_t *out) {
  for (int64_t k = 0; k < count; k += 2, values += 64, out += 32) {
    UNROLL for (int h = 0; h < 32; h += 16) {
      const __m512 b = k + 1 < count ? _mm512_loadu_ps(values + 32 + h) : _mm512_setzero_ps();
      _mm512_storeu_si512(out + h, pairs(_mm512_loadu_ps(values + h), b));
    }
  }
}

/* ---- linearFloat ---- */

/* Columns decoded at a time: 16 KiB of floats. */
#define CHUNK 128

NB_OP(linear_float_bf16) {
  const nb_weight w = nb_read_weight(c, ins[LINEAR_FLOAT_WEIGHT_W]);
  const nb_output out = {nb_at(c, ins[LINEAR_FLOAT_DST_AT]), ins[LINEAR_FLOAT_LD_DST], ins[LINEAR_FLOAT_EPILOGUE]};
  const float *src = nb_at(c, ins[LINEAR_FLOAT_SRC_AT]);
  const int64_t ld = ins[LINEAR_FLOAT_LD_SRC], rows = nb_rows(c, ins), words = (w.k + 1) / 2;
  const int scaled = nb_decoded_scaled(&w);
  const int64_t size = w.kind <= KIND_BF16 ? w.k : w.group_size, groups = scaled ? 1 : w.groups;
  float *room = (float *)c->scratch; /* [CHUNK][32] */
  int32_t *panel_pairs = (int32_t *)(room + CHUNK * COLUMNS), *x = panel_pairs + words * COLUMNS;
  const int64_t pass = nb_max(ROWS, PASS_BYTES / (words * 4) / ROWS * ROWS);
  for (int64_t first = 0; first < rows; first += pass) {
    const int64_t count = nb_min(pass, rows - first), blocks = (count + ROWS - 1) / ROWS;
    int64_t unit, end, have = -1;
    nb_share(c, w.panels * blocks, &unit, &end);
    for (int64_t m = 0; m < count && unit < end; m++) {
      const float *row = src + (first + m) * ld;
      for (int64_t k = 0; k < w.k; k += 16) {
        const int64_t n = nb_min(16, w.k - k);
        const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v_load_upto(row + k, n).p[0]);
        const __mmask8 room_for = (__mmask8)((1u << (n + 1) / 2) - 1);
        _mm256_mask_storeu_epi32(x + m * words + k / 2, room_for, half);
      }
    }
    for (; unit < end; unit++) {
      const int64_t panel = unit / blocks, m0 = unit % blocks * ROWS;
      const int M = (int)nb_min(ROWS, count - m0);
      if (panel != have) {
        for (int64_t g = 0; g < w.k; g += size) {
          const int64_t to = nb_min(w.k, g + size);
          for (int64_t k = g; k < to; k += CHUNK) {
            const int64_t columns = nb_min(CHUNK, to - k);
            ISA_NAME(decode_panel)(&w, panel, k, k + columns, room);
            pack_panel(room, columns, panel_pairs + k / 2 * COLUMNS);
          }
        }
        have = panel;
      }
      float acc[ROWS * COLUMNS], y[ROWS * COLUMNS];
      for (int64_t g = 0; g < groups; g++) {
        const int64_t from = g * size, to = groups == 1 ? w.k : nb_min(w.k, from + size);
        memset(acc, 0, sizeof acc);
        tile(M, x + m0 * words + from / 2, words, 1, panel_pairs + from / 2 * COLUMNS, (to - from + 1) / 2, acc);
        for (int i = 0; i < 2 * M && !scaled; i++) {
          const vf v = v_mul(v_load(acc + 16 * i), nb_scalars(w.scale, w.scale_type, w.groups, panel, g, i & 1));
          v_store(y + 16 * i, g ? v_add(v_load(y + 16 * i), v) : v);
        }
      }
      const float *result = scaled ? acc : y;
      for (int m = 0; m < M; m++) {
        nb_emit(&out, &w, panel, first + m0 + m, v_load(result + m * 32), v_load(result + m * 32 + 16));
      }
    }
  }
}

/* ---- gram ---- */

#define GRAM_ROWS 512    /* tokens summed in f32 before they go to f64 */
#define GRAM_CHANNELS 96 /* channels packed as rows of the product at a time */

/* out[inner / 2][width] = pairs of rows of x [inner][ld], the first `count` columns (others 0). */
static void pack_columns(const float *x, int64_t ld, int64_t count, int64_t inner, int width, int32_t *out) {
  for (int64_t k = 0; k < inner; k += 2, x += 2 * ld, out += width) {
    for (int j = 0; j < width; j += 16) {
      const int64_t real = nb_max(0, nb_min(16, count - j));
      const __mmask16 some = (__mmask16)((1u << real) - 1), room = (__mmask16)((1u << nb_min(16, width - j)) - 1);
      const __m512 a = _mm512_maskz_loadu_ps(some, x + j);
      const __m512 b = k + 1 < inner ? _mm512_maskz_loadu_ps(some, x + ld + j) : _mm512_setzero_ps();
      _mm512_mask_storeu_epi32(out + j, room, pairs(a, b));
    }
  }
}

/* G[i][j] += acc for j >= i. */
static void add_gram(double *gram, int64_t width, int64_t i0, int64_t count, int64_t j0, const float *acc) {
  const int64_t n = nb_min(COLUMNS, width - j0);
  for (int64_t i = 0; i < count; i++) {
    double *row = gram + (i0 + i) * width + j0;
    for (int64_t j = nb_max(0, i0 + i - j0); j < n; j++) row[j] += (double)acc[i * COLUMNS + j];
  }
}

NB_OP(gram_bf16) {
  const float *src = nb_at(c, ins[GRAM_SRC_AT]);
  double *gram = nb_at(c, ins[GRAM_GRAM_AT]);
  const int64_t width = ins[GRAM_WIDTH], ld = ins[GRAM_LD_SRC], rows = nb_rows(c, ins);
  const int64_t panels = (width + COLUMNS - 1) / COLUMNS;
  int32_t *packed_b = (int32_t *)c->scratch, *packed_a = packed_b + GRAM_ROWS / 2 * COLUMNS;
  for (int64_t m0 = 0; m0 < rows; m0 += GRAM_ROWS) {
    const int64_t inner = nb_min(GRAM_ROWS, rows - m0), words = (inner + 1) / 2;
    const float *x = src + m0 * ld;
    int64_t unit = 0, mine = nb_next(c), have = -1;
    for (int64_t i0 = 0; i0 < width; i0 += GRAM_CHANNELS) {
      const int64_t channels = nb_min(GRAM_CHANNELS, width - i0);
      for (int64_t panel = i0 / COLUMNS; panel < panels; panel++, unit++) {
        if (unit != mine) continue;
        mine = nb_next(c);
        if (have != i0) {
          for (int64_t i = 0; i < channels; i += ROWS) {
            pack_columns(x + i0 + i, ld, nb_min(ROWS, channels - i), inner, ROWS, packed_a + i * words);
          }
          have = i0;
        }
        const int64_t j0 = panel * COLUMNS;
        pack_columns(x + j0, ld, nb_min(COLUMNS, width - j0), inner, COLUMNS, packed_b);
        for (int64_t i = 0; i < channels && i0 + i < j0 + COLUMNS; i += ROWS) {
          const int64_t count = nb_min(ROWS, channels - i);
          float acc[ROWS * COLUMNS];
          memset(acc, 0, sizeof acc);
          tile((int)count, packed_a + i * words, 1, ROWS, packed_b, words, acc);
          add_gram(gram, width, i0 + i, count, j0, acc);
        }
      }
    }
    nb_barrier(c); /* also starts the next block's work counter */
  }
}

#define BF16_TABLE
#include "table.c"
#endif
