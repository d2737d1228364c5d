/* A weight descriptor with its places resolved, and the codes of panel 32 as vectors. */
#ifndef NIBBLE_WEIGHTS_H
#define NIBBLE_WEIGHTS_H

#include "kernels.h"
#include "simd.h"

typedef struct nb_weight {
  int kind, bits, scale_type, zero_kind, interleaved, per_row_table;
  int64_t n, k, panels, k_pad, group_size, groups;
  float zero_const;
  const uint8_t *seg8, *seg4, *seg2, *seg1;
  const uint8_t *scale, *zero, *dense, *negative_scale;
  const int32_t *code_sum;
  const float *bias, *table;
} nb_weight;

INLINE nb_weight nb_read_weight(const nb_ctx *c, int32_t index) {
  const int32_t *d = c->weights + (int64_t)index * WEIGHT_WORDS;
  nb_weight w;
  w.kind = d[W_KIND];
  w.n = d[W_N];
  w.k = d[W_K];
  w.panels = d[W_PANELS];
  w.k_pad = d[W_K_PAD];
  w.bits = d[W_BITS];
  w.seg8 = nb_at(c, d[W_SEG8_AT]);
  w.seg4 = nb_at(c, d[W_SEG4_AT]);
  w.seg2 = nb_at(c, d[W_SEG2_AT]);
  w.seg1 = nb_at(c, d[W_SEG1_AT]);
  w.groups = d[W_GROUPS];
  w.group_size = d[W_GROUP_SIZE] ? d[W_GROUP_SIZE] : w.k;
  w.scale = nb_at(c, d[W_SCALE_AT]);
  w.scale_type = d[W_SCALE_TYPE];
  w.zero_kind = d[W_ZERO_KIND];
  w.zero_const = nb_float(d[W_ZERO_CONST_F]);
  w.zero = nb_at(c, d[W_ZERO_AT]);
  w.code_sum = nb_at(c, d[W_CODE_SUM_AT]);
  w.bias = nb_at(c, d[W_BIAS_AT]);
  w.interleaved = d[W_INTERLEAVED];
  w.dense = nb_at(c, d[W_DENSE_AT]);
  w.table = nb_at(c, d[W_TABLE_AT]);
  w.per_row_table = d[W_TABLE_SCOPE];
  w.negative_scale = nb_at(c, d[W_NEGATIVE_SCALE_AT]);
  return w;
}

/* The segments of one panel. */
typedef struct nb_panel { const uint8_t *s8, *s4, *s2, *s1; } nb_panel;

INLINE nb_panel nb_panel_of(const nb_weight *w, int64_t panel) {
  nb_panel p;
  const int64_t bit = panel * w->k_pad * 4; /* bytes of a 1-bit panel */
  p.s8 = w->seg8 ? w->seg8 + bit * 8 : NULL;
  p.s4 = w->seg4 ? w->seg4 + bit * 4 : NULL;
  p.s2 = w->seg2 ? w->seg2 + bit * 2 : NULL;
  p.s1 = w->seg1 ? w->seg1 + bit : NULL;
  return p;
}

/*
 * Codes of columns 4q..4q+3 of sixteen channels (half h): byte r of lane l is the code of channel 16h + l, column 4q + r.
 * `bits` should be a constant where it is called.
 */
INLINE vi nb_code_quad(int bits, const nb_panel *p, int64_t q, int h) {
  vi x = vi_set(0);
  int width = 0;
  if (bits & 8) return vi_load((const int32_t *)(p->s8 + q * 128 + h * 64));
  if (bits & 4) {
    x = vi_load((const int32_t *)(p->s4 + (q >> 1) * 128 + h * 64));
    x = vi_and(vi_shift_right(x, 4 * (int)(q & 1)), vi_set(0x0f0f0f0f));
    width = 4;
  }
  if (bits & 2) {
    vi y = vi_load((const int32_t *)(p->s2 + (q >> 2) * 128 + h * 64));
    y = vi_and(vi_shift_right(y, 2 * (int)(q & 3)), vi_set(0x03030303));
    x = width ? vi_add(x, vi_shift_left(y, width)) : y;
    width += 2;
  }
  if (bits & 1) {
    vi y = vi_load((const int32_t *)(p->s1 + (q >> 3) * 128 + h * 64));
    y = vi_and(vi_shift_right(y, (int)(q & 7)), vi_set(0x01010101));
    x = width ? vi_add(x, vi_shift_left(y, width)) : y;
  }
  return x;
}

/* Runs body(bits) with a constant. */
#define NB_FOR_EACH_BITS(bits, body) \
  switch (bits) {                    \
    case 1: body(1) break;           \
    case 2: body(2) break;           \
    case 3: body(3) break;           \
    case 4: body(4) break;           \
    case 5: body(5) break;           \
    case 6: body(6) break;           \
    case 7: body(7) break;           \
    default: body(8) break;          \
  }

/* Entries of a 16-entry table by the low four bits of each lane (the caller clears the others where PART < 16). */
INLINE vf nb_lookup16(const float *table, vi index) {
#if PART == 16
  vf r;
  r.p[0] = (pf)_mm512_permutexvar_ps((__m512i)index.p[0], _mm512_loadu_ps(table));
  return r;
#else
  int32_t t[16];
  float f[16];
  vi_store(t, index);
  for (int l = 0; l < 16; l++) f[l] = table[t[l] & 15];
  return v_load(f);
#endif
}

/* Scale or float zero [panels, G, 32] of sixteen channels. */
INLINE vf nb_scalars(const uint8_t *base, int type, int64_t groups, int64_t panel, int64_t g, int h) {
  const int64_t at = (panel * groups + g) * 32 + 16 * h;
  return type == SCALAR_F16 ? v_load_half((const uint16_t *)base + at) : v_load((const float *)base + at);
}
/* The same for one channel. */
INLINE float nb_scalar(const uint8_t *base, int type, int64_t groups, int64_t panel, int64_t g, int lane) {
  const int64_t at = (panel * groups + g) * 32 + lane;
  return type == SCALAR_F16 ? half_to_float(((const uint16_t *)base)[at]) : ((const float *)base)[at];
}
INLINE int nb_zero_is_int(const nb_weight *w) {
  return w->zero_kind == ZERO_INT || (w->zero_kind == ZERO_CONST && w->zero_const == (float)(int32_t)w->zero_const);
}

#ifdef NIBBLE_ISA
/* Codes of a panel as bytes in the layout of width 8: [columns / 4][128]; k0, k1 multiples of 32. */
void ISA_NAME(unpack_panel)(const nb_weight *w, int64_t panel, int64_t k0, int64_t k1, uint8_t *out);
/*
 * Columns k0..k1 of a panel as floats [k1 - k0][32], before the scale: c - z, T[c] or the dense value. Lut weights with
 * a scale for negative entries come scaled. k0 is a multiple of 4 and k0..k1 lies in one group.
 */
void ISA_NAME(decode_panel)(const nb_weight *w, int64_t panel, int64_t k0, int64_t k1, float *out);
#endif
/* True when decode_panel has multiplied by the scale (or there is none). */
INLINE int nb_decoded_scaled(const nb_weight *w) {
  return w->kind <= KIND_BF16 || !w->scale || (w->kind == KIND_LUT && w->negative_scale);
}

#endif
