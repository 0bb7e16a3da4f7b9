// Work in chunks over the threads that OpenMP keeps.

#include "kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>

namespace {

// The child of a fork has none of the pool's threads, and OpenMP would wait for them for ever.
int pool_lost = 0;

void lose_pool() { __atomic_store_n(&pool_lost, 1, __ATOMIC_RELAXED); }

bool pool_usable() {
  static const int watched = pthread_atfork(nullptr, nullptr, lose_pool);
  return watched == 0 && !__atomic_load_n(&pool_lost, __ATOMIC_RELAXED);
}

constexpr int32_t kMostThreads = 256;

// On a cache line of its own.
struct alignas(64) Counter {
  int64_t value;
};

// The next chunk for `thread`, or -1 when all are taken; taken[threads] begins at zero.
int64_t next_chunk(Counter *taken, int32_t thread, int32_t threads, int64_t chunks) {
  for (int32_t i = 0; i < threads; ++i) {
    const int32_t part = (thread + i) % threads;
    const int64_t first = chunks * part / threads, count = chunks * (part + 1) / threads - first;
    if (__atomic_load_n(&taken[part].value, __ATOMIC_RELAXED) >= count) continue;
    const int64_t mine = __atomic_fetch_add(&taken[part].value, 1, __ATOMIC_RELAXED);
    if (mine < count) return first + mine;
  }
  return -1;
}

}  // namespace
#endif

void ld_parallel(int32_t threads, int64_t total, int64_t chunk, ld_work work, void *context) {
  if (total <= 0) return;
  if (chunk < 1) chunk = 1;
#if defined(_OPENMP)
  const int64_t chunks = total / chunk + (total % chunk != 0);
  if (threads > chunks) threads = static_cast<int32_t>(chunks);
  if (threads > kMostThreads) threads = kMostThreads;
  if (threads > 1 && pool_usable()) {
    Counter taken[kMostThreads];
    for (int32_t t = 0; t < threads; ++t) taken[t].value = 0;
#pragma omp parallel num_threads(threads)
    for (int64_t mine; (mine = next_chunk(taken, omp_get_thread_num(), threads, chunks)) >= 0;) {
      const int64_t begin = mine * chunk;
      work(context, begin, total - begin < chunk ? total : begin + chunk);
    }
    return;
  }
#endif
  (void)threads;
  for (int64_t begin = 0; begin < total; begin += chunk)
    work(context, begin, total - begin < chunk ? total : begin + chunk);
}

void ld_team(int32_t threads, ld_member body, void *context) {
#if defined(_OPENMP)
  if (threads > 1 && pool_usable()) {
#pragma omp parallel num_threads(threads)
    body(context, omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  body(context, 0, 1);
}
