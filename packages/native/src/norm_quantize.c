/* RMSNorm, activation quantization and the fused forms of the two (docs/engine.md, "quantize", "rmsnorm"). */
#include <math.h>
#include <string.h>
#include "kernels.h"
#include "simd.h"

void ISA_NAME(row_rmsnorm)(const float *x, float *y, int64_t width, const float *gain, float epsilon) {
  vf acc = v_zero();
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    const vf v = v_load(x + i);
    acc = v_add(acc, v_mul(v, v));
  }
  if (i < width) {
    const vf v = v_load_n(x + i, (int)(width - i));
    acc = v_add(acc, v_mul(v, v));
  }
  const float t = v_fold(acc) / (float)width + epsilon;
  const vf r = v_set(1.0f / sqrtf(t));
  for (i = 0; i < width; i += 16) {
    vf v = v_mul(v_load_upto(x + i, width - i), r);
    if (gain) v = v_mul(v, v_load_upto(gain + i, width - i));
    v_store_upto(y + i, v, width - i);
  }
}

static float amax_of(const float *x, int64_t n) {
  vf m = v_zero(), m1 = m, m2 = m, m3 = m;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    m = v_max(m, v_abs(v_load(x + i)));
    m1 = v_max(m1, v_abs(v_load(x + i + 16)));
    m2 = v_max(m2, v_abs(v_load(x + i + 32)));
    m3 = v_max(m3, v_abs(v_load(x + i + 48)));
  }
  m = v_max(v_max(m, m1), v_max(m2, m3));
  for (; i + 16 <= n; i += 16) m = v_max(m, v_abs(v_load(x + i)));
  if (i < n) m = v_max(m, v_abs(v_load_n(x + i, (int)(n - i))));
  return v_fold_max(m);
}

static void range_of(const float *x, int64_t n, float *low, float *high) {
  vf lo = v_zero(), hi = v_zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const vf v = v_load(x + i);
    lo = v_min(lo, v);
    hi = v_max(hi, v);
  }
  if (i < n) {
    const vf v = v_load_n(x + i, (int)(n - i));
    lo = v_min(lo, v);
    hi = v_max(hi, v);
  }
  *high = v_fold_max(hi);
  *low = 0.0f - v_fold_max(v_sub(v_zero(), lo));
}

typedef struct { float scale, inverse; int32_t zero, low, high, offset; } grid;

static grid grid_of(const float *x, int64_t n, const nb_quant *q) {
  grid g;
  if (q->symmetric) {
    const int32_t qmax = (1 << (q->bits - 1)) - 1;
    g.scale = (q->clip * amax_of(x, n)) / (float)qmax;
    if (g.scale < 0x1p-126f) g.scale = 1.0f;
    g.inverse = 1.0f / g.scale;
    g.zero = g.offset = 0;
    g.low = -qmax - 1;
    g.high = qmax;
  } else {
    float lo, hi;
    range_of(x, n, &lo, &hi);
    lo = q->clip * lo;
    hi = q->clip * hi;
    const int32_t top = (1 << q->bits) - 1;
    g.scale = (hi - lo) / (float)top;
    if (g.scale < 0x1p-126f) g.scale = 1.0f;
    g.inverse = 1.0f / g.scale;
    float z = -lo * g.inverse;
    z = (z + 12582912.0f) - 12582912.0f;
    g.offset = q->bits == 8 ? 128 : 0;
    g.zero = (int32_t)z;
    g.low = 0;
    g.high = top;
  }
  return g;
}

INLINE vi codes_of(int clamped, vf x, vf inverse, vf low, vf high, vi shift) {
  vf v = v_mul(x, inverse);
  if (clamped) v = v_max(v_min(v, high), low);
  return vi_add(v_round(v), shift);
}

/*
 * Codes of n values; returns their sum. Clamping before the rounding is the same, since the bounds are integers; without
 * a clip, symmetric codes cannot leave them.
 */
