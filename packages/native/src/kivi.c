/*
 * Kernels of the KIVI codecs: only bare codes in the inner loops. Scales are folded into the query (keys, once a page) or
 * into the softmax weight (values, once a token and group), minima into one sum each.
 */
#include "float_dots.h"
#include "kivi.h"

#define CHUNK ATTENTION_CHUNK
#define MAX_HEAD 512

/* Scale and minimum of a group; the codes of its 32 values. */
static void code_group(vf a, vf b, int bits, uint16_t *scale_bits, uint16_t *minimum_bits, uint8_t *codes) {
  const float levels = (float)((1 << bits) - 1);
  /* + 0: a minimum of -0 and of +0 are the same bits. */
  const float low = -v_fold_max(v_max(v_sub(v_set(-0.0f), a), v_sub(v_set(-0.0f), b))) + 0.0f;
  const float high = v_fold_max(v_max(a, b)) + 0.0f;
  const float step = (high - low) / levels;
  *scale_bits = float_to_half(step < 65504.0f ? step : 65504.0f);
  *minimum_bits = float_to_half(low < -65504.0f ? -65504.0f : low > 65504.0f ? 65504.0f : low);
  const float scale = half_to_float(*scale_bits), minimum = half_to_float(*minimum_bits);
  if (scale == 0) {
    memset(codes, 0, 32);
    return;
  }
  const vf parts[2] = {a, b};
  for (int i = 0; i < 2; i++) {
    const vf y = v_div(v_sub(parts[i], v_set(minimum)), v_set(scale));
    vi_store_i8((int8_t *)codes + 16 * i, v_round(v_max(v_min(y, v_set(levels)), v_zero())));
  }
}

static int64_t value_block(int64_t head_dim) { return head_dim % 64 ? 32 : 64; }

void ISA_NAME(kivi_store_value)(const nb_plane *p, uint8_t *plane, int64_t slot, const float *x, int64_t head_dim) {
  const int bits = nb_kivi_bits(p->codec), parts = 8 / bits;
  uint8_t codes[MAX_HEAD];
  uint16_t *parameters = (uint16_t *)(plane + p->parameters) + slot;
  for (int64_t d = 0; d < head_dim; d += KIVI_GROUP, parameters += PAGE_TOKENS) {
    code_group(v_load(x + d), v_load(x + d + 16), bits, parameters, parameters + head_dim, codes + d);
  }
  const int64_t block = value_block(head_dim), width = block / parts;
  uint8_t *to = plane + slot * head_dim * bits / 8;
  for (int64_t d = 0; d < head_dim; d += block) {
    for (int64_t i = 0; i < width; i++) {
      int byte = 0;
      for (int j = 0; j < parts; j++) byte |= codes[d + i + j * width] << (bits * j);
      *to++ = (uint8_t)byte;
    }
  }
}

void ISA_NAME(kivi_store_keys)(const nb_plane *p, uint8_t *plane, const float *keys, int64_t head_dim) {
  const int bits = nb_kivi_bits(p->codec), parts = 8 / bits;
  uint16_t *parameters = (uint16_t *)(plane + p->parameters);
  uint8_t codes[32], *to = plane;
  for (int64_t d = 0; d < head_dim; d++) {
    code_group(v_load(keys + d * 16), v_load(keys + (head_dim + d) * 16), bits, parameters + d, parameters + head_dim + d,
               codes);
    for (int t = 0; t < PAGE_TOKENS; t += parts) {
      int byte = 0;
      for (int j = 0; j < parts; j++) byte |= codes[t + j] << (bits * j);
      *to++ = (uint8_t)byte;
    }
  }
}

/*
 * Codes of a channel's 32 tokens as floats: lane l of v[h] is token 16 h + lane_token(l), which `in_order` puts right.
 * With variable shifts and a table of floats that is three instructions for 16 codes.
 */
