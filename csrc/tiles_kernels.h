// What each instruction set provides of the search for masks.
#ifndef LOWDIM_TILES_KERNELS_H
#define LOWDIM_TILES_KERNELS_H

#include "tiles.h"

struct ld_tiling {
  int64_t cols;
  const float *weight;
  uint8_t *mask;
  int32_t *status;
};

// Rows 4 begin .. 4 end - 1.
typedef void (*ld_tiles_some)(const ld_tiling *work, int64_t begin, int64_t end);

extern "C" const ld_tiles_some ld_tiles_avx2;
extern "C" const ld_tiles_some ld_tiles_portable;

#endif
