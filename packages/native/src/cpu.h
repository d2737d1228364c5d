/* What this processor and operating system can run. */
#ifndef NIBBLE_CPU_H
#define NIBBLE_CPU_H

#include <stddef.h>
#include "kernels.h"

/* Every variant compiled into the addon, best first, those to be asked for last; NULL ends the list. */
typedef struct nb_variant {
  const nb_kernels *kernels;
  int (*runs)(void);   /* the processor has it */
  const char *needs;   /* in words, for notices */
  const char *only;    /* why it runs only when it is asked for, or NULL */
} nb_variant;

const nb_variant *nb_variants(void);
/* The kernels of a variant by name, or NULL when there is none or it does not run here. */
const nb_kernels *nb_find_variant(const char *name);

#endif
