/* Statistics of logits, per row: argmax, log-sum-exp, Kullback-Leibler divergence. Sums and exponentials in f64. */
#include <math.h>
#include "kernels.h"
#include "simd.h"

#define BLOCK 64

/* e^x for x <= 0, relative error below 1e-14; 0 below -700. Written so that a loop over it becomes vector code. */
INLINE double exp_negative(double x) {
  const double c = x > -700.0 ? x : -700.0;
  const double shifted = c * 1.4426950408889634 + 0x1.8p52;
  const double n = shifted - 0x1.8p52;
  const double r = (c - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits, power;
  memcpy(&power, &shifted, 8);
  memcpy(&bits, &p, 8);
  bits += (int64_t)((uint64_t)power << 52);
  memcpy(&p, &bits, 8);
  return x > -700.0 ? p : 0.0;
}

static int64_t argmax(const float *x, int64_t n) {
  vf top = v_set(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) top = v_max(v_load(x + i), top);
  float max = v_fold_max(top);
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  for (i = 0; i < n; i++)
    if (x[i] == max) return i;
  return 0;
}

static double log_sum_exp(const float *x, int64_t n, float max) {
  double sums[8] = {0};
  int64_t i = 0;
  for (; i + BLOCK <= n; i += BLOCK) {
    double e[BLOCK];
    for (int l = 0; l < BLOCK; l++) e[l] = exp_negative((double)x[i + l] - (double)max);
    for (int l = 0; l < BLOCK; l++) sums[l & 7] += e[l];
  }
  for (; i < n; i++) sums[i & 7] += exp_negative((double)x[i] - (double)max);
  double sum = 0;
  for (int l = 0; l < 8; l++) sum += sums[l];
  return (double)max + log(sum);
}

NB_OP(logit_stats) {
  const float *logits = nb_at(c, ins[LOGIT_STATS_LOGITS_AT]);
  const int32_t *targets = nb_at(c, ins[LOGIT_STATS_TARGETS_AT]);
  int32_t *dst = nb_at(c, ins[LOGIT_STATS_DST_AT]);
  const int64_t width = ins[LOGIT_STATS_WIDTH];
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const float *x = logits + m * ins[LOGIT_STATS_LD_LOGITS];
    const int64_t best = argmax(x, width);
    const float out[3] = {x[best], (float)log_sum_exp(x, width, x[best]), 0};
    dst[m * 4] = (int32_t)best;
    memcpy(dst + m * 4 + 1, out, 12);
    if (!targets) continue;
    if (targets[m] < 0 || targets[m] >= width) {
      nb_fail(c, ins);
      return;
    }
    memcpy(dst + m * 4 + 3, x + targets[m], 4);
  }
}

NB_OP(kl_divergence) {
  const float *reference = nb_at(c, ins[KL_DIVERGENCE_REFERENCE_AT]), *logits = nb_at(c, ins[KL_DIVERGENCE_LOGITS_AT]);
  float *dst = nb_at(c, ins[KL_DIVERGENCE_DST_AT]);
  const int64_t width = ins[KL_DIVERGENCE_WIDTH];
  int64_t m, end;
  nb_share(c, nb_rows(c, ins), &m, &end);
  for (; m < end; m++) {
    const float *p = reference + m * ins[KL_DIVERGENCE_LD_REFERENCE], *q = logits + m * ins[KL_DIVERGENCE_LD_LOGITS];
    const int64_t best_p = argmax(p, width), best_q = argmax(q, width);
    const double lse_p = log_sum_exp(p, width, p[best_p]), lse_q = log_sum_exp(q, width, q[best_q]);
    double sums[8] = {0}, divergence = 0;
    int64_t i = 0;
    for (; i + BLOCK <= width; i += BLOCK) {
      double e[BLOCK];
      for (int l = 0; l < BLOCK; l++) {
        const double log_p = (double)p[i + l] - lse_p;
        e[l] = exp_negative(log_p) * (log_p - ((double)q[i + l] - lse_q));
      }
      for (int l = 0; l < BLOCK; l++) sums[l & 7] += e[l];
    }
    for (; i < width; i++) {
      const double log_p = (double)p[i] - lse_p;
      sums[i & 7] += exp_negative(log_p) * (log_p - ((double)q[i] - lse_q));
    }
    for (int l = 0; l < 8; l++) divergence += sums[l];
    dst[2 * m] = (float)divergence;
    dst[2 * m + 1] = best_p == best_q ? 1.0f : 0.0f;
  }
}
