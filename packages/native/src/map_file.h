/*
 * Files in memory: mappings that the page cache stands behind, so that nothing is copied and what is dropped is read again.
 *
 * A file that somebody cuts short while it is mapped has no bytes behind its last pages, and reading them raises SIGBUS. On
 * Linux such a page is replaced by zeros and the mapping remembers that it is `lost`; whoever read from it asks afterwards
 * and throws. Elsewhere the signal ends the process.
 */
#ifndef NIBBLE_MAP_FILE_H
#define NIBBLE_MAP_FILE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct nb_map {
  _Atomic(uint8_t *) base; /* NULL: free */
  _Atomic size_t bytes;    /* of the file */
  _Atomic int lost;
} nb_map;

/*
 * Maps a whole regular file of exactly `bytes` bytes, privately: writes to the memory do not reach the file. NULL with an
 * error code ("open", "file", "empty", "changed", "memory") and a sentence.
 */
nb_map *nb_map_file(const char *path, int64_t bytes, const char **code, const char **why);
/* The mapping that begins at `base`, or the one that `at` lies in; NULL when there is none. */
nb_map *nb_map_at(const void *base);
nb_map *nb_map_around(const void *at);
/* Takes the pages out of this process; the page cache keeps them. */
void nb_map_drop(nb_map *);
/* Brings the pages of a range in with one call, where the system can. */
void nb_map_populate(const void *from, size_t bytes);
void nb_map_free(nb_map *);

#endif
