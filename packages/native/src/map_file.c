#define _GNU_SOURCE
#include "map_file.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Shards of all models that are open at once; beyond that files are read. Fixed, because a signal handler walks it. */
#define MAX_MAPS 1024

/* Private and writable, but hardly ever written: no memory has to be set aside. */
#ifdef MAP_NORESERVE
#define MAP_FLAGS (MAP_PRIVATE | MAP_NORESERVE)
#else
#define MAP_FLAGS MAP_PRIVATE
#endif

static nb_map maps[MAX_MAPS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

nb_map *nb_map_around(const void *at) {
  for (int i = 0; i < MAX_MAPS; i++) {
    const uint8_t *base = atomic_load(&maps[i].base);
    if (base && (const uint8_t *)at >= base && (size_t)((const uint8_t *)at - base) < atomic_load(&maps[i].bytes)) return &maps[i];
  }
  return NULL;
}

nb_map *nb_map_at(const void *base) {
  nb_map *map = nb_map_around(base);
  return map && atomic_load(&map->base) == base ? map : NULL;
}

#if defined(__linux__)
static struct sigaction before;

/* mmap is a plain system call on Linux, so it may be used here. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const int saved = errno;
  nb_map *map = nb_map_around(info->si_addr);
  if (map) {
    void *at = (void *)((uintptr_t)info->si_addr / page * page);
    atomic_store(&map->lost, 1);
    if (mmap(at, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at) {
      errno = saved;
      return;
    }
  }
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else {
    signal(SIGBUS, SIG_DFL); /* the access is repeated and ends the process */
  }
}

static void watch(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

static void watch_once(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch);
}
#else
static void watch_once(void) {}
#endif

static nb_map *refuse(const char **code, const char **why, const char *c, const char *w) {
  *code = c;
  *why = w;
  return NULL;
}

/* An open regular file of this size that is not empty, or -1. */
static int open_sized(const char *path, int64_t bytes, const char **code, const char **why) {
  struct stat facts;
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    refuse(code, why, "open", strerror(errno));
    return -1;
  }
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    refuse(code, why, "file", "not a regular file");
  } else if (facts.st_size == 0) {
    refuse(code, why, "empty", "an empty file cannot be mapped");
  } else if (facts.st_size != bytes) {
    refuse(code, why, "changed", "the file has another size");
  } else {
    return file;
  }
  close(file);
  return -1;
}

static int keeps_size(int file, int64_t bytes) {
  struct stat facts;
  return fstat(file, &facts) == 0 && facts.st_size == bytes;
}

/* Enters a mapping into the table; NULL when it is full. */
static nb_map *record(uint8_t *base, size_t bytes) {
  nb_map *found = NULL;
  watch_once();
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_MAPS && !found; i++) {
    if (atomic_load(&maps[i].base)) continue;
    found = &maps[i];
    atomic_store(&found->lost, 0);
    atomic_store(&found->bytes, bytes);
    atomic_store(&found->base, base);
  }
  pthread_mutex_unlock(&lock);
  return found;
}

nb_map *nb_map_file(const char *path, int64_t bytes, const char **code, const char **why) {
  const int file = open_sized(path, bytes, code, why);
  if (file < 0) return NULL;
  void *base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_FLAGS, file, 0);
  const int same = base != MAP_FAILED && keeps_size(file, bytes);
  close(file);
  if (base == MAP_FAILED) return refuse(code, why, "memory", "the system does not map a file of this size");
  nb_map *map = same ? record(base, (size_t)bytes) : NULL;
  if (map) return map;
  munmap(base, (size_t)bytes);
  if (!same) return refuse(code, why, "changed", "the file changed its size while it was opened");
  return refuse(code, why, "memory", "too many files are mapped");
}

nb_map *nb_map_over(uint8_t *target, const char *path, int64_t file_bytes, int64_t offset, int64_t bytes, const char **code,
                    const char **why) {
  const int file = open_sized(path, file_bytes, code, why);
  if (file < 0) return NULL;
  nb_map *map = record(target, (size_t)bytes);
  void *at = MAP_FAILED;
  if (map) at = mmap(target, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_FLAGS | MAP_FIXED, file, (off_t)offset);
  const int same = keeps_size(file, file_bytes);
  close(file);
  if (!map) return refuse(code, why, "memory", "too many files are mapped");
  /* A file that shrinks from here on is noticed when its missing pages are read. */
  if (!same) atomic_store(&map->lost, 1);
  if (at != MAP_FAILED) return map;
  nb_map_forget(map);
  return refuse(code, why, "memory", "the system does not map a file of this size");
}

void nb_map_forget(nb_map *map) {
  pthread_mutex_lock(&lock);
  atomic_store(&map->base, NULL);
  pthread_mutex_unlock(&lock);
}

void nb_map_drop(nb_map *map) {
  /* Of a private file mapping this takes unchanged pages away; on macOS it is a hint. */
  madvise(atomic_load(&map->base), atomic_load(&map->bytes), MADV_DONTNEED);
}

void nb_map_populate(const void *from, size_t bytes) {
#if defined(__linux__)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older ones answer EINVAL and pages come one fault after the other */
#endif
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)from / page * page;
  madvise((void *)start, (uintptr_t)from + bytes - start, MADV_POPULATE_READ);
#else
  (void)from;
  (void)bytes;
#endif
}

void nb_map_free(nb_map *map) {
  uint8_t *base = atomic_load(&map->base);
  const size_t bytes = atomic_load(&map->bytes);
  nb_map_forget(map); /* first: from then on the same addresses may belong to something else */
  munmap(base, bytes);
}

uint64_t nb_checksum(const uint8_t *at, int64_t bytes) {
  uint64_t lanes[8];
  for (int i = 0; i < 8; i++) lanes[i] = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
  for (int64_t done = 0; done + 64 <= bytes; done += 64) {
    uint64_t words[8];
    memcpy(words, at + done, 64);
    for (int i = 0; i < 8; i++) {
      const uint64_t x = lanes[i] ^ words[i];
      lanes[i] = (x << 29 | x >> 35) * 0xff51afd7ed558ccdu;
    }
  }
  uint64_t sum = (uint64_t)bytes;
  for (int i = 0; i < 8; i++) {
    sum = (sum ^ lanes[i]) * 0xc4ceb9fe1a85ec53u;
    sum ^= sum >> 32;
  }
  return sum;
}
