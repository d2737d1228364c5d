/*
 * KIVI codecs of the cache (arXiv:2402.02750; docs/engine.md, "kivi"): keys per channel over the 32 tokens of a page, values
 * per token over 32 channels, the newest rows exact in a ring.
 */
#ifndef NIBBLE_KIVI_H
#define NIBBLE_KIVI_H

#include "pages.h"

#define KIVI_GROUP PAGE_TOKENS

static inline int nb_kivi_bits(int codec) { return codec == CODEC_KIVI2 ? 2 : 4; }

/* Exact keys [tail_tokens / 16][head_dim][16] of a sequence's head; its values [tail_tokens][head_dim] follow. */
static inline float *nb_ring(const nb_ctx *c, const nb_cache *k, int32_t slot, int32_t layer, int64_t head) {
  const int64_t index = ((int64_t)slot * k->layers + layer) * k->kv_heads + head;
  return (float *)(c->arena + k->tail + index * 2 * k->tail_tokens * k->head_dim * 4);
}
/* The keys of the 32 tokens whose first is at `position`: [2][head_dim][16]. */
static inline float *nb_ring_keys(float *ring, const nb_cache *k, int64_t position) {
  return ring + position % k->tail_tokens / 16 * k->head_dim * 16;
}
/* The values from `position` on; a chunk's stand together. */
static inline float *nb_ring_values(float *ring, const nb_cache *k, int64_t position) {
  return ring + (k->tail_tokens + position % k->tail_tokens) * k->head_dim;
}

#ifdef NIBBLE_ISA
/* Codes one token's values x into row `slot` of a value plane. */
void ISA_NAME(kivi_store_value)(const nb_plane *p, uint8_t *plane, int64_t slot, const float *x, int64_t head_dim);
/* Codes a page of keys [2][head_dim][16]. */
void ISA_NAME(kivi_store_keys)(const nb_plane *p, uint8_t *plane, const float *keys, int64_t head_dim);
/*
 * Scores of M <= 12 f32 queries, `ld` floats apart, with a coded page of keys: out [M][32].
 * room: 2 * head_dim * 16 floats.
 */
void ISA_NAME(kivi_scores)(const nb_plane *p, const uint8_t *plane, int64_t head_dim, int M, const float *queries,
                           int64_t ld, float *room, float *out);

/* The values of a chunk of 128 slots. */
typedef struct nb_kivi_values {
  const nb_plane *plane;
  int64_t head_dim;
  const uint8_t *pages[ATTENTION_CHUNK / PAGE_TOKENS]; /* coded values; read where a query's slots are coded */
  const float *exact;                                  /* [128][head_dim] */
} nb_kivi_values;
/*
 * out [queries][head_dim] = values under the softmax weights e [queries][128], which are 0 outside of a query's slots:
 * coded below slot coded[q], exact from there to `last`; the first slot any query sees is `first`.
 * room: 128 * head_dim floats.
 */
void ISA_NAME(kivi_accumulate)(const nb_kivi_values *v, int64_t queries, const float *e, const int *coded, int first,
                               int last, float *room, float *out);
#endif

#endif
