/*
 * linearInt (Q1): s8 activations times panel-32 codes, exact integer sums, fused epilogues.
 *
 * Few rows: codes are unpacked in registers and streamed once for all rows. Many rows: a panel is unpacked to bytes
 * once (it stays in the first two cache levels) and all row tiles pass over it. Work units are (panel, tile of rows), so
 * any number of threads is busy for any shape. v3: named accumulators, zero points folded into the accumulators.
 */
#include "epilogue.h"
#include "int_dots.h"

/*
 * What one group of twelve rows brings: scales, and the zero point's part of the sums. A tile that starts at the i-th of
 * the twelve uses this struct from start + i on: both arrays then begin with its first row.
 */
typedef struct { int32_t start[12]; float scale[12]; } row_terms;

enum {
  FOLD_START, /* const integer zero: -z * sum starts the accumulator */
  FOLD_PAIR,  /* integer zeros of channels: one more dot product, of (z, 128 z) with the sum in two halves */
  FOLD_NONE   /* float zeros, asymmetric activations: finish_group */
};

typedef struct {
  nb_weight w;
  nb_output out;
  const int8_t *codes;
  const float *scale;
  const int32_t *sum, *zero;
  int64_t ld, rows;
  int per_group; /* activations have a scale for each group */
  int zero_int;
  int folding;   /* how the zero point enters the accumulators */
  int32_t z;     /* const integer zero */
  row_terms *terms; /* [block][group] of the rows in this pass; block = 12 rows */
  int64_t first;    /* first row of the pass */
} linear;

/* Every other kind of zero: acc [rows][32] of one group is added to y [rows][32]. */
static __attribute__((noinline)) void finish_group(const linear *l, int64_t panel, int64_t g, int64_t m0, int rows,
                                                   const int32_t *acc, float *y) {
  const nb_weight *w = &l->w;
  const int64_t columns = nb_min(w->group_size, w->k - g * w->group_size);
  for (int h = 0; h < 2; h++) {
    const int64_t at = (panel * w->groups + g) * 32 + 16 * h;
    const vf scale = nb_scalars(w->scale, w->scale_type, w->groups, panel, g, h);
    const vi sums = l->zero ? vi_load(w->code_sum + at) : vi_set(0);
    vf zf = v_set(w->zero_const);
    vi zi = vi_set(l->z);
    if (w->zero_kind == ZERO_INT) zi = vi_load_u8(w->zero + at);
    if (w->zero_kind == ZERO_FLOAT) zf = nb_scalars(w->zero, w->scale_type, w->groups, panel, g, h);
    for (int m = 0; m < rows; m++) {
      const int64_t row = m0 + m, entry = l->per_group ? row * w->groups + g : row;
      float *to = y + m * 32 + 16 * h;
      int32_t sum = l->sum[row * w->groups + g];
      vi d = vi_load(acc + m * 32 + 16 * h);
      vf v;
      if (l->zero) {
        const int32_t za = l->zero[entry];
        sum = (int32_t)((uint32_t)sum - (uint32_t)za * (uint32_t)columns);
        d = vi_sub(d, vi_mul(sums, vi_set(za)));
      }
      if (l->zero_int) v = vi_to_float(vi_sub(d, vi_mul(zi, vi_set(sum))));
      else v = v_sub(vi_to_float(d), v_mul(zf, v_set((float)sum)));
      v_store(to, v_add(v_load(to), v_mul(v, v_mul(v_set(l->scale[entry]), scale))));
    }
  }
}

static __attribute__((noinline)) void emit_rows(const linear *l, int64_t panel, int64_t m0, int rows, const float *y) {
  for (int m = 0; m < rows; m++) {
    nb_emit(&l->out, &l->w, panel, m0 + m, v_load(y + m * 32), v_load(y + m * 32 + 16));
  }
}

typedef void (*tile_function)(const linear *, int64_t panel, const nb_panel *, int64_t m0);

