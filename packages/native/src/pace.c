#include "pace.h"

void nb_pace_init(nb_pace *p, int threads) { *p = (nb_pace){.threads = threads, .active = threads, .hold = PACE_HOLD}; }

/* One thread for every processor's worth of lost time, at least one. */
static int fewer(const nb_pace *p, int64_t wall, int64_t total) {
  const int64_t drop = total > wall ? total / wall : 1;
  return drop < p->active ? p->active - (int)drop : 1;
}

int nb_pace_decide(nb_pace *p, int64_t now, int64_t wall, int64_t worst, int64_t total) {
  if (p->threads == 1 || wall <= 0) return p->active;
  if (p->active > 1 && worst > wall / PACE_LOST) {
    /* A failure soon after the last one: whatever is in the way stays for longer. */
    const int soon = p->raised_at && now - p->raised_at < 4 * p->hold;
    p->hold = soon ? (p->hold < PACE_HOLD_MOST / 2 ? 2 * p->hold : PACE_HOLD_MOST) : PACE_HOLD;
    p->active = p->good ? p->good : fewer(p, wall, total);
    p->good = 0;
    p->retry_at = now + p->hold;
  } else if (p->active < p->threads) {
    if (now < p->retry_at) return p->active;
    p->good = p->active;
    p->active = p->threads;
    p->raised_at = now;
  } else {
    p->good = 0;
  }
  return p->active;
}
