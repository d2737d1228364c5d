#include "ceilings.h"
#include <stdlib.h>
#include <string.h>
#include "cpu.h"
#include "threads.h"

#if defined(__x86_64__)

#define SLICES 160
#define STEPS 20000 /* of twelve accumulators each */
/* Slices walk through a buffer larger than the caches. */
#define READ_BYTES ((int64_t)256 << 20)
#define READ_SLICE ((int64_t)4 << 20)

enum { DOT, FMA, BF16, READ };

typedef struct {
  int kind, wide; /* wide: 512-bit registers */
  uint8_t *buffer;
  int64_t at; /* byte of the buffer where this slice begins */
} load;

/* One accumulator's step, for the twelve accumulators 0..11. */
#define TWELVE(step) \
  step("0") step("1") step("2") step("3") step("4") step("5") step("6") step("7") step("8") step("9") step("10") step("11")
#define DOT512(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" i "\n"
#define FMA512(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" i "\n"
#define BF16_512(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" i "\n"
/* The route to 32-bit sums that cannot saturate for 7-bit operands. */
#define DOT256(i) \
  "vpmaddubsw %%ymm14, %%ymm15, %%ymm12\nvpmaddwd %%ymm13, %%ymm12, %%ymm12\nvpaddd %%ymm12, %%ymm" i ", %%ymm" i "\n"
#define FMA256(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" i "\n"
#define CLOBBERS                                                                                                 \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15", "cc"
#define ZERO512 "vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31\n"
#define ZERO256 "vpxor %%ymm13, %%ymm13, %%ymm13\nvpxor %%ymm14, %%ymm14, %%ymm14\nvpxor %%ymm15, %%ymm15, %%ymm15\n"
#define LOOP(zero, step) \
  __asm__ volatile(zero "1:\n" TWELVE(step) "dec %0\njnz 1b\nvzeroupper" : "+r"(n) : : CLOBBERS)
#define FETCH "1:\nprefetcht0 2048(%1)\nprefetcht0 2112(%1)\nprefetcht0 2176(%1)\nprefetcht0 2240(%1)\n"
#define NEXT "add $256, %1\ndec %0\njnz 1b\nvzeroupper"

static void work(void *arg, int thread) {
  const load *l = arg;
  int64_t n = STEPS;
  if (l->kind == READ) {
    const uint8_t *p = l->buffer + (l->at + thread * READ_SLICE) % READ_BYTES;
    n = READ_SLICE / 256;
    if (l->wide) {
      __asm__ volatile(FETCH "vmovdqu64 (%1), %%zmm0\nvmovdqu64 64(%1), %%zmm1\nvmovdqu64 128(%1), %%zmm2\n"
                             "vmovdqu64 192(%1), %%zmm3\n" NEXT
                       : "+r"(n), "+r"(p)
                       :
                       : "xmm0", "xmm1", "xmm2", "xmm3", "cc", "memory");
    } else {
      __asm__ volatile(FETCH "vmovdqu (%1), %%ymm0\nvmovdqu 32(%1), %%ymm1\nvmovdqu 64(%1), %%ymm2\nvmovdqu 96(%1), %%ymm3\n"
                             "vmovdqu 128(%1), %%ymm0\nvmovdqu 160(%1), %%ymm1\nvmovdqu 192(%1), %%ymm2\n"
                             "vmovdqu 224(%1), %%ymm3\n" NEXT
                       : "+r"(n), "+r"(p)
                       :
                       : "xmm0", "xmm1", "xmm2", "xmm3", "cc", "memory");
    }
  } else if (l->kind == BF16) {
    LOOP(ZERO512, BF16_512);
  } else if (l->kind == DOT) {
    if (l->wide) LOOP(ZERO512, DOT512);
    else LOOP(ZERO256, DOT256);
  } else {
    if (l->wide) LOOP(ZERO512, FMA512);
    else LOOP(ZERO256, FMA256);
  }
}

double nb_ceiling(const char *name, int threads, const nb_kernels *variant) {
  load l = {0};
  double amount = 0, best = 0;
  const int bf16 = !strcmp(variant->name, "avx512bf16");
  l.wide = bf16 || !strcmp(variant->name, "avx512vnni");
  if (!l.wide && strcmp(variant->name, "avx2")) return 0;
  if (!strcmp(name, "dot")) l.kind = DOT, amount = 12.0 * STEPS * (l.wide ? 128 : 64) * threads;
  if (!strcmp(name, "fma")) l.kind = FMA, amount = 12.0 * STEPS * (l.wide ? 32 : 16) * threads;
  if (bf16 && !strcmp(name, "bf16")) l.kind = BF16, amount = 12.0 * STEPS * 64 * threads;
  if (!strcmp(name, "read")) {
    l.kind = READ;
    amount = (double)(READ_SLICE * threads);
    if (posix_memalign((void **)&l.buffer, 1 << 21, (size_t)(READ_BYTES + READ_SLICE))) return 0;
    memset(l.buffer, 1, (size_t)(READ_BYTES + READ_SLICE));
  }
  uint8_t *control = calloc(1, CONTROL_BYTES);
  nb_team *team = control && amount > 0 ? nb_team_create(control, CONTROL_BYTES, threads, variant) : NULL;
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

double nb_ceiling(const char *name, int threads, const nb_kernels *variant) {
  (void)name;
  (void)threads;
  (void)variant;
  return 0;
}

#endif
