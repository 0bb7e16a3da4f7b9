// Work in dynamic chunks over the threads that OpenMP keeps.

#include "kernels.h"

#if defined(_OPENMP)
#include <pthread.h>

namespace {

// The child of a fork has none of the pool's threads, and OpenMP would wait for them for ever.
int pool_lost = 0;

void lose_pool() { __atomic_store_n(&pool_lost, 1, __ATOMIC_RELAXED); }

bool pool_usable() {
  static const int watched = pthread_atfork(nullptr, nullptr, lose_pool);
  return watched == 0 && !__atomic_load_n(&pool_lost, __ATOMIC_RELAXED);
}

}  // namespace
#endif

void ld_parallel(int32_t threads, int64_t total, int64_t chunk, ld_work work, void *context) {
  if (total <= 0) return;
  if (chunk < 1) chunk = 1;
  const int64_t chunks = total / chunk + (total % chunk != 0);
  if (threads > chunks) threads = static_cast<int32_t>(chunks);
#if defined(_OPENMP)
  if (threads > 1 && pool_usable()) {
    int64_t next = 0;
#pragma omp parallel num_threads(threads)
    for (;;) {
      const int64_t mine = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (mine >= chunks) break;
      const int64_t begin = mine * chunk;
      work(context, begin, total - begin < chunk ? total : begin + chunk);
    }
    return;
  }
#endif
  for (int64_t begin = 0; begin < total; begin += chunk)
    work(context, begin, total - begin < chunk ? total : begin + chunk);
}
