/*
 * Sixteen lanes, whatever the machine has. A `vf` is 1 x 16, 2 x 8 or 4 x 4 floats, so one source compiles to
 * AVX-512, AVX2 and the plain vector unit (SSE2, NEON) with the same order of operations: lane i % 16 of
 * docs/engine.md is a lane here. No function contracts a product and a sum except `v_fma`.
 */
#ifndef NIBBLE_SIMD_H
#define NIBBLE_SIMD_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
#define PART 16
#elif defined(__AVX2__)
#define PART 8
#else
#define PART 4
#endif
#define PARTS (16 / PART)

typedef float pf __attribute__((vector_size(PART * 4)));
typedef int32_t pi __attribute__((vector_size(PART * 4)));
typedef float pfu __attribute__((vector_size(PART * 4), aligned(4), may_alias));
typedef int32_t piu __attribute__((vector_size(PART * 4), aligned(4), may_alias));
typedef struct { pf p[PARTS]; } vf;
typedef struct { pi p[PARTS]; } vi;

#define PER_PART UNROLL for (int i_ = 0; i_ < PARTS; i_++)

INLINE vf v_load(const float *x) {
  vf r;
  PER_PART r.p[i_] = *(const pfu *)(x + PART * i_);
  return r;
}
INLINE void v_store(float *x, vf v) {
  PER_PART *(pfu *)(x + PART * i_) = v.p[i_];
}
INLINE vi vi_load(const int32_t *x) {
  vi r;
  PER_PART r.p[i_] = *(const piu *)(x + PART * i_);
  return r;
}
INLINE void vi_store(int32_t *x, vi v) {
  PER_PART *(piu *)(x + PART * i_) = v.p[i_];
}
/* The first n lanes (n < 16); the others are 0 and their memory is not read. */
INLINE vf v_load_n(const float *x, int n) {
#if PART == 16
  vf r;
  r.p[0] = (pf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
  return r;
#else
  float t[16] = {0};
  for (int i = 0; i < n; i++) t[i] = x[i];
  return v_load(t);
#endif
}
INLINE void v_store_n(float *x, vf v, int n) {
#if PART == 16
  _mm512_mask_storeu_ps(x, (__mmask16)((1u << n) - 1), (__m512)v.p[0]);
#else
  float t[16];
  v_store(t, v);
  for (int i = 0; i < n; i++) x[i] = t[i];
#endif
}
INLINE vf v_load_upto(const float *x, int64_t n) { return n >= 16 ? v_load(x) : v_load_n(x, (int)n); }
INLINE void v_store_upto(float *x, vf v, int64_t n) {
  if (n >= 16) v_store(x, v);
  else v_store_n(x, v, (int)n);
}

INLINE vf v_set(float x) {
  vf r;
  PER_PART {
#if PART == 16
    r.p[i_] = (pf)_mm512_set1_ps(x);
#elif PART == 8
    r.p[i_] = (pf)_mm256_set1_ps(x);
#else
    r.p[i_] = (pf){x, x, x, x};
#endif
  }
  return r;
}
INLINE vi vi_set(int32_t x) {
  vi r;
  PER_PART {
#if PART == 16
    r.p[i_] = (pi)_mm512_set1_epi32(x);
#elif PART == 8
    r.p[i_] = (pi)_mm256_set1_epi32(x);
#else
    r.p[i_] = (pi){x, x, x, x};
#endif
  }
  return r;
}
INLINE vf v_zero(void) { return v_set(0); }

#define V_BINARY(name, type, op)         \
  INLINE type name(type a, type b) {     \
    PER_PART a.p[i_] = a.p[i_] op b.p[i_]; \
    return a;                            \
  }
V_BINARY(v_add, vf, +)
V_BINARY(v_sub, vf, -)
V_BINARY(v_mul, vf, *)
V_BINARY(v_div, vf, /)
V_BINARY(vi_add, vi, +)
V_BINARY(vi_sub, vi, -)
V_BINARY(vi_mul, vi, *)
V_BINARY(vi_and, vi, &)

/* a * b + c: one rounding where the machine has fma, two otherwise. Only for ops that allow it. */
INLINE vf v_fma(vf a, vf b, vf c) {
  PER_PART {
#if PART == 16
    c.p[i_] = (pf)_mm512_fmadd_ps((__m512)a.p[i_], (__m512)b.p[i_], (__m512)c.p[i_]);
#elif PART == 8
    c.p[i_] = (pf)_mm256_fmadd_ps((__m256)a.p[i_], (__m256)b.p[i_], (__m256)c.p[i_]);
#elif defined(__aarch64__)
    for (int l = 0; l < 4; l++) c.p[i_][l] = __builtin_fmaf(a.p[i_][l], b.p[i_][l], c.p[i_][l]);
#else
    c.p[i_] = a.p[i_] * b.p[i_] + c.p[i_];
#endif
  }
  return c;
}

/* a > b ? a : b per lane (b when either is NaN), and the same for <. */
INLINE vf v_max(vf a, vf b) {
  PER_PART {
#if PART == 16
    a.p[i_] = (pf)_mm512_max_ps((__m512)a.p[i_], (__m512)b.p[i_]);
#elif PART == 8
    a.p[i_] = (pf)_mm256_max_ps((__m256)a.p[i_], (__m256)b.p[i_]);
#else
    const pi m = a.p[i_] > b.p[i_];
    a.p[i_] = (pf)((m & (pi)a.p[i_]) | (~m & (pi)b.p[i_]));
#endif
  }
  return a;
}
INLINE vf v_min(vf a, vf b) {
  PER_PART {
#if PART == 16
    a.p[i_] = (pf)_mm512_min_ps((__m512)a.p[i_], (__m512)b.p[i_]);
#elif PART == 8
    a.p[i_] = (pf)_mm256_min_ps((__m256)a.p[i_], (__m256)b.p[i_]);
#else
    const pi m = a.p[i_] < b.p[i_];
    a.p[i_] = (pf)((m & (pi)a.p[i_]) | (~m & (pi)b.p[i_]));
#endif
  }
  return a;
}
INLINE vf v_abs(vf a) {
  PER_PART a.p[i_] = (pf)((pi)a.p[i_] & 0x7fffffff);
  return a;
}
/* 0 where test < bound, else x. */
INLINE vf v_zero_where_less(vf x, vf test, vf bound) {
  PER_PART {
#if PART == 16
    const __mmask16 keep = _mm512_cmp_ps_mask((__m512)test.p[i_], (__m512)bound.p[i_], _CMP_NLT_UQ);
    x.p[i_] = (pf)_mm512_maskz_mov_ps(keep, (__m512)x.p[i_]);
#else
    const pi less = test.p[i_] < bound.p[i_];
    x.p[i_] = (pf)(~less & (pi)x.p[i_]);
#endif
  }
  return x;
}

/* x where from <= i <= to, else `other`. */
INLINE vf v_between(vf x, vf other, vf i, vf from, vf to) {
  PER_PART {
#if PART == 16
    const __mmask16 low = _mm512_cmp_ps_mask((__m512)i.p[i_], (__m512)from.p[i_], _CMP_GE_OQ);
    const __mmask16 in = _mm512_mask_cmp_ps_mask(low, (__m512)i.p[i_], (__m512)to.p[i_], _CMP_LE_OQ);
    x.p[i_] = (pf)_mm512_mask_mov_ps((__m512)other.p[i_], in, (__m512)x.p[i_]);
#else
    const pi in = (i.p[i_] >= from.p[i_]) & (i.p[i_] <= to.p[i_]);
    x.p[i_] = (pf)((in & (pi)x.p[i_]) | (~in & (pi)other.p[i_]));
#endif
  }
  return x;
}

/* Round half to even; |x| <= 2^22. */
INLINE vf v_rne(vf x) {
  PER_PART x.p[i_] = (x.p[i_] + 12582912.0f) - 12582912.0f;
  return x;
}
INLINE vi v_to_int(vf x) {
  vi r;
  PER_PART r.p[i_] = __builtin_convertvector(x.p[i_], pi);
  return r;
}
/* rne as integers; |x| <= 2^22 (the rounding mode is never changed). */
INLINE vi v_round(vf x) {
#if PART == 16
  vi r;
  r.p[0] = (pi)_mm512_cvtps_epi32((__m512)x.p[0]);
  return r;
#elif PART == 8
  vi r;
  PER_PART r.p[i_] = (pi)_mm256_cvtps_epi32((__m256)x.p[i_]);
  return r;
#else
  return v_to_int(v_rne(x));
#endif
}
INLINE vf vi_to_float(vi x) {
  vf r;
  PER_PART r.p[i_] = __builtin_convertvector(x.p[i_], pf);
  return r;
}
INLINE vi vi_shift_right(vi x, int by) { /* logical */
  typedef uint32_t pu __attribute__((vector_size(PART * 4)));
  PER_PART x.p[i_] = (pi)((pu)x.p[i_] >> by);
  return x;
}
INLINE vi vi_shift_left(vi x, int by) {
  PER_PART x.p[i_] = x.p[i_] << by;
  return x;
}

/* Lanes folded by 8, 4, 2, 1. */
INLINE float v_fold(vf v) {
#if PART == 16
  const __m512 x = (__m512)v.p[0];
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x),
                                 _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
#elif PART == 8
  const __m256 h = (__m256)(v.p[0] + v.p[1]);
#endif
#if PART >= 8
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
#else
  pf a = v.p[0] + v.p[2], b = v.p[1] + v.p[3];
  a = a + b;
  return (a[0] + a[2]) + (a[1] + a[3]);
#endif
}
INLINE float v_fold_max(vf v) {
#if PART == 16
  return _mm512_reduce_max_ps((__m512)v.p[0]);
#endif
  float t[16];
  v_store(t, v);
  for (int s = 8; s; s >>= 1)
    for (int l = 0; l < s; l++) t[l] = t[l] > t[l + s] ? t[l] : t[l + s];
  return t[0];
}
INLINE int32_t vi_fold(vi v) {
#if PART == 16
  return _mm512_reduce_add_epi32((__m512i)v.p[0]);
#endif
  int32_t t[16], sum = 0;
  vi_store(t, v);
  for (int l = 0; l < 16; l++) sum += t[l];
  return sum;
}

