/*
 * appendKv: norm, RoPE (arXiv:2104.09864), Hadamard and quantization of queries and keys, and the packed cache write.
 * One piece of work is one head of one row; a token's codes are whole bytes of its own, so pieces never meet. Keys of a
 * kivi cache are coded page by page, after all rows are in the ring.
 */
#include <math.h>
#include "kivi.h"
#include "simd.h"

#define MAX_HEAD 512

static void rope(float *x, int64_t half, const float *cosine, const float *sine) {
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t n = half - i;
    const vf a = v_load_upto(x + i, n), b = v_load_upto(x + half + i, n);
    const vf co = v_load_upto(cosine + i, n), si = v_load_upto(sine + i, n);
    v_store_upto(x + i, v_sub(v_mul(a, co), v_mul(b, si)), n);
    v_store_upto(x + half + i, v_add(v_mul(b, co), v_mul(a, si)), n);
  }
}

/* Codes 0..n of clamp(rne((x + before) * inverse) + after). */
static void encode(const float *x, int64_t count, float before, float inverse, int32_t after, int32_t n, uint8_t *codes) {
  const vf low = v_set((float)-after), high = v_set((float)(n - after));
  for (int64_t i = 0; i < count; i += 16) {
    vf v = v_load_upto(x + i, count - i);
    v = v_mul(v_add(v, v_set(before)), v_set(inverse));
    const vi code = vi_add(v_round(v_max(v_min(v, high), low)), vi_set(after));
    vi_store_i8((int8_t *)codes + i, code); /* codes has room for a whole vector */
  }
}

