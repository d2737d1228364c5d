#include "cpu.h"
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static int always(void) { return 1; }

#if defined(__x86_64__)
/* Register state the operating system saves (xgetbv). */
static uint64_t saved_state(void) {
  uint32_t a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static int has_avx2(void) {
  uint32_t a, b, c, d;
  if ((saved_state() & 6) != 6 || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
  if (!(c & bit_FMA) || !(c & bit_F16C) || !(c & bit_AVX)) return 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

static int has_avxvnni(void) {
  uint32_t a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static int has_avx512vnni(void) {
  uint32_t a, b, c, d;
  if (!has_avx2() || (saved_state() & 0xe6) != 0xe6) return 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  const uint32_t need = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  return (b & need) == need && (c & bit_AVX512VNNI);
}

static int has_avx512bf16(void) {
  uint32_t a, b, c, d;
  return has_avx512vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#elif defined(__aarch64__)
static int has_dot_product(void) {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP */
#else
  return 1; /* every Apple processor that runs Node 20 */
#endif
}
#endif

const nb_variant *nb_variants(void) {
  static const nb_variant list[] = {
#if defined(__x86_64__)
#if !defined(NIBBLE_WITHOUT_avx512vnni)
      {&nb_kernels_avx512vnni, has_avx512vnni, "AVX-512 F, BW, VL, DQ and VNNI", NULL},
#endif
#if !defined(NIBBLE_WITHOUT_avxvnni)
      {&nb_kernels_avxvnni, has_avxvnni, "AVX-VNNI, AVX2, FMA and F16C", NULL},
#endif
#if !defined(NIBBLE_WITHOUT_avx2)
      {&nb_kernels_avx2, has_avx2, "AVX2, FMA and F16C", NULL},
#endif
#elif defined(__aarch64__)
      {&nb_kernels_neon, has_dot_product, "the dot product extension", NULL},
#endif
      {&nb_kernels_baseline, always, "nothing beyond the baseline", NULL},
#if defined(__x86_64__) && !defined(NIBBLE_WITHOUT_avx512vnni) && !defined(NIBBLE_WITHOUT_avx512bf16)
      {&nb_kernels_avx512bf16, has_avx512bf16, "AVX-512 BF16", "float products are rounded to bf16"},
#endif
      {NULL, NULL, NULL, NULL},
  };
  return list;
}

const nb_kernels *nb_find_variant(const char *name) {
  for (const nb_variant *v = nb_variants(); v->kernels; v++) {
    if (!strcmp(v->kernels->name, name) && v->runs()) return v->kernels;
  }
  return NULL;
}
