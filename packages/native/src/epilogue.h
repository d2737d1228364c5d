/* The end of both linears: bias, then store, add or swiglu, for one row of one panel. */
#ifndef NIBBLE_EPILOGUE_H
#define NIBBLE_EPILOGUE_H

#include "weights.h"

typedef struct nb_output { float *dst; int64_t ld; int epilogue; } nb_output;

/* Brings the lines that a tile will write near, so that its stores do not wait. */
INLINE void nb_prefetch_output(const nb_output *o, int64_t panel, int64_t m0, int rows) {
  const int columns = o->epilogue == EPILOGUE_SWIGLU ? 16 : 32;
  for (int m = 0; m < rows; m++) {
    const float *dst = o->dst + (m0 + m) * o->ld + panel * columns;
    __builtin_prefetch(dst, 1);
    __builtin_prefetch(dst + columns - 1, 1);
  }
}

/* A full panel that is stored as it is. */
INLINE int nb_is_plain(const nb_output *o, const nb_weight *w, int64_t panel) {
  return o->epilogue == EPILOGUE_STORE && !w->bias && w->n - panel * 32 >= 32;
}

INLINE void nb_emit(const nb_output *o, const nb_weight *w, int64_t panel, int64_t m, vf y0, vf y1) {
  if (w->bias) {
    y0 = v_add(y0, v_load(w->bias + panel * 32));
    y1 = v_add(y1, v_load(w->bias + panel * 32 + 16));
  }
  float *dst = o->dst + m * o->ld;
  if (o->epilogue == EPILOGUE_SWIGLU) {
    dst += panel * 16;
    v_store_upto(dst, v_mul(v_silu(y0), y1), w->n / 2 - panel * 16);
    return;
  }
  dst += panel * 32;
  const int64_t left = w->n - panel * 32;
  if (left >= 32) {
    if (o->epilogue == EPILOGUE_ADD) {
      y0 = v_add(v_load(dst), y0);
      y1 = v_add(v_load(dst + 16), y1);
    }
    v_store(dst, y0);
    v_store(dst + 16, y1);
    return;
  }
  if (o->epilogue == EPILOGUE_ADD) y0 = v_add(v_load_upto(dst, left), y0);
  v_store_upto(dst, y0, left);
  if (left > 16) {
    if (o->epilogue == EPILOGUE_ADD) y1 = v_add(v_load_n(dst + 16, (int)left - 16), y1);
    v_store_n(dst + 16, y1, (int)left - 16);
  }
}

#endif
