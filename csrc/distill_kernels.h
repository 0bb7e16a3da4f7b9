/* What every instruction set provides for distillation. Internal. */
#ifndef LOWDIM_DISTILL_KERNELS_H
#define LOWDIM_DISTILL_KERNELS_H

#include "distill.h"

/* The arguments of ld_divergence, checked. */
typedef struct ld_distilling {
  int64_t words;
  ld_logits student, teacher; /* teacher.values may be NULL */
  const int64_t *labels;      /* or NULL */
  float temperature, kl_weight, ce_weight;
  float *kl, *ce;
} ld_distilling;

typedef struct ld_distill {
  const char *name; /* that of the ld_kernels that it goes with */
  void (*rows)(const ld_distilling *d, int64_t begin, int64_t end);
} ld_distill;

#ifdef __cplusplus
extern "C" {
#endif
extern const ld_distill ld_distill_avx512, ld_distill_avx2, ld_distill_portable;
#ifdef __cplusplus
}
#endif
#endif
