/*
 * Spin, yield, sleep. Inside a run a barrier costs a few hundred nanoseconds while every thread has a core of its own;
 * when one is late (another process, more threads than cores) the others first yield and then sleep, so that
 * a busy machine slows us down in proportion and no more. Between runs the workers spin for a moment, then sleep.
 */
#include "threads.h"
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#define SPIN_NS 60000   /* pause loops */
#define YIELD_NS 300000 /* then sched_yield, then sleep: an idle core can take over the late thread */
#define IDLE_NS 50000    /* workers between runs */

int64_t nb_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if defined(__linux__)
void nb_wait(_Atomic uint32_t *word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
void nb_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0); }
#else
/* No futex: one lock for all words; a wake-up is broadcast to every sleeper, who looks again. */
static pthread_mutex_t wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_condition = PTHREAD_COND_INITIALIZER;
void nb_wait(_Atomic uint32_t *word, uint32_t seen) {
  pthread_mutex_lock(&wait_lock);
  while (atomic_load(word) == seen) pthread_cond_wait(&wait_condition, &wait_lock);
  pthread_mutex_unlock(&wait_lock);
}
void nb_wake(_Atomic uint32_t *word) {
  (void)word;
  pthread_mutex_lock(&wait_lock);
  pthread_cond_broadcast(&wait_condition);
  pthread_mutex_unlock(&wait_lock);
}
#endif

struct nb_team {
  int threads, started;
  const nb_kernels *kernels;
  uint8_t *arena;
  int64_t arena_bytes, spin;
  pthread_t *handles;
  nb_ctx *contexts;
  void (*task)(void *, int); /* of nb_team_call, else NULL */
  void *task_arg;
  int quit;
  int stop; /* written by the last thread at a barrier, read after it */
  _Alignas(128) _Atomic uint32_t phase; /* barriers passed */
  _Atomic uint32_t sleepers;
  _Alignas(128) _Atomic uint32_t arrived;
  _Alignas(128) _Atomic int64_t next; /* pieces of work given out */
  _Alignas(128) _Atomic uint32_t run; /* runs started */
  _Atomic uint32_t idle;              /* workers asleep between runs */
};

/* Waits until *word differs from seen: spin for `spin` ns, yield until `yield` ns, then sleep. */
static void wait_change(_Atomic uint32_t *word, uint32_t seen, int64_t spin, int64_t yield, _Atomic uint32_t *sleepers) {
  for (int i = 0; i < 64; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
    nb_pause();
  }
  const int64_t start = nb_now();
  for (;;) {
    for (int i = 0; i < 16; i++) {
      if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
      nb_pause();
    }
    const int64_t waited = nb_now() - start;
    if (waited > yield) break;
    if (waited > spin) sched_yield();
  }
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == seen) nb_wait(word, seen);
  atomic_fetch_sub(sleepers, 1);
}

void nb_barrier(nb_ctx *c) {
  nb_team *t = c->team;
  _Atomic int32_t *status = (_Atomic int32_t *)c->arena + STATUS_WORD;
  const uint32_t phase = atomic_load_explicit(&t->phase, memory_order_relaxed);
  if (t->threads == 1 || atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)t->threads) {
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    t->stop = atomic_load_explicit(status, memory_order_relaxed) != 0;
    if (t->threads == 1) return;
    atomic_store(&t->phase, phase + 1);
    if (atomic_load(&t->sleepers)) nb_wake(&t->phase);
    return;
  }
  wait_change(&t->phase, phase, t->spin, YIELD_NS, &t->sleepers);
}

int64_t nb_next(nb_ctx *c) {
  nb_team *t = c->team;
  if (t->threads == 1) {
    const int64_t n = atomic_load_explicit(&t->next, memory_order_relaxed);
    atomic_store_explicit(&t->next, n + 1, memory_order_relaxed);
    return n;
  }
  return atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
}

void nb_fail(nb_ctx *c, const int32_t *ins) {
  int32_t expected = 0;
  atomic_compare_exchange_strong((_Atomic int32_t *)c->arena + STATUS_WORD, &expected, (int32_t)(1 + (ins - c->words)));
}

int nb_stopped(nb_ctx *c) { return c->team->stop; }

