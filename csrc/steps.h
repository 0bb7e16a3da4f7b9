/* What a decode step does between its matrix products, per instruction set; see decode.h. Internal. */
#ifndef LOWDIM_STEPS_H
#define LOWDIM_STEPS_H

#include "decode.h"

/* Attention of some query heads, which share their keys and values, over a stretch of positions. */
typedef struct ld_attend {
  const float *q;     /* [heads, stride], rotated and scaled; zero beyond head_dim */
  int64_t heads, stride;
  int32_t kind;       /* of the cache: LD_FP32, LD_BF16, LD_INT8 or LD_INT4 */
  const void *k, *v;  /* [positions, stride] */
  const uint16_t *k_scales, *v_scales; /* codes: bf16 [positions, scales], of which some after `end` may be read; else NULL */
  int64_t scales;     /* of a row: 0; LD_INT8: 1; LD_INT4: LD_SCALES for each LD_SCALED elements */
  int64_t begin, end; /* positions, at least one */
  float *scores;      /* [heads, LD_STRETCH], for its own use */
  float *sums;        /* [heads, stride]: sum of exp(score - most) v */
  float *most, *mass; /* [heads]: the largest score, and sum of exp(score - most) */
} ld_attend;

#define LD_STRETCH 128 /* positions whose scores are held at a time */
#define LD_SCALED 64   /* elements of a row of LD_INT4 that have */
#define LD_SCALES 8    /* so many scales in turn */
#define LD_BLOCK 64    /* tokens of the vocabulary that are looked at together */

typedef struct ld_steps {
  const char *name; /* that of the ld_kernels that it goes with */
  /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x */
  void (*norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
  /* x[i], x[i + half] turned by angle i */
  void (*rotate)(float *x, const float *cos, const float *sin, int64_t half);
  /* x H / sqrt(size) on each `size` elements, a power of two; H is Sylvester's matrix of signs. Undone by itself. */
  void (*spread)(float *x, int64_t n, int64_t size);
  /* A row into the cache's kind; codes: its scales, else NULL */
  void (*store)(const float *x, int64_t n, int32_t kind, void *out, uint16_t *scales);
  /* And back, all `stride` of its elements */
  void (*read)(const void *row, const uint16_t *scales, int64_t stride, int32_t kind, float *out);
  void (*attend)(const ld_attend *a);
  /* One head from `parts` stretches: sums [parts, apart, stride], most and mass [parts, apart], of which the first in `apart`; out [n] */
  void (*merge)(const float *sums, const float *most, const float *mass, int64_t parts, int64_t apart, int64_t stride, int64_t n,
                float *out);
  /* gate = act(gate) * up */
  void (*activate)(float *gate, const float *up, int64_t n, int32_t activation);
  /* x += scale * y */
  void (*add)(float *x, const float *y, float scale, int64_t n);
  /* out = scores / temperature, and the largest of each LD_BLOCK; returns the largest of all, NaN if there is a NaN */
  float (*scaled)(const float *scores, int64_t n, float temperature, float *out, float *largest);
  /* out = exp(x - most) in multiples of 2^-40, to the nearest; the same on every level. n <= LD_BLOCK. Returns their sum. */
  int64_t (*weights)(const float *x, int64_t n, float most, int64_t *out);
  /* The sum of the weights of any number of tokens; out: of each LD_BLOCK */
  int64_t (*masses)(const float *x, int64_t n, float most, int64_t *out);
} ld_steps;

#ifdef __cplusplus
extern "C" {
#endif
extern const ld_steps ld_steps_avx512, ld_steps_avx2, ld_steps_neon, ld_steps_portable;
/* Those of ld_current(). */
const ld_steps *ld_steps_current(void);
#ifdef __cplusplus
}
#endif
#endif
