/* What every instruction set provides for sparse training. Internal.
 *
 * Inside, activations lie feature after feature: [features, width], where `width` holds the samples of a tile of the batch, and zeros
 * beyond them, so that a kept value is one fused multiply-add per vector of samples and nothing is gathered.
 */
#ifndef LOWDIM_TRAIN_KERNELS_H
#define LOWDIM_TRAIN_KERNELS_H

#include "train.h"

#define LD_MOST_WIDTH 128 /* samples of a tile: 1, 2, 4, 8 or a multiple of 16 */
#define LD_TOP_ROWS 6     /* a tile of the dense gradient */
#define LD_TOP_COLS 64

typedef struct ld_train {
  const char *name; /* that of the ld_kernels that it goes with */
  /* out[f, b] = x[b, f] for features [begin, end); zero for b in [batch, width) */
  void (*pack)(const float *x, int64_t x_stride, int64_t batch, int64_t width, int64_t begin, int64_t end, float *out);
  /* y[b, f] = in[f, b] + bias[f] for features [begin, end); bias may be NULL */
  void (*unpack)(const float *in, int64_t batch, int64_t width, int64_t begin, int64_t end, const float *bias, float *y,
                 int64_t y_stride);
  /* sums[f] += sum_b in[f, b] for features [begin, end) */
  void (*sum)(const float *in, int64_t width, int64_t begin, int64_t end, float *sums);
  /* y[r, :] = (add ? y[r, :] : 0) + the sum over the columns of panels [first, last), for rows [begin, end); y begins at row `begin` */
  void (*forward)(const ld_sparse *w, int32_t first, int32_t last, int64_t begin, int64_t end, const float *x, int64_t width, int add,
                  float *y);
  /* d_values[k] = (add ? d_values[k] : 0) + the product of rows of g and x, over the columns of panels [first, last) */
  void (*products)(const ld_sparse *w, int32_t first, int32_t last, const float *x, const float *g, int64_t width, int add,
                   float *d_values);
  /* d_x += W^T g, for the columns of panels [first, last) */
  void (*spread)(const ld_sparse *w, int32_t first, int32_t last, const float *g, int64_t width, float *d_x);
  /* out [LD_TOP_ROWS, LD_TOP_COLS] = the sum over b of g[b, LD_TOP_ROWS] x[b, LD_TOP_COLS] */
  void (*outer)(const float *g, const float *x, int64_t batch, float *out);
  /* Which of v[LD_TOP_COLS] have |v| >= least, or are NaN */
  uint64_t (*reach)(const float *v, float least);
} ld_train;

#ifdef __cplusplus
extern "C" {
#endif
extern const ld_train ld_train_avx512, ld_train_avx2, ld_train_portable;
/* Those of ld_current(), or the portable ones. */
const ld_train *ld_train_current(void);

/* 64-byte aligned memory that stays with the calling thread and grows as needed; NULL where there is none. `which`: 0 to 2. */
void *ld_train_memory(int32_t which, int64_t bytes);
#ifdef __cplusplus
}
#endif
#endif
