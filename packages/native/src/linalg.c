/*
 * inverseFactor: upper U with inverse(H) = U^T U, the factor GPTQ needs (arXiv:2210.17323, section 3.3), in f64.
 *
 * H = R R^T with R upper (Cholesky from the last column to the first), then U = R^-1, since U^T U = R^-T R^-1. Blocks of
 * 96 columns; the inverse of each diagonal block is formed once and serves both the panel solve and the inversion:
 *   down:  U_jj = inverse(chol(H_jj));  R_ij = H_ij U_jj^T;  H_ik -= R_ij R_kj^T       for i <= k < j
 *   up:    W_kj = -R_kj U_jj;  U_ij = sum over k in i..j-1 of U_ik W_kj
 * Everything happens in the upper triangle of H; W transposed lives in the lower one.
 */
#include <math.h>
#include "kernels.h"
#include "repeat.h"
#include "simd.h"

#define NB 96
#define ROWS 12
#define COLUMNS 16

#define DPART (PART / 2)
typedef double pd __attribute__((vector_size(DPART * 8)));
typedef double pdu __attribute__((vector_size(DPART * 8), aligned(8), may_alias));
typedef struct { pd p[PARTS]; } vd; /* eight doubles */

INLINE vd d_load(const double *x) {
  vd r;
  PER_PART r.p[i_] = *(const pdu *)(x + DPART * i_);
  return r;
}
INLINE void d_store(double *x, vd v) {
  PER_PART *(pdu *)(x + DPART * i_) = v.p[i_];
}
INLINE vd d_fma(double s, vd b, vd c) {
  PER_PART {
#if PART == 16
    c.p[i_] = (pd)_mm512_fmadd_pd(_mm512_set1_pd(s), (__m512d)b.p[i_], (__m512d)c.p[i_]);
#elif PART == 8
    c.p[i_] = (pd)_mm256_fmadd_pd(_mm256_set1_pd(s), (__m256d)b.p[i_], (__m256d)c.p[i_]);
#else
    c.p[i_] = c.p[i_] + s * b.p[i_];
#endif
  }
  return c;
}