INLINE int32_t encode_as(int clamped, const float *x, int64_t n, const grid *g, int8_t *codes) {
  const vf inverse = v_set(g->inverse);
  const vf low = v_set((float)(g->low - g->zero)), high = v_set((float)(g->high - g->zero));
  const vi shift = vi_set(g->zero - g->offset);
  vi sum = vi_set(0);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const vi code = codes_of(clamped, v_load(x + i), inverse, low, high, shift);
    sum = vi_add(sum, code);
    vi_store_i8(codes + i, code);
  }
  int32_t total = vi_fold(sum);
  if (i < n) {
    int32_t t[16];
    vi_store(t, codes_of(clamped, v_load_n(x + i, (int)(n - i)), inverse, low, high, shift));
    for (int l = 0; i < n; i++, l++) {
      codes[i] = (int8_t)t[l];
      total += t[l];
    }
  }
  return total;
}
static int32_t encode(const float *x, int64_t n, const grid *g, int8_t *codes, int clamped) {
  return clamped ? encode_as(1, x, n, g, codes) : encode_as(0, x, n, g, codes);
}

void ISA_NAME(row_quantize)(const float *x, const nb_quant *q, int8_t *codes, float *scale, int32_t *sum,
                            int32_t *zero) {
  const int64_t size = q->group_size ? q->group_size : q->width;
  grid g = {0};
  if (q->whole_row) {
    g = grid_of(x, q->width, q);
    scale[0] = g.scale;
    if (zero) zero[0] = g.zero - g.offset;
  }
  for (int64_t i = 0; i < q->groups; i++) {
    const int64_t at = i * size, n = nb_min(size, q->width - at);
    if (!q->whole_row) {
      g = grid_of(x + at, n, q);
      scale[i] = g.scale;
      if (zero) zero[i] = g.zero - g.offset;
    }
    sum[i] = encode(x + at, n, &g, codes + at, !q->symmetric || q->clip < 1.0f);
  }
  for (int64_t i = q->width; i < nb_round_up(q->width, 32); i++) codes[i] = 0;
}

NB_OP(rmsnorm) {
  const float *src = nb_at(c, ins[RMSNORM_SRC_AT]);
  float *dst = nb_at(c, ins[RMSNORM_DST_AT]);
  const float *gain = nb_at(c, ins[RMSNORM_GAIN_AT]);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    ISA_NAME(row_rmsnorm)(src + m * ins[RMSNORM_LD_SRC], dst + m * ins[RMSNORM_LD_DST], ins[RMSNORM_WIDTH], gain,
                          nb_float(ins[RMSNORM_EPSILON_F]));
  }
}

/* The operands from rowsReg to clipF stand at the same words in quantize and both fused ops. */
_Static_assert((int)QUANTIZE_CLIP_F == (int)RMSNORM_QUANTIZE_CLIP_F, "operands of the fused ops");
_Static_assert((int)QUANTIZE_CLIP_F == (int)HADAMARD_QUANTIZE_CLIP_F, "operands of the fused ops");

typedef struct { nb_quant q; const float *src; int8_t *codes; float *scale; int32_t *sum, *zero; int64_t scales; } quant_rows;

static quant_rows read_quantize(nb_ctx *c, const int32_t *ins) {
  quant_rows r;
  const int64_t size = ins[QUANTIZE_GROUP_SIZE];
  r.q.width = ins[QUANTIZE_WIDTH];
  r.q.group_size = size;
  r.q.groups = size ? (r.q.width + size - 1) / size : 1;
  r.q.bits = ins[QUANTIZE_BITS];
  r.q.symmetric = ins[QUANTIZE_SYMMETRIC] & 1;
  r.q.whole_row = ins[QUANTIZE_SYMMETRIC] & 2;
  r.q.clip = nb_float(ins[QUANTIZE_CLIP_F]);
  r.src = nb_at(c, ins[QUANTIZE_SRC_AT]);
  r.codes = nb_at(c, ins[QUANTIZE_CODES_AT]);
  r.scale = nb_at(c, ins[QUANTIZE_SCALE_AT]);
  r.sum = nb_at(c, ins[QUANTIZE_SUM_AT]);
  r.zero = r.q.symmetric ? NULL : nb_at(c, ins[QUANTIZE_ZERO_AT]);
  r.scales = r.q.whole_row ? 1 : r.q.groups;
  return r;
}

