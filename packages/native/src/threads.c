/*
 * Spin, yield, sleep. Inside a run a barrier costs a few hundred nanoseconds while every thread has a core of its own;
 * when one is late (another process, more threads than cores) the others first yield and then sleep, so that
 * a busy machine slows us down in proportion and no more. Between runs the workers spin for a moment, then sleep.
 *
 * Elastic: threads 0..active-1 work, the others are parked. pace.c decides from the processor time of the threads; the last
 * thread at the barrier after an op puts it into effect, while everybody else waits there. Results never depend on it.
 */
#include "threads.h"
#include "pace.h"
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
#define LOOK_PHASES 7    /* the clock is read after every eighth op */

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

/* What a team keeps of one thread. */
typedef struct {
  _Alignas(128) _Atomic int64_t slept; /* ns asleep at barriers until they opened */
  _Atomic int64_t asleep_since;        /* 0: awake */
  int64_t slept_before, cpu_before;    /* when the present stretch began */
  int64_t lost;                        /* in this window */
  _Atomic uint32_t admitted;           /* times called to work */
} member;

struct nb_team {
  int threads, started;
  int active; /* threads of the present op; changes at barriers after an op and between runs */
  const nb_kernels *kernels;
  uint8_t *arena;
  int64_t arena_bytes, spin;
  pthread_t *handles;
  nb_ctx *contexts;
  member *members;
  const int32_t *resume;     /* where admitted workers begin */
  void (*task)(void *, int); /* of nb_team_call, else NULL */
  void *task_arg;
  nb_pace pace;
  int64_t stretch, wall; /* when the present stretch of the window began; its length before that */
  int32_t *schedule;     /* of nb_team_schedule, else NULL */
  int64_t schedule_count, schedule_at;
  _Atomic int quit;
  int stop; /* written by the last thread at a barrier, read after it */
  _Alignas(128) _Atomic uint32_t phase; /* barriers passed */
  _Atomic uint32_t sleepers;
  _Atomic int64_t opened; /* when the last barrier with sleepers opened */
  _Alignas(128) _Atomic uint32_t arrived;
  _Alignas(128) _Atomic int64_t next; /* pieces of work given out */
  _Alignas(128) _Atomic uint32_t run; /* calls to work */
  _Atomic uint32_t idle;              /* workers asleep between runs */
  _Atomic uint32_t parked;            /* workers that have left a run, or were not called to it */
};

/* Waits until *word differs from seen: spin for `spin` ns, yield until `yield` ns, then sleep. True when it slept. */
static int wait_change(_Atomic uint32_t *word, uint32_t seen, int64_t spin, int64_t yield, _Atomic uint32_t *sleepers,
                       _Atomic int64_t *since) {
  for (int i = 0; i < 64; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != seen) return 0;
    nb_pause();
  }
  const int64_t start = nb_now();
  int64_t now = start;
  for (;;) {
    for (int i = 0; i < 16; i++) {
      if (atomic_load_explicit(word, memory_order_acquire) != seen) return 0;
      nb_pause();
    }
    now = nb_now();
    if (now - start > yield) break;
    if (now - start > spin) sched_yield();
  }
  if (since) atomic_store_explicit(since, now, memory_order_relaxed);
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == seen) nb_wait(word, seen);
  atomic_fetch_sub(sleepers, 1);
  return 1;
}

/* ---- who works ---- */

/* Processor time of a thread, ns; negative where the system does not tell. */
static int64_t cpu_time(pthread_t thread) {
#if defined(__APPLE__)
  (void)thread;
#else
  clockid_t clock;
  struct timespec t;
  if (!pthread_getcpuclockid(thread, &clock) && !clock_gettime(clock, &t)) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
  }
#endif
  return -1;
}

static int64_t slept(const member *m, int64_t now) {
  const int64_t since = atomic_load_explicit(&m->asleep_since, memory_order_relaxed);
  return atomic_load_explicit(&m->slept, memory_order_relaxed) + (since ? now - since : 0);
}

/* Begins a stretch: part of a run with the same threads. */
static void open_stretch(nb_team *t, int64_t now) {
  t->stretch = now;
  for (int i = 0; i < t->active; i++) {
    t->members[i].cpu_before = cpu_time(t->handles[i]);
    t->members[i].slept_before = slept(&t->members[i], now);
  }
}