/* acc += zeros (z, 128 z as two i16) times one row's -sum in two halves. Exact while |sum| < 2^21. */
INLINE vi fold_zero(vi acc, vi zeros, int32_t halves) {
#if defined(__AVX512VNNI__)
  acc.p[0] = (pi)_mm512_dpwssd_epi32((__m512i)acc.p[0], (__m512i)zeros.p[0], _mm512_set1_epi32(halves));
  return acc;
#else
  const int32_t sum = (int16_t)halves + (halves >> 16) * 128;
  return vi_add(acc, vi_mul(vi_and(zeros, vi_set(0xffff)), vi_set(sum)));
#endif
}
static int32_t in_halves(int32_t sum) {
  const int32_t x = -sum;
  return (int32_t)((uint32_t)(x >> 7) << 16) | (x & 127);
}
#define MAX_PAIR_COLUMNS 16384 /* 2^21 / 128 */

/*
 * Rows m0..m0+M of one panel of `bits`-bit codes. Sums over groups start from -0, which adds to nothing, not even to a
 * zero of either sign. FAR: bytes to prefetch ahead (a stream from memory), 0 for panels in the cache.
 */
#define DECLARE(m) vi a##m, c##m;
#define START(m) a##m = c##m = vi_set(folding == FOLD_START ? r->start[m] : 0);
#define CLEAR(m)                       \
  v_store(y + (m) * 32, v_set(-0.0f)); \
  v_store(y + (m) * 32 + 16, v_set(-0.0f));
#define DOT(m)                                           \
  {                                                      \
    const int32_t quad = nb_four(NB_ROW(m, ld) + 4 * i); \
    a##m = nb_dot(wide, a##m, w0, quad);                 \
    c##m = nb_dot(wide, c##m, w1, quad);                 \
  }
#define PAIR(m)                              \
  a##m = fold_zero(a##m, z0, r->start[m]);   \
  c##m = fold_zero(c##m, z1, r->start[m]);
