/*
 * Hadamard rotations (QuaRot, arXiv:2404.00456): x (A_k (x) S_m (x) I_inner) per block, and the mix of heads.
 * A sum with a factor of +-1 rounds the same with and without fma, so the k x k part may use it.
 */
#include "kernels.h"
#include "repeat.h"
#include "simd.h"

#define MAX_ORDER 512

/* Butterflies over spans below a vector, all at once: spans are powers of two, and divide every tail. */
static void inner_levels(float *y, int64_t length, int64_t from, int64_t to) {
  for (int64_t i = 0; i < length; i += 16) {
    vf v = v_load_upto(y + i, length - i);
    if (from <= 1 && to > 1) v = v_butterfly(v, 1);
    if (from <= 2 && to > 2) v = v_butterfly(v, 2);
    if (from <= 4 && to > 4) v = v_butterfly(v, 4);
    if (from <= 8 && to > 8) v = v_butterfly(v, 8);
    v_store_upto(y + i, v, length - i);
  }
}

/* One level: halves of `span` elements, alternating sum and difference. */
static void level(float *y, int64_t length, int64_t span) {
  for (int64_t at = 0; at < length; at += 2 * span) {
    float *a = y + at, *b = a + span;
    for (int64_t i = 0; i < span; i += 16) {
      const vf u = v_load_upto(a + i, span - i), v = v_load_upto(b + i, span - i);
      v_store_upto(a + i, v_add(u, v), span - i);
      v_store_upto(b + i, v_sub(u, v), span - i);
    }
  }
}

/* Two levels in one pass over memory; span is a multiple of 16. */
static void two_levels(float *y, int64_t length, int64_t span) {
  for (int64_t at = 0; at < length; at += 4 * span) {
    float *a = y + at;
    for (int64_t i = 0; i < span; i += 16, a += 16) {
      const vf v0 = v_load(a), v1 = v_load(a + span), v2 = v_load(a + 2 * span), v3 = v_load(a + 3 * span);
      const vf s0 = v_add(v0, v1), d0 = v_sub(v0, v1), s1 = v_add(v2, v3), d1 = v_sub(v2, v3);
      v_store(a, v_add(s0, s1));
      v_store(a + span, v_add(d0, d1));
      v_store(a + 2 * span, v_sub(s0, s1));
      v_store(a + 3 * span, v_sub(d0, d1));
    }
  }
}

INLINE vf four_levels(vf v) { return v_butterfly(v_butterfly(v_butterfly(v_butterfly(v, 1), 2), 4), 8); }

/* Spans 1 to 32 in registers; length is a multiple of 64. */
static void first_six_levels(float *y, int64_t length) {
  for (float *a = y; a < y + length; a += 64) {
    vf v0 = v_load(a), v1 = v_load(a + 16), v2 = v_load(a + 32), v3 = v_load(a + 48);
    v0 = four_levels(v0);
    v1 = four_levels(v1);
    v2 = four_levels(v2);
    v3 = four_levels(v3);
    const vf s0 = v_add(v0, v1), d0 = v_sub(v0, v1), s1 = v_add(v2, v3), d1 = v_sub(v2, v3);
    v_store(a, v_add(s0, s1));
    v_store(a + 16, v_add(d0, d1));
    v_store(a + 32, v_sub(s0, s1));
    v_store(a + 48, v_sub(d0, d1));
  }
}

static void sylvester(float *y, int64_t length, int64_t m, int64_t inner) {
  const int64_t end = m * inner; /* spans run inner, 2 inner, … end / 2 */
  int64_t span = inner;
  if (inner == 1 && m >= 64) {
    first_six_levels(y, length);
    span = 64;
  }
  if (span < 16 && (span & (span - 1)) == 0 && span < end) {
    const int64_t to = nb_min(end, 16);
    inner_levels(y, length, span, to);
    span = to;
  }
  while (span < end) {
    if (span % 16 == 0 && 4 * span <= end) {
      two_levels(y, length, span);
      span *= 4;
    } else {
      level(y, length, span);
      span *= 2;
    }
  }
}

#define FIRST(i) vf o##i = v_mul(v_set(a[(i) * k]), v[0]);
#define NEXT(i) o##i = v_fma(v_set(a[(i) * k + j]), x, o##i);
#define KEEP(i) out[i] = o##i;
/* Some outputs at one column block: first term as it is, the others in order. */
#define COMBINE(count)                                                              \
  INLINE void combine_##count(const float *a, int64_t k, const vf *v, vf *out) {    \
    REPEAT(count, FIRST)                                                            \
    for (int64_t j = 1; j < k; j++) {                                               \
      const vf x = v[j];                                                            \
      REPEAT(count, NEXT)                                                           \
    }                                                                               \
    REPEAT(count, KEEP)                                                             \
  }
COMBINE(1)
#if PART == 16
#define AT_ONCE 12
COMBINE(12)
#define COMBINE_MANY combine_12
#else
#define AT_ONCE 4
COMBINE(4)
#define COMBINE_MANY combine_4
#endif

