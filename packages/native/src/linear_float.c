/*
 * linearFloat (F1): f32 activations times any weight. Columns of a panel are decoded to f32 in the thread's scratch,
 * which then runs through the f32 tile; dense f32 panels are read in place. One row decodes a few columns at a time, so
 * that they stay in the first cache level; many rows decode the panel once.
 */
#include "epilogue.h"
#include "float_dots.h"
#include "int_dots.h"

typedef struct {
  nb_weight w;
  nb_output out;
  const float *x;
  int64_t ld;
} linear;

/* acc of a group -> y (first group: y = acc * s), or the plain sum when the decoded values carry the scale. */
INLINE void add_group(const linear *l, int64_t panel, int64_t g, int M, const float *acc, float *y) {
  UNROLL for (int h = 0; h < 2; h++) {
    const vf s = l->w.scale ? nb_scalars(l->w.scale, l->w.scale_type, l->w.groups, panel, g, h) : v_set(1);
    for (int m = 0; m < M; m++) {
      vf v = v_mul(v_load(acc + m * 32 + 16 * h), s);
      if (g) v = v_add(v_load(y + m * 32 + 16 * h), v);
      v_store(y + m * 32 + 16 * h, v);
    }
  }
}

#define TILE 12
/* Columns decoded at a time for few rows: 16 KiB of floats. */
#define CHUNK 128

/* Rows m0..m0+M of a panel; `panel_values`: the whole panel decoded, or NULL to decode piece by piece into `room`. */
static void tile(const linear *l, int64_t panel, const float *panel_values, float *room, int64_t m0, int M) {
  const nb_weight *w = &l->w;
  const int scaled = nb_decoded_scaled(w);
  const int64_t groups = scaled && !w->negative_scale ? 1 : w->groups;
  const int64_t size = groups == 1 ? w->k : w->group_size;
  float acc[TILE * 32], y[TILE * 32];
  const float *x = l->x + m0 * l->ld;
  memset(acc, 0, sizeof acc);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t end = nb_min(w->k, (g + 1) * size);
    if (!scaled) memset(acc, 0, (size_t)M * 128);
    if (panel_values) {
      const float *b = panel_values + g * size * 32;
      ISA_NAME(float_tile)(M, x + g * size, l->ld, 1, b, b + 16, 32, end - g * size, acc);
    } else {
      for (int64_t k = g * size; k < end; k += CHUNK) {
        const int64_t to = nb_min(end, k + CHUNK);
        ISA_NAME(decode_panel)(w, panel, k, to, room);
        ISA_NAME(float_tile)(M, x + k, l->ld, 1, room, room + 16, 32, to - k, acc);
      }
    }
    if (!scaled) add_group(l, panel, g, M, acc, y);
  }
  const float *result = scaled ? acc : y;
  for (int m = 0; m < M; m++) {
    nb_emit(&l->out, w, panel, m0 + m, v_load(result + m * 32), v_load(result + m * 32 + 16));
  }
}

/* The whole panel as floats [k][32]. */
static const float *whole_panel(const linear *l, int64_t panel, float *room) {
  const nb_weight *w = &l->w;
  if (w->kind == KIND_F32) return (const float *)w->dense + panel * w->k * 32;
  const int64_t size = w->kind <= KIND_BF16 ? w->k : w->group_size;
  for (int64_t k = 0; k < w->k; k += size) {
    ISA_NAME(decode_panel)(w, panel, k, nb_min(w->k, k + size), room + k * 32);
  }
  return room;
}

/* ---- one row: codes are decoded in registers, two panels at a time to hide the latency of the sums ---- */
#if PART == 16

/* Floats of sixteen codes in the low bytes of the lanes. */
INLINE vf code_values(int by_table, const float *table, vi codes, vf zero) {
  if (by_table) return nb_lookup16(table, codes);
  return v_sub(vi_to_float(vi_and(codes, vi_set(255))), zero);
}
static vf zeros_of(const nb_weight *w, int64_t panel, int64_t g, int h) {
  if (w->zero_kind == ZERO_INT) return vi_to_float(vi_load_u8(w->zero + (panel * w->groups + g) * 32 + 16 * h));
  if (w->zero_kind == ZERO_FLOAT) return nb_scalars(w->zero, w->scale_type, w->groups, panel, g, h);
  return v_set(w->zero_const);
}

#define STEP(at, r, tail)                                                                         \
  if (!(tail) || k + (r) < k1) {                                                                \
    const vf s = v_set(l->x[k + (at) + (r)]);                                                          \
    a0 = v_fma(s, code_values(by_table, table, vi_shift_right(c0, 8 * (r)), z0), a0);           \
    a1 = v_fma(s, code_values(by_table, table, vi_shift_right(c1, 8 * (r)), z1), a1);           \
    a2 = v_fma(s, code_values(by_table, table, vi_shift_right(c2, 8 * (r)), z2), a2);           \
    a3 = v_fma(s, code_values(by_table, table, vi_shift_right(c3, 8 * (r)), z3), a3);           \
  }