/* The exp of docs/engine.md section 3, lane by lane. */
INLINE vf v_exp(vf x) {
  const vf c = v_max(v_set(-87.0f), v_min(v_set(88.0f), x));
  const vf n = v_rne(v_mul(c, v_set(1.44269504f)));
  const vf r = v_sub(v_sub(c, v_mul(n, v_set(0.693359375f))), v_mul(n, v_set(-2.12194440e-4f)));
  vf p = v_set(1.9875691500e-4f);
  p = v_add(v_mul(p, r), v_set(1.3981999507e-3f));
  p = v_add(v_mul(p, r), v_set(8.3334519073e-3f));
  p = v_add(v_mul(p, r), v_set(4.1665795894e-2f));
  p = v_add(v_mul(p, r), v_set(1.6666665459e-1f));
  p = v_add(v_mul(p, r), v_set(5.0000001201e-1f));
  const vf y = v_add(v_add(v_mul(p, v_mul(r, r)), r), v_set(1.0f));
  vi e = vi_shift_left(vi_add(v_to_int(n), vi_set(127)), 23);
  vf two;
  PER_PART two.p[i_] = (pf)e.p[i_];
  return v_zero_where_less(v_mul(y, two), x, v_set(-87.0f));
}
INLINE float exp_one(float x) {
  float t[16];
  v_store(t, v_exp(v_set(x)));
  return t[0];
}
INLINE vf v_silu(vf g) {
  const vf e = v_exp(v_sub(v_zero(), g));
  return v_div(g, v_add(v_set(1.0f), e));
}