static void quantize_one(const quant_rows *r, const int32_t *ins, int64_t m, const float *x) {
  ISA_NAME(row_quantize)(x, &r->q, r->codes + m * ins[QUANTIZE_LD_CODES], r->scale + m * r->scales,
                         r->sum + m * r->q.groups, r->zero ? r->zero + m * r->scales : NULL);
}

NB_OP(quantize) {
  const quant_rows r = read_quantize(c, ins);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) quantize_one(&r, ins, m, r.src + m * ins[QUANTIZE_LD_SRC]);
}

NB_OP(rmsnorm_quantize) {
  const quant_rows r = read_quantize(c, ins);
  const float *gain = nb_at(c, ins[RMSNORM_QUANTIZE_GAIN_AT]);
  float *y = (float *)c->scratch;
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    ISA_NAME(row_rmsnorm)(r.src + m * ins[QUANTIZE_LD_SRC], y, r.q.width, gain, nb_float(ins[RMSNORM_QUANTIZE_EPSILON_F]));
    quantize_one(&r, ins, m, y);
  }
}

NB_OP(hadamard_quantize) {
  const quant_rows r = read_quantize(c, ins);
  float *y = (float *)c->scratch;
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  if (m == end) return;
  nb_hadamard h;
  ISA_NAME(read_hadamard)(c, ins + HADAMARD_QUANTIZE_BLOCKS, &h, y + nb_round_up(r.q.width, 16));
  for (; m < end; m++) {
    ISA_NAME(row_hadamard)(r.src + m * ins[QUANTIZE_LD_SRC], y, &h);
    quantize_one(&r, ins, m, y);
  }
}

NB_OP(dequantize) {
  const int8_t *codes = nb_at(c, ins[DEQUANTIZE_CODES_AT]);
  const float *scale = nb_at(c, ins[DEQUANTIZE_SCALE_AT]);
  const int32_t *zero = nb_at(c, ins[DEQUANTIZE_ZERO_AT]);
  float *dst = nb_at(c, ins[DEQUANTIZE_DST_AT]);
  const int64_t width = ins[DEQUANTIZE_WIDTH];
  const int64_t size = ins[DEQUANTIZE_GROUP_SIZE] ? ins[DEQUANTIZE_GROUP_SIZE] : width;
  const int64_t groups = (width + size - 1) / size;
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const int8_t *q = codes + m * ins[DEQUANTIZE_LD_CODES];
    float *y = dst + m * ins[DEQUANTIZE_LD_DST];
    for (int64_t g = 0; g < groups; g++) {
      const float s = scale[m * groups + g];
      const int32_t z = zero ? zero[m * groups + g] : 0;
      for (int64_t i = g * size; i < nb_min(width, (g + 1) * size); i++) y[i] = s * (float)(q[i] - z);
    }
  }
}

NB_OP(round_float) {
  const float *src = nb_at(c, ins[ROUND_FLOAT_SRC_AT]);
  float *dst = nb_at(c, ins[ROUND_FLOAT_DST_AT]);
  const int64_t width = ins[ROUND_FLOAT_WIDTH];
  const int32_t mantissa = ins[ROUND_FLOAT_MANTISSA], least = ins[ROUND_FLOAT_MIN_EXPONENT];
  float largest;
  memcpy(&largest, &ins[ROUND_FLOAT_LARGEST_F], 4);
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const float *x = src + m * ins[ROUND_FLOAT_LD_SRC];
    float *y = dst + m * ins[ROUND_FLOAT_LD_DST];
    float scale = amax_of(x, width) / largest;
    if (!(scale >= 0x1p-126f)) scale = 1;
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < width; i++) {
      float t = x[i] * inverse;
      t = t > largest ? largest : t < -largest ? -largest : t;
      int32_t word;
      memcpy(&word, &t, 4);
      int32_t exponent = ((word >> 23) & 255) - 127;
      exponent = exponent < least ? least : exponent;
      const int32_t up_word = (127 + mantissa - exponent) << 23, step_word = (127 + exponent - mantissa) << 23;
      float up, step;
      memcpy(&up, &up_word, 4);
      memcpy(&step, &step_word, 4);
      float value = rintf(t * up) * step;
      value = value > largest ? largest : value < -largest ? -largest : value;
      y[i] = value * scale + 0.0f; // no negative zero
    }
  }
}
