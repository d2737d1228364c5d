#include "ceilings.h"
#include <stdlib.h>
#include <string.h>
#include "cpu.h"
#include "threads.h"

#if defined(__x86_64__)

#define SLICES 160
#define STEPS 20000 /* of twelve instructions each */
/* Slices walk through a buffer larger than the caches. */
#define READ_BYTES ((int64_t)256 << 20)
#define READ_SLICE ((int64_t)4 << 20)

typedef struct {
  int kind; /* 0 dot, 1 fma, 2 read */
  uint8_t *buffer;
  int64_t at; /* byte of the buffer where this slice begins */
} load;

#define TWELVE(op)                                                                                                \
  op " %%zmm30, %%zmm31, %%zmm0\n" op " %%zmm30, %%zmm31, %%zmm1\n" op " %%zmm30, %%zmm31, %%zmm2\n" op           \
     " %%zmm30, %%zmm31, %%zmm3\n" op " %%zmm30, %%zmm31, %%zmm4\n" op " %%zmm30, %%zmm31, %%zmm5\n" op           \
     " %%zmm30, %%zmm31, %%zmm6\n" op " %%zmm30, %%zmm31, %%zmm7\n" op " %%zmm30, %%zmm31, %%zmm8\n" op           \
     " %%zmm30, %%zmm31, %%zmm9\n" op " %%zmm30, %%zmm31, %%zmm10\n" op " %%zmm30, %%zmm31, %%zmm11\n"
#define CLOBBERS                                                                                                  \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "cc"
#define ZERO                                                                                                      \
  "vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31\n"

static void work(void *arg, int thread) {
  load *l = arg;
  int64_t n = STEPS;
  if (l->kind == 0) {
    __asm__ volatile(ZERO "1:\n" TWELVE("vpdpbusd") "dec %0\njnz 1b\nvzeroupper" : "+r"(n) : : CLOBBERS);
  } else if (l->kind == 1) {
    __asm__ volatile(ZERO "1:\n" TWELVE("vfmadd231ps") "dec %0\njnz 1b\nvzeroupper" : "+r"(n) : : CLOBBERS);
  } else {
    const uint8_t *p = l->buffer + (l->at + thread * READ_SLICE) % READ_BYTES;
    n = READ_SLICE / 256;
    __asm__ volatile(
        "1:\nprefetcht0 2048(%1)\nprefetcht0 2112(%1)\nprefetcht0 2176(%1)\nprefetcht0 2240(%1)\n"
        "vmovdqu64 (%1), %%zmm0\nvmovdqu64 64(%1), %%zmm1\nvmovdqu64 128(%1), %%zmm2\nvmovdqu64 192(%1), %%zmm3\n"
        "add $256, %1\ndec %0\njnz 1b\nvzeroupper"
        : "+r"(n), "+r"(p)
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "cc", "memory");
  }
}

double nb_ceiling(const char *name, int threads) {
  load l = {0};
  double amount = 0, best = 0;
  if (!nb_find_variant("avx512vnni")) return 0;
  if (!strcmp(name, "dot")) amount = 12.0 * STEPS * 128 * threads;
  if (!strcmp(name, "fma")) l.kind = 1, amount = 12.0 * STEPS * 32 * threads;
  if (!strcmp(name, "read")) {
    l.kind = 2;
    amount = (double)(READ_SLICE * threads);
    if (posix_memalign((void **)&l.buffer, 1 << 21, (size_t)(READ_BYTES + READ_SLICE))) return 0;
    memset(l.buffer, 1, (size_t)(READ_BYTES + READ_SLICE));
  }
  uint8_t *control = calloc(1, CONTROL_BYTES);
  nb_team *team = control && amount > 0 ? nb_team_create(control, CONTROL_BYTES, threads, nb_find_variant("avx512vnni")) : NULL;
  for (int i = 0; i < SLICES && team; i++) {
    const int64_t start = nb_now();
    l.at = i * threads * READ_SLICE;
    nb_team_call(team, work, &l);
    const double rate = amount / (double)(nb_now() - start) * 1e9;
    best = rate > best ? rate : best;
  }
  if (team) nb_team_destroy(team);
  free(control);
  free(l.buffer);
  return best;
}

#else

double nb_ceiling(const char *name, int threads) {
  (void)name;
  (void)threads;
  return 0;
}

#endif