/* Ends it: what a thread neither ran nor slept it lost. */
static void close_stretch(nb_team *t, int64_t now) {
  const int64_t wall = now - t->stretch;
  t->wall += wall;
  for (int i = 0; i < t->active; i++) {
    member *m = &t->members[i];
    const int64_t cpu = cpu_time(t->handles[i]);
    if (cpu < 0) continue;
    m->lost += nb_max(0, wall - (cpu - m->cpu_before) - (slept(m, now) - m->slept_before));
  }
}

/* How many threads should work; called between two stretches. */
static int decide(nb_team *t, int64_t now) {
  if (t->schedule) {
    const int64_t wanted = t->schedule[t->schedule_at++ % t->schedule_count];
    return (int)nb_max(1, nb_min(wanted, t->threads));
  }
  int64_t worst = 0, total = 0;
  for (int i = 0; i < t->active; i++) {
    worst = nb_max(worst, t->members[i].lost);
    total += t->members[i].lost;
  }
  if (t->wall < PACE_WINDOW && worst <= PACE_WINDOW / PACE_LOST) return t->pace.active;
  nb_pace_decide(&t->pace, now, t->wall, worst, total);
  t->wall = 0;
  for (int i = 0; i < t->threads; i++) t->members[i].lost = 0;
  return t->pace.active;
}

/* True when nobody who left is still on the way out: only then may `active` grow. */
static int all_parked(nb_team *t) { return atomic_load(&t->parked) == (uint32_t)(t->threads - t->active); }

/* While all who work wait. Those on the way out still look at their own context, which is left alone. */
static void set_active(nb_team *t, int active) {
  const int touched = active > t->active ? active : t->active;
  t->active = active;
  for (int i = 0; i < touched; i++) t->contexts[i].threads = active;
}

/* Calls workers from..to-1. */
static void admit(nb_team *t, int from, int to) {
  if (from >= to) return;
  for (int i = from; i < to; i++) atomic_fetch_add(&t->members[i].admitted, 1);
  atomic_fetch_add(&t->run, 1);
  if (atomic_load(&t->idle)) nb_wake(&t->run);
}

/* ---- barriers ---- */

static void release(nb_team *t, uint32_t phase) {
  if (atomic_load(&t->sleepers)) atomic_store(&t->opened, nb_now());
  atomic_store(&t->phase, phase + 1);
  if (atomic_load(&t->sleepers)) nb_wake(&t->phase);
}

/*
 * Waits for the others. True for the last one, who then does what only one may do and calls release(); false for the
 * others when that has happened.
 */
static int arrive(nb_ctx *c, uint32_t *phase) {
  nb_team *t = c->team;
  member *m = &t->members[c->thread];
  *phase = atomic_load_explicit(&t->phase, memory_order_relaxed);
  const uint32_t active = (uint32_t)t->active; /* the last one may change it as soon as this thread is counted */
  if (active == 1 || atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == active) {
    _Atomic int32_t *status = (_Atomic int32_t *)c->arena + STATUS_WORD;
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    t->stop = atomic_load_explicit(status, memory_order_relaxed) != 0;
    return 1;
  }
  if (wait_change(&t->phase, *phase, t->spin, YIELD_NS, &t->sleepers, &m->asleep_since)) {
    const int64_t since = atomic_exchange(&m->asleep_since, 0);
    atomic_fetch_add(&m->slept, nb_max(0, atomic_load(&t->opened) - since));
  }
  return 0;
}

void nb_barrier(nb_ctx *c) {
  uint32_t phase;
  if (arrive(c, &phase)) release(c->team, phase);
}

/* The barrier after an op: other threads may do the next one, which is at `next`. False when this thread is not among them. */
static int op_barrier(nb_ctx *c, const int32_t *next) {
  nb_team *t = c->team;
  uint32_t phase;
  if (!arrive(c, &phase)) return c->thread < c->threads;
  if (t->threads == 1) return 1;
  int from = t->active, to = from; /* workers to call */
  if (!t->stop && *next && (t->schedule || (phase & LOOK_PHASES) == 0)) {
    const int64_t now = nb_now();
    if (t->schedule || now - t->stretch >= PACE_LOOK) {
      close_stretch(t, now);
      const int active = decide(t, now);
      if (active < t->active || (active > t->active && all_parked(t))) {
        set_active(t, active);
        if (active > from) atomic_fetch_sub(&t->parked, (uint32_t)(active - from));
        to = active;
        t->resume = next;
      }
      open_stretch(t, now);
    }
  }
  release(t, phase);
  admit(t, from, to); /* after the release: they take the phase they find as the present one */
  return c->thread < c->threads;
}