void nb_execute(nb_ctx *c, const nb_kernels *kernels) {
  for (const int32_t *ins = c->words + c->words[H_CODE_START]; ins[0]; ins += ins[1]) {
    if (ins[0] != OP_INVERSE_FACTOR) {
      const int32_t rows = nb_rows(c, ins);
      if (rows == 0) continue;
      if (rows < 0 || rows > (ins[2] >= 1 && ins[2] <= 15 ? c->max_logit_rows : c->max_rows)) {
        nb_fail(c, ins);
        nb_barrier(c);
        break; /* every thread read the same register */
      }
    }
    kernels->ops[ins[0]](c, ins);
    nb_barrier(c);
    if (nb_stopped(c)) break;
  }
}

/* What one thread does in one run. */
static void work(nb_team *t, int thread) {
  if (t->task) t->task(t->task_arg, thread);
  else nb_execute(&t->contexts[thread], t->kernels);
  nb_barrier(&t->contexts[thread]);
}

typedef struct { nb_team *team; int thread; } worker_arg;

static void *worker(void *arg) {
  const worker_arg a = *(worker_arg *)arg;
  nb_team *t = a.team;
  free(arg);
  uint32_t seen = 0;
  for (;;) {
    wait_change(&t->run, seen, t->spin ? IDLE_NS : 0, t->spin ? IDLE_NS : 0, &t->idle);
    seen++;
    if (t->quit) return NULL;
    work(t, a.thread);
  }
}

nb_team *nb_team_create(uint8_t *arena, int64_t arena_bytes, int threads, const nb_kernels *kernels) {
  nb_team *t;
  if (posix_memalign((void **)&t, 128, sizeof *t)) return NULL;
  memset(t, 0, sizeof *t);
  t->threads = threads;
  t->kernels = kernels;
  t->arena = arena;
  t->arena_bytes = arena_bytes;
  t->spin = sysconf(_SC_NPROCESSORS_ONLN) >= threads ? SPIN_NS : 0;
  t->handles = calloc((size_t)threads, sizeof *t->handles);
  t->contexts = calloc((size_t)threads, sizeof *t->contexts);
  t->started = 1;
  for (int i = 1; i < threads && t->handles && t->contexts; i++) {
    worker_arg *a = malloc(sizeof *a);
    if (!a) break;
    *a = (worker_arg){t, i};
    if (pthread_create(&t->handles[i], NULL, worker, a)) {
      free(a);
      break;
    }
    t->started++;
  }
  for (int i = 0; i < threads && t->contexts; i++) {
    t->contexts[i].team = t;
    t->contexts[i].thread = i;
    t->contexts[i].threads = threads;
    t->contexts[i].arena = arena;
  }
  if (t->started != threads || !t->handles || !t->contexts) {
    nb_team_destroy(t);
    return NULL;
  }
  return t;
}

static void start(nb_team *t) {
  atomic_store_explicit(&t->next, 0, memory_order_relaxed);
  t->stop = 0;
  atomic_fetch_add(&t->run, 1);
  if (atomic_load(&t->idle)) nb_wake(&t->run);
}

int32_t nb_team_run(nb_team *t, const nb_program *p) {
  const int32_t *w = p->words;
  int32_t *status = (int32_t *)t->arena + STATUS_WORD;
  *status = 0;
  t->task = NULL;
  for (int i = 0; i < t->threads; i++) {
    nb_ctx *c = &t->contexts[i];
    c->arena_bytes = (int64_t)w[H_ARENA_LINES] * LINE;
    c->words = w;
    c->weights = w + w[H_WEIGHTS_START];
    c->caches = w + w[H_CACHES_START];
    c->scratch_bytes = (int64_t)w[H_SCRATCH_LINES] * LINE;
    c->scratch = t->arena + (int64_t)w[H_SCRATCH_AT] * LINE + i * c->scratch_bytes;
    c->max_rows = w[H_MAX_ROWS];
    c->max_logit_rows = w[H_MAX_LOGIT_ROWS];
  }
  start(t);
  work(t, 0);
  return *status;
}

void nb_team_call(nb_team *t, void (*task)(void *, int), void *arg) {
  t->task = task;
  t->task_arg = arg;
  start(t);
  work(t, 0);
  t->task = NULL;
}

void nb_team_destroy(nb_team *t) {
  t->quit = 1;
  if (t->started > 1) {
    atomic_fetch_add(&t->run, 1);
    nb_wake(&t->run);
    for (int i = 1; i < t->started; i++) pthread_join(t->handles[i], NULL);
  }
  free(t->handles);
  free(t->contexts);
  free(t);
}