/* y[i] = (sum over j of A[i][j] y[j]) * norm, then * post; y[j] and post[j] are `run` floats each. */
static void small_matrix(float *y, const float *a, int64_t k, int64_t run, vf norm, const float *post) {
  vf v[MAX_ORDER], out[AT_ONCE];
  for (int64_t at = 0; at < run; at += 16) {
    const int64_t n = run - at;
    for (int64_t j = 0; j < k; j++) v[j] = v_load_upto(y + j * run + at, n);
    for (int64_t i = 0; i < k;) {
      const int count = i + AT_ONCE <= k ? AT_ONCE : 1;
      if (count > 1) COMBINE_MANY(a + i * k, k, v, out);
      else combine_1(a + i * k, k, v, out);
      for (int l = 0; l < count; l++, i++) {
        vf x = v_mul(out[l], norm);
        if (post) x = v_mul(x, v_load_upto(post + i * run + at, n));
        v_store_upto(y + i * run + at, x, n);
      }
    }
  }
}

void ISA_NAME(row_hadamard)(const float *x, float *y, const nb_hadamard *h) {
  const int64_t block = h->k * h->m * h->inner, length = h->blocks * block;
  if (h->pre) {
    for (int64_t i = 0; i < length; i += 16) {
      v_store_upto(y + i, v_mul(v_load_upto(x + i, length - i), v_load_upto(h->pre + i, length - i)), length - i);
    }
  } else if (x != y) {
    memcpy(y, x, (size_t)length * 4);
  }
  /* Block by block, so that a block stays in the first-level cache. */
  if (block % 16 == 0) {
    for (int64_t b = 0; b < h->blocks; b++) sylvester(y + b * block, block, h->m, h->inner);
  } else {
    sylvester(y, length, h->m, h->inner);
  }
  const vf norm = v_set(h->norm);
  if (h->k > 1) {
    for (int64_t b = 0; b < h->blocks; b++) {
      const float *post = h->post ? h->post + b * block : NULL;
      small_matrix(y + b * block, h->matrix, h->k, h->m * h->inner, norm, post);
    }
    return;
  }
  int64_t i = 0;
  if (!h->post) {
    for (; i + 16 <= length; i += 16) v_store(y + i, v_mul(v_load(y + i), norm));
  }
  for (; i < length; i += 16) {
    vf v = v_mul(v_load_upto(y + i, length - i), norm);
    if (h->post) v = v_mul(v, v_load_upto(h->post + i, length - i));
    v_store_upto(y + i, v, length - i);
  }
}

_Static_assert(HADAMARD_NORM_F - HADAMARD_BLOCKS == HADAMARD_QUANTIZE_NORM_F - HADAMARD_QUANTIZE_BLOCKS,
               "the same operands in the same order");

void ISA_NAME(read_hadamard)(nb_ctx *c, const int32_t *fields, nb_hadamard *h, float *room) {
  const int32_t *f = fields - HADAMARD_BLOCKS;
  h->blocks = f[HADAMARD_BLOCKS];
  h->k = f[HADAMARD_ORDER_K];
  h->m = f[HADAMARD_ORDER_M];
  h->inner = f[HADAMARD_INNER];
  h->pre = nb_at(c, f[HADAMARD_PRE_SIGN_AT]);
  h->post = nb_at(c, f[HADAMARD_POST_SIGN_AT]);
  h->norm = nb_float(f[HADAMARD_NORM_F]);
  h->matrix = NULL;
  if (h->k > 1) {
    const int8_t *a = nb_at(c, f[HADAMARD_MATRIX_AT]);
    for (int64_t i = 0; i < h->k; i++) {
      for (int64_t j = 0; j < h->k; j++) {
        const int8_t sign = f[HADAMARD_TRANSPOSE] ? a[j * h->k + i] : a[i * h->k + j];
        room[i * h->k + j] = sign < 0 ? -1.0f : 1.0f;
      }
    }
    h->matrix = room;
  }
}

NB_OP(hadamard) {
  const float *src = nb_at(c, ins[HADAMARD_SRC_AT]);
  float *dst = nb_at(c, ins[HADAMARD_DST_AT]);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  if (m == end) return;
  nb_hadamard h;
  ISA_NAME(read_hadamard)(c, ins + HADAMARD_BLOCKS, &h, (float *)c->scratch);
  for (; m < end; m++) ISA_NAME(row_hadamard)(src + m * ins[HADAMARD_LD_SRC], dst + m * ins[HADAMARD_LD_DST], &h);
}

NB_OP(mix_heads) {
  const float *src = nb_at(c, ins[MIX_HEADS_SRC_AT]);
  float *dst = nb_at(c, ins[MIX_HEADS_DST_AT]);
  const float *matrix = nb_at(c, ins[MIX_HEADS_MATRIX_AT]);
  const int64_t count = ins[MIX_HEADS_COUNT], inner = ins[MIX_HEADS_INNER];
  vf v[MAX_ORDER];
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const float *x = src + m * ins[MIX_HEADS_LD_SRC];
    float *y = dst + m * ins[MIX_HEADS_LD_DST];
    for (int64_t at = 0; at < inner; at += 16) {
      const int64_t n = inner - at;
      for (int64_t j = 0; j < count; j++) v[j] = v_load_upto(x + j * inner + at, n);
      for (int64_t h = 0; h < count; h++) {
        const float *row = matrix + h * count;
        vf acc = v_mul(v_set(row[0]), v[0]);
        for (int64_t j = 1; j < count; j++) acc = v_add(acc, v_mul(v_set(row[j]), v[j]));
        v_store_upto(y + h * inner + at, acc, n);
      }
    }
  }
}
