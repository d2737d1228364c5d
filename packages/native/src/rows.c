/* Ops on rows and columns: permutation and scaling, sums, gather and scatter, the MoE router, the CSR side-car. */
#include "kernels.h"
#include "simd.h"

NB_OP(columns) {
  const float *src = nb_at(c, ins[COLUMNS_SRC_AT]);
  float *dst = nb_at(c, ins[COLUMNS_DST_AT]);
  const int32_t *perm = nb_at(c, ins[COLUMNS_PERM_AT]);
  const float *scale = nb_at(c, ins[COLUMNS_SCALE_AT]);
  const int64_t width = ins[COLUMNS_WIDTH];
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  if (m == end) return;
  if (perm) {
    for (int64_t k = 0; k < width; k++) {
      if (perm[k] < 0 || perm[k] >= width) {
        nb_fail(c, ins);
        return;
      }
    }
  }
  for (; m < end; m++) {
    const float *x = src + m * ins[COLUMNS_LD_SRC];
    float *y = dst + m * ins[COLUMNS_LD_DST];
    if (perm && scale) {
      for (int64_t k = 0; k < width; k++) y[k] = x[perm[k]] * scale[k];
    } else if (perm) {
      for (int64_t k = 0; k < width; k++) y[k] = x[perm[k]];
    } else if (scale) {
      for (int64_t k = 0; k < width; k++) y[k] = x[k] * scale[k];
    } else {
      memmove(y, x, (size_t)width * 4);
    }
  }
}

NB_OP(silu_mul) {
  const float *gate = nb_at(c, ins[SILU_MUL_GATE_AT]), *up = nb_at(c, ins[SILU_MUL_UP_AT]);
  float *dst = nb_at(c, ins[SILU_MUL_DST_AT]);
  const int64_t width = ins[SILU_MUL_WIDTH];
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const float *g = gate + m * ins[SILU_MUL_LD_GATE], *u = up + m * ins[SILU_MUL_LD_UP];
    float *y = dst + m * ins[SILU_MUL_LD_DST];
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t n = width - i;
      v_store_upto(y + i, v_mul(v_silu(v_load_upto(g + i, n)), v_load_upto(u + i, n)), n);
    }
  }
}

/* y += alpha * x, product rounded first; alpha = 1 multiplies nothing. */
static void add_scaled(float *y, const float *x, int64_t width, float alpha) {
  const vf a = v_set(alpha);
  for (int64_t i = 0; i < width; i += 16) {
    const int64_t n = width - i;
    vf v = v_load_upto(x + i, n);
    if (alpha != 1.0f) v = v_mul(v, a);
    v_store_upto(y + i, v_add(v_load_upto(y + i, n), v), n);
  }
}

NB_OP(add) {
  const float *src = nb_at(c, ins[ADD_SRC_AT]);
  float *dst = nb_at(c, ins[ADD_DST_AT]);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    add_scaled(dst + m * ins[ADD_LD_DST], src + m * ins[ADD_LD_SRC], ins[ADD_WIDTH], nb_float(ins[ADD_ALPHA_F]));
  }
}

NB_OP(gather_rows) {
  const float *src = nb_at(c, ins[GATHER_ROWS_SRC_AT]);
  float *dst = nb_at(c, ins[GATHER_ROWS_DST_AT]);
  const int32_t *index = nb_at(c, ins[GATHER_ROWS_INDEX_AT]);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    if (index[m] < 0 || index[m] >= c->max_rows) {
      nb_fail(c, ins);
      return;
    }
    memcpy(dst + m * ins[GATHER_ROWS_LD_DST], src + (int64_t)index[m] * ins[GATHER_ROWS_LD_SRC],
           (size_t)ins[GATHER_ROWS_WIDTH] * 4);
  }
}

NB_OP(scatter_add_rows) {
  const float *src = nb_at(c, ins[SCATTER_ADD_ROWS_SRC_AT]);
  float *dst = nb_at(c, ins[SCATTER_ADD_ROWS_DST_AT]);
  const int32_t *index = nb_at(c, ins[SCATTER_ADD_ROWS_INDEX_AT]);
  const float *weight = nb_at(c, ins[SCATTER_ADD_ROWS_WEIGHT_AT]);
  const int64_t width = ins[SCATTER_ADD_ROWS_WIDTH], blocks = (width + 15) / 16, rows = nb_rows(c, ins);
  int64_t from, to; /* columns, so that a hostile list with repeated rows is still well defined */
  nb_share(c, blocks, &from, &to);
  from *= 16;
  to = nb_min(width, to * 16);
  for (int64_t m = 0; m < rows; m++) {
    if (index[m] < 0 || index[m] >= c->max_rows) {
      nb_fail(c, ins);
      return;
    }
    if (from < to) {
      add_scaled(dst + (int64_t)index[m] * ins[SCATTER_ADD_ROWS_LD_DST] + from,
                 src + m * ins[SCATTER_ADD_ROWS_LD_SRC] + from, to - from, weight ? weight[m] : 1.0f);
    }
  }
}

