/*
 * The thread team under ThreadSanitizer: runs of a program whose op meets at a barrier of its own and shares work by tickets,
 * while the number of threads changes after every op. Every piece must be done once by whoever is there. Exit code 1 when
 * one was not; the sanitizer reports races. scripts/sanitize.mjs builds and runs it.
 */
#include <stdio.h>
#include <stdlib.h>
#include "../src/threads.h"

#define PIECES 64
#define OPS 53
#define RUNS 150
#define THREADS 4

/* One piece a cache line. */
static int64_t done[PIECES][8];

static void op(nb_ctx *c, const int32_t *ins) {
  (void)ins;
  int64_t i, end;
  nb_share(c, PIECES, &i, &end);
  for (; i < end; i++) done[i][0]++;
  nb_barrier(c);
  while ((i = nb_next(c)) < PIECES) done[i][0]++;
}

static void task(void *arg, int thread) { ((int64_t(*)[8])arg)[thread][0]++; }

static _Atomic int shared;
static void share(void *arg, int thread) {
  (void)arg, (void)thread;
  for (int i = shared++; i < PIECES; i = shared++) done[i][0]++;
}

int main(void) {
  static const int32_t schedules[][8] = {{4, 1, 3, 2, 4, 4, 1, 2}, {1, 4, 1, 4, 1, 4, 1, 4}, {4, 4, 4, 4, 4, 4, 4, 4},
                                         {3, 4, 2, 1, 4, 1, 1, 4}, {0}};
  static int32_t words[64 + 4 * OPS + 1];
  static nb_kernels kernels = {.name = "stress", .ops = {[OP_ADD] = op}};
  int32_t *arena = calloc(1, 1 << 16);
  if (!arena) return 1;
  arena[0] = 1; /* rows */
  words[H_CODE_START] = 64;
  words[H_MAX_ROWS] = words[H_MAX_LOGIT_ROWS] = 1;
  words[H_ARENA_LINES] = 1024;
  for (int i = 0; i < OPS; i++) words[64 + 4 * i] = OP_ADD, words[64 + 4 * i + 1] = 4;
  const nb_program program = {words, 64 + 4 * OPS + 1};
  int64_t runs = 0, tasks = 0;
  for (size_t s = 0; s < sizeof schedules / sizeof *schedules; s++) {
    nb_team *team = nb_team_create((uint8_t *)arena, 1 << 16, THREADS, &kernels);
    if (!team || !nb_team_schedule(team, schedules[s], schedules[s][0] ? 8 : 0)) return 1;
    for (int i = 0; i < RUNS; i++) {
      if (nb_team_run(team, &program)) return 1;
      runs++;
      if (i % 7) continue;
      nb_team_call(team, task, done);
      tasks++;
      shared = 0;
      nb_team_share(team, share, NULL);
    }
    nb_team_destroy(team);
  }
  free(arena);
  for (int i = 0; i < PIECES; i++) {
    const int64_t expected = runs * OPS * 2 + tasks + (i < THREADS ? tasks : 0);
    if (done[i][0] == expected) continue;
    printf("piece %d was done %lld times, expected %lld\n", i, (long long)done[i][0], (long long)expected);
    return 1;
  }
  return 0;
}