INLINE void key_codes(int bits, const uint8_t *at, vf v[2]) {
#if PART == 16
  const __m512 table = bits == 4 ? _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                                 : _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  UNROLL for (int h = 0; h < 2; h++) {
    __m512i words, shifts;
    if (bits == 4) {
      int64_t w;
      memcpy(&w, at + 8 * h, 8);
      words = _mm512_set1_epi64(w);
      shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    } else {
      int32_t w;
      memcpy(&w, at + 4 * h, 4);
      words = _mm512_set1_epi32(w);
      shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    }
    v[h].p[0] = (pf)_mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
  }
#elif PART == 8
  UNROLL for (int i = 0; i < 4; i++) { /* eight tokens each */
    int32_t w;
    memcpy(&w, at + (bits == 4 ? 4 * i : 4 * (i >> 1)), 4);
    const __m256i shifts = bits == 4 ? _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)
                           : i & 1   ? _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30)
                                     : _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i codes = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(w), shifts),
                                           _mm256_set1_epi32(bits == 4 ? 15 : 3));
    v[i >> 1].p[i & 1] = (pf)_mm256_cvtepi32_ps(codes);
  }
#else
  const int parts = 8 / bits;
  float t[32];
  for (int i = 0; i < 32; i++) t[i] = (float)(at[i / parts] >> (bits * (i % parts)) & ((1 << bits) - 1));
  v[0] = v_load(t);
  v[1] = v_load(t + 16);
#endif
}
INLINE vf in_order(int bits, vf x) {
#if PART == 16
  if (bits == 4) {
    const __m512i lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    x.p[0] = (pf)_mm512_permutexvar_ps(lanes, (__m512)x.p[0]);
  }
#endif
  (void)bits;
  return x;
}

/* Sums over channels, in order, of folded query times code. */
#define DECLARE(m) vf a##m = v_zero(), c##m = v_zero();
#define STEP(m)                                  \
  {                                              \
    const vf s = v_set(folded[(m) * head_dim + d]); \
    a##m = v_add(a##m, v_mul(s, w[0]));          \
    c##m = v_add(c##m, v_mul(s, w[1]));          \
  }
