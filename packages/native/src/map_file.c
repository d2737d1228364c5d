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

nb_map *nb_map_file(const char *path, int64_t bytes, const char **code, const char **why) {
  struct stat facts, again;
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return refuse(code, why, "open", strerror(errno));
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    close(file);
    return refuse(code, why, "file", "not a regular file");
  }
  if (facts.st_size == 0) {
    close(file);
    return refuse(code, why, "empty", "an empty file cannot be mapped");
  }
  if (facts.st_size != bytes) {
    close(file);
    return refuse(code, why, "changed", "the file has another size");
  }
  void *base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  const int same = base != MAP_FAILED && fstat(file, &again) == 0 && again.st_size == facts.st_size;
  close(file);
  if (base == MAP_FAILED) return refuse(code, why, "memory", "the system does not map a file of this size");
  if (!same) {
    munmap(base, (size_t)bytes);
    return refuse(code, why, "changed", "the file changed its size while it was opened");
  }
  watch_once();
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_MAPS; i++) {
    if (atomic_load(&maps[i].base)) continue;
    atomic_store(&maps[i].lost, 0);
    atomic_store(&maps[i].bytes, (size_t)bytes);
    atomic_store(&maps[i].base, base);
    pthread_mutex_unlock(&lock);
    return &maps[i];
  }
  pthread_mutex_unlock(&lock);
  munmap(base, (size_t)bytes);
  return refuse(code, why, "memory", "too many files are mapped");
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
  /* Given up first: from then on the same addresses may belong to something else. */
  pthread_mutex_lock(&lock);
  atomic_store(&map->base, NULL);
  pthread_mutex_unlock(&lock);
  munmap(base, bytes);
}
