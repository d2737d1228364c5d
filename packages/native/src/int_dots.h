/*
 * Integer dot products of M rows of s8 with 32 channels of unsigned codes: acc[m][h] += sum over quads of
 * code bytes * x bytes. Sums are exact (they wrap), so every instruction set gives the same.
 */
#ifndef NIBBLE_INT_DOTS_H
#define NIBBLE_INT_DOTS_H

#include "weights.h"

INLINE int32_t nb_four(const int8_t *x) {
  int32_t v;
  memcpy(&v, x, 4);
  return v;
}

#if defined(__AVX512VNNI__)
#define INT_TILE 12        /* rows of the largest tile */
#define INT_TILE_PACKED 12 /* rows of the largest tile that reads packed codes */
/* One instruction in assembly: gcc 12 spills accumulators written with the intrinsic. */
INLINE void nb_dot(vi *acc, vi u, vi s) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc->p[0]) : "v"(u.p[0]), "v"(s.p[0]));
}
#elif defined(__AVX2__)
#define INT_TILE 2
#define INT_TILE_PACKED 2
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define INT_TILE 2
#define INT_TILE_PACKED 2
#else
#define INT_TILE 2
#define INT_TILE_PACKED 2
#endif

/* acc[0..1] += codes (two halves) dot one quad of x. `wide`: codes may exceed 127. */
INLINE void nb_dot_pair(int wide, vi *acc, vi w0, vi w1, int32_t quad) {
  (void)wide;
#if defined(__AVX512VNNI__)
  const vi s = vi_set(quad);
  nb_dot(acc, w0, s);
  nb_dot(acc + 1, w1, s);
#elif defined(__AVX2__)
  const __m256i s = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
  UNROLL for (int h = 0; h < 2; h++) {
    PER_PART {
      const __m256i u = (__m256i)(h ? w1 : w0).p[i_];
      __m256i sum;
      if (wide) { /* 255 * 127 * 2 exceeds 16 bits: two nibble planes */
        const __m256i low = _mm256_and_si256(u, _mm256_set1_epi8(15));
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(u, 4), _mm256_set1_epi8(15));
        sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(low, s), ones),
                               _mm256_madd_epi16(_mm256_maddubs_epi16(high, s), _mm256_set1_epi16(16)));
      } else {
        sum = _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), ones);
      }
      acc[h].p[i_] = (pi)_mm256_add_epi32((__m256i)acc[h].p[i_], sum);
    }
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  const int8x16_t s = vreinterpretq_s8_s32(vdupq_n_s32(quad));
  UNROLL for (int h = 0; h < 2; h++) {
    PER_PART {
      const uint8x16_t u = (uint8x16_t)(h ? w1 : w0).p[i_];
      int32x4_t sum = (int32x4_t)acc[h].p[i_];
      if (wide) {
        const int32x4_t high = vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(vshrq_n_u8(u, 7)), s);
        sum = vaddq_s32(vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(u, vdupq_n_u8(127))), s), vshlq_n_s32(high, 7));
      } else {
        sum = vdotq_s32(sum, vreinterpretq_s8_u8(u), s);
      }
      acc[h].p[i_] = (pi)sum;
    }
  }
#else
  UNROLL for (int r = 0; r < 4; r++) {
    const vi s = vi_set((int8_t)((uint32_t)quad >> (8 * r)));
    acc[0] = vi_add(acc[0], vi_mul(vi_and(vi_shift_right(w0, 8 * r), vi_set(255)), s));
    acc[1] = vi_add(acc[1], vi_mul(vi_and(vi_shift_right(w1, 8 * r), vi_set(255)), s));
  }
#endif
}

/*
 * Quads q0..q1 (a multiple of 8 quads) of a panel of `bits`-bit codes; x points at column 0 of the first row.
 * `far` > 0 prefetches that many bytes of codes ahead (a stream from memory).
 */
INLINE void nb_panel_dots(int bits, int M, const int8_t *x, int64_t ld, const nb_panel *panel, int64_t q0, int64_t q1,
                          vi acc[][2], int far) {
  /* Four pointers and the stride reach twelve rows; opaque, or gcc makes twelve induction variables. */
  const int8_t *b0 = x + 4 * q0, *b1 = b0 + 3 * ld, *b2 = b1 + 3 * ld, *b3 = b2 + 3 * ld;
  __asm__("" : "+r"(b0), "+r"(b1), "+r"(b2), "+r"(b3));
  for (int64_t q = q0; q < q1; q += 8) {
    if (far) {
      UNROLL for (int i = 0; i < 8; i += 2) {
        if (bits & 8) {
          __builtin_prefetch(panel->s8 + (q + i) * 128 + far);
          __builtin_prefetch(panel->s8 + (q + i) * 128 + far + 64);
          __builtin_prefetch(panel->s8 + (q + i) * 128 + far + 128);
          __builtin_prefetch(panel->s8 + (q + i) * 128 + far + 192);
        }
        if (bits & 4) {
          __builtin_prefetch(panel->s4 + (q + i) * 64 + far);
          __builtin_prefetch(panel->s4 + (q + i) * 64 + far + 64);
        }
        if ((bits & 2) && (i & 3) == 0) {
          __builtin_prefetch(panel->s2 + (q + i) * 32 + far);
          __builtin_prefetch(panel->s2 + (q + i) * 32 + far + 64);
        }
        if ((bits & 1) && i == 0) {
          __builtin_prefetch(panel->s1 + q * 16 + far);
          __builtin_prefetch(panel->s1 + q * 16 + far + 64);
        }
      }
    }
    UNROLL for (int i = 0; i < 8; i++) {
      const vi w0 = nb_code_quad(bits, panel, q + i, 0), w1 = nb_code_quad(bits, panel, q + i, 1);
      UNROLL for (int m = 0; m < M; m++) {
        const int8_t *b = m < 3 ? b0 : m < 6 ? b1 : m < 9 ? b2 : b3;
        nb_dot_pair(bits == 8, acc[m], w0, w1, nb_four(b + (m % 3) * ld + 4 * i));
      }
    }
    b0 += 32;
    b1 += 32;
    b2 += 32;
    b3 += 32;
  }
}

#endif
