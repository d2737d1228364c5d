/* The thread team of an engine: workers that sleep between runs and meet at barriers during one. */
#ifndef NIBBLE_THREADS_H
#define NIBBLE_THREADS_H

#include "kernels.h"

typedef struct nb_program {
  int32_t *words;
  int64_t count;
} nb_program;

typedef struct nb_team nb_team;

/* A team of `threads` over an arena; NULL when threads cannot be started. */
nb_team *nb_team_create(uint8_t *arena, int64_t arena_bytes, int threads, const nb_kernels *kernels);
/* Runs a validated program on all threads; the caller is thread 0. Returns the status word. One caller at a time. */
int32_t nb_team_run(nb_team *, const nb_program *);
/*
 * Fixes how many threads work: counts[0] from the start of the next run, then one count after every op, around and around
 * (tests). count 0: the team decides by itself again. False when memory is out.
 */
int nb_team_schedule(nb_team *, const int32_t *counts, int64_t count);
/* Ends and joins the workers. */
void nb_team_destroy(nb_team *);

/* Runs `task(arg, thread)` on all threads (benches). */
void nb_team_call(nb_team *, void (*task)(void *arg, int thread), void *arg);
/* Runs it on as many threads as the machine has room for: a task that shares its work by itself. */
void nb_team_share(nb_team *, void (*task)(void *arg, int thread), void *arg);

/* Sleep until *word differs from `seen`; wake everybody who sleeps on it. */
void nb_wait(_Atomic uint32_t *word, uint32_t seen);
void nb_wake(_Atomic uint32_t *word);
/* Monotonic nanoseconds. */
int64_t nb_now(void);
/* One pause of a spin loop. */
static inline void nb_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif
