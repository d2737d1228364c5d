/* Checks a program once, so that ops may trust every place and size in it (docs/engine.md, section 2). */
#ifndef NIBBLE_VALIDATE_H
#define NIBBLE_VALIDATE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Returns 1 when the program of `count` words may run on an arena of `arena_bytes` with `threads` threads. Otherwise
 * 0, the index of the offending word in *word, and one line about it in `message`.
 */
int nb_validate(const int32_t *words, int64_t count, int64_t arena_bytes, int threads, int64_t *word, char *message,
                size_t size);

#endif