#define SCALE(m)                                                                                \
  {                                                                                             \
    const vf sx = v_set(r->scale[m]);                                                           \
    float *to = y + (m) * 32;                                                                   \
    v_store(to, v_add(v_load(to), v_mul(vi_to_float(a##m), v_mul(sx, s0))));                    \
    v_store(to + 16, v_add(v_load(to + 16), v_mul(vi_to_float(c##m), v_mul(sx, s1))));          \
  }
/* The only group: nothing to add to, and plain outputs go straight where they belong. */
#define SCALE_ONLY(m)                                                       \
  {                                                                         \
    const vf sx = v_set(r->scale[m]);                                       \
    v_store(only + (m) * step, v_mul(vi_to_float(a##m), v_mul(sx, s0)));    \
    v_store(only + (m) * step + 16, v_mul(vi_to_float(c##m), v_mul(sx, s1))); \
  }
#define KEEP(m)                     \
  vi_store(acc + (m) * 32, a##m);   \
  vi_store(acc + (m) * 32 + 16, c##m);

/* Short code where tiles are small. */
#if INT_TILE == 12
#define EIGHT _Pragma("GCC unroll 8")
#else
#define EIGHT _Pragma("GCC unroll 1")
#endif

#define TILE_AS(name, bits, WIDE, M, FAR)                                                                              \
  static __attribute__((noinline)) void name(const linear *l, int64_t panel, const nb_panel *p, int64_t m0) {          \
    const nb_weight *w = &l->w;                                                                                        \
    const int64_t ld = l->ld, block = (m0 - l->first) / 12;                                                            \
    const int wide = WIDE, folding = l->folding, inside = (int)((m0 - l->first) % 12);                                 \
    float y[M * 32];                                                                                                   \
    int32_t acc[M * 32];                                                                                               \
    nb_prefetch_output(&l->out, panel, m0, M);                                                                         \
    const int single = w->groups == 1, direct = single && nb_is_plain(&l->out, w, panel);                              \
    float *only = direct ? l->out.dst + m0 * l->out.ld + panel * 32 : y;                                               \
    const int64_t step = direct ? l->out.ld : 32;                                                                      \
    if (!single || folding == FOLD_NONE) {                                                                             \
      REPEAT(M, CLEAR)                                                                                                 \
    }                                                                                                                  \
    for (int64_t g = 0; g < w->groups; g++) {                                                                          \
      const int64_t q0 = g * w->group_size / 4, q1 = nb_round_up(nb_min(w->k, (g + 1) * w->group_size), 32) / 4;       \
      const row_terms *r = (const row_terms *)(l->terms[block * w->groups + g].start + inside);                        \
      REPEAT(M, DECLARE)                                                                                               \
      REPEAT(M, START)                                                                                                 \
      NB_ROW_POINTERS(l->codes + m0 * ld + 4 * q0, ld);                                                                \
      for (int64_t q = q0; q < q1; q += 8) {                                                                           \
        if (FAR) nb_prefetch(bits, p, q, FAR);                                                                         \
        EIGHT for (int i = 0; i < 8; i++) {                                                                           \
          const vi w0 = nb_code_quad(bits, p, q + i, 0), w1 = nb_code_quad(bits, p, q + i, 1);                         \
          REPEAT(M, DOT)                                                                                               \
        }                                                                                                              \
        NB_ADVANCE(32);                                                                                                \
      }                                                                                                                \
      if (folding == FOLD_NONE) {                                                                                      \
        REPEAT(M, KEEP)                                                                                                \
        finish_group(l, panel, g, m0, M, acc, y);                                                                      \
        continue;                                                                                                      \
      }                                                                                                                \
      if (folding == FOLD_PAIR) {                                                                                      \
        const uint8_t *z = w->zero + (panel * w->groups + g) * 32;                                                     \
        const vi z0 = vi_mul(vi_load_u8(z), vi_set(0x800001)), z1 = vi_mul(vi_load_u8(z + 16), vi_set(0x800001));      \
        REPEAT(M, PAIR)                                                                                                \
      }                                                                                                                \
      const vf s0 = nb_scalars(w->scale, w->scale_type, w->groups, panel, g, 0);                                       \
      const vf s1 = nb_scalars(w->scale, w->scale_type, w->groups, panel, g, 1);                                       \
      if (single) {                                                                                                    \
        REPEAT(M, SCALE_ONLY)                                                                                          \
        if (direct) return;                                                                                            \
      } else {                                                                                                         \
        REPEAT(M, SCALE)                                                                                               \
      }                                                                                                                \
    }                                                                                                                  \
    emit_rows(l, panel, m0, M, y);                                                                                     \
  }
#define TILE(bits, M, FAR) TILE_AS(tile_##bits##_##M, bits, bits == 8, M, FAR)

/* Tiles by code width and index into `sizes`; missing ones need the panel unpacked (or are no size here). */
#define SIZES 6
static const int sizes[SIZES] = {12, 8, 6, 4, 2, 1};
#if INT_TILE == 12
#define FAR NB_FAR
TILE(1, 1, FAR) TILE(2, 1, FAR) TILE(3, 1, FAR) TILE(5, 1, FAR) TILE(6, 1, FAR) TILE(7, 1, FAR)
TILE(4, 1, FAR) TILE(4, 2, FAR) TILE(4, 4, FAR) TILE(4, 6, FAR) TILE(4, 8, FAR) TILE(4, 12, FAR)
TILE(8, 1, FAR) TILE(8, 2, FAR) TILE(8, 4, FAR) TILE(8, 6, FAR) TILE(8, 8, FAR) TILE(8, 12, 0)
#define ONE(b) {0, 0, 0, 0, 0, tile_##b##_1}
#define ALL(b) {tile_##b##_12, tile_##b##_8, tile_##b##_6, tile_##b##_4, tile_##b##_2, tile_##b##_1}
static const tile_function tiles[9][SIZES] = {{0}, ONE(1), ONE(2), ONE(3), ALL(4), ONE(5), ONE(6), ONE(7), ALL(8)};
#define BYTES(w) 8
#else
TILE(8, 1, 0) TILE(8, 2, 0)
TILE_AS(tile_narrow_1, 8, 0, 1, 0) TILE_AS(tile_narrow_2, 8, 0, 2, 0)
static const tile_function tiles[9][SIZES] = {
    [7] = {0, 0, 0, 0, tile_narrow_2, tile_narrow_1}, [8] = {0, 0, 0, 0, tile_8_2, tile_8_1}};
/* Unpacked codes below 128 have cheaper dots. */
#define BYTES(w) ((w)->bits == 8 ? 8 : 7)
#endif

/* Rows m..end of one panel in tiles, widest first. */
static void rows_of_panel(const linear *l, int kind, int64_t panel, const nb_panel *p, int64_t m, int64_t end) {
  for (int s = 0; s < SIZES; s++) {
    if (!tiles[kind][s]) continue;
    for (; m + sizes[s] <= end; m += sizes[s]) tiles[kind][s](l, panel, p, m);
  }
}

/* From this many rows a panel of nibbles is unpacked first. */
#define UNPACK_ROWS 24
/* Rows of a pass over all panels: their activations should stay in the second cache level. */
#define PASS_BYTES (768 * 1024)

/* Fills the terms of rows first..first+count. */
static void form_terms(linear *l, int64_t first, int64_t count) {
  const int64_t groups = l->w.groups;
  l->first = first;
  for (int64_t m = 0; m < count; m++) {
    const int64_t row = first + m;
    row_terms *to = l->terms + m / 12 * groups;
    for (int64_t g = 0; g < groups; g++) {
      const int32_t sum = l->sum[row * groups + g];
      if (l->folding == FOLD_PAIR) to[g].start[m % 12] = in_halves(sum);
      else to[g].start[m % 12] = (int32_t)(0u - (uint32_t)l->z * (uint32_t)sum);
      to[g].scale[m % 12] = l->scale[l->per_group ? row * groups + g : row];
    }
  }
}

/* Codes are read as they are stored: each panel once for all rows. */
static int reads_packed(const linear *l) {
  if (l->w.bits == 8) return l->rows < UNPACK_ROWS;
  if (INT_TILE < 12) return 0;
  return l->w.bits == 4 ? l->rows < UNPACK_ROWS : l->rows == 1;
}

NB_OP(linear_int) {
  linear l;
  l.w = nb_read_weight(c, ins[LINEAR_INT_WEIGHT_W]);
  l.out = (nb_output){nb_at(c, ins[LINEAR_INT_DST_AT]), ins[LINEAR_INT_LD_DST], ins[LINEAR_INT_EPILOGUE]};
  l.codes = nb_at(c, ins[LINEAR_INT_CODES_AT]);
  l.scale = nb_at(c, ins[LINEAR_INT_SCALE_AT]);
  l.sum = nb_at(c, ins[LINEAR_INT_SUM_AT]);
  l.zero = nb_at(c, ins[LINEAR_INT_ZERO_AT]);
  l.ld = ins[LINEAR_INT_LD_CODES];
  l.rows = nb_rows(c, ins);
  l.per_group = ins[LINEAR_INT_ACTIVATION_GROUPS] > 1;
  l.zero_int = nb_zero_is_int(&l.w);
  l.z = l.w.zero_kind == ZERO_CONST && l.zero_int ? (int32_t)l.w.zero_const : 0;
  l.folding = FOLD_NONE;
  if (l.zero_int && !l.zero) {
    if (l.w.zero_kind == ZERO_CONST) l.folding = FOLD_START;
    else if (l.w.group_size <= MAX_PAIR_COLUMNS) l.folding = FOLD_PAIR;
  }

  if (reads_packed(&l)) {
    int64_t panel, end;
    l.terms = (row_terms *)c->scratch;
    form_terms(&l, 0, l.rows);
    nb_share(c, l.w.panels, &panel, &end);
    for (; panel < end; panel++) {
      const nb_panel p = nb_panel_of(&l.w, panel);
      rows_of_panel(&l, l.w.bits, panel, &p, 0, l.rows);
    }
    return;
  }
  uint8_t *bytes = c->scratch; /* a panel unpacked */
  l.terms = (row_terms *)(bytes + l.w.k_pad * 32);
  const int64_t pass = nb_max(96, PASS_BYTES / l.ld) / INT_TILE * INT_TILE;
  for (int64_t first = 0; first < l.rows; first += pass) {
    const int64_t count = nb_min(pass, l.rows - first), blocks = (count + INT_TILE - 1) / INT_TILE;
    int64_t unit, end, unpacked = -1;
    nb_panel p = {0};
    nb_share(c, l.w.panels * blocks, &unit, &end);
    if (unit < end) form_terms(&l, first, count);
    while (unit < end) {
      const int64_t panel = unit / blocks, b = unit % blocks, run = nb_min(blocks - b, end - unit);
      if (panel != unpacked) {
        if (l.w.bits == 8) {
          p = nb_panel_of(&l.w, panel);
        } else {
          ISA_NAME(unpack_panel)(&l.w, panel, 0, l.w.k_pad, bytes);
          p.s8 = bytes;
        }
        unpacked = panel;
      }
      rows_of_panel(&l, BYTES(&l.w), panel, &p, first + b * INT_TILE, first + nb_min(count, (b + run) * INT_TILE));
      unit += run;
    }
  }
}
