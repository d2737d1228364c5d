/* Codes of a tile64 matrix as a segment of panel 32 (docs/engine.md, section 4): a permutation, done while a model loads. */
#ifndef NIBBLE_PACK_H
#define NIBBLE_PACK_H

#include <stdint.h>

typedef struct nb_pack {
  const uint8_t *source; /* [rows, ceil(k / 64)] tiles of 8 * width bytes */
  uint8_t *target;       /* the whole segment, n channels */
  int width;             /* 8, 4, 2 or 1 bits */
  int interleaved;       /* channels 0..n/2-1 are gate, the rest up; n is a multiple of 32 */
  int parts; /* pieces of work that the rows are cut into */
  int64_t k, n, first, rows; /* source row r is channel first + r of n */
} nb_pack;

/* False for sizes that make no sense; the two below may be called only when it is true. */
int nb_pack_is_valid(const nb_pack *);
int64_t nb_pack_source_bytes(const nb_pack *);
int64_t nb_pack_target_bytes(const nb_pack *);
/* The codes that a part reads. */
const uint8_t *nb_pack_part_source(const nb_pack *, int part, int64_t *bytes);
/* One part. */
void nb_pack_rows(const nb_pack *, int part);

#endif
