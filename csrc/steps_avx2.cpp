// The step kernels for AVX2 with FMA.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(8)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

constexpr int kTile = 2, kTogether = 2;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_avx2 = LD_STEPS(avx2);