#define KEEP(m)                                  \
  v_store(out + (m) * 32, in_order(TILE_BITS, a##m)); \
  v_store(out + (m) * 32 + 16, in_order(TILE_BITS, c##m));
#define SCORE_TILE(bits, M)                                                                                       \
  static __attribute__((noinline)) void score_##bits##_##M(const uint8_t *keys, int64_t head_dim,               \
                                                           const float *folded, float *out) {                   \
    enum { TILE_BITS = bits };                                                                                  \
    REPEAT(M, DECLARE)                                                                                          \
    for (int64_t d = 0; d < head_dim; d++, keys += 4 * bits) {                                                  \
      vf w[2];                                                                                                  \
      key_codes(bits, keys, w);                                                                                 \
      REPEAT(M, STEP)                                                                                           \
    }                                                                                                           \
    REPEAT(M, KEEP)                                                                                             \
  }
#if PART == 16
#define DIRECT 4
#elif PART == 8
#define DIRECT 2
#else
#define DIRECT 0
#endif
#if DIRECT > 0
SCORE_TILE(4, 1) SCORE_TILE(4, 2) SCORE_TILE(2, 1) SCORE_TILE(2, 2)
#endif
#if DIRECT > 2
SCORE_TILE(4, 3) SCORE_TILE(4, 4) SCORE_TILE(2, 3) SCORE_TILE(2, 4)
#endif

static void score_tiles(int bits, int M, const uint8_t *keys, int64_t head_dim, const float *folded, float *room,
                        float *out) {
#if DIRECT > 0
#define RUN(m) (bits == 4 ? score_4_##m : score_2_##m)(keys, head_dim, folded, out)
  if (M <= (PART == 16 ? 4 : 3)) {
    for (; M > 0; M -= DIRECT, folded += DIRECT * head_dim, out += DIRECT * 32) {
      switch (M) {
        case 1: RUN(1); break;
#if DIRECT == 2
        default: RUN(2);
#else
        case 2: RUN(2); break;
        case 3: RUN(3); break;
        default: RUN(4);
#endif
      }
    }
    return;
  }
#endif
  for (int64_t d = 0; d < head_dim; d++, keys += 4 * bits) {
    vf w[2];
    key_codes(bits, keys, w);
    v_store(room + d * 16, in_order(bits, w[0]));
    v_store(room + (head_dim + d) * 16, in_order(bits, w[1]));
  }
  memset(out, 0, (size_t)M * 128);
  ISA_NAME(exact_tile)(M, folded, head_dim, 1, room, room + head_dim * 16, 16, head_dim, out);
}

void ISA_NAME(kivi_scores)(const nb_plane *p, const uint8_t *plane, int64_t head_dim, int M, const float *queries,
                           int64_t ld, float *room, float *out) {
  const uint16_t *scale = (const uint16_t *)(plane + p->parameters), *minimum = scale + head_dim;
  float folded[12 * MAX_HEAD], constant[12];
  for (int m = 0; m < M; m++) {
    vf sum = v_zero();
    for (int64_t d = 0; d < head_dim; d += 16) {
      const vf q = v_load(queries + m * ld + d);
      v_store(folded + m * head_dim + d, v_mul(q, v_load_half(scale + d)));
      sum = v_add(sum, v_mul(q, v_load_half(minimum + d)));
    }
    constant[m] = v_fold(sum);
  }
  score_tiles(nb_kivi_bits(p->codec), M, plane, head_dim, folded, room, out);
  for (int m = 0; m < M; m++) {
    for (int h = 0; h < 2; h++) {
      float *o = out + m * 32 + 16 * h;
      v_store(o, v_add(v_load(o), v_set(constant[m])));
    }
  }
}

static const float lane_index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/*
 * Softmax weights e [128] of one query -> weights of the codes of channel group g, w [128], 0 from slot `coded` on and
 * where e is 0; returns the sum of weighted minima. Slots first..coded - 1 have been written, others may hold anything.
 */
static float weigh_codes(const nb_kivi_values *v, int64_t g, const float *e, int first, int coded, int last, float *w) {
  const vf lanes = v_load(lane_index), low = v_set((float)first), high = v_set((float)(coded - 1));
  vf sum = v_zero();
  for (int t = first / 16 * 16; t <= last; t += 16) {
    if (t >= coded) {
      v_store(w + t, v_zero());
      continue;
    }
    const uint16_t *scale = (const uint16_t *)(v->pages[t / PAGE_TOKENS] + v->plane->parameters) + g * PAGE_TOKENS +
                            t % PAGE_TOKENS;
    const vf weight = v_load(e + t), at = v_add(lanes, v_set((float)t));
    v_store(w + t, v_between(v_mul(weight, v_load_half(scale)), v_zero(), at, low, high));
    sum = v_add(sum, v_between(v_mul(weight, v_load_half(scale + v->head_dim)), v_zero(), at, low, high));
  }
  return v_fold(sum);
}

/* The codes of 64 channels of a token as floats, in order. */
INLINE void value_codes(int bits, const uint8_t *row, vf v[4]) {
#if PART == 16
  const __m512 table = bits == 4 ? _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                                 : _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
#define CODE(x) ((pf)_mm512_permutexvar_ps((__m512i)(x).p[0], table))
#define TAKE(i, x) v[i].p[0] = CODE(x)
#else
#define TAKE(i, x) v[i] = vi_to_float(vi_and(x, vi_set(bits == 4 ? 15 : 3)))
#endif
  const vi a = vi_load_u8(row);
  if (bits == 4) {
    const vi b = vi_load_u8(row + 16);
    TAKE(0, a);
    TAKE(1, b);
    TAKE(2, vi_shift_right(a, 4));
    TAKE(3, vi_shift_right(b, 4));
  } else {
    TAKE(0, a);
    TAKE(1, vi_shift_right(a, 2));
    TAKE(2, vi_shift_right(a, 4));
    TAKE(3, vi_shift_right(a, 6));
  }
}

/* Few queries with the same `coded`, 64 channels: sums stay in registers over codes and exact rows. */
#define DECLARE_FEW(q) vf a##q = v_zero(), b##q = v_zero(), c##q = v_zero(), d##q = v_zero();
#define ADD_FEW(q)                                                \
  {                                                               \
    const vf s = v_set(w[(q) * CHUNK + t]), u = v_set(w2[(q) * CHUNK + t]); \
    a##q = v_add(a##q, v_mul(s, x[0]));                           \
    b##q = v_add(b##q, v_mul(s, x[1]));                           \
    c##q = v_add(c##q, v_mul(u, x[2]));                           \
    d##q = v_add(d##q, v_mul(u, x[3]));                           \
  }
#define ADD_EXACT(q)                          \
  {                                           \
    const vf s = v_set(e[(q) * CHUNK + t]);   \
    a##q = v_add(a##q, v_mul(s, x[0]));       \
    b##q = v_add(b##q, v_mul(s, x[1]));       \
    c##q = v_add(c##q, v_mul(s, x[2]));       \
    d##q = v_add(d##q, v_mul(s, x[3]));       \
  }
#define STORE_FEW(q)                        \
  v_store(out + (q) * head_dim, a##q);      \
  v_store(out + (q) * head_dim + 16, b##q); \
  v_store(out + (q) * head_dim + 32, c##q); \
  v_store(out + (q) * head_dim + 48, d##q);
#define FEW(bits, Q)                                                                                                  \
  static __attribute__((noinline)) void few_##bits##_##Q(const nb_kivi_values *v, int64_t dim, const float *w,        \
                                                         const float *w2, const float *e, int first, int coded,       \
                                                         int last, float *out) {                                      \
    const int64_t head_dim = v->head_dim;                                                                             \
    REPEAT(Q, DECLARE_FEW)                                                                                            \
    int t = first;                                                                                                    \
    while (t < coded) {                                                                                               \
      const int stop = (int)nb_min(coded, t / PAGE_TOKENS * PAGE_TOKENS + PAGE_TOKENS);                               \
      const uint8_t *row = v->pages[t / PAGE_TOKENS] + (t % PAGE_TOKENS * head_dim + dim) * bits / 8;                 \
      for (; t < stop; t++, row += head_dim * bits / 8) {                                                             \
        vf x[4];                                                                                                      \
        value_codes(bits, row, x);                                                                                    \
        REPEAT(Q, ADD_FEW)                                                                                            \
      }                                                                                                               \
    }                                                                                                                 \
    for (; t <= last; t++) {                                                                                          \
      vf x[4];                                                                                                        \
      UNROLL for (int i = 0; i < 4; i++) x[i] = v_load(v->exact + t * head_dim + dim + 16 * i);                       \
      REPEAT(Q, ADD_EXACT)                                                                                            \
    }                                                                                                                 \
    REPEAT(Q, STORE_FEW)                                                                                              \
  }
FEW(4, 1) FEW(4, 2) FEW(4, 3) FEW(4, 4) FEW(2, 1) FEW(2, 2) FEW(2, 3) FEW(2, 4)
static void (*const few[2][4])(const nb_kivi_values *, int64_t, const float *, const float *, const float *, int, int, int,
                               float *) = {{few_2_1, few_2_2, few_2_3, few_2_4}, {few_4_1, few_4_2, few_4_3, few_4_4}};

static void accumulate_few(const nb_kivi_values *v, int64_t queries, const float *e, int coded, int first, int last,
                           float *out) {
  float w[2][4 * CHUNK], minimum[2][4];
  const int wide = nb_kivi_bits(v->plane->codec) == 4;
  for (int64_t d = 0; d < v->head_dim; d += 64) {
    for (int64_t q = 0; q < queries; q++) {
      for (int h = 0; h < 2; h++) {
        minimum[h][q] = weigh_codes(v, d / KIVI_GROUP + h, e + q * CHUNK, first, coded, last, w[h] + q * CHUNK);
      }
    }
    few[wide][queries - 1](v, d, w[0], w[1], e, first, coded, last, out + d);
    for (int64_t q = 0; q < queries; q++) {
      for (int i = 0; i < 4; i++) {
        float *o = out + q * v->head_dim + d + 16 * i;
        v_store(o, v_add(v_load(o), v_set(minimum[i / 2][q])));
      }
    }
  }
}

/* Codes of slots first..end - 1 as floats [slot][head_dim]. */
static void decode_codes(const nb_kivi_values *v, int first, int end, float *out) {
  const int bits = nb_kivi_bits(v->plane->codec), parts = 8 / bits;
  const int64_t head_dim = v->head_dim, bytes = head_dim * bits / 8;
  for (int t = first; t < end; t++) {
    const uint8_t *row = v->pages[t / PAGE_TOKENS] + t % PAGE_TOKENS * bytes;
    float *to = out + t * head_dim;
    for (int64_t d = 0; d < head_dim && head_dim % 64 == 0; d += 64, row += 8 * bits) {
      vf x[4];
      value_codes(bits, row, x);
      UNROLL for (int i = 0; i < 4; i++) v_store(to + d + 16 * i, x[i]);
    }
    for (int64_t d = 0; d < head_dim && head_dim % 64 != 0; d += 32, row += 4 * bits) {
      for (int i = 0; i < 32; i++) {
        const int width = 32 / parts;
        to[d + i] = (float)(row[i % width] >> (bits * (i / width)) & ((1 << bits) - 1));
      }
    }
  }
}

void ISA_NAME(kivi_accumulate)(const nb_kivi_values *v, int64_t queries, const float *e, const int *coded, int first,
                               int last, float *room, float *out) {
  int least = CHUNK, most = 0;
  for (int64_t q = 0; q < queries; q++) {
    if (coded[q] < least) least = coded[q];
    if (coded[q] > most) most = coded[q];
  }
  if (queries <= 4 && least == most && v->head_dim % 64 == 0) {
    accumulate_few(v, queries, e, most, first, last, out);
    return;
  }
  if (least < first) least = first;
  if (most > last + 1) most = last + 1;
  decode_codes(v, first, most, room);
  for (int64_t q0 = 0; q0 < queries; q0 += 12) {
    const int64_t count = nb_min(12, queries - q0);
    for (int64_t d = 0; d < v->head_dim; d += KIVI_GROUP) {
      float w[12 * CHUNK], acc[12 * 32], minimum[12];
      memset(acc, 0, (size_t)count * 128);
      for (int64_t m = 0; m < count; m++) {
        minimum[m] = weigh_codes(v, d / KIVI_GROUP, e + (q0 + m) * CHUNK, first, coded[q0 + m], last, w + m * CHUNK);
      }
      if (most > first) {
        ISA_NAME(exact_tile)((int)count, w + first, CHUNK, 1, room + first * v->head_dim + d,
                             room + first * v->head_dim + d + 16, v->head_dim, most - first, acc);
      }
      if (last >= least) {
        for (int64_t m = 0; m < count; m++) { /* adding 0 * a row that has been written changes nothing */
          for (int t = least; t <= last; t++) w[m * CHUNK + t] = t < coded[q0 + m] ? 0 : e[(q0 + m) * CHUNK + t];
        }
        ISA_NAME(exact_tile)((int)count, w + least, CHUNK, 1, v->exact + least * v->head_dim + d,
                             v->exact + least * v->head_dim + d + 16, v->head_dim, last + 1 - least, acc);
      }
      for (int64_t m = 0; m < count; m++) {
        for (int h = 0; h < 2; h++) {
          v_store(out + (q0 + m) * v->head_dim + d + 16 * h, v_add(v_load(acc + m * 32 + 16 * h), v_set(minimum[m])));
        }
      }
    }
  }
}
