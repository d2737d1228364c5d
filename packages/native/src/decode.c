/* Panel 32 codes as bytes (for the integer tiles) and as floats (for the float tiles), and rows of a table. */
#include "weights.h"

INLINE void unpack(int bits, const nb_panel *p, int64_t k0, int64_t k1, uint8_t *out) {
  for (int64_t base = k0 / 4; base < k1 / 4; base += 8) {
    UNROLL for (int i = 0; i < 8; i++) {
      UNROLL for (int h = 0; h < 2; h++) {
        vi_store((int32_t *)(out + (base - k0 / 4 + i) * 128 + h * 64), nb_code_quad(bits, p, base + i, h));
      }
    }
  }
}

void ISA_NAME(unpack_panel)(const nb_weight *w, int64_t panel, int64_t k0, int64_t k1, uint8_t *out) {
  const nb_panel p = nb_panel_of(w, panel);
#define BODY(b) unpack(b, &p, k0, k1, out);
  NB_FOR_EACH_BITS(w->bits, BODY)
#undef BODY
}

/* table[index], any table. */
INLINE vf gather(const float *table, vi index) {
  vf r;
#if PART == 16
  r.p[0] = (pf)_mm512_i32gather_ps((__m512i)index.p[0], table, 4);
#elif PART == 8
  PER_PART r.p[i_] = (pf)_mm256_i32gather_ps(table, (__m256i)index.p[i_], 4);
#else
  int32_t t[16];
  float f[16];
  vi_store(t, index);
  for (int l = 0; l < 16; l++) f[l] = table[t[l]];
  r = v_load(f);
#endif
  return r;
}

/* Entries of a table of up to 64 by the low bits of each lane: two shuffles instead of sixteen loads. */
INLINE vf lookup64(int bits, const float *table, vi index) {
#if PART == 16
  const __m512i at = (__m512i)index.p[0];
  vf r;
  const __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(table), at, _mm512_loadu_ps(table + 16));
  r.p[0] = (pf)low;
  if (bits > 5) {
    const __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32), at, _mm512_loadu_ps(table + 48));
    r.p[0] = (pf)_mm512_mask_mov_ps(low, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), high);
  }
  return r;
#else
  (void)bits;
  return gather(table, index);
#endif
}

/* gint: c - z, where a zero per group is loaded once (k0..k1 lies in one group). */
INLINE void decode_gint(int bits, const nb_weight *w, int64_t panel, int64_t k0, int64_t k1, float *out) {
  const nb_panel p = nb_panel_of(w, panel);
  const int64_t g = k0 / w->group_size;
  const int by_table = PART == 16 && bits <= 4 && w->zero_kind == ZERO_CONST;
  float table[16];
  for (int i = 0; i < 16; i++) table[i] = (float)i - w->zero_const;
  vf zero[2];
  for (int h = 0; h < 2; h++) {
    if (w->zero_kind == ZERO_INT) zero[h] = vi_to_float(vi_load_u8(w->zero + (panel * w->groups + g) * 32 + 16 * h));
    else if (w->zero_kind == ZERO_FLOAT) zero[h] = nb_scalars(w->zero, w->scale_type, w->groups, panel, g, h);
    else zero[h] = v_set(w->zero_const);
  }
  for (int64_t k = k0; k < k1; k += 4) {
    const int count = k1 - k < 4 ? (int)(k1 - k) : 4;
    UNROLL for (int h = 0; h < 2; h++) {
      vi quad = nb_code_quad(bits, &p, k / 4, h);
      for (int r = 0; r < count; r++) {
        vf value;
        if (by_table) value = nb_lookup16(table, quad);
        else value = v_sub(vi_to_float(vi_and(quad, vi_set(255))), zero[h]);
        v_store(out + (k - k0 + r) * 32 + 16 * h, value);
        quad = vi_shift_right(quad, 8);
      }
    }
  }
}

/* Lut: T[c], times the scale of its sign where negative entries have their own (k0..k1 lies in one group). */
INLINE void decode_lut(int bits, int per_row, int two_sided, const nb_weight *w, int64_t panel, int64_t k0, int64_t k1,
                       float *out) {
  const nb_panel p = nb_panel_of(w, panel);
  const int64_t g = k0 / w->group_size;
  const int entries = 1 << bits;
  float table[16] = {0};
  if (!per_row && bits <= 4) memcpy(table, w->table, (size_t)entries * 4);
  const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vi lane = vi_load(lanes);
  vf scale[2] = {v_set(1.0f), v_set(1.0f)}, negative[2] = {v_set(1.0f), v_set(1.0f)};
  for (int h = 0; two_sided && h < 2; h++) {
    if (w->scale) scale[h] = nb_scalars(w->scale, w->scale_type, w->groups, panel, g, h);
    negative[h] = nb_scalars(w->negative_scale, w->scale_type, w->groups, panel, g, h);
  }
  for (int64_t k = k0; k < k1; k += 4) {
    const int count = k1 - k < 4 ? (int)(k1 - k) : 4;
    UNROLL for (int h = 0; h < 2; h++) {
      vi quad = nb_code_quad(bits, &p, k / 4, h);
      for (int r = 0; r < count; r++) {
        const vi index = vi_and(quad, vi_set(255));
        vf value;
        if (per_row) value = gather(w->table + panel * entries * 32 + 16 * h, vi_add(vi_shift_left(index, 5), lane));
        else if (bits <= 4) value = nb_lookup16(table, index);
        else if (bits <= 6) value = lookup64(bits, w->table, index);
        else value = gather(w->table, index);
        if (two_sided) {
          value = v_add(v_mul(v_max(value, v_zero()), scale[h]), v_mul(v_min(value, v_zero()), negative[h]));
        }
        v_store(out + (k - k0 + r) * 32 + 16 * h, value);
        quad = vi_shift_right(quad, 8);
      }
    }
  }
}

