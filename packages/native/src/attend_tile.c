/*
 * Attention of f32 queries over one decoded tile of keys and values, into a running softmax (online softmax,
 * arXiv:2205.14135). Chunks of 128 slots merge in rising order; a (row, KV head) pair belongs to one thread, so the bits do
 * not depend on their number.
 */
#include <math.h>
#include "kernels.h"
#include "simd.h"

#define CHUNK ATTENTION_CHUNK

typedef struct {
  int64_t head_dim;
  float scale;
} shape;

INLINE float dot(const float *a, const float *b, int64_t n) {
  vf acc = v_zero();
  int64_t d = 0;
  for (; d + 16 <= n; d += 16) acc = v_fma(v_load(a + d), v_load(b + d), acc);
  if (d < n) acc = v_fma(v_load_n(a + d, (int)(n - d)), v_load_n(b + d, (int)(n - d)), acc);
  return v_fold(acc);
}

/* `count` slots of one chunk for one query; keys and values point at the first of them. */
static void attend_chunk(const shape *s, const float *query, const float *keys, const float *values, int64_t count,
                         float *state, float *logits) {
  const int64_t dim = s->head_dim;
  float scores[CHUNK + 16];
  float max = -INFINITY;
  for (int64_t t = 0; t < count; t++) {
    scores[t] = dot(query, keys + t * dim, dim) * s->scale;
    max = scores[t] > max ? scores[t] : max;
  }
  if (logits) memcpy(logits, scores, (size_t)count * 4);
  vf total = v_zero();
  const vf top = v_set(max);
  for (int64_t t = 0; t < count; t += 16) {
    const int64_t n = count - t;
    const vf e = v_exp(v_sub(v_load_upto(scores + t, n), top));
    v_store(scores + t, e);
    if (n >= 16) total = v_add(total, e);
    else total = v_add(total, v_load_n(scores + t, (int)n));
  }
  const float old = state[0], merged = old > max ? old : max;
  const float keep = exp_one(old - merged), take = exp_one(max - merged);
  state[0] = merged;
  state[1] = state[1] * keep + v_fold(total) * take;
  float *acc = state + 2;
  for (int64_t d = 0; d < dim; d += 64) {
    vf sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const int64_t wide = dim - d;
    if (wide >= 64) {
      for (int64_t t = 0; t < count; t++) {
        const vf p = v_set(scores[t]);
        const float *v = values + t * dim + d;
        UNROLL for (int i = 0; i < 4; i++) sum[i] = v_fma(p, v_load(v + 16 * i), sum[i]);
      }
    } else {
      for (int64_t t = 0; t < count; t++) {
        const vf p = v_set(scores[t]);
        const float *v = values + t * dim + d;
        for (int i = 0; 16 * i < wide; i++) sum[i] = v_fma(p, v_load_upto(v + 16 * i, wide - 16 * i), sum[i]);
      }
    }
    for (int i = 0; i < 4 && 16 * i < wide; i++) {
      const int64_t n = wide - 16 * i;
      const vf before = v_mul(v_load_upto(acc + d + 16 * i, n), v_set(keep));
      v_store_upto(acc + d + 16 * i, v_fma(sum[i], v_set(take), before), n);
    }
  }
}

NB_OP(attend_tile) {
  const int64_t heads = ins[ATTEND_TILE_HEADS], kv_heads = ins[ATTEND_TILE_KV_HEADS], slots = ins[ATTEND_TILE_SLOTS];
  const shape s = {ins[ATTEND_TILE_HEAD_DIM], nb_float(ins[ATTEND_TILE_SOFTMAX_SCALE_F])};
  const float *queries = nb_at(c, ins[ATTEND_TILE_QUERY_AT]);
  const float *keys = nb_at(c, ins[ATTEND_TILE_KEYS_AT]), *values = nb_at(c, ins[ATTEND_TILE_VALUES_AT]);
  const int32_t *ranges = nb_at(c, ins[ATTEND_TILE_RANGES_AT]);
  float *states = nb_at(c, ins[ATTEND_TILE_STATE_AT]), *logits = nb_at(c, ins[ATTEND_TILE_LOGITS_AT]);
  const int64_t group = heads / kv_heads;
  int64_t item, end;
  nb_share(c, nb_rows(c, ins) * kv_heads, &item, &end);
  for (; item < end; item++) {
    const int64_t m = item / kv_heads, kv = item % kv_heads;
    const int64_t from = ranges[item * 2], to = ranges[item * 2 + 1];
    if (from < 0 || from > to || to > slots) {
      nb_fail(c, ins);
      return;
    }
    for (int64_t start = from; start < to;) {
      const int64_t stop = nb_min(to, start - start % CHUNK + CHUNK);
      const int64_t place = (kv * slots + start) * s.head_dim;
      for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        const int64_t q = m * heads + h;
        attend_chunk(&s, queries + m * ins[ATTEND_TILE_LD_QUERY] + h * s.head_dim, keys + place, values + place,
                     stop - start, states + q * (s.head_dim + 2), logits ? logits + q * slots + start : NULL);
      }
      start = stop;
    }
  }
}
