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

}  // namespace
#endif

namespace {

constexpr uint64_t kOne = 1, kLow = 0xFFFFFFFF;

uint64_t range_of(uint64_t first, uint64_t stop) { return stop << 32 | first; }

}  // namespace

void ld_share_begin(ld_share *share, int32_t threads, int64_t chunks) {
  share->threads = threads;
  for (int32_t t = 0; t < threads; ++t)
    share->part[t].range = range_of(static_cast<uint64_t>(chunks * t / threads), static_cast<uint64_t>(chunks * (t + 1) / threads));
}

int64_t ld_share_next(ld_share *share, int32_t thread) {
  for (int32_t i = 0; i < share->threads; ++i) {
    const int32_t from = (thread + i) % share->threads;
    uint64_t *const range = &share->part[from].range;
    uint64_t seen = __atomic_load_n(range, __ATOMIC_RELAXED);
    while ((seen & kLow) < seen >> 32) {
      const uint64_t left = i ? seen - (kOne << 32) : seen + 1;
      if (__atomic_compare_exchange_n(range, &seen, left, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return static_cast<int64_t>(i ? left >> 32 : seen & kLow);
    }
  }
  return -1;
}

void ld_parallel(int32_t threads, int64_t total, int64_t chunk, ld_work work, void *context) {
  if (total <= 0) return;
  if (chunk < 1) chunk = 1;
  const int64_t chunks = total / chunk + (total % chunk != 0);
  if (threads > chunks) threads = static_cast<int32_t>(chunks);
  if (threads > LD_MAX_THREADS) threads = LD_MAX_THREADS;
#if defined(_OPENMP)
  if (threads > 1 && chunks <= static_cast<int64_t>(kLow) && pool_usable()) {
    ld_share share;
    ld_share_begin(&share, threads, chunks);
#pragma omp parallel num_threads(threads)
    for (int64_t mine; (mine = ld_share_next(&share, omp_get_thread_num())) >= 0;) {
      const int64_t begin = mine * chunk;
      work(context, begin, total - begin < chunk ? total : begin + chunk);
    }
    return;
  }
#endif
  work(context, 0, total);
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
