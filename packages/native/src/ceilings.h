/* What the machine can do at most, measured: benches state results as shares of these. */
#ifndef NIBBLE_CEILINGS_H
#define NIBBLE_CEILINGS_H

/*
 * "dot": int8 operations of vpdpbusd zmm; "fma": f32 operations of zmm fma; "read": bytes read from memory.
 * Per second, all threads together, best of several short slices; 0 when the processor cannot.
 */
double nb_ceiling(const char *name, int threads);

#endif
