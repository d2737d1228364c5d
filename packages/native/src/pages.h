/* A KV cache descriptor with its pages (docs/engine.md, "Pages"). */
#ifndef NIBBLE_PAGES_H
#define NIBBLE_PAGES_H

#include "kernels.h"

typedef struct nb_plane {
  int codec, zero_int;
  float clip;
  int64_t parameters; /* byte of the f16 parameters inside the plane */
} nb_plane;

typedef struct nb_cache {
  nb_plane key, value;
  int hadamard, query_bits;
  int64_t pool, page_bytes, head_bytes, key_bytes, layers, max_pages, pages, slots, kv_heads, head_dim;
  int64_t residual, tail, tail_tokens; /* kivi codecs; residual 0: none */
  const int32_t *table;
} nb_cache;

static inline int64_t nb_plane_bytes(int codec, int64_t head_dim) {
  static const int bits[6] = {32, 16, 8, 4, 4, 2}; /* in the order of the codecs */
  return 32 * head_dim * bits[codec] / 8;
}

static inline nb_cache nb_read_cache(const nb_ctx *c, int32_t index, int64_t head_dim) {
  const int32_t *d = c->caches + (int64_t)index * CACHE_WORDS;
  nb_cache r;
  r.key = (nb_plane){d[C_KEY_CODEC], d[C_KEY_ZERO_INT] == 1, nb_float(d[C_KEY_CLIP_F]),
                     nb_round_up(nb_plane_bytes(d[C_KEY_CODEC], head_dim), LINE)};
  r.value = (nb_plane){d[C_VALUE_CODEC], d[C_VALUE_ZERO_INT] == 1, nb_float(d[C_VALUE_CLIP_F]),
                       nb_round_up(nb_plane_bytes(d[C_VALUE_CODEC], head_dim), LINE)};
  r.hadamard = d[C_HADAMARD];
  r.query_bits = d[C_QUERY_BITS];
  r.pool = (int64_t)d[C_POOL_AT] * LINE;
  r.page_bytes = (int64_t)d[C_PAGE_LINES] * LINE;
  r.head_bytes = (int64_t)d[C_HEAD_LINES] * LINE;
  r.key_bytes = (int64_t)d[C_KEY_LINES] * LINE;
  r.layers = d[C_LAYERS];
  r.max_pages = d[C_MAX_PAGES];
  r.pages = d[C_PAGES];
  r.slots = d[C_SLOTS];
  r.kv_heads = d[C_KV_HEADS];
  r.head_dim = head_dim;
  r.residual = d[C_RESIDUAL];
  r.tail = (int64_t)d[C_TAIL_AT] * LINE;
  r.tail_tokens = d[C_TAIL_TOKENS];
  r.table = nb_at(c, d[C_TABLE_AT]);
  return r;
}

static inline int nb_codec_is_int(int codec) { return codec == CODEC_INT8 || codec == CODEC_INT4; }

static inline int nb_codec_is_kivi(int codec) { return codec == CODEC_KIVI4 || codec == CODEC_KIVI2; }

/* Position and slot of a row are inside the tables. */
static inline int nb_row_is_valid(const nb_cache *k, int32_t position, int32_t slot) {
  return position >= 0 && position < k->max_pages * PAGE_TOKENS && slot >= 0 && slot < k->slots;
}

/* Bytes of the keys of one KV head in the page of a position, or NULL when the table names no page. */
static inline uint8_t *nb_page(const nb_ctx *c, const nb_cache *k, int32_t slot, int32_t layer, int64_t position,
                               int64_t head) {
  const int32_t page = k->table[((int64_t)slot * k->layers + layer) * k->max_pages + position / PAGE_TOKENS];
  if (page < 0 || page >= k->pages) return NULL;
  return c->arena + k->pool + page * k->page_bytes + head * k->head_bytes;
}

#endif
