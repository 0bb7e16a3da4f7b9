// The kernels of sparse training for AVX2.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(8)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

LD_INLINE Floats low(Floats a, Floats b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
LD_INLINE Floats high(Floats a, Floats b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

LD_INLINE uint32_t reaching(Floats v, float least) {
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(size, _mm256_set1_ps(least), _CMP_NLT_UQ)));
}

constexpr int kTopVectors = 2;

}  // namespace

#include "train_body.h"

extern "C" const ld_train ld_train_avx2 = LD_TRAIN(avx2);
