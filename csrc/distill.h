/* The C ABI of distillation: losses of rows of logits, and their gradients in the place of the logits. */
#ifndef LOWDIM_DISTILL_H
#define LOWDIM_DISTILL_H

#include "lowdim.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LD_NO_LABEL (-100)

typedef struct ld_logits {
  int32_t kind;   /* LD_FP32 or LD_BF16 */
  void *values;   /* [rows, words] */
  int64_t stride; /* elements from one row to the next, >= words */
} ld_logits;

/* With q, s = softmax(Q / T), softmax(S / T), for every row
 *   kl[r] = sum_v q_v (log q_v - log s_v), where q_v = 0 adds nothing
 *   ce[r] = -log softmax(S)_label, or 0 where labels[r] is LD_NO_LABEL
 *   S    <- d (kl_weight T^2 kl[r] + ce_weight ce[r]) / d S, in S's own kind
 * `teacher` NULL: kl[r] is 0; `labels` NULL: ce[r] is. A row with NaN or infinity among its logits gives NaN, but for S or Q of -inf,
 * which is a probability of 0. Q is only read. */
LD_API int32_t ld_divergence(int64_t rows, int64_t words, const ld_logits *student, const ld_logits *teacher, const int64_t *labels,
                             float temperature, float kl_weight, float ce_weight, float *kl, float *ce, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