/* f16 <-> f32, exact and to nearest even. */
INLINE float half_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
  uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
  float f;
  if (bits >= 0x0f800000) { /* infinity, NaN */
    bits = sign | bits | 0x7f800000;
    memcpy(&f, &bits, 4);
    return f;
  }
  memcpy(&f, &bits, 4);
  f *= 0x1p112f; /* exponent bias 15 -> 127; makes subnormals normal */
  memcpy(&bits, &f, 4);
  bits |= sign;
  memcpy(&f, &bits, 4);
  return f;
#endif
}
INLINE uint16_t float_to_half(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, 0);
#else
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
  const uint32_t a = u & 0x7fffffff;
  if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (a < 0x38800000) { /* subnormal: the sum rounds to a multiple of 2^-24 */
    float m;
    uint32_t b;
    memcpy(&m, &a, 4);
    m += 0.5f;
    memcpy(&b, &m, 4);
    return (uint16_t)(sign | (b - 0x3f000000));
  }
  const uint32_t r = a - 0x38000000 + 0xfff + ((a >> 13) & 1);
  return (uint16_t)(sign | (r >> 13));
#endif
}
INLINE vf v_load_half(const uint16_t *x) {
  vf r;
#if PART == 16
  r.p[0] = (pf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#elif PART == 8
  PER_PART r.p[i_] = (pf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + 8 * i_)));