#define QUAD(at, tail)                                                                          \
  {                                                                                             \
    const vi c0 = nb_code_quad(bits, &p, (k + (at)) / 4, 0), c1 = nb_code_quad(bits, &p, (k + (at)) / 4, 1);      \
    const vi c2 = nb_code_quad(bits, &o, (k + (at)) / 4, 0), c3 = nb_code_quad(bits, &o, (k + (at)) / 4, 1);      \
    STEP(at, 0, tail) STEP(at, 1, tail) STEP(at, 2, tail) STEP(at, 3, tail)                                     \
  }
#define GROUP_END(i)                                                                            \
  {                                                                                             \
    const int64_t of = (i) < 2 ? panel : other;                                                 \
    const vf s = w->scale ? nb_scalars(w->scale, w->scale_type, w->groups, of, g, (i) & 1) : v_set(1); \
    y##i = g ? v_add(y##i, v_mul(a##i, s)) : v_mul(a##i, s);                                    \
  }

/* One row and panels `panel` and `other` (the same one where there is no second). */
INLINE void row_of_pair(int bits, int by_table, const linear *l, const float *table, int64_t panel, int64_t other) {
  const nb_weight *w = &l->w;
  const nb_panel p = nb_panel_of(w, panel), o = nb_panel_of(w, other);
  vf y0 = v_zero(), y1 = y0, y2 = y0, y3 = y0;
  for (int64_t g = 0; g < w->groups; g++) {
    const int64_t k0 = g * w->group_size, k1 = nb_min(w->k, k0 + w->group_size);
    const vf z0 = zeros_of(w, panel, g, 0), z1 = zeros_of(w, panel, g, 1);
    const vf z2 = zeros_of(w, other, g, 0), z3 = zeros_of(w, other, g, 1);
    vf a0 = v_zero(), a1 = a0, a2 = a0, a3 = a0;
    int64_t k = k0;
    for (; k + 32 <= k1; k += 32) {
      nb_prefetch(bits, &p, k / 4, NB_FAR);
      nb_prefetch(bits, &o, k / 4, NB_FAR);
      for (int64_t end = k + 32; k < end; k += 8) {
        QUAD(0, 0)
        QUAD(4, 0)
      }
      k -= 32;
    }
    for (; k < k1; k += 4) QUAD(0, 1)
    GROUP_END(0) GROUP_END(1) GROUP_END(2) GROUP_END(3)
  }
  nb_emit(&l->out, w, panel, 0, y0, y1);
  if (other != panel) nb_emit(&l->out, w, other, 0, y2, y3);
}

/* The same for dense f16 and bf16: sixteen channels a load, no detour over scratch. */
#define HALF(at) (bf16 ? v_load_bf16(at) : v_load_half(at))
INLINE void half_row_of_pair(int bf16, const linear *l, int64_t panel, int64_t other) {
  const nb_weight *w = &l->w;
  const uint16_t *p = (const uint16_t *)w->dense + panel * w->k * 32;
  const uint16_t *o = (const uint16_t *)w->dense + other * w->k * 32;
  vf a0 = v_zero(), a1 = a0, a2 = a0, a3 = a0;
  for (int64_t k = 0; k < w->k; k++, p += 32, o += 32) {
    __builtin_prefetch(p + NB_FAR / 2);
    __builtin_prefetch(o + NB_FAR / 2);
    const vf s = v_set(l->x[k]);
    a0 = v_fma(s, HALF(p), a0);
    a1 = v_fma(s, HALF(p + 16), a1);
    a2 = v_fma(s, HALF(o), a2);
    a3 = v_fma(s, HALF(o + 16), a3);
  }
  nb_emit(&l->out, w, panel, 0, a0, a1);
  if (other != panel) nb_emit(&l->out, w, other, 0, a2, a3);
}

/*
 * Entry code[l] of lane l's own table, entry i of all lanes in t[i]: a tree of blends, which registers feed twice as fast as a
 * gather loads. The code is in byte `r` of the lane.
 */
INLINE vf own_entry(int bits, const __m512 *t, vi codes, int r) {
  const __m512i at = (__m512i)codes.p[0];
  __m512 a[16];
  UNROLL for (int i = 0; i < 1 << bits; i++) a[i] = t[i];
  UNROLL for (int b = 0; b < bits; b++) {
    const __mmask16 up = _mm512_test_epi32_mask(at, _mm512_set1_epi32(1 << (8 * r + b)));
    UNROLL for (int i = 0; i < 1 << (bits - b - 1); i++) a[i] = _mm512_mask_blend_ps(up, a[2 * i], a[2 * i + 1]);
  }
  vf value;
  value.p[0] = (pf)a[0];
  return value;
}

