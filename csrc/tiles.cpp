// Masks that are 2:4 along rows and columns: checks, and the split of the work.

#include "tiles_kernels.h"

#include "kernels.h"

#include <cstring>

namespace {

struct Work {
  ld_tiles_some kernel;
  ld_tiling t;
};

ld_tiles_some current() {
#if defined(LD_HAVE_AVX2)  // which every processor of the level avx512 has too
  const char *const name = ld_current()->name;
  if (std::strcmp(name, "avx2") == 0 || std::strcmp(name, "avx512") == 0) return ld_tiles_avx2;
#endif
  return ld_tiles_portable;
}

void some(void *context, int64_t begin, int64_t end) {
  const Work *const work = static_cast<const Work *>(context);
  work->kernel(&work->t, begin, end);
}

}  // namespace

int32_t ld_tiles(int64_t rows, int64_t cols, const float *weight, uint8_t *mask, int32_t threads) {
  int64_t size;
  if (rows < 0 || cols < 0 || rows % 4 || cols % 4 || threads < 1 || __builtin_mul_overflow(rows, cols, &size)) return LD_BAD_ARGUMENT;
  if (size == 0) return LD_OK;
  if (!weight || !mask) return LD_BAD_ARGUMENT;
  int32_t status = LD_OK;
  Work work = {current(), {cols, weight, mask, &status}};
  ld_parallel(threads, rows / 4, 1 + 65536 / cols, some, &work);
  return status;
}
