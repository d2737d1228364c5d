/*
 * How many threads of a team work. Pure arithmetic on what was measured, so that it can be tested without a clock.
 *
 * Threads of a run meet after every op; when one waits for a processor that something else uses, all wait for it. The
 * measure is the time a thread wanted to run and did not ("lost"): imbalance between ops does not count, a neighbour does.
 */
#ifndef NIBBLE_PACE_H
#define NIBBLE_PACE_H

#include <stdint.h>

#define PACE_WINDOW 40000000     /* ns of running between two decisions: the system gets time to move a thread first */
#define PACE_LOOK 2000000        /* ns of running between two looks */
#define PACE_HOLD 16000000       /* ns until the full count is tried again, at first */
#define PACE_HOLD_MOST 2000000000 /* … and at most: every failure doubles it */
#define PACE_LOST 8              /* fewer threads when one lost more than 1/8 of a window */

typedef struct nb_pace {
  int threads, active; /* all; those that work */
  int good;            /* what to go back to when trying the full count fails; 0: not trying */
  int64_t hold, retry_at, raised_at;
} nb_pace;

/* Everybody works. */
void nb_pace_init(nb_pace *, int threads);
/*
 * Decides after a window: `now` is a monotonic clock, `wall` the window's length, `worst` what the thread that lost most
 * lost, `total` the sum over the threads that work; ns. Returns how many work from now on.
 */
int nb_pace_decide(nb_pace *, int64_t now, int64_t wall, int64_t worst, int64_t total);

#endif