/* One row and one panel whose channels have tables of their own; half a panel's tables stay in registers. */
INLINE void own_table_row(int bits, const linear *l, int64_t panel) {
  const nb_weight *w = &l->w;
  const nb_panel p = nb_panel_of(w, panel);
  const int64_t groups = w->scale ? w->groups : 1, size = w->scale ? w->group_size : w->k; /* as `tile` */
  vf y[2];
  UNROLL for (int h = 0; h < 2; h++) {
    __m512 t[16];
    UNROLL for (int i = 0; i < 1 << bits; i++) t[i] = _mm512_loadu_ps(w->table + ((panel << bits) + i) * 32 + 16 * h);
    y[h] = v_zero();
    for (int64_t g = 0; g < groups; g++) {
      const int64_t k1 = nb_min(w->k, (g + 1) * size);
      vf a = v_zero();
      int64_t k = g * size;
      for (; k + 4 <= k1; k += 4) {
        const vi quad = nb_code_quad(bits, &p, k / 4, h);
        UNROLL for (int r = 0; r < 4; r++) a = v_fma(v_set(l->x[k + r]), own_entry(bits, t, quad, r), a);
      }
      if (k < k1) {
        vi quad = nb_code_quad(bits, &p, k / 4, h);
        for (; k < k1; k++, quad = vi_shift_right(quad, 8)) a = v_fma(v_set(l->x[k]), own_entry(bits, t, quad, 0), a);
      }
      const vf s = w->scale ? nb_scalars(w->scale, w->scale_type, w->groups, panel, g, h) : v_set(1);
      y[h] = g ? v_add(y[h], v_mul(a, s)) : v_mul(a, s);
    }
  }
  nb_emit(&l->out, w, panel, 0, y[0], y[1]);
}

/* True when the row kernel knows the weight. */
static int has_row_kernel(const nb_weight *w) {
  if (w->kind == KIND_GINT || w->kind == KIND_F16 || w->kind == KIND_BF16) return 1;
  return w->kind == KIND_LUT && w->bits <= 4 && !w->negative_scale;
}

/* A thread's panels are two streams, each read from front to back, so that what is fetched ahead is what comes next. */
static void one_row(nb_ctx *c, const linear *l) {
  const nb_weight *w = &l->w;
  if (w->kind == KIND_F16 || w->kind == KIND_BF16) {
    int64_t panel, end;
    nb_share(c, w->panels, &panel, &end);
    const int64_t middle = panel + (end - panel + 1) / 2;
    for (int64_t second = middle; panel < middle; panel++, second++) {
      const int64_t other = second < end ? second : panel;
      if (w->kind == KIND_BF16) half_row_of_pair(1, l, panel, other);
      else half_row_of_pair(0, l, panel, other);
    }
    return;
  }
  if (w->kind == KIND_LUT && w->per_row_table) {
    int64_t panel, end;
    nb_share(c, w->panels, &panel, &end);
    for (; panel < end; panel++) {
      switch (w->bits) {
        case 1: own_table_row(1, l, panel); break;
        case 2: own_table_row(2, l, panel); break;
        case 3: own_table_row(3, l, panel); break;
        default: own_table_row(4, l, panel); break;
      }
    }
    return;
  }
  const int lut = w->kind == KIND_LUT;
  const int by_table = lut || (w->bits <= 4 && w->zero_kind == ZERO_CONST);
  float table[16];
  for (int i = 0; i < 16; i++) table[i] = lut ? w->table[i & ((1 << w->bits) - 1)] : (float)i - w->zero_const;
  int64_t panel, end;
  nb_share(c, w->panels, &panel, &end);
  const int64_t middle = panel + (end - panel + 1) / 2;
  for (int64_t second = middle; panel < middle; panel++, second++) {
    const int64_t other = second < end ? second : panel;
    if (by_table) {
#define BODY(b) row_of_pair((b) > 4 ? 4 : (b), 1, l, table, panel, other);
      NB_FOR_EACH_BITS(w->bits, BODY)
#undef BODY
    } else {
#define BODY(b) row_of_pair(b, 0, l, table, panel, other);
      NB_FOR_EACH_BITS(w->bits, BODY)
#undef BODY
    }
  }
}

#endif

NB_OP(linear_float) {
  linear l;
  l.w = nb_read_weight(c, ins[LINEAR_FLOAT_WEIGHT_W]);
  l.out = (nb_output){nb_at(c, ins[LINEAR_FLOAT_DST_AT]), ins[LINEAR_FLOAT_LD_DST], ins[LINEAR_FLOAT_EPILOGUE]};
  l.x = nb_at(c, ins[LINEAR_FLOAT_SRC_AT]);
  l.ld = ins[LINEAR_FLOAT_LD_SRC];
  float *room = (float *)c->scratch;
  const int64_t rows = nb_rows(c, ins), blocks = (rows + TILE - 1) / TILE;
#if PART == 16
  if (rows == 1 && has_row_kernel(&l.w)) {
    one_row(c, &l);
    return;
  }
#endif
  int64_t unit, end, decoded = -1;
  const float *values = NULL;
  nb_share(c, l.w.panels * blocks, &unit, &end);
  for (; unit < end; unit++) {
    const int64_t panel = unit / blocks, b = unit % blocks;
    if ((blocks > 1 || l.w.kind == KIND_F32) && panel != decoded) {
      values = whole_panel(&l, panel, room);
      decoded = panel;
    }
    tile(&l, panel, values, room, b * TILE, (int)nb_min(TILE, rows - b * TILE));
  }
}
