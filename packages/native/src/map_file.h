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
/*
 * Maps `bytes` bytes from `offset` of a regular file of `file_bytes` bytes over memory at `target` that is mapped already; all
 * are multiples of MAP_GRAIN. The same codes. nb_map_forget ends the record and leaves the memory to its owner.
 */
#define MAP_GRAIN ((int64_t)1 << 16) /* at least a page everywhere */
nb_map *nb_map_over(uint8_t *target, const char *path, int64_t file_bytes, int64_t offset, int64_t bytes, const char **code,
                    const char **why);
void nb_map_forget(nb_map *);
/* The mapping that begins at `base`, or the one that `at` lies in; NULL when there is none. */
nb_map *nb_map_at(const void *base);
nb_map *nb_map_around(const void *at);
/* Takes the pages out of this process; the page cache keeps them. */
void nb_map_drop(nb_map *);
/* Brings the pages of a range in with one call, where the system can. */
void nb_map_populate(const void *from, size_t bytes);
void nb_map_free(nb_map *);
/*
 * A sum that tells damaged bytes from whole ones (not a cryptographic one), at memory speed; bytes is a multiple of 64. Every
 * step is a bijection of the lane and of the word, so one wrong word always shows.
 */
uint64_t nb_checksum(const uint8_t *at, int64_t bytes);

#endif