#define LOAD_ONE(m) vd a##m = d_load(to + (m) * COLUMNS);
#define LOAD_TWO(m) vd a##m = d_load(to + (m) * COLUMNS), c##m = d_load(to + (m) * COLUMNS + 8);
#define STORE_ONE(m) d_store(to + (m) * COLUMNS, a##m);
#define STORE_TWO(m)               \
  d_store(to + (m) * COLUMNS, a##m); \
  d_store(to + (m) * COLUMNS + 8, c##m);
#define FMA_ONE(m) a##m = d_fma(x[m], d_load(y), a##m);
#define FMA_TWO(m)                 \
  a##m = d_fma(x[m], w0, a##m);    \
  c##m = d_fma(x[m], w1, c##m);

/* out[12][16] += a [count][12] transposed times b [count][16]. */
static __attribute__((noinline)) void multiply(const double *a, const double *b, int64_t count, double *out) {
#if PART == 16
  const double *x = a, *y = b;
  double *to = out;
  REPEAT_12(LOAD_TWO)
  for (int64_t k = 0; k < count; k++, x += ROWS, y += COLUMNS) {
    const vd w0 = d_load(y), w1 = d_load(y + 8);
    REPEAT_12(FMA_TWO)
  }
  REPEAT_12(STORE_TWO)
#else
#if PART == 8
#define TILE_ROWS 6
#define REPEAT_TILE REPEAT_6
#else
#define TILE_ROWS 2
#define REPEAT_TILE REPEAT_2
#endif
  for (int m0 = 0; m0 < ROWS; m0 += TILE_ROWS) {
    for (int half = 0; half < COLUMNS; half += 8) {
      const double *x = a + m0, *y = b + half;
      double *to = out + m0 * COLUMNS + half;
      REPEAT_TILE(LOAD_ONE)
      for (int64_t k = 0; k < count; k++, x += ROWS, y += COLUMNS) {
        REPEAT_TILE(FMA_ONE)
      }
      REPEAT_TILE(STORE_ONE)
    }
  }
#endif
}

/* out[k][width] = x[j * ld + k] for j < rows (else 0), k < count. */
static void pack_rows(const double *x, int64_t ld, int64_t rows, int64_t count, int width, double *out) {
  for (int64_t k = 0; k < count; k += 8) {
    const int64_t end = nb_min(count, k + 8);
    for (int64_t j = 0; j < width; j++) {
      for (int64_t i = k; i < end; i++) out[i * width + j] = j < rows ? x[j * ld + i] : 0.0;
    }
  }
}

/* In place on a [nb][NB] copy: upper R with A = R R^T. Returns 1 + the failing column, or 0. */
static int64_t factor_block(double *a, int64_t nb) {
  double column[NB];
  for (int64_t j = nb - 1; j >= 0; j--) {
    const double pivot = a[j * NB + j];
    if (!(pivot > 0 && pivot < INFINITY)) return 1 + j;
    const double root = sqrt(pivot);
    for (int64_t i = 0; i < j; i++) column[i] = a[i * NB + j] / root;
    for (int64_t i = 0; i < j; i++) {
      a[i * NB + j] = column[i];
      for (int64_t k = i; k < j; k++) a[i * NB + k] -= column[i] * column[k];
    }
    a[j * NB + j] = root;
  }
  return 0;
}

/* u = inverse of the upper triangular r, both [nb][NB]; below the diagonal 0. */
static void invert_block(const double *r, double *u, int64_t nb) {
  memset(u, 0, NB * NB * 8);
  for (int64_t i = 0; i < nb; i++) {
    double *row = u + i * NB;
    row[i] = 1;
    for (int64_t k = i; k < nb; k++) {
      row[k] /= r[k * NB + k];
      for (int64_t j = k + 1; j < nb; j++) row[j] -= row[k] * r[k * NB + j];
    }
  }
}

typedef struct {
  nb_ctx *c;
  double *h;
  int64_t n;
  double *a, *b, *u; /* scratch: A packed, B packed, the diagonal block [NB][NB] */
} work;

static void load_block(const work *w, int64_t j0, int64_t nb, double *to) {
  for (int64_t i = 0; i < nb; i++) memcpy(to + i * NB, w->h + (j0 + i) * w->n + j0, (size_t)nb * 8);
}

/* R_ij = H_ij U_jj^T for the rows above the block. */
static void solve_panel(const work *w, int64_t j0, int64_t nb) {
  const int64_t panels = (nb + COLUMNS - 1) / COLUMNS;
  load_block(w, j0, nb, w->u);
  for (int64_t p = 0; p < panels; p++) { /* b[p][l][16]: U_jj[16 p + lane][l] */
    pack_rows(w->u + p * COLUMNS * NB, NB, nb_min(COLUMNS, nb - p * COLUMNS), nb, COLUMNS, w->b + p * COLUMNS * NB);
  }
  for (int64_t t = nb_next(w->c); t < j0 / ROWS; t = nb_next(w->c)) {
    double *rows = w->h + t * ROWS * w->n + j0;
    pack_rows(rows, w->n, ROWS, nb, ROWS, w->a);
    for (int64_t p = 0; p < panels; p++) {
      double out[ROWS * COLUMNS] = {0};
      multiply(w->a, w->b + p * COLUMNS * NB, nb, out);
      const int64_t count = nb_min(COLUMNS, nb - p * COLUMNS);
      for (int m = 0; m < ROWS; m++) memcpy(rows + m * w->n + p * COLUMNS, out + m * COLUMNS, (size_t)count * 8);
    }
  }
}

/* H_ik -= R_ij R_kj^T for i <= k < j0. A piece of work is 96 rows by 16 columns. */
static void update_trailing(const work *w, int64_t j0, int64_t nb) {
  int64_t unit = 0, mine = nb_next(w->c), have = -1;
  for (int64_t i0 = 0; i0 < j0; i0 += NB) {
    for (int64_t k0 = i0; k0 < j0; k0 += COLUMNS, unit++) {
      if (unit != mine) continue;
      mine = nb_next(w->c);
      if (have != i0) {
        for (int64_t i = 0; i < NB; i += ROWS) {
          pack_rows(w->h + (i0 + i) * w->n + j0, w->n, ROWS, nb, ROWS, w->a + i * NB);
        }
        have = i0;
      }
      pack_rows(w->h + k0 * w->n + j0, w->n, COLUMNS, nb, COLUMNS, w->b);
      for (int64_t i = 0; i < NB && i0 + i < k0 + COLUMNS; i += ROWS) {
        double out[ROWS * COLUMNS] = {0};
        multiply(w->a + i * NB, w->b, nb, out);
        for (int m = 0; m < ROWS; m++) {
          double *to = w->h + (i0 + i + m) * w->n + k0;
          if (k0 >= i0 + i + m) {
            for (int l = 0; l < COLUMNS; l++) to[l] -= out[m * COLUMNS + l];
          } else {
            for (int64_t l = i0 + i + m - k0; l < COLUMNS; l++) to[l] -= out[m * COLUMNS + l];
          }
        }
      }
    }
  }
}

/* W_kj = -R_kj U_jj, stored transposed in the rows of block j left of the diagonal. */
static void form_w(const work *w, int64_t j0, int64_t nb) {
  const int64_t panels = (nb + COLUMNS - 1) / COLUMNS;
  load_block(w, j0, nb, w->u);
  for (int64_t p = 0; p < panels; p++) {
    for (int64_t l = 0; l < nb; l++) {
      for (int64_t j = 0; j < COLUMNS; j++) {
        w->b[(p * NB + l) * COLUMNS + j] = p * COLUMNS + j < nb ? w->u[l * NB + p * COLUMNS + j] : 0.0;
      }
    }
  }
  for (int64_t t = nb_next(w->c); t < j0 / ROWS; t = nb_next(w->c)) {
    pack_rows(w->h + t * ROWS * w->n + j0, w->n, ROWS, nb, ROWS, w->a);
    for (int64_t p = 0; p < panels; p++) {
      double out[ROWS * COLUMNS] = {0};
      multiply(w->a, w->b + p * NB * COLUMNS, nb, out);
      for (int64_t j = 0; j < nb_min(COLUMNS, nb - p * COLUMNS); j++) {
        double *to = w->h + (j0 + p * COLUMNS + j) * w->n + t * ROWS;
        for (int m = 0; m < ROWS; m++) to[m] = -out[m * COLUMNS + j];
      }
    }
  }
}

/* Inner length of one pass: A [1024][12] and B [1024][16] take 229 KiB of scratch. */
#define PASS 1024

/* U_ij = sum over k of U_ik W_kj. */
static void combine(const work *w, int64_t j0, int64_t nb) {
  const int64_t panels = (nb + COLUMNS - 1) / COLUMNS, tiles = j0 / ROWS;
  for (int64_t p = 0; p < panels; p++) {
    const int64_t count = nb_min(COLUMNS, nb - p * COLUMNS);
    for (int64_t k0 = 0; k0 < j0; k0 += PASS) {
      const int64_t k1 = nb_min(j0, k0 + PASS);
      pack_rows(w->h + (j0 + p * COLUMNS) * w->n + k0, w->n, count, k1 - k0, COLUMNS, w->b);
      for (int64_t t = w->c->thread; t < tiles; t += w->c->threads) {
        const int64_t i = t * ROWS, from = nb_max(k0, i);
        if (from >= k1) continue;
        pack_rows(w->h + i * w->n + from, w->n, ROWS, k1 - from, ROWS, w->a);
        for (int64_t k = from; k < nb_min(k1, i + ROWS); k++) { /* below the diagonal */
          for (int64_t m = k - i + 1; m < ROWS; m++) w->a[(k - from) * ROWS + m] = 0;
        }
        double out[ROWS * COLUMNS] = {0};
        double *to = w->h + i * w->n + j0 + p * COLUMNS;
        if (k0 > 0 && from > i) {
          for (int m = 0; m < ROWS; m++) memcpy(out + m * COLUMNS, to + m * w->n, (size_t)count * 8);
        }
        multiply(w->a, w->b + (from - k0) * COLUMNS, k1 - from, out);
        for (int m = 0; m < ROWS; m++) memcpy(to + m * w->n, out + m * COLUMNS, (size_t)count * 8);
      }
    }
  }
}

NB_OP(inverse_factor) {
  const int64_t n = ins[INVERSE_FACTOR_SIZE];
  float *factor = nb_at(c, ins[INVERSE_FACTOR_FACTOR_AT]);
  int32_t *status = nb_at(c, ins[INVERSE_FACTOR_STATUS_AT]);
  work w = {c, nb_at(c, ins[INVERSE_FACTOR_HESSIAN_AT]), n, NULL, NULL, NULL};
  w.u = (double *)c->scratch;
  w.a = w.u + NB * NB;
  w.b = w.a + PASS * ROWS;
  const int64_t last = (n - 1) / NB * NB;
  if (c->thread == 0) *status = 0;
  for (int64_t j0 = last; j0 >= 0; j0 -= NB) {
    const int64_t nb = nb_min(NB, n - j0);
    if (c->thread == 0) {
      double *inverse = w.a;
      load_block(&w, j0, nb, w.u);
      const int64_t failed = factor_block(w.u, nb);
      if (failed) {
        *status = (int32_t)(j0 + failed);
      } else {
        invert_block(w.u, inverse, nb);
        for (int64_t i = 0; i < nb; i++) memcpy(w.h + (j0 + i) * n + j0, inverse + i * NB, (size_t)nb * 8);
      }
    }
    nb_barrier(c);
    if (*(volatile int32_t *)status) return;
    solve_panel(&w, j0, nb);
    nb_barrier(c);
    update_trailing(&w, j0, nb);
    nb_barrier(c);
  }
  for (int64_t j0 = NB; j0 <= last; j0 += NB) {
    const int64_t nb = nb_min(NB, n - j0);
    form_w(&w, j0, nb);
    nb_barrier(c);
    combine(&w, j0, nb);
    nb_barrier(c);
  }
  for (int64_t i = c->thread; i < n; i += c->threads) {
    for (int64_t j = i; j < n; j++) factor[i * n + j] = (float)w.h[i * n + j];
  }
}