/* Codes of one token; returns the bits of its scale and zero. */
static void encode_token(const nb_plane *p, const float *x, int64_t head_dim, uint8_t *codes, uint16_t *scale_bits,
                         uint16_t *zero_bits) {
  const int32_t n = p->codec == CODEC_INT4 ? 15 : 255;
  float low = p->zero_int ? 0.0f : x[0], high = low;
  for (int64_t i = 0; i < head_dim; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  low = p->clip * low;
  high = p->clip * high;
  if (p->zero_int && low == 0 && high == 0) {
    low = -1;
    high = 1;
  }
  float range = high - low;
  if (!p->zero_int && range < 1e-5f) range = 1e-5f;
  *scale_bits = float_to_half(range / (float)n);
  if (!*scale_bits) *scale_bits = 1;
  const float inverse = 1.0f / half_to_float(*scale_bits);
  if (p->zero_int) {
    float z = -low * inverse;
    z = (z + 12582912.0f) - 12582912.0f;
    *zero_bits = float_to_half(z);
    encode(x, head_dim, 0, inverse, (int32_t)z, n, codes);
  } else {
    *zero_bits = float_to_half(0.0f - low);
    encode(x, head_dim, half_to_float(*zero_bits), inverse, 0, n, codes);
  }
}

static uint32_t four(const uint8_t *codes) {
  uint32_t v;
  memcpy(&v, codes, 4);
  return v;
}

/* One token into slot `slot` of a plane. */
static void store_token(const nb_plane *p, int keys, uint8_t *plane, int64_t slot, const float *x, int64_t head_dim) {
  if (!nb_codec_is_int(p->codec)) {
    const int64_t first = keys ? (slot >> 4) * head_dim * 16 + (slot & 15) : slot * head_dim, step = keys ? 16 : 1;
    for (int64_t d = 0; d < head_dim; d++) {
      if (p->codec == CODEC_F32) ((float *)plane)[first + d * step] = x[d];
      else ((uint16_t *)plane)[first + d * step] = float_to_half(x[d]);
    }
    return;
  }
  uint8_t codes[MAX_HEAD + 16];
  uint16_t *parameters = (uint16_t *)(plane + p->parameters) + slot;
  encode_token(p, x, head_dim, codes, parameters, parameters + PAGE_TOKENS);
  if (p->codec == CODEC_INT8) {
    if (!keys) {
      memcpy(plane + slot * head_dim, codes, (size_t)head_dim);
      return;
    }
    uint8_t *to = plane + (slot >> 4) * head_dim * 16 + (slot & 15) * 4;
    for (int64_t d = 0; d < head_dim; d += 4, to += 64) memcpy(to, codes + d, 4);
  } else if (keys) {
    uint8_t *to = plane + (slot >> 4) * head_dim * 8 + (slot & 15) * 4;
    for (int64_t d = 0; d < head_dim; d += 8, to += 64) {
      const uint32_t bytes = four(codes + d) | four(codes + d + 4) << 4;
      memcpy(to, &bytes, 4);
    }
  } else {
    const int64_t block = head_dim % 64 ? head_dim : 64;
    uint8_t *to = plane + slot * head_dim / 2;
    for (int64_t d = 0; d < head_dim; d += block) {
      for (int64_t i = 0; i < block / 2; i++) *to++ = (uint8_t)(codes[d + i] | codes[d + block / 2 + i] << 4);
    }
  }
}

/* A key or value of a kivi cache goes to the ring; values are coded at once. */
static void store_kivi(const nb_cache *k, int keys, uint8_t *plane, float *ring, int64_t position,
                       const float *x) {
  const int64_t d = k->head_dim;
  if (!keys) {
    memcpy(nb_ring_values(ring, k, position), x, (size_t)d * 4);
    ISA_NAME(kivi_store_value)(&k->value, plane, position % PAGE_TOKENS, x, d);
    return;
  }
  float *to = nb_ring_keys(ring, k, position) + position % 16;
  for (int64_t i = 0; i < d; i++) to[i * 16] = x[i];
}

/* Codes the keys of pages whose last token came in this run. */
static void code_key_pages(nb_ctx *c, const int32_t *ins, const nb_cache *k, const int32_t *positions,
                           const int32_t *slots) {
  const int64_t rows = nb_rows(c, ins), layer = ins[APPEND_KV_LAYER];
  int any = 0;
  for (int64_t m = 0; m < rows; m++) any |= positions[m] % PAGE_TOKENS == PAGE_TOKENS - 1;
  if (!any) return; /* every thread sees the same rows */
  nb_barrier(c);
  if (nb_stopped(c)) return;
  int64_t unit, end;
  nb_share(c, rows * k->kv_heads, &unit, &end);
  for (; unit < end; unit++) {
    const int64_t m = unit / k->kv_heads, head = unit % k->kv_heads, position = positions[m];
    if (position % PAGE_TOKENS != PAGE_TOKENS - 1) continue;
    uint8_t *page = nb_page(c, k, slots[m], (int32_t)layer, position, head);
    const float *keys = nb_ring_keys(nb_ring(c, k, slots[m], (int32_t)layer, head), k, position + 1 - PAGE_TOKENS);
    ISA_NAME(kivi_store_keys)(&k->key, page, keys, k->head_dim);
  }
}

NB_OP(append_kv) {
  const int64_t heads = ins[APPEND_KV_HEADS], kv_heads = ins[APPEND_KV_KV_HEADS], head_dim = ins[APPEND_KV_HEAD_DIM];
  const nb_cache cache = nb_read_cache(c, ins[APPEND_KV_CACHE_C], head_dim);
  const float *qkv = nb_at(c, ins[APPEND_KV_QKV_AT]);
  const int32_t *positions = nb_at(c, ins[APPEND_KV_POSITIONS_AT]), *slots = nb_at(c, ins[APPEND_KV_SEQUENCES_AT]);
  const float *cosine = nb_at(c, ins[APPEND_KV_COS_AT]), *sine = nb_at(c, ins[APPEND_KV_SIN_AT]);
  const float *gains[2] = {nb_at(c, ins[APPEND_KV_QUERY_GAIN_AT]), nb_at(c, ins[APPEND_KV_KEY_GAIN_AT])};
  uint8_t *query = nb_at(c, ins[APPEND_KV_QUERY_AT]);
  float *scale = nb_at(c, ins[APPEND_KV_QUERY_SCALE_AT]);
  int32_t *sum = nb_at(c, ins[APPEND_KV_QUERY_SUM_AT]);
  const nb_hadamard rotation = {1, 1, head_dim, 1, NULL, NULL, NULL, 1.0f / sqrtf((float)head_dim)};
  const nb_quant codes8 = {head_dim, 0, 1, 8, 1, 0, 1.0f};
  const int64_t units = heads + 2 * kv_heads;
  float x[MAX_HEAD + 16];
  int8_t codes[MAX_HEAD + 32];
  int64_t unit, end;
  nb_share(c, nb_rows(c, ins) * units, &unit, &end);
  for (; unit < end; unit++) {
    const int64_t m = unit / units, h = unit % units;
    const int kind = h < heads ? 0 : h < heads + kv_heads ? 1 : 2; /* query, key, value */
    uint8_t *page = NULL;
    if (nb_row_is_valid(&cache, positions[m], slots[m])) {
      const int64_t head = kind == 0 ? 0 : kind == 1 ? h - heads : h - heads - kv_heads;
      page = nb_page(c, &cache, slots[m], ins[APPEND_KV_LAYER], positions[m], head);
    }
    if (!page) {
      nb_fail(c, ins);
      break; /* there may be a barrier to meet at */
    }
    memcpy(x, qkv + m * ins[APPEND_KV_LD_QKV] + h * head_dim, (size_t)head_dim * 4);
    if (kind < 2) {
      if (gains[kind]) ISA_NAME(row_rmsnorm)(x, x, head_dim, gains[kind], nb_float(ins[APPEND_KV_EPSILON_F]));
      const int64_t half = head_dim / 2;
      rope(x, half, cosine + positions[m] * half, sine + positions[m] * half);
      if (cache.hadamard) ISA_NAME(row_hadamard)(x, x, &rotation);
    }
    if (kind == 0) {
      const int64_t at = m * heads + h;
      if (cache.query_bits == 32) {
        memcpy(query + at * head_dim * 4, x, (size_t)head_dim * 4);
      } else {
        ISA_NAME(row_quantize)(x, &codes8, codes, scale + at, sum + at, NULL);
        memcpy(query + at * head_dim, codes, (size_t)head_dim);
      }
    } else {
      const int keys = kind == 1;
      if (cache.residual) {
        const int64_t head = h - heads - (keys ? 0 : kv_heads);
        store_kivi(&cache, keys, keys ? page : page + cache.key_bytes,
                   nb_ring(c, &cache, slots[m], ins[APPEND_KV_LAYER], head), positions[m], x);
        continue;
      }
      store_token(keys ? &cache.key : &cache.value, keys, keys ? page : page + cache.key_bytes,
                  positions[m] % PAGE_TOKENS, x, head_dim);
    }
  }
  if (cache.residual) code_key_pages(c, ins, &cache, positions, slots);
}
