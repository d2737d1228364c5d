/*
 * Integer dot products of rows of s8 with 32 channels (or positions) of unsigned codes: acc[m][h] += sum over quads of
 * code bytes * x bytes. Sums are exact (they wrap), so every instruction set gives the same.
 */
#ifndef NIBBLE_INT_DOTS_H
#define NIBBLE_INT_DOTS_H

#include "repeat.h"
#include "weights.h"
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

/* Rows of the largest tile: 24 accumulators of 32 registers, or what 16 registers carry. */
#if defined(__AVX512VNNI__)
#define INT_TILE 12
#else
#define INT_TILE 2
#endif

INLINE int32_t nb_four(const int8_t *x) {
  int32_t v;
  memcpy(&v, x, 4);
  return v;
}

/* acc += codes dot one quad of x. `wide`: codes may exceed 127. */
INLINE vi nb_dot(int wide, vi acc, vi u, int32_t quad) {
  (void)wide;
#if defined(__AVX512VNNI__)
  /* One instruction in assembly: gcc 12 spills accumulators written with the intrinsic. */
  const vi s = vi_set(quad);
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.p[0]) : "v"(u.p[0]), "v"(s.p[0]));
#elif defined(__AVXVNNI__)
  const __m256i s = _mm256_set1_epi32(quad);
  PER_PART __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.p[i_]) : "x"(u.p[i_]), "x"(s));
#elif defined(__AVX2__)
  const __m256i s = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1);
  PER_PART {
    const __m256i c = (__m256i)u.p[i_];
    __m256i sum;
    if (wide) { /* 255 * 127 * 2 exceeds 16 bits: two nibble planes */
      const __m256i low = _mm256_and_si256(c, _mm256_set1_epi8(15));
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(c, 4), _mm256_set1_epi8(15));
      sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(low, s), ones),
                             _mm256_madd_epi16(_mm256_maddubs_epi16(high, s), _mm256_set1_epi16(16)));
    } else {
      sum = _mm256_madd_epi16(_mm256_maddubs_epi16(c, s), ones);
    }
    acc.p[i_] = (pi)_mm256_add_epi32((__m256i)acc.p[i_], sum);
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  const int8x16_t s = vreinterpretq_s8_s32(vdupq_n_s32(quad));
  PER_PART {
    const uint8x16_t c = (uint8x16_t)u.p[i_];
    int32x4_t sum = (int32x4_t)acc.p[i_];
    if (wide) { /* the top bit apart: the instruction is signed */
      const int32x4_t high = vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(vshrq_n_u8(c, 7)), s);
      sum = vaddq_s32(vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(127))), s), vshlq_n_s32(high, 7));
    } else {
      sum = vdotq_s32(sum, vreinterpretq_s8_u8(c), s);
    }
    acc.p[i_] = (pi)sum;
  }
#else
  UNROLL for (int r = 0; r < 4; r++) {
    const vi s = vi_set((int8_t)((uint32_t)quad >> (8 * r)));
    acc = vi_add(acc, vi_mul(vi_and(vi_shift_right(u, 8 * r), vi_set(255)), s));
  }
#endif
  return acc;
}

/* Four pointers and the stride reach twelve rows; opaque, or gcc makes twelve induction variables. */
#define NB_ROW_POINTERS(x, ld)                                      \
  const int8_t *b0 = (x), *b1 = b0 + 3 * (ld), *b2 = b1 + 3 * (ld), *b3 = b2 + 3 * (ld); \
  __asm__("" : "+r"(b0), "+r"(b1), "+r"(b2), "+r"(b3))
#define NB_ROW(m, ld) (((m) < 3 ? b0 : (m) < 6 ? b1 : (m) < 9 ? b2 : b3) + ((m) % 3) * (ld))
#define NB_ADVANCE(bytes) (b0 += (bytes), b1 += (bytes), b2 += (bytes), b3 += (bytes))

/*
 * How far ahead weights are fetched, bytes: what arrives in one memory latency (40 GB/s times 100 ns) twice over. It also
 * reaches over the end of a matrix to the next one, whose first lines would otherwise be waited for.
 */
#define NB_FAR 8192

/* Cache lines of codes `far` bytes ahead of eight quads. */
INLINE void nb_prefetch(int bits, const nb_panel *p, int64_t q, int64_t far) {
  UNROLL for (int i = 0; i < 16; i++) {
    if (bits & 8) __builtin_prefetch(p->s8 + q * 128 + far + 64 * i);
    if ((bits & 4) && i < 8) __builtin_prefetch(p->s4 + q * 64 + far + 64 * i);
    if ((bits & 2) && i < 4) __builtin_prefetch(p->s2 + q * 32 + far + 64 * i);
    if ((bits & 1) && i < 2) __builtin_prefetch(p->s1 + q * 16 + far + 64 * i);
  }
}

#endif
