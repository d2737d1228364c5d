/*
 * linearInt (Q1): s8 activations times panel-32 codes, exact integer sums, fused epilogues.
 *
 * Few rows: codes are unpacked in registers and streamed once for all rows. Many rows: a panel is unpacked to bytes
 * once (it stays in the first two cache levels) and all row tiles pass over it. Work units are (panel, tile of rows), so
 * any number of threads is busy for any shape. v2: row-major activations, no packing.
 */
#include "epilogue.h"
#include "int_dots.h"

typedef struct {
  nb_weight w;
  nb_output out;
  const int8_t *codes;
  const float *scale;
  const int32_t *sum, *zero;
  int64_t ld, rows;
  int per_group; /* activations have a scale for each group */
  int zero_int;
  int32_t z; /* const integer zero */
} linear;

/* acc of one group -> y: zero points, the scales, and the sum over groups in memory. */
INLINE void finish_group(const linear *l, int M, int64_t panel, int64_t g, int64_t m0, vi acc[][2], float *y) {
  const nb_weight *w = &l->w;
  const int64_t columns = nb_min(w->group_size, w->k - g * w->group_size);
  const int64_t at = (panel * w->groups + g) * 32;
  vf scale[2], zf[2] = {0};
  vi zi[2] = {0}, sums[2] = {0};
  UNROLL for (int h = 0; h < 2; h++) scale[h] = nb_scalars(w->scale, w->scale_type, w->groups, panel, g, h);
  if (w->zero_kind == ZERO_INT) {
    UNROLL for (int h = 0; h < 2; h++) zi[h] = vi_load_u8(w->zero + at + 16 * h);
  } else if (!l->zero_int) {
    UNROLL for (int h = 0; h < 2; h++) {
      zf[h] = w->zero_kind == ZERO_FLOAT ? nb_scalars(w->zero, w->scale_type, w->groups, panel, g, h)
                                         : v_set(w->zero_const);
    }
  }
  if (l->zero) {
    UNROLL for (int h = 0; h < 2; h++) sums[h] = vi_load(w->code_sum + at + 16 * h);
  }
  UNROLL for (int m = 0; m < M; m++) {
    const int64_t row = m0 + m, entry = l->per_group ? row * w->groups + g : row;
    const vf sx = v_set(l->scale[entry]);
    int32_t sum = l->sum[row * w->groups + g];
    const int32_t za = l->zero ? l->zero[entry] : 0;
    if (l->zero) sum = (int32_t)((uint32_t)sum - (uint32_t)za * (uint32_t)columns);
    UNROLL for (int h = 0; h < 2; h++) {
      vi d = acc[m][h];
      vf v;
      if (l->zero) d = vi_sub(d, vi_mul(sums[h], vi_set(za)));
      if (!l->zero_int) {
        v = v_sub(vi_to_float(d), v_mul(zf[h], v_set((float)sum)));
      } else {
        if (w->zero_kind == ZERO_INT) d = vi_sub(d, vi_mul(zi[h], vi_set(sum)));
        else if (l->z) d = vi_sub(d, vi_set((int32_t)((uint32_t)l->z * (uint32_t)sum)));
        v = vi_to_float(d);
      }
      v = v_mul(v, v_mul(sx, scale[h]));
      if (g) v = v_add(v_load(y + m * 32 + 16 * h), v);
      v_store(y + m * 32 + 16 * h, v);
    }
  }
}

/*
 * Rows m0..m0+M of one panel.
 */
INLINE void tile(const linear *l, int bits, int M, int64_t panel, const nb_panel *p, int64_t m0, int far) {
  const nb_weight *w = &l->w;
  float y[M * 32];
  const int8_t *x = l->codes + m0 * l->ld;
  for (int64_t g = 0; g < w->groups; g++) {
    const int64_t q0 = g * w->group_size / 4, q1 = nb_round_up(nb_min(w->k, (g + 1) * w->group_size), 32) / 4;
    vi acc[M][2];
    UNROLL for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = vi_set(0);
    nb_panel_dots(bits, M, x, l->ld, p, q0, q1, acc, far);
    finish_group(l, M, panel, g, m0, acc, y);
  }
  UNROLL for (int m = 0; m < M; m++) nb_emit(&l->out, w, panel, m0 + m, v_load(y + m * 32), v_load(y + m * 32 + 16));
}

