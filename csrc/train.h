/* The C ABI of training with a weight of which only the kept values exist: all in fp32, for one weight [rows, cols] and a batch of
 * activations, dense and row-major. Nothing of size rows * cols is ever held.
 *
 * Every function returns an enum ld_status. Sizes and pointers are checked; the index is trusted: it has to come from
 * ld_sparse_index or ld_sparse_move, or to be equally sound.
 */
#ifndef LOWDIM_TRAIN_H
#define LOWDIM_TRAIN_H

#include "lowdim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ld_sparse {
  int64_t rows, cols;      /* cols < 2^31 */
  const int64_t *row_ptr;  /* [rows + 1]; the last is how many values are kept, < 2^31 */
  const int32_t *col;      /* [kept], ascending within a row */
  const float *values;     /* [kept] */
  int32_t panels;          /* runs of columns, >= 1; run p begins at column cols * p / panels */
  const int32_t *cuts;     /* [panels - 1, rows]: how many of a row's columns lie before run p + 1; NULL if panels == 1 */
} ld_sparse;

/* From flat positions row * cols + col, strictly ascending: row_ptr [rows + 1] and col [count]. */
LD_API int32_t ld_sparse_index(int64_t rows, int64_t cols, const int64_t *positions, int64_t count, int64_t *row_ptr, int32_t *col);

/* How many panels a weight should have, and its cuts. */
LD_API int32_t ld_sparse_panels(int64_t rows, int64_t cols, int64_t kept);
LD_API int32_t ld_sparse_cuts(int64_t rows, int64_t cols, const int64_t *row_ptr, const int32_t *col, int32_t panels, int32_t *cuts);

/* Drop and grow, in one pass. keep [kept]: 0 for what goes. grown [count]: flat positions, strictly ascending, none of which stays.
 * Out: new_row_ptr [rows + 1], and for every value of the new weight its column and which value it was before (-1: none); room for
 * `capacity` values, which must be exactly as many as there are. */
LD_API int32_t ld_sparse_move(int64_t rows, int64_t cols, const int64_t *row_ptr, const int32_t *col, const uint8_t *keep,
                              const int64_t *grown, int64_t count, int64_t *new_row_ptr, int32_t *new_col, int32_t *source,
                              int64_t capacity);

/* y[b, r] = sum_c W[r, c] x[b, c] + bias[r] (bias may be NULL). `threads` >= 1: most threads to use. */
LD_API int32_t ld_sparse_forward(const ld_sparse *w, const float *x, int64_t x_stride, int64_t batch, const float *bias, float *y,
                                 int64_t y_stride, int32_t threads);

/* From g = dL/dy [batch, rows]:
 *   d_values[k] = sum_b g[b, row of k] x[b, col of k]    at the kept positions only
 *   d_x[b, c]   = sum_r g[b, r] W[r, c]
 *   d_bias[r]   = sum_b g[b, r]
 * Any of the three may be NULL; x may be NULL where d_values is. */
LD_API int32_t ld_sparse_backward(const ld_sparse *w, const float *x, int64_t x_stride, const float *g, int64_t g_stride,
                                  int64_t batch, float *d_values, float *d_x, int64_t d_x_stride, float *d_bias, int32_t threads);

/* The `count` flat positions with the largest |dL/dW|, dL/dW[r, c] = sum_b g[b, r] x[b, c], that are not among `excluded` (strictly
 * ascending), into `top`, ascending; of equal gradients the lowest position wins. The gradient is computed in tiles and never held.
 * LD_BAD_ARGUMENT where fewer than `count` positions are free, LD_NOT_A_NUMBER where a gradient to be compared is NaN. */
LD_API int32_t ld_sparse_top(int64_t rows, int64_t cols, const float *x, int64_t x_stride, const float *g, int64_t g_stride,
                             int64_t batch, const int64_t *excluded, int64_t excluded_count, int64_t count, int64_t *top,
                             int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
