#include "pack.h"
#include <string.h>

static inline uint32_t load32(const uint8_t *p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}
static inline uint64_t load64(const uint8_t *p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x;
}

/*
 * The four bytes of step s of one channel, from its tile64 row: in a tile, code i of width w is in byte i % (8w), at bit
 * w * (i / (8w)); width 1 has code i at bit i. Little-endian.
 */
static inline uint32_t step4(const uint8_t *row, int64_t s) {
  const uint64_t x = load64(row + (s >> 3) * 32 + (s & 3) * 8) >> (s & 4) & 0x0f0f0f0f0f0f0f0f;
  return (uint32_t)x | (uint32_t)(x >> 32) << 4;
}
static inline uint32_t step2(const uint8_t *row, int64_t s) {
  const uint8_t *tile = row + (s >> 2) * 16;
  uint32_t out = 0;
  for (int t = 0; t < 4; t++) out |= (load32(tile + 4 * t) >> (2 * (s & 3)) & 0x03030303) << (2 * t);
  return out;
}
static inline uint32_t step1(const uint8_t *row, int64_t s) {
  const uint32_t codes = load32(row + 4 * s);
  uint32_t out = 0;
  for (int r = 0; r < 4; r++) {
    for (int t = 0; t < 8; t++) out |= (codes >> (4 * t + r) & 1) << (8 * r + t);
  }
  return out;
}

static void pack_row(const uint8_t *row, uint8_t *to, int width, int64_t steps) {
#define STEPS(value)                                              \
  for (int64_t s = 0; s < steps; s++) {                           \
    const uint32_t bytes = value;                                 \
    memcpy(to + s * 128, &bytes, 4);                              \
  }
  if (width == 8) STEPS(load32(row + 4 * s))
  else if (width == 4) STEPS(step4(row, s))
  else if (width == 2) STEPS(step2(row, s))
  else STEPS(step1(row, s))
#undef STEPS
}

int64_t nb_pack_source_bytes(const nb_pack *p) { return p->rows * ((p->k + 63) / 64) * 8 * p->width; }

int64_t nb_pack_target_bytes(const nb_pack *p) {
  return (p->n + 31) / 32 * ((p->k + 31) / 32 * 32) * 4 * p->width;
}

int nb_pack_is_valid(const nb_pack *p) {
  const int64_t limit = (int64_t)1 << 31;
  if (p->width != 1 && p->width != 2 && p->width != 4 && p->width != 8) return 0;
  if (p->k < 1 || p->n < 1 || p->rows < 0 || p->first < 0 || p->k >= limit || p->n >= limit) return 0;
  if (p->rows > p->n - p->first) return 0;
  return !p->interleaved || p->n % 32 == 0;
}

const uint8_t *nb_pack_part_source(const nb_pack *p, int part, int64_t *bytes) {
  const int64_t row_bytes = (p->k + 63) / 64 * 8 * p->width;
  const int64_t from = p->rows * part / p->parts, to = p->rows * (part + 1) / p->parts;
  *bytes = (to - from) * row_bytes;
  return p->source + from * row_bytes;
}

void nb_pack_rows(const nb_pack *p, int part) {
  const int64_t steps = (p->k + 31) / 32 * p->width, row_bytes = (p->k + 63) / 64 * 8 * p->width;
  const int64_t from = p->rows * part / p->parts, to = p->rows * (part + 1) / p->parts;
  for (int64_t r = from; r < to; r++) {
    const int64_t channel = p->first + r, half = p->n / 2;
    int64_t slot = channel;
    if (p->interleaved) {
      const int64_t i = channel < half ? channel : channel - half;
      slot = i / 16 * 32 + i % 16 + (channel < half ? 0 : 16);
    }
    pack_row(p->source + r * row_bytes, p->target + slot / 32 * steps * 128 + slot % 32 * 4, p->width, steps);
  }
}