void ISA_NAME(decode_panel)(const nb_weight *w, int64_t panel, int64_t k0, int64_t k1, float *out) {
  const int64_t first = panel * w->k + k0, rows = k1 - k0;
  switch (w->kind) {
    case KIND_F32:
      memcpy(out, (const float *)w->dense + first * 32, (size_t)rows * 128);
      break;
    case KIND_F16:
      for (int64_t i = 0; i < rows * 32; i += 16) v_store(out + i, v_load_half((const uint16_t *)w->dense + first * 32 + i));
      break;
    case KIND_BF16:
      for (int64_t i = 0; i < rows * 32; i += 16) v_store(out + i, v_load_bf16((const uint16_t *)w->dense + first * 32 + i));
      break;
    case KIND_LUT:
#define BODY(b)                                                                                         \
  if (w->per_row_table && w->negative_scale) decode_lut(b, 1, 1, w, panel, k0, k1, out);                \
  else if (w->per_row_table) decode_lut(b, 1, 0, w, panel, k0, k1, out);                                \
  else if (w->negative_scale) decode_lut(b, 0, 1, w, panel, k0, k1, out);                               \
  else decode_lut(b, 0, 0, w, panel, k0, k1, out);
      NB_FOR_EACH_BITS(w->bits, BODY)
#undef BODY
      break;
    default:
#define BODY(b) decode_gint(b, w, panel, k0, k1, out);
      NB_FOR_EACH_BITS(w->bits, BODY)
#undef BODY
  }
}

/* Code of one channel (slot = 32 * panel + lane) at one column. */
static int code_at(const nb_weight *w, int64_t slot, int64_t k) {
  const uint8_t *segments[4] = {w->seg8, w->seg4, w->seg2, w->seg1};
  int code = 0, shift = 0;
  for (int i = 0; i < 4; i++) {
    const int width = 8 >> i;
    if (!(w->bits & width)) continue;
    const int64_t columns = 32 / width, within = k % columns;
    const int64_t at = ((slot >> 5) * (w->k_pad / columns) + k / columns) * 128 + (slot & 31) * 4 + (within & 3);
    code |= ((segments[i][at] >> (width * (within >> 2))) & ((1 << width) - 1)) << shift;
    shift += width;
  }
  return code;
}

NB_OP(embed) {
  const nb_weight w = nb_read_weight(c, ins[EMBED_TABLE_W]);
  const int32_t *tokens = nb_at(c, ins[EMBED_TOKENS_AT]);
  float *dst = nb_at(c, ins[EMBED_DST_AT]);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    float *y = dst + m * ins[EMBED_LD_DST];
    const int64_t token = tokens[m], panel = token >> 5;
    const int lane = (int)(token & 31);
    if (token < 0 || token >= w.n) {
      nb_fail(c, ins);
      return;
    }
    const int64_t at = panel * w.k * 32 + lane;
    if (w.kind == KIND_F32) {
      for (int64_t k = 0; k < w.k; k++) y[k] = ((const float *)w.dense)[at + k * 32];
    } else if (w.kind == KIND_F16) {
      for (int64_t k = 0; k < w.k; k++) y[k] = half_to_float(((const uint16_t *)w.dense)[at + k * 32]);
    } else if (w.kind == KIND_BF16) {
      for (int64_t k = 0; k < w.k; k++) {
        const uint32_t bits = (uint32_t)((const uint16_t *)w.dense)[at + k * 32] << 16;
        memcpy(y + k, &bits, 4);
      }
    } else {
      for (int64_t g = 0; g < w.groups; g++) {
        const float s = nb_scalar(w.scale, w.scale_type, w.groups, panel, g, lane);
        float z = w.zero_const;
        if (w.zero_kind == ZERO_INT) z = (float)w.zero[(panel * w.groups + g) * 32 + lane];
        if (w.zero_kind == ZERO_FLOAT) z = nb_scalar(w.zero, w.scale_type, w.groups, panel, g, lane);
        const int64_t to = nb_min(w.k, (g + 1) * w.group_size);
        for (int64_t k = g * w.group_size; k < to; k++) y[k] = s * ((float)code_at(&w, token, k) - z);
      }
    }
  }
}
