/*
 * f32 GEMM with any transposes, and the Gram matrix X^T X: both run the f32 tile over packed panels.
 * B is packed as [k][32] (one panel of columns, whole inner dimension, so sums stay one chain in order), A as [k][12]
 * per tile of rows when a block of rows fits in the scratch; otherwise A is read in place.
 */
#include "float_dots.h"
#include "kernels.h"

#define ROWS 12
#define COLUMNS 32
#define BLOCK_ROWS 96 /* rows packed at a time */

/* 16 x 16 transposition: rows r[i] become columns. */
INLINE void transpose16(vf r[16]) {
#if PART == 16
  __m512 t[16], u[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps((__m512)r[i].p[0], (__m512)r[i + 1].p[0]);
    t[i + 1] = _mm512_unpackhi_ps((__m512)r[i].p[0], (__m512)r[i + 1].p[0]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    r[i].p[0] = (pf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8].p[0] = (pf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4].p[0] = (pf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12].p[0] = (pf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
#else
  float a[16][16];
  for (int i = 0; i < 16; i++) v_store(a[i], r[i]);
  for (int i = 0; i < 16; i++) {
    float b[16];
    for (int j = 0; j < 16; j++) b[j] = a[j][i];
    r[i] = v_load(b);
  }
#endif
}

/* out[k][width] = rows of x: x[j * ld + k] for j < count (others 0); width is 12 or 32. */
static void pack_rows(const float *x, int64_t ld, int64_t count, int64_t inner, int width, float *out) {
  for (int j0 = 0; j0 < width; j0 += 16) {
    const int lanes = width - j0 < 16 ? width - j0 : 16;
    const int64_t real = nb_max(0, nb_min(lanes, count - j0));
    for (int64_t k = 0; k < inner; k += 16) {
      vf r[16];
      const int64_t n = nb_min(16, inner - k);
      for (int j = 0; j < 16; j++) r[j] = j < real ? v_load_upto(x + (j0 + j) * ld + k, n) : v_zero();
      transpose16(r);
      for (int64_t i = 0; i < n; i++) v_store_upto(out + (k + i) * width + j0, r[i], lanes);
    }
  }
}

/* out[k][width] = columns of x: x[k * ld + j] for j < count (others 0). */
static void pack_columns(const float *x, int64_t ld, int64_t count, int64_t inner, int width, float *out) {
  for (int64_t k = 0; k < inner; k++) {
    for (int j0 = 0; j0 < width; j0 += 16) {
      const int lanes = width - j0 < 16 ? width - j0 : 16;
      const int64_t real = nb_max(0, nb_min(lanes, count - j0));
      const vf v = real >= 16 ? v_load(x + k * ld + j0) : v_load_n(x + k * ld + j0, (int)real);
      v_store_upto(out + k * width + j0, v, lanes);
    }
  }
}

typedef struct {
  const float *a, *b;
  float *out;
  int64_t rows, cols, inner, lda, ldb, ldc;
  int trans_a, trans_b;
  float alpha, beta;
} problem;

static void pack_b(const problem *p, int64_t panel, float *to) {
  const int64_t j = panel * COLUMNS, count = nb_min(COLUMNS, p->cols - j);
  if (p->trans_b) pack_rows(p->b + j * p->ldb, p->ldb, count, p->inner, COLUMNS, to);
  else pack_columns(p->b + j, p->ldb, count, p->inner, COLUMNS, to);
}

static void store_tile(const problem *p, int64_t i0, int64_t rows, int64_t panel, const float *acc) {
  const vf alpha = v_set(p->alpha), beta = v_set(p->beta);
  for (int64_t i = 0; i < rows; i++) {
    for (int h = 0; h < 2; h++) {
      const int64_t j = panel * COLUMNS + 16 * h, n = p->cols - j;
      if (n <= 0) break;
      float *y = p->out + (i0 + i) * p->ldc + j;
      vf v = v_mul(v_load(acc + i * 32 + 16 * h), alpha);
      if (p->beta != 0) v = v_add(v_mul(v_load_upto(y, n), beta), v);
      v_store_upto(y, v, n);
    }
  }
}

NB_OP(gemm) {
  problem p;
  p.rows = nb_rows(c, ins);
  p.cols = ins[GEMM_COLS];
  p.inner = ins[GEMM_INNER];
  p.lda = ins[GEMM_LDA];
  p.ldb = ins[GEMM_LDB];
  p.ldc = ins[GEMM_LDC];
  p.trans_a = ins[GEMM_TRANS_A];
  p.trans_b = ins[GEMM_TRANS_B];
  p.a = (const float *)nb_at(c, ins[GEMM_A_AT]) + ins[GEMM_A_SKIP];
  p.b = (const float *)nb_at(c, ins[GEMM_B_AT]) + ins[GEMM_B_SKIP];
  p.out = (float *)nb_at(c, ins[GEMM_C_AT]) + ins[GEMM_C_SKIP];
  p.alpha = nb_float(ins[GEMM_ALPHA_F]);
  p.beta = nb_float(ins[GEMM_BETA_F]);
  const int64_t panels = (p.cols + COLUMNS - 1) / COLUMNS;
  float *packed_b = (float *)c->scratch, *packed_a = packed_b + p.inner * COLUMNS;
  const int64_t room = (c->scratch_bytes - p.inner * COLUMNS * 4) / 4;
  const int64_t fit = nb_min(BLOCK_ROWS, room / nb_max(1, p.inner) / ROWS * ROWS);
  /* Few panels do not repay packing A; a block of less than two tiles does not repay packing B again. */
  const int pack_a = fit >= ROWS && (p.trans_a || (panels >= 4 && fit >= 4 * ROWS));
  const int64_t block = pack_a ? fit : p.rows;
  for (int64_t first = 0; first < p.rows; first += block) {
    const int64_t rows = nb_min(block, p.rows - first), tiles = (rows + ROWS - 1) / ROWS;
    int64_t unit, end, have = -1, packed = 0; /* tiles of A packed so far */
    nb_share(c, panels * tiles, &unit, &end);
    for (; unit < end; unit++) {
      const int64_t panel = unit / tiles, tile = unit % tiles, i = first + tile * ROWS;
      const int64_t count = nb_min(ROWS, first + rows - i);
      if (panel != have) pack_b(&p, panel, packed_b);
      have = panel;
      float acc[ROWS * COLUMNS];
      memset(acc, 0, sizeof acc);
      if (pack_a) {
        float *a = packed_a + tile * ROWS * p.inner;
        if (!(packed >> tile & 1)) {
          if (p.trans_a) pack_columns(p.a + i, p.lda, count, p.inner, ROWS, a);
          else pack_rows(p.a + i * p.lda, p.lda, count, p.inner, ROWS, a);
          packed |= (int64_t)1 << tile;
        }
        ISA_NAME(float_tile)((int)count, a, 1, ROWS, packed_b, packed_b + 16, COLUMNS, p.inner, acc);
      } else if (p.trans_a) {
        ISA_NAME(float_tile)((int)count, p.a + i, 1, p.lda, packed_b, packed_b + 16, COLUMNS, p.inner, acc);
      } else {
        ISA_NAME(float_tile)((int)count, p.a + i * p.lda, p.lda, 1, packed_b, packed_b + 16, COLUMNS, p.inner, acc);
      }
      store_tile(&p, i, count, panel, acc);
    }
  }
}

#define GRAM_ROWS 512    /* tokens summed in f32 before they go to f64 */
#define GRAM_CHANNELS 96 /* channels packed as rows of the product at a time */

/* G[i][j] += acc for j >= i. */
static void add_gram(double *gram, int64_t width, int64_t i0, int64_t count, int64_t j0, const float *acc) {
  const int64_t n = nb_min(COLUMNS, width - j0);
  for (int64_t i = 0; i < count; i++) {
    double *row = gram + (i0 + i) * width + j0;
    const float *a = acc + i * COLUMNS;
    if (j0 >= i0 + i && n == COLUMNS) {
      for (int j = 0; j < COLUMNS; j++) row[j] += (double)a[j];
    } else {
      for (int64_t j = nb_max(0, i0 + i - j0); j < n; j++) row[j] += (double)a[j];
    }
  }
}

NB_OP(gram) {
  const float *src = nb_at(c, ins[GRAM_SRC_AT]);
  double *gram = nb_at(c, ins[GRAM_GRAM_AT]);
  const int64_t width = ins[GRAM_WIDTH], ld = ins[GRAM_LD_SRC], rows = nb_rows(c, ins);
  const int64_t panels = (width + COLUMNS - 1) / COLUMNS;
  float *packed_b = (float *)c->scratch, *packed_a = packed_b + GRAM_ROWS * COLUMNS;
  for (int64_t m0 = 0; m0 < rows; m0 += GRAM_ROWS) {
    const int64_t inner = nb_min(GRAM_ROWS, rows - m0);
    const float *x = src + m0 * ld;
    int64_t unit = 0, mine = nb_next(c), have = -1;
    for (int64_t i0 = 0; i0 < width; i0 += GRAM_CHANNELS) {
      const int64_t channels = nb_min(GRAM_CHANNELS, width - i0);
      for (int64_t panel = i0 / COLUMNS; panel < panels; panel++, unit++) {
        if (unit != mine) continue;
        mine = nb_next(c);
        if (have != i0) {
          for (int64_t i = 0; i < channels; i += ROWS) {
            pack_columns(x + i0 + i, ld, nb_min(ROWS, channels - i), inner, ROWS, packed_a + i * inner);
          }
          have = i0;
        }
        const int64_t j0 = panel * COLUMNS;
        pack_columns(x + j0, ld, nb_min(COLUMNS, width - j0), inner, COLUMNS, packed_b);
        for (int64_t i = 0; i < channels && i0 + i < j0 + COLUMNS; i += ROWS) {
          const int64_t count = nb_min(ROWS, channels - i);
          float acc[ROWS * COLUMNS];
          memset(acc, 0, sizeof acc);
          ISA_NAME(float_tile)((int)count, packed_a + i * inner, 1, ROWS, packed_b, packed_b + 16, COLUMNS, inner, acc);
          add_gram(gram, width, i0 + i, count, j0, acc);
        }
      }
    }
    nb_barrier(c); /* also starts the next block's work counter */
  }
}
