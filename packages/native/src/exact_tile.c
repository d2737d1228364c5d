/* The f32 tiles without fma: see float_tile.c. */
#define EXACT_TILE 1
#include "float_tile.c"
