/*
 * Softmax attention straight over the packed pages, 128 positions at a time (online softmax, arXiv:2205.14135).
 *
 * Queries that share keys (the heads of a group, and consecutive rows of one sequence) form a tile of up to 48: codes are
 * unpacked once for all of them. A chunk gives (max, sum, accumulator) per query; chunks merge in rising order. With few
 * rows, chunks go to different threads and merge after a barrier; the arithmetic is the same.
 */
#include <math.h>
#include "float_dots.h"
#include "int_dots.h"
#include "kivi.h"

#define CHUNK ATTENTION_CHUNK
#define MAX_QUERIES 48
#define NOTHING (-3.402823466e38f) /* maximum of no scores; finite, so that differences of two are no NaN */

typedef struct {
  nb_ctx *c;
  const int32_t *ins, *positions, *slots;
  nb_cache cache;
  int64_t heads, kv_heads, head_dim, padded, ld_query, rows, ld_dst, window;
  const uint8_t *query;
  const float *query_scale;
  const int32_t *query_sum;
  float *dst;
  float softmax_scale;
  int max_queries;
} task;

/* Query heads that share a tile. */
typedef struct { int64_t kv, first, count; } head_block;

/* The thread's temporaries; a query is (row of the tile) * heads of the block + head. */
typedef struct {
  float *scores;  /* [queries][128]: scores, then softmax weights */
  float *decoded; /* keys or values of a chunk as f32 */
  uint8_t *query; /* [queries][ld_query] s8 or f32 */
  float *state;   /* [queries][padded]: accumulators */
  float *sums;    /* [queries][padded]: of the chunk, kivi values only */
  float scale[MAX_QUERIES], scaled_sum[MAX_QUERIES];
  /* Of the chunk: max, sum, what the zeros of the values take away; of the state: max, sum; and factors of the merge. */
  float max[MAX_QUERIES], sum[MAX_QUERIES], zero[MAX_QUERIES];
  float state_max[MAX_QUERIES], state_sum[MAX_QUERIES], keep[MAX_QUERIES], take[MAX_QUERIES];
} room;

static int64_t group_start(const task *t, int64_t kv) { return (kv * t->heads + t->kv_heads - 1) / t->kv_heads; }
static int64_t blocks_per_group(const task *t) {
  return ((t->heads + t->kv_heads - 1) / t->kv_heads + t->max_queries - 1) / t->max_queries;
}
static head_block block_of(const task *t, int64_t index) {
  const int64_t per = blocks_per_group(t), kv = index / per, start = group_start(t, kv), end = group_start(t, kv + 1);
  const int64_t first = start + index % per * t->max_queries;
  return (head_block){kv, first, nb_max(0, nb_min(t->max_queries, end - first))};
}

static int64_t lowest_of(const task *t, int64_t m) {
  return t->window > 0 ? nb_max(0, (int64_t)t->positions[m] - t->window + 1) : 0;
}

/* Gathers the tile's queries next to each other, with what the scores need of each. */
static void load_queries(const task *t, room *r, head_block b, int64_t m0, int64_t rows) {
  const int is8 = t->cache.query_bits == 8;
  const int64_t bytes = t->head_dim * (is8 ? 1 : 4);
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t h = 0; h < b.count; h++) {
      const int64_t q = m * b.count + h, at = (m0 + m) * t->heads + b.first + h;
      uint8_t *to = r->query + q * t->ld_query;
      memcpy(to, t->query + at * bytes, (size_t)bytes);
      if (is8) {
        memset(to + bytes, 0, (size_t)(t->ld_query - bytes)); /* dims are read four by four, eight quads at a time */
        r->scale[q] = t->query_scale[at];
        r->scaled_sum[q] = t->query_scale[at] * (float)t->query_sum[at];
      } else {
        vf acc = v_zero();
        const float *x = (const float *)to;
        for (int64_t d = 0; d < t->head_dim; d += 16) acc = v_add(acc, v_load_upto(x + d, t->head_dim - d));
        r->scaled_sum[q] = v_fold(acc);
      }
    }
  }
}

/* Codes of dims 4q..4q+3 of sixteen positions. */
INLINE vi key_quad(int bits, const uint8_t *half, int64_t q) {
  if (bits == 8) return vi_load((const int32_t *)(half + q * 64));
  const vi x = vi_load((const int32_t *)(half + (q >> 1) * 64));
  return vi_and(q & 1 ? vi_shift_right(x, 4) : x, vi_set(0x0f0f0f0f));
}

