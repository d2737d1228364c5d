/* What the machine can do at most, measured: benches state results as shares of these. */
#ifndef NIBBLE_CEILINGS_H
#define NIBBLE_CEILINGS_H
#include "kernels.h"

/*
 * "dot": int8 operations of the variant's dot product (vpdpbusd zmm; vpmaddubsw, vpmaddwd and vpaddd ymm); "fma": f32
 * operations of its fma; "bf16": of vdpbf16ps (avx512bf16); "read": bytes read from memory. Per second, all threads together, best of several short slices;
 * 0 for variants whose ceiling is not known.
 */
double nb_ceiling(const char *name, int threads, const nb_kernels *variant);

#endif
