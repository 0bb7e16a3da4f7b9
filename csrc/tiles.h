/* The C ABI of masks that are 2:4 along the rows and along the columns of a matrix. */
#ifndef LOWDIM_TILES_H
#define LOWDIM_TILES_H

#include "lowdim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of the 90 masks of every 4 x 4 tile with two ones in each row and column, the one under which the largest sum of magnitudes lies, the
 * first of equal ones in the order of its rows (pairs of columns 01, 02, 03, 12, 13, 23). A sum is ((a + b) + (c + d)) + ((e + f) + (g + h)),
 * row after row. `weight`: fp32 [rows, cols], row-major, 4 divides both; `mask`: 0 or 1, the same shape. LD_NOT_A_NUMBER: there is NaN among
 * them; the mask is then undefined. */
LD_API int32_t ld_tiles(int64_t rows, int64_t cols, const float *weight, uint8_t *mask, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