#define PREFETCH 2048
typedef void (*tile_function)(const linear *, int64_t panel, const nb_panel *, int64_t m0);
#define TILE(bits, M) \
  static __attribute__((noinline)) void tile_##bits##_##M(const linear *l, int64_t panel, const nb_panel *p, int64_t m0) { \
    tile(l, bits, M, panel, p, m0, M == 1 ? PREFETCH : 0); \
  }
#define TILES(bits) TILE(bits, 1) TILE(bits, 2)
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
#if INT_TILE > 2
#define WIDE_TILES(bits) TILE(bits, 4) TILE(bits, 8)
WIDE_TILES(1) WIDE_TILES(2) WIDE_TILES(3) WIDE_TILES(4) WIDE_TILES(5) WIDE_TILES(6) WIDE_TILES(7) WIDE_TILES(8)
TILE(4, 6) TILE(4, 12) TILE(8, 6) TILE(8, 12)
#define SIZES 6
static const int sizes[SIZES] = {12, 8, 6, 4, 2, 1};
#define ROW(b) {0, tile_##b##_8, 0, tile_##b##_4, tile_##b##_2, tile_##b##_1}
static const tile_function tiles[9][SIZES] = {
    {0}, ROW(1), ROW(2), ROW(3), {tile_4_12, tile_4_8, tile_4_6, tile_4_4, tile_4_2, tile_4_1},
    ROW(5), ROW(6), ROW(7), {tile_8_12, tile_8_8, tile_8_6, tile_8_4, tile_8_2, tile_8_1}};
#else
#define SIZES 2
static const int sizes[SIZES] = {2, 1};
#define ROW(b) {tile_##b##_2, tile_##b##_1}
static const tile_function tiles[9][SIZES] = {{0}, ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8)};
#endif

/* Rows m..end of one panel in tiles, widest first. */
static void rows_of_panel(const linear *l, int bits, int64_t panel, const nb_panel *p, int64_t m, int64_t end) {
  for (int s = 0; s < SIZES; s++) {
    if (!tiles[bits][s]) continue;
    for (; m + sizes[s] <= end; m += sizes[s]) tiles[bits][s](l, panel, p, m);
  }
}

/* From this many rows a panel is unpacked first. */
#define UNPACK_ROWS (INT_TILE > 2 ? 24 : 4)
/* Rows of a pass over all panels: their activations should stay in the second cache level. */
#define PASS_BYTES (768 * 1024)

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

  if (l.rows < UNPACK_ROWS) {
    int64_t panel, end;
    nb_share(c, l.w.panels, &panel, &end);
    for (; panel < end; panel++) {
      const nb_panel p = nb_panel_of(&l.w, panel);
      rows_of_panel(&l, l.w.bits, panel, &p, 0, l.rows);
    }
    return;
  }
  int64_t pass = nb_max(96, PASS_BYTES / l.ld) / INT_TILE * INT_TILE;
  for (int64_t first = 0; first < l.rows; first += pass) {
    const int64_t count = nb_min(pass, l.rows - first), blocks = (count + INT_TILE - 1) / INT_TILE;
    int64_t unit, end, unpacked = -1;
    nb_panel p = {0};
    nb_share(c, l.w.panels * blocks, &unit, &end);
    while (unit < end) {
      const int64_t panel = unit / blocks, b = unit % blocks, run = nb_min(blocks - b, end - unit);
      if (panel != unpacked) {
        if (l.w.bits == 8) {
          p = nb_panel_of(&l.w, panel);
        } else {
          ISA_NAME(unpack_panel)(&l.w, panel, 0, l.w.k_pad, c->scratch);
          p.s8 = c->scratch;
        }
        unpacked = panel;
      }
      rows_of_panel(&l, 8, panel, &p, first + b * INT_TILE, first + nb_min(count, (b + run) * INT_TILE));
      unit += run;
    }
  }
}