#define DECLARE(m) vi a##m = vi_set(0), c##m = vi_set(0);
#define DOT(m)                                      \
  {                                                 \
    const int32_t quad = nb_four(NB_ROW(m, ld) + 4 * i); \
    a##m = nb_dot(wide, a##m, w0, quad);       \
    c##m = nb_dot(wide, c##m, w1, quad);       \
  }
#define KEEP(m)                   \
  vi_store(out + (m) * 32, a##m); \
  vi_store(out + (m) * 32 + 16, c##m);

/* Dots of M queries with the 32 positions of a page; its two half-panels are `half` bytes apart. */
#define KEY_TILE(bits, M)                                                                                           \
  static __attribute__((noinline)) void key_tile_##bits##_##M(const int8_t *x, int64_t ld, const uint8_t *keys,    \
                                                              int64_t half, int64_t quads, int32_t *out) {          \
    const int wide = bits == 8;                                                                                     \
    REPEAT(M, DECLARE)                                                                                              \
    NB_ROW_POINTERS(x, ld);                                                                                         \
    int64_t q = 0;                                                                                                  \
    for (; q + 2 <= quads; q += 2) {                                                                                \
      UNROLL for (int i = 0; i < 2; i++) {                                                                          \
        const vi w0 = key_quad(bits, keys, q + i), w1 = key_quad(bits, keys + half, q + i);                         \
        REPEAT(M, DOT)                                                                                              \
      }                                                                                                             \
      NB_ADVANCE(8);                                                                                                \
    }                                                                                                               \
    if (q < quads) {                                                                                                \
      const int i = 0;                                                                                              \
      const vi w0 = key_quad(bits, keys, q), w1 = key_quad(bits, keys + half, q);                                   \
      REPEAT(M, DOT)                                                                                                \
    }                                                                                                               \
    REPEAT(M, KEEP)                                                                                                 \
  }
KEY_TILE(4, 1) KEY_TILE(8, 1) KEY_TILE(4, 2) KEY_TILE(8, 2)
#if INT_TILE > 2
KEY_TILE(4, 3) KEY_TILE(8, 3) KEY_TILE(4, 6) KEY_TILE(8, 6) KEY_TILE(4, 12) KEY_TILE(8, 12)
#endif

static void key_tiles(int bits, int64_t queries, const int8_t *x, int64_t ld, const uint8_t *keys, int64_t half,
                      int64_t quads, int32_t *out) {
  while (queries > 0) {
    int now;
#define RUN(M)                                                                                                     \
  {                                                                                                                \
    now = M;                                                                                                       \
    (bits == 4 ? key_tile_4_##M : key_tile_8_##M)(x, ld, keys, half, quads, out);                                  \
  }
#if INT_TILE > 2
    if (queries >= 12) RUN(12)
    else if (queries >= 6) RUN(6)
    else if (queries >= 3) RUN(3)
    else
#endif
        if (queries >= 2) RUN(2)
    else RUN(1)
#undef RUN
    queries -= now;
    x += now * ld;
    out += now * 32;
  }
}

/* One page of keys as f32 [2][head_dim][16]. */
static const float *decode_keys(const task *t, int codec, const uint8_t *keys, float *out) {
  const int64_t count = t->head_dim * 32;
  if (codec == CODEC_F32) return (const float *)keys;
  if (codec == CODEC_F16) {
    for (int64_t i = 0; i < count; i += 16) v_store(out + i, v_load_half((const uint16_t *)keys + i));
    return out;
  }
  const int bits = codec == CODEC_INT4 ? 4 : 8;
  const int64_t half = t->head_dim * 2 * bits;
  for (int h = 0; h < 2; h++) {
    for (int64_t d = 0; d < t->head_dim; d++) {
      const vi quad = key_quad(bits, keys + h * half, d >> 2);
      const vi code = vi_and(vi_shift_right(quad, 8 * (int)(d & 3)), vi_set(255));
      v_store(out + (h * t->head_dim + d) * 16, vi_to_float(code));
    }
  }
  return out;
}

/* f16 scale and zero of sixteen positions; the zero of an int-zero codec is scale * z. */
static void parameters_of(const nb_plane *p, const uint8_t *plane, int at, vf *scale, vf *zero) {
  const uint16_t *f = (const uint16_t *)(plane + p->parameters) + at;
  *scale = v_load_half(f);
  *zero = v_load_half(f + PAGE_TOKENS);
  if (p->zero_int) *zero = v_mul(*scale, *zero);
}

/* Scores of all queries with the 32 positions of a page of keys in `codec`, times the softmax scale. */
static void page_scores(const task *t, room *r, int64_t queries, int codec, const uint8_t *keys, float *scores) {
  const int is_int = nb_codec_is_int(codec), is8 = t->cache.query_bits == 8, is_kivi = nb_codec_is_kivi(codec);
  const int bits = codec == CODEC_INT4 ? 4 : 8;
  const vf softmax = v_set(t->softmax_scale);
  const float *decoded = is8 || is_kivi ? NULL : decode_keys(t, codec, keys, r->decoded);
  vf scale[2], zero[2];
  for (int h = 0; h < 2 && is_int; h++) parameters_of(&t->cache.key, keys, 16 * h, &scale[h], &zero[h]);
  for (int64_t q0 = 0; q0 < queries; q0 += 12) {
    const int64_t count = nb_min(12, queries - q0);
    int32_t dots[12 * 32];
    float sums[12 * 32];
    if (is8) {
      key_tiles(bits, count, (const int8_t *)r->query + q0 * t->ld_query, t->ld_query, keys, t->head_dim * 2 * bits,
                t->head_dim / 4, dots);
    } else if (is_kivi) {
      ISA_NAME(kivi_scores)(&t->cache.key, keys, t->head_dim, (int)count, (const float *)(r->query + q0 * t->ld_query),
                            t->ld_query / 4, r->decoded, sums);
    } else {
      memset(sums, 0, sizeof sums);
      ISA_NAME(exact_tile)((int)count, (const float *)(r->query + q0 * t->ld_query), t->ld_query / 4, 1, decoded,
                           decoded + t->head_dim * 16, 16, t->head_dim, sums);
    }
    for (int64_t m = 0; m < count; m++) {
      const int64_t q = q0 + m;
      const vf sum = v_set(r->scaled_sum[q]);
      for (int h = 0; h < 2; h++) {
        vf s;
        if (is8) {
          s = v_mul(vi_to_float(vi_load(dots + m * 32 + 16 * h)), v_mul(v_set(r->scale[q]), scale[h]));
          s = v_sub(s, v_mul(sum, zero[h]));
        } else {
          s = v_load(sums + m * 32 + 16 * h);
          if (is_int) s = v_sub(v_mul(s, scale[h]), v_mul(sum, zero[h]));
        }
        v_store(scores + q * CHUNK + 16 * h, v_mul(s, softmax));
      }
    }
  }
}

static const float lane_index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE void softmax_pass(int masked, room *r, int64_t q, int first, int last, int v0, int v1, const float *params) {
  float *s = r->scores + q * CHUNK;
  const vf lanes = v_load(lane_index), low = v_set((float)first), high = v_set((float)last), none = v_set(-INFINITY);
#define VISIBLE(x, other) (masked ? v_between(x, other, v_add(lanes, v_set((float)v)), low, high) : (x))
  vf max = none, sum = v_zero(), zero = v_zero();
  for (int v = v0; v <= v1; v += 16) max = v_max(VISIBLE(v_load(s + v), none), max);
  r->max[q] = v_fold_max(max);
  const vf top = v_set(r->max[q]);
  for (int v = v0; v <= v1; v += 16) {
    vf e = VISIBLE(v_exp(v_sub(v_load(s + v), top)), v_zero());
    sum = v_add(sum, e);
    if (params) {
      zero = v_add(zero, VISIBLE(v_mul(e, v_load(params + CHUNK + v)), v_zero()));
      e = VISIBLE(v_mul(e, v_load(params + v)), v_zero());
    }
    v_store(s + v, e);
  }
#undef VISIBLE
  r->sum[q] = v_fold(sum);
  r->zero[q] = v_fold(zero);
}

/*
 * Scores of one query -> softmax weights of positions first..last of the chunk (0 outside, within the tile's from..to),
 * its max and sum, and the constant the values' zeros take away. `params`: scale and zero of the values [2][128].
 */
static void softmax(room *r, int64_t q, int first, int last, int from, int to, const float *params) {
  const int v0 = from / 16 * 16, v1 = to / 16 * 16;
  if (first <= v0 && last >= v1 + 15) softmax_pass(0, r, q, first, last, v0, v1, params);
  else softmax_pass(1, r, q, first, last, v0, v1, params);
}

/* The low nibble of each lane as a float. */
INLINE vf v_nibble(vi x) {
#if PART == 16
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  vf r;
  r.p[0] = (pf)_mm512_permutexvar_ps((__m512i)x.p[0], values);
  return r;
#else
  return vi_to_float(vi_and(x, vi_set(15)));
#endif
}

/* Dims [i] and [i + block / 2] of one token of int4 values. */
static void decode_nibbles(const uint8_t *row, int64_t head_dim, float *out) {
  const int64_t block = head_dim % 64 ? head_dim : 64, half = block / 2;
  for (int64_t d = 0; d < head_dim; d += block, row += half, out += block) {
    if (half % 16) {
      for (int64_t i = 0; i < half; i++) {
        out[i] = (float)(row[i] & 15);
        out[half + i] = (float)(row[i] >> 4);
      }
    } else {
      for (int64_t i = 0; i < half; i += 16) {
        const vi bytes = vi_load_u8(row + i);
        v_store(out + i, v_nibble(bytes));
        v_store(out + half + i, v_nibble(vi_shift_right(bytes, 4)));
      }
    }
  }
}

/* Positions from..to of one page of values as f32 rows of `padded`. */
static void decode_values(const task *t, const uint8_t *values, int from, int to, float *out) {
  const int64_t d = t->head_dim;
  for (int64_t i = from; i <= to; i++) {
    float *row = out + i * t->padded;
    switch (t->cache.value.codec) {
      case CODEC_F32:
        memcpy(row, (const float *)values + i * d, (size_t)d * 4);
        break;
      case CODEC_F16:
        for (int64_t j = 0; j + 16 <= d; j += 16) v_store(row + j, v_load_half((const uint16_t *)values + i * d + j));
        for (int64_t j = d / 16 * 16; j < d; j++) row[j] = half_to_float(((const uint16_t *)values)[i * d + j]);
        break;
      case CODEC_INT8:
        for (int64_t j = 0; j + 16 <= d; j += 16) v_store(row + j, vi_to_float(vi_load_u8(values + i * d + j)));
        for (int64_t j = d / 16 * 16; j < d; j++) row[j] = (float)values[i * d + j];
        break;
      default:
        decode_nibbles(values + i * d / 2, d, row);
    }
    for (int64_t j = d; j < t->padded; j++) row[j] = 0;
  }
}

/* The running softmax of each query takes in its part: new max and sum, and the factors of the accumulators. */
static void merge_factors(room *r, int64_t queries) {
  for (int64_t q = 0; q < queries; q += 16) {
    const vf old = v_load(r->state_max + q), part = v_load(r->max + q), top = v_max(old, part);
    const vf a = v_exp(v_sub(old, top)), b = v_exp(v_sub(part, top));
    v_store(r->state_max + q, top);
    v_store(r->state_sum + q, v_add(v_mul(v_load(r->state_sum + q), a), v_mul(v_load(r->sum + q), b)));
    v_store(r->keep + q, a);
    v_store(r->take + q, b);
  }
}

/*
 * Accumulators of up to four queries straight from the packed values, 64 dims at a time: where there are few queries,
 * unpacking to memory first costs as much as the sums. out [queries][head_dim].
 */
#define FEW 4
INLINE void value_quad(int codec, const uint8_t *values, int64_t head_dim, int64_t t, int64_t d, vf v[4]) {
  if (codec == CODEC_INT4) {
    const uint8_t *row = values + (t * head_dim + d) / 2;
    const vi b0 = vi_load_u8(row), b1 = vi_load_u8(row + 16);
    v[0] = v_nibble(b0);
    v[1] = v_nibble(b1);
    v[2] = v_nibble(vi_shift_right(b0, 4));
    v[3] = v_nibble(vi_shift_right(b1, 4));
    return;
  }
  UNROLL for (int i = 0; i < 4; i++) {
    const int64_t at = t * head_dim + d + 16 * i;
    if (codec == CODEC_INT8) v[i] = vi_to_float(vi_load_u8(values + at));
    else if (codec == CODEC_F16) v[i] = v_load_half((const uint16_t *)values + at);
    else v[i] = v_load((const float *)values + at);
  }
}

#define DECLARE_FEW(q) vf a##q = v_zero(), b##q = v_zero(), c##q = v_zero(), d##q = v_zero();
#define ADD_FEW(q)                               \
  {                                              \
    const vf w = v_set(weights[(q) * CHUNK + t]); \
    a##q = v_add(a##q, v_mul(w, v[0])); \
    b##q = v_add(b##q, v_mul(w, v[1])); \
    c##q = v_add(c##q, v_mul(w, v[2])); \
    d##q = v_add(d##q, v_mul(w, v[3])); \
  }
#define STORE_FEW(q)                             \
  v_store(out + (q) * head_dim + dim, a##q);      \
  v_store(out + (q) * head_dim + dim + 16, b##q); \
  v_store(out + (q) * head_dim + dim + 32, c##q); \
  v_store(out + (q) * head_dim + dim + 48, d##q);
#define FEW_VALUES(codec, Q)                                                                                         \
  static __attribute__((noinline)) void few_##codec##_##Q(const uint8_t *const *pages, int64_t head_dim, int from,  \
                                                          int to, const float *weights, float *out) {               \
    for (int64_t dim = 0; dim < head_dim; dim += 64) {                                                               \
      REPEAT(Q, DECLARE_FEW)                                                                                         \
      for (int t = from; t <= to; t++) {                                                                             \
        vf v[4];                                                                                                     \
        value_quad(codec, pages[t / PAGE_TOKENS], head_dim, t % PAGE_TOKENS, dim, v);                                \
        REPEAT(Q, ADD_FEW)                                                                                           \
      }                                                                                                              \
      REPEAT(Q, STORE_FEW)                                                                                           \
    }                                                                                                                \
  }
#define FEW_CODEC(codec) FEW_VALUES(codec, 1) FEW_VALUES(codec, 2) FEW_VALUES(codec, 3) FEW_VALUES(codec, 4)
FEW_CODEC(0) FEW_CODEC(1) FEW_CODEC(2) FEW_CODEC(3)
#define FEW_ROW(codec) {few_##codec##_1, few_##codec##_2, few_##codec##_3, few_##codec##_4}
static void (*const few_values[4][FEW])(const uint8_t *const *, int64_t, int, int, const float *, float *) = {
    FEW_ROW(0), FEW_ROW(1), FEW_ROW(2), FEW_ROW(3)};

/* x (16 dims of query q's chunk accumulator) goes to the part or into the state. */
INLINE void take_sums(const task *t, room *r, int64_t q, int64_t at, vf x, float *parts, int int_values) {
  if (int_values) x = v_sub(x, v_set(r->zero[q]));
  if (parts) {
    v_store_upto(parts + q * (2 + t->head_dim) + 2 + at, x, t->head_dim - at);
  } else {
    float *state = r->state + q * t->padded + at;
    v_store(state, v_add(v_mul(v_load(state), v_set(r->keep[q])), v_mul(x, v_set(r->take[q]))));
  }
}

/* Sums of a kivi chunk's values: a row at position p reads those below p - residual as codes. */
static void add_kivi_values(const task *t, room *r, head_block b, int64_t m0, int64_t rows, int64_t base, int from, int to,
                            const uint8_t *const *page, float *ring, float *parts) {
  nb_kivi_values v = {&t->cache.value, t->head_dim, {0}, nb_ring_values(ring, &t->cache, base)};
  for (int p = 0; p < CHUNK / PAGE_TOKENS; p++) v.pages[p] = page[p] ? page[p] + t->cache.key_bytes : NULL;
  int coded[MAX_QUERIES] = {0};
  for (int64_t q = 0; q < rows * b.count; q++) {
    coded[q] = (int)nb_max(0, nb_min(CHUNK, t->positions[m0 + q / b.count] - t->cache.residual - base));
  }
  ISA_NAME(kivi_accumulate)(&v, rows * b.count, r->scores, coded, from, to, r->decoded, r->sums);
  for (int64_t q = 0; q < rows * b.count; q++) {
    for (int64_t d = 0; d < t->head_dim; d += 16) take_sums(t, r, q, d, v_load(r->sums + q * t->head_dim + d), parts, 0);
  }
}

/*
 * One chunk for a tile of queries. parts = NULL: merged into the state; else written to parts [query][2 + head_dim].
 * Returns 0 when a page number is out of range.
 */
static int attend_chunk(const task *t, room *r, head_block b, int64_t m0, int64_t rows, int64_t chunk, float *parts) {
  const int64_t base = chunk * CHUNK, queries = rows * b.count;
  const int from = (int)(nb_max(lowest_of(t, m0), base) - base);
  const int to = (int)(nb_min(t->positions[m0 + rows - 1], base + CHUNK - 1) - base);
  const int int_values = nb_codec_is_int(t->cache.value.codec);
  const uint8_t *page[CHUNK / PAGE_TOKENS] = {0};
  float params[2 * CHUNK];
  const int64_t residual = t->cache.residual, coded_keys = residual ? t->positions[m0] / residual * residual : 0;
  float *ring = residual ? nb_ring(t->c, &t->cache, t->slots[m0], t->ins[ATTENTION_LAYER], b.kv) : NULL;
  for (int p = from / PAGE_TOKENS; p <= to / PAGE_TOKENS; p++) {
    page[p] = nb_page(t->c, &t->cache, t->slots[m0], t->ins[ATTENTION_LAYER], base + p * PAGE_TOKENS, b.kv);
    if (!page[p]) return 0;
    const uint8_t *keys = page[p];
    int codec = t->cache.key.codec;
    if (ring && base + p * PAGE_TOKENS >= coded_keys) {
      keys = (const uint8_t *)nb_ring_keys(ring, &t->cache, base + p * PAGE_TOKENS);
      codec = CODEC_F32;
    }
    page_scores(t, r, queries, codec, keys, r->scores + p * PAGE_TOKENS);
    for (int h = 0; h < 2 && int_values; h++) {
      vf scale, zero;
      parameters_of(&t->cache.value, page[p] + t->cache.key_bytes, 16 * h, &scale, &zero);
      v_store(params + p * PAGE_TOKENS + 16 * h, scale);
      v_store(params + CHUNK + p * PAGE_TOKENS + 16 * h, zero);
    }
  }
  for (int64_t m = 0; m < rows; m++) {
    const int first = (int)(nb_max(lowest_of(t, m0 + m), base) - base);
    const int last = (int)(nb_min(t->positions[m0 + m], base + CHUNK - 1) - base);
    for (int64_t h = 0; h < b.count; h++) {
      if (first > last) { /* a row of the tile that sees nothing of this chunk */
        const int64_t q = m * b.count + h;
        r->max[q] = NOTHING;
        r->sum[q] = r->zero[q] = 0;
        memset(r->scores + q * CHUNK, 0, CHUNK * 4);
      } else {
        softmax(r, m * b.count + h, first, last, from, to, int_values ? params : NULL);
      }
    }
  }
  if (!parts) merge_factors(r, queries);
  if (ring) {
    add_kivi_values(t, r, b, m0, rows, base, from, to, page, ring, parts);
  } else if (queries <= FEW && t->head_dim % 64 == 0) {
    const uint8_t *values[CHUNK / PAGE_TOKENS];
    for (int p = 0; p < CHUNK / PAGE_TOKENS; p++) values[p] = page[p] ? page[p] + t->cache.key_bytes : NULL;
    few_values[t->cache.value.codec][queries - 1](values, t->head_dim, from, to, r->scores, r->decoded);
    for (int64_t q = 0; q < queries; q++) {
      for (int64_t d = 0; d < t->head_dim; d += 16) {
        take_sums(t, r, q, d, v_load(r->decoded + q * t->head_dim + d), parts, int_values);
      }
    }
  } else {
    for (int p = from / PAGE_TOKENS; p <= to / PAGE_TOKENS; p++) {
      const int low = p == from / PAGE_TOKENS ? from % PAGE_TOKENS : 0;
      const int high = p == to / PAGE_TOKENS ? to % PAGE_TOKENS : PAGE_TOKENS - 1;
      decode_values(t, page[p] + t->cache.key_bytes, low, high, r->decoded + p * PAGE_TOKENS * t->padded);
    }
    for (int64_t q0 = 0; q0 < queries; q0 += 12) {
      const int64_t count = nb_min(12, queries - q0);
      for (int64_t d = 0; d < t->padded; d += 32) {
        float acc[12 * 32];
        memset(acc, 0, (size_t)count * 128);
        const float *v = r->decoded + from * t->padded + d, *weights = r->scores + q0 * CHUNK + from;
        ISA_NAME(exact_tile)((int)count, weights, CHUNK, 1, v, v + 16, t->padded, to - from + 1, acc);
        for (int64_t m = 0; m < count; m++) {
          for (int h = 0; h < 2 && d + 16 * h < t->head_dim; h++) {
            take_sums(t, r, q0 + m, d + 16 * h, v_load(acc + m * 32 + 16 * h), parts, int_values);
          }
        }
      }
    }
  }
  for (int64_t q = 0; q < queries && parts; q++) {
    parts[q * (2 + t->head_dim)] = r->max[q];
    parts[q * (2 + t->head_dim) + 1] = r->sum[q];
  }
  return 1;
}

static void clear_state(const task *t, room *r, int64_t queries) {
  memset(r->state, 0, (size_t)(queries * t->padded) * 4);
  for (int64_t q = 0; q < MAX_QUERIES; q++) {
    r->state_max[q] = NOTHING;
    r->state_sum[q] = 0;
    r->max[q] = 0; /* lanes beyond the queries stay harmless */
    r->sum[q] = 0;
  }
}

static void write_result(const task *t, const room *r, int64_t q, int64_t m, int64_t head) {
  float *dst = t->dst + m * t->ld_dst + head * t->head_dim;
  const float *state = r->state + q * t->padded;
  const vf inverse = v_set(1.0f / r->state_sum[q]);
  for (int64_t d = 0; d < t->head_dim; d += 16) {
    v_store_upto(dst + d, v_mul(v_load(state + d), inverse), t->head_dim - d);
  }
}

/*
 * Rows from m0 that may share a tile: one sequence, consecutive positions, at most `most`; kivi: the same keys are coded for
 * all of them.
 */
static int64_t tile_rows(const task *t, int64_t m0, int64_t most) {
  const int64_t residual = t->cache.residual;
  if (residual) most = nb_min(most, residual - t->positions[m0] % residual);
  int64_t n = 1;
  while (n < most && m0 + n < t->rows && t->slots[m0 + n] == t->slots[m0] &&
         t->positions[m0 + n] == t->positions[m0] + n)
    n++;
  return n;
}

/* Chunks that row m sees: the first, and how many. */
static int64_t chunks_of(const task *t, int64_t m, int64_t *first) {
  *first = lowest_of(t, m) / CHUNK;
  return t->positions[m] / CHUNK - *first + 1;
}

/* All chunks of a tile in one thread. */
static int attend_tile(const task *t, room *r, head_block b, int64_t m0, int64_t rows) {
  load_queries(t, r, b, m0, rows);
  clear_state(t, r, rows * b.count);
  const int64_t last = t->positions[m0 + rows - 1] / CHUNK;
  for (int64_t chunk = lowest_of(t, m0) / CHUNK; chunk <= last; chunk++) {
    if (!attend_chunk(t, r, b, m0, rows, chunk, NULL)) return 0;
  }
  for (int64_t q = 0; q < rows * b.count; q++) {
    write_result(t, r, q, m0 + q / b.count, b.first + q % b.count);
  }
  return 1;
}

/* Few rows: every (row, block of heads, chunk) is a piece of work; parts meet in `parts`, one a query head and chunk. */
static void attend_split(const task *t, room *r, float *parts) {
  nb_ctx *c = t->c;
  const int64_t blocks = t->kv_heads * blocks_per_group(t), words = 2 + t->head_dim;
  int64_t unit = 0, mine = nb_next(c), start = 0;
  for (int64_t m = 0; m < t->rows; m++) {
    int64_t first;
    const int64_t chunks = chunks_of(t, m, &first);
    for (int64_t i = 0; i < blocks; i++) {
      const head_block b = block_of(t, i);
      int loaded = 0;
      for (int64_t j = 0; j < chunks; j++, unit++) {
        if (unit != mine) continue;
        mine = nb_next(c);
        if (!loaded) load_queries(t, r, b, m, 1);
        loaded = 1;
        float *out = parts + (start + b.first * chunks + j * b.count) * words;
        if (!attend_chunk(t, r, b, m, 1, first + j, out)) nb_fail(c, t->ins);
      }
    }
    start += chunks * t->heads;
  }
  nb_barrier(c);
  if (nb_stopped(c)) return;
  int64_t from, to;
  nb_share(c, t->rows * t->heads, &from, &to);
  start = 0;
  for (int64_t m = 0; m < t->rows; m++) {
    int64_t first;
    const int64_t chunks = chunks_of(t, m, &first);
    for (int64_t i = 0; i < blocks; i++) {
      const head_block b = block_of(t, i);
      for (int64_t h = 0; h < b.count; h++) {
        const int64_t head = b.first + h;
        if (m * t->heads + head < from || m * t->heads + head >= to) continue;
        const float *part = parts + (start + b.first * chunks + h) * words;
        clear_state(t, r, 1);
        for (int64_t j = 0; j < chunks; j++, part += b.count * words) {
          r->max[0] = part[0];
          r->sum[0] = part[1];
          merge_factors(r, 1);
          for (int64_t d = 0; d < t->head_dim; d += 16) {
            take_sums(t, r, 0, d, v_load_upto(part + 2 + d, t->head_dim - d), NULL, 0);
          }
        }
        write_result(t, r, 0, m, head);
      }
    }
    start += chunks * t->heads;
  }
}

NB_OP(attention) {
  task t;
  t.c = c;
  t.ins = ins;
  t.heads = ins[ATTENTION_HEADS];
  t.kv_heads = ins[ATTENTION_KV_HEADS];
  t.head_dim = ins[ATTENTION_HEAD_DIM];
  t.padded = nb_round_up(t.head_dim, 32);
  t.cache = nb_read_cache(c, ins[ATTENTION_CACHE_C], t.head_dim);
  t.positions = nb_at(c, ins[ATTENTION_POSITIONS_AT]);
  t.slots = nb_at(c, ins[ATTENTION_SEQUENCES_AT]);
  t.query = nb_at(c, ins[ATTENTION_QUERY_AT]);
  t.query_scale = nb_at(c, ins[ATTENTION_QUERY_SCALE_AT]);
  t.query_sum = nb_at(c, ins[ATTENTION_QUERY_SUM_AT]);
  t.dst = nb_at(c, ins[ATTENTION_DST_AT]);
  t.ld_dst = ins[ATTENTION_LD_DST];
  t.softmax_scale = nb_float(ins[ATTENTION_SOFTMAX_SCALE_F]);
  t.window = ins[ATTENTION_SLIDING_WINDOW];
  t.rows = nb_rows(c, ins);
  t.max_queries = t.head_dim > 256 ? 24 : MAX_QUERIES;
  t.ld_query = nb_round_up(t.head_dim, 32) * (t.cache.query_bits == 8 ? 1 : 4);

  room r;
  uint8_t *at = c->scratch;
  r.scores = (float *)at;
  at += MAX_QUERIES * CHUNK * 4;
  r.decoded = (float *)at;
  at += CHUNK * t.padded * 4;
  r.query = at;
  at += t.max_queries * t.ld_query;
  r.state = (float *)at;
  r.sums = r.state + t.max_queries * t.padded;

  int64_t chunks = 0;
  for (int64_t m = 0; m < t.rows; m++) {
    int64_t first;
    if (!nb_row_is_valid(&t.cache, t.positions[m], t.slots[m])) {
      nb_fail(c, ins); /* every thread sees the same rows */
      return;
    }
    chunks += chunks_of(&t, m, &first);
  }
  const int64_t blocks = t.kv_heads * blocks_per_group(&t);
  float *parts = nb_at(c, ins[ATTENTION_PARTS_AT]);
  const int64_t room_for = parts ? (int64_t)ins[ATTENTION_PARTS_LINES] * LINE / 4 : 0;
  if (c->threads > 1 && t.rows * blocks < 8 * c->threads && chunks * t.heads * (2 + t.head_dim) <= room_for) {
    attend_split(&t, &r, parts);
    return;
  }
  const int64_t group = (t.heads + t.kv_heads - 1) / t.kv_heads;
  const int64_t most = nb_max(1, t.max_queries / nb_min(group, t.max_queries));
  int64_t unit = 0, mine = nb_next(c);
  for (int64_t m = 0; m < t.rows;) {
    const int64_t rows = tile_rows(&t, m, most);
    for (int64_t i = 0; i < blocks; i++, unit++) {
      if (unit != mine) continue;
      mine = nb_next(c);
      const head_block b = block_of(&t, i);
      if (b.count && !attend_tile(&t, &r, b, m, rows)) {
        nb_fail(c, ins);
        return;
      }
    }
    m += rows;
  }
}