int64_t nb_next(nb_ctx *c) {
  nb_team *t = c->team;
  if (t->active == 1) {
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

/* Executes from `ins` on. False when this thread was sent away. */
static int execute(nb_ctx *c, const nb_kernels *kernels, const int32_t *ins) {
  for (; ins[0]; ins += ins[1]) {
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
    if (!op_barrier(c, ins + ins[1])) return 0;
    if (nb_stopped(c)) break;
  }
  return 1;
}

/* What one thread does in one run. */
static void work(nb_team *t, int thread) {
  nb_ctx *c = &t->contexts[thread];
  if (t->task) {
    t->task(t->task_arg, thread);
  } else if (!execute(c, t->kernels, t->resume)) {
    atomic_fetch_add(&t->parked, 1);
    return;
  }
  nb_barrier(c);
}

typedef struct { nb_team *team; int thread; } worker_arg;

static void *worker(void *arg) {
  const worker_arg a = *(worker_arg *)arg;
  nb_team *t = a.team;
  member *m = &t->members[a.thread];
  free(arg);
  for (uint32_t done = 0;;) {
    const uint32_t seen = atomic_load(&t->run);
    if (t->quit) return NULL;
    if (atomic_load(&m->admitted) == done) {
      wait_change(&t->run, seen, t->spin ? IDLE_NS : 0, t->spin ? IDLE_NS : 0, &t->idle, NULL);
      continue;
    }
    done++;
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
  if (posix_memalign((void **)&t->members, 128, (size_t)threads * sizeof *t->members)) t->members = NULL;
  if (t->members) memset(t->members, 0, (size_t)threads * sizeof *t->members);
  t->active = threads;
  nb_pace_init(&t->pace, threads);
  t->started = 1;
  for (int i = 1; i < threads && t->handles && t->contexts && t->members; i++) {
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
  if (t->started != threads || !t->handles || !t->contexts || !t->members) {
    nb_team_destroy(t);
    return NULL;
  }
  return t;
}

/* Between two runs. */
static void start(nb_team *t, int active) {
  if (active > t->active && !all_parked(t)) active = t->active;
  atomic_fetch_add(&t->parked, (uint32_t)(t->active - active)); /* wraps when more work than before */
  set_active(t, active);
  atomic_store_explicit(&t->next, 0, memory_order_relaxed);
  t->stop = 0;
  t->handles[0] = pthread_self(); /* whoever runs the team is thread 0 */
  admit(t, 1, active);
}

/* One run or task on the threads that the pace allows. */
static void measured(nb_team *t) {
  if (t->threads == 1) {
    start(t, 1);
    work(t, 0);
    return;
  }
  start(t, t->schedule ? decide(t, 0) : t->pace.active);
  open_stretch(t, nb_now());
  work(t, 0);
  const int64_t now = nb_now();
  close_stretch(t, now);
  if (!t->schedule) decide(t, now);
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
  t->resume = w + w[H_CODE_START];
  measured(t);
  return *status;
}

void nb_team_call(nb_team *t, void (*task)(void *, int), void *arg) {
  t->task = task;
  t->task_arg = arg;
  while (!all_parked(t)) sched_yield(); /* a task is cut into as many parts as there are threads */
  start(t, t->threads);
  work(t, 0);
  t->task = NULL;
}

void nb_team_share(nb_team *t, void (*task)(void *, int), void *arg) {
  t->task = task;
  t->task_arg = arg;
  measured(t);
  t->task = NULL;
}

int nb_team_schedule(nb_team *t, const int32_t *counts, int64_t count) {
  int32_t *copy = NULL;
  if (count > 0) {
    if (!(copy = malloc((size_t)count * sizeof *copy))) return 0;
    memcpy(copy, counts, (size_t)count * sizeof *copy);
  }
  free(t->schedule);
  t->schedule = copy;
  t->schedule_count = count;
  t->schedule_at = 0;
  return 1;
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
  free(t->members);
  free(t->schedule);
  free(t);
}