NB_OP(route) {
  const float *logits = nb_at(c, ins[ROUTE_LOGITS_AT]);
  int32_t *index = nb_at(c, ins[ROUTE_INDEX_AT]);
  float *weight = nb_at(c, ins[ROUTE_WEIGHT_AT]);
  int32_t *counts = (int32_t *)c->arena + ins[ROUTE_COUNT_REG];
  const int64_t rows = nb_rows(c, ins), experts = ins[ROUTE_EXPERTS], lists = ins[ROUTE_LD_LISTS];
  const int top = ins[ROUTE_TOP_K];
  nb_barrier(c); /* a skipped op before this one may still be reading the counts */
  if (c->thread) return;
  float p[REGISTERS];
  int chosen[REGISTERS];
  for (int64_t e = 0; e < experts; e++) counts[e] = 0;
  for (int64_t m = 0; m < rows; m++) {
    const float *x = logits + m * ins[ROUTE_LD_LOGITS];
    float max = x[0], sum = 0;
    for (int64_t e = 1; e < experts; e++) max = x[e] > max ? x[e] : max;
    for (int64_t e = 0; e < experts; e++) {
      p[e] = exp_one(x[e] - max);
      sum += p[e];
    }
    for (int64_t e = 0; e < experts; e++) p[e] /= sum;
    float total = 0;
    for (int r = 0; r < top; r++) {
      int best = -1;
      for (int e = 0; e < experts; e++) {
        int used = 0;
        for (int i = 0; i < r; i++) used |= chosen[i] == e;
        if (!used && (best < 0 || p[e] > p[best])) best = e;
      }
      chosen[r] = best;
      total += p[best];
    }
    for (int r = 0; r < top; r++) {
      const int64_t e = chosen[r], at = e * lists + counts[e]++;
      index[at] = (int32_t)m;
      weight[at] = p[e] / total;
    }
  }
}

NB_OP(csr) {
  const float *src = nb_at(c, ins[CSR_SRC_AT]);
  float *dst = nb_at(c, ins[CSR_DST_AT]);
  const uint32_t *rows = nb_at(c, ins[CSR_ROW_POINTERS_AT]);
  const uint32_t *columns = nb_at(c, ins[CSR_COLUMNS_AT]);
  const float *values = nb_at(c, ins[CSR_VALUES_AT]);
  const int64_t lists = nb_max(ins[CSR_COLUMNS_AT], ins[CSR_VALUES_AT]);
  const int64_t room = (c->arena_bytes - lists * LINE) / 4;
  const int64_t count = nb_rows(c, ins), width = ins[CSR_LD_SRC];
  int64_t n, end;
  nb_share(c, ins[CSR_OUTPUTS], &n, &end);
  for (; n < end; n++) {
    const uint32_t from = rows[n], to = rows[n + 1];
    if (from > to || to > room) {
      nb_fail(c, ins);
      return;
    }
    uint32_t widest = 0;
    for (uint32_t i = from; i < to; i++) widest = columns[i] > widest ? columns[i] : widest;
    if (widest >= width) {
      nb_fail(c, ins);
      return;
    }
    for (int64_t m = 0; m < count; m++) {
      const float *x = src + m * width;
      // Eight sums hide the latency of the loads and additions; which entry goes to which depends on the list alone.
      float acc[8] = {0};
      uint32_t i = from;
      for (; i + 8 <= to; i += 8) {
        UNROLL for (int l = 0; l < 8; l++) acc[l] += values[i + l] * x[columns[i + l]];
      }
      for (int l = 0; i < to; i++, l++) acc[l] += values[i] * x[columns[i]];
      dst[m * ins[CSR_LD_DST] + n] +=
          ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
    }
  }
}

NB_OP(abs_stats) {
  const float *src = nb_at(c, ins[ABS_STATS_SRC_AT]);
  double *sum = nb_at(c, ins[ABS_STATS_SUM_ABS_AT]);
  float *max = nb_at(c, ins[ABS_STATS_MAX_ABS_AT]);
  const int64_t width = ins[ABS_STATS_WIDTH], rows = nb_rows(c, ins);
  int64_t from, to;
  nb_share(c, (width + 15) / 16, &from, &to);
  from *= 16;
  to = nb_min(width, to * 16);
  for (int64_t m = 0; m < rows; m++) {
    const float *x = src + m * ins[ABS_STATS_LD_SRC];
    for (int64_t i = from; i < to; i++) {
      const float a = __builtin_fabsf(x[i]);
      sum[i] += (double)a;
      max[i] = a > max[i] ? a : max[i];
    }
  }
}
