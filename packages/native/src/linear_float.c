/*
 * linearFloat (F1): f32 activations times any weight. Columns of a panel are decoded to f32 in the thread's scratch,
 * which then runs through the f32 tile; dense f32 panels are read in place. One row decodes a few columns at a time, so
 * that they stay in the first cache level; many rows decode the panel once.
 */
#include "epilogue.h"
#include "float_dots.h"

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

NB_OP(linear_float) {
  linear l;
  l.w = nb_read_weight(c, ins[LINEAR_FLOAT_WEIGHT_W]);
  l.out = (nb_output){nb_at(c, ins[LINEAR_FLOAT_DST_AT]), ins[LINEAR_FLOAT_LD_DST], ins[LINEAR_FLOAT_EPILOGUE]};
  l.x = nb_at(c, ins[LINEAR_FLOAT_SRC_AT]);
  l.ld = ins[LINEAR_FLOAT_LD_SRC];
  float *room = (float *)c->scratch;
  const int64_t rows = nb_rows(c, ins), blocks = (rows + TILE - 1) / TILE;
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