#else
  float t[16];
  for (int l = 0; l < 16; l++) t[l] = half_to_float(x[l]);
  r = v_load(t);
#endif
  return r;
}
INLINE vf v_load_bf16(const uint16_t *x) {
  vf r;
#if PART == 16
  r.p[0] = (pf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
#elif PART == 8
  PER_PART r.p[i_] =
      (pf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(x + 8 * i_))), 16);
#else
  uint32_t t[16];
  for (int l = 0; l < 16; l++) t[l] = (uint32_t)x[l] << 16;
  r = v_load((const float *)(const void *)t);
#endif
  return r;
}
INLINE vi vi_load_u8(const uint8_t *x) {
  vi r;
#if PART == 16
  r.p[0] = (pi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x));
#elif PART == 8
  PER_PART r.p[i_] = (pi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(x + 8 * i_)));
#else
  int32_t t[16];
  for (int l = 0; l < 16; l++) t[l] = x[l];
  r = vi_load(t);
#endif
  return r;
}
INLINE void vi_store_i8(int8_t *x, vi v) {
#if PART == 16
  _mm_storeu_si128((__m128i *)x, _mm512_cvtepi32_epi8((__m512i)v.p[0]));
#else
  int32_t t[16];
  vi_store(t, v);
  for (int l = 0; l < 16; l++) x[l] = (int8_t)t[l];
#endif
}
/* Lanes l of the result: x[l ^ distance], distance 1, 2, 4 or 8. */
INLINE vf v_swap(vf x, int distance) {
#if PART == 16
  const __m512 v = (__m512)x.p[0];
  switch (distance) {
    case 1: x.p[0] = (pf)_mm512_permute_ps(v, 0xb1); break;
    case 2: x.p[0] = (pf)_mm512_permute_ps(v, 0x4e); break;
    case 4: x.p[0] = (pf)_mm512_shuffle_f32x4(v, v, 0xb1); break;
    default: x.p[0] = (pf)_mm512_shuffle_f32x4(v, v, 0x4e); break;
  }
  return x;
#else
  vf r = x;
  if (distance >= PART) {
    PER_PART r.p[i_] = x.p[i_ ^ (distance / PART)];
    return r;
  }
#if PART == 8
  PER_PART {
    const __m256 v = (__m256)x.p[i_];
    if (distance == 1) r.p[i_] = (pf)_mm256_permute_ps(v, 0xb1);
    else if (distance == 2) r.p[i_] = (pf)_mm256_permute_ps(v, 0x4e);
    else r.p[i_] = (pf)_mm256_permute2f128_ps(v, v, 1);
  }
#else
  PER_PART {
    const pf v = x.p[i_];
    r.p[i_] = distance == 1 ? (pf){v[1], v[0], v[3], v[2]} : (pf){v[2], v[3], v[0], v[1]};
  }
#endif
  return r;
#endif
}
/*
 * One butterfly level inside the vector: (a, b) -> (a + b, a - b) for lanes l and l + distance. The product with +-1 is
 * exact, so a fused multiply-add rounds as the sum or difference does.
 */
INLINE vf v_butterfly(vf x, int distance) {
  static const float signs[4][16] = {
      {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
      {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
      {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
      {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};
  const int row = distance == 1 ? 0 : distance == 2 ? 1 : distance == 4 ? 2 : 3;
  return v_fma(x, v_load(signs[row]), v_swap(x, distance));
}

#endif
